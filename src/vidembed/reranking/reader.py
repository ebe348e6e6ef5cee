"""Asking the head: prompts of token ids, one prefill per video, and the log-odds of Yes of each sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from vidembed.backbone import BackboneError, Parts
from vidembed.backbone.answers import Against, AnswerTokens, yes_log_odds
from vidembed.backbone.prefix import (
    VideoPrefix,
    can_share_prefix,
    logits_of,
    no_prefix,
    prefill,
    prefix_length,
    read_suffixes,
)
from vidembed.backbone.visual import model_inputs
from vidembed.encoding.pipeline import InputError, check_context

HEAD_ROWS = 256
"""Rows of logits in float32 at a time: 150 MiB with a vocabulary of 152k (ours)."""

_AGAINST: tuple[Against, Against] = ("vocabulary", "no")


@dataclass(frozen=True)
class VideoPrompt:
    """The features of one video's prompt, and where its sentences begin.

    Attributes:
        features: Of the processor, for the video and an empty sentence.
        tokens: Prompt tokens up to and including the last visual one.
        between: Token ids that the processor itself writes after the last visual token.
    """

    features: dict[str, Any]
    tokens: int
    between: list[int]


class HeadReader:
    """The head of one model, asked by token ids.

    Args:
        parts: Of the full model.
        processor: Whose chat template is the matching prompt.
        answers: Token ids of the answers.
        shared_prefix: Whether each video is prefilled once; False runs one whole pass per sentence.
    """

    def __init__(self, parts: Parts, processor: Any, answers: AnswerTokens, *, shared_prefix: bool) -> None:
        self._parts = parts
        self._processor = processor
        self._answers = answers
        self._suffixes: dict[tuple[str, str | None], list[int]] = {}  # the same sentences are asked of many videos
        self._shared = shared_prefix and can_share_prefix(parts)

    # -- prompts -----------------------------------------------------------------------------------------------------

    def suffix(self, text: str, prompt: str | None) -> list[int]:
        """Token ids of a prompt after its last visual token, as the template alone gives them.

        Raises:
            InputError: The sentence holds the placeholder of a video.
        """
        if (text, prompt) in self._suffixes:
            return self._suffixes[text, prompt]
        mark = str(self._processor.video_token)
        _, found, after = self._render(text, prompt, video=True).partition(mark)
        if not found or mark in after:
            raise InputError(f"the sentence {text[:80]!r} holds the video placeholder {mark!r}.")
        self._suffixes[text, prompt] = self._ids(after)
        return self._suffixes[text, prompt]

    def video_prompt(self, features: dict[str, Any], prompt: str | None) -> VideoPrompt:
        """Find where the sentences of a video's prompt begin.

        Raises:
            BackboneError: The processor does not tokenize the end of a prompt as the tokenizer does.
        """
        config: Any = self._parts.base.config
        tokens = prefix_length(features["input_ids"], (config.video_token_id, config.image_token_id))
        tail = features["input_ids"][0, tokens:].tolist()
        own = self.suffix("", prompt)
        if tail[len(tail) - len(own) :] != own:
            raise BackboneError(
                f"{type(self._processor).__name__} does not tokenize the end of a prompt as it does alone; please "
                "report it with the version of transformers."
            )
        return VideoPrompt(features, tokens, tail[: len(tail) - len(own)])

    def check_length(self, tokens: int, suffix: Sequence[int], name: str) -> None:
        """Raise InputError, naming the pair, if video and sentence exceed the context of the model."""
        parts = f"the video takes {tokens} tokens and the sentence {len(suffix)}"
        check_context(self._parts.base.config, tokens + len(suffix), name, parts=parts)

    def _render(self, text: str, prompt: str | None, *, video: bool) -> str:
        content: list[dict[str, Any]] = [{"type": "video", "video": "placeholder"}] if video else []
        messages: list[dict[str, Any]] = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
        if prompt:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": prompt}]})
        return str(self._processor.apply_chat_template(messages, tokenize=False))

    def _ids(self, text: str) -> list[int]:
        return list(self._processor.tokenizer.encode(text, add_special_tokens=False))

    # -- reading -----------------------------------------------------------------------------------------------------

    def prefill(self, video: VideoPrompt) -> VideoPrefix | None:
        """The prefix that the video's sentences share, or None where each is read in one whole pass."""
        return prefill(self._parts, video.features) if self._shared else None

    def about_video(
        self, video: VideoPrompt, prefix: VideoPrefix | None, suffixes: Sequence[list[int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-odds of Yes of each sentence about one video, against the vocabulary and against No, each (N,)."""
        if prefix is not None:
            hidden = read_suffixes(self._parts, prefix, suffixes)  # (N, D)
        else:
            hidden = torch.stack([self._read_alone(video, suffix) for suffix in suffixes])
        return self._log_odds(hidden)

    def about_nothing(self, texts: Sequence[str], prompt: str | None) -> torch.Tensor:
        """Log-odds of Yes against No of each sentence with no video at all (N,)."""
        prompts = [self._ids(self._render(text, prompt, video=False)) for text in texts]
        if self._shared:
            hidden = read_suffixes(self._parts, no_prefix(self._parts), prompts)  # (N, D)
        else:
            hidden = torch.stack([self._read_text(ids) for ids in prompts])
        return self._log_odds(hidden)[1]

    def _log_odds(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows: list[torch.Tensor] = []
        for chunk in torch.split(hidden, HEAD_ROWS):
            logits = logits_of(self._parts, chunk)  # (C, V)
            both = [yes_log_odds(logits, self._answers, against=over) for over in _AGAINST]
            rows.append(torch.stack(both).double().cpu())  # (2, C)
        whole, against_no = torch.cat(rows, dim=1)  # (N,) each
        return whole, against_no

    @torch.inference_mode()
    def _read_alone(self, video: VideoPrompt, suffix: list[int]) -> torch.Tensor:
        """Hidden state of the last token of one whole prompt (D,): the plain path, and the oracle of the other."""
        ids = video.features["input_ids"]
        tail = torch.tensor([suffix], device=ids.device)
        inputs = model_inputs(video.features)
        inputs["input_ids"] = torch.cat([ids[:, : video.tokens], tail], dim=1)  # (1, P + S)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        for key in ("mm_token_type_ids", "token_type_ids"):
            if key in inputs:
                inputs[key] = torch.cat([inputs[key][:, : video.tokens], torch.zeros_like(tail)], dim=1)
        return cast("torch.Tensor", self._parts.base(**inputs, use_cache=False).last_hidden_state[0, -1])

    @torch.inference_mode()
    def _read_text(self, ids: list[int]) -> torch.Tensor:
        decoder: Any = self._parts.decoder
        inputs = torch.tensor([ids], device=decoder.embed_tokens.weight.device)  # (1, S)
        output = self._parts.base(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False)
        return cast("torch.Tensor", output.last_hidden_state[0, -1])
