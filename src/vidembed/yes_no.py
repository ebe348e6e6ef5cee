"""What is asked of a model's head about pairs, and the log-odds that each score mode makes of the answers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast, get_args

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from vidembed.backbone.prefix import (
    Sharing,
    VideoPrefix,
    logits_of,
    media_token_ids,
    model_inputs,
    no_prefix,
    prefill,
    prefix_length,
    read_suffixes,
)
from vidembed.errors import BackboneError, InputError
from vidembed.inputs import Input, kind_of
from vidembed.pipeline import OnError, check_on_error
from vidembed.scoring import PriorCorrection
from vidembed.scoring.checks import FloatArray
from vidembed.video import VideoSegment

if TYPE_CHECKING:
    from sentence_transformers.base.modules.transformer import ProcessingKwargs

    from vidembed.backbone.architectures import Parts
    from vidembed.backbone.load import Features

logger = logging.getLogger(__name__)

Against = Literal["vocabulary", "no"]
ScoreMode = Literal["yes", "yes_no", "prior_corrected"]
SCORE_MODES: tuple[ScoreMode, ...] = get_args(ScoreMode)
PairInput: TypeAlias = "tuple[Input, Input] | list[Input] | Mapping[str, Any]"
"""One pair of `VideoReranker.predict`."""

HEAD_ROWS = 256  # rows of logits in float32 at a time: 150 MiB with a vocabulary of 152k (ours)
VIDEO_PART = {"type": "video", "video": "placeholder"}  # in a chat message of which the template alone is rendered


@dataclass(frozen=True)
class AnswerTokens:
    """Token ids of the answers."""

    yes: tuple[int, ...]  # "Yes", and "yes" if it is one token
    no: tuple[int, ...]  # likewise


def answer_tokens(tokenizer: PreTrainedTokenizerBase, *, name: str) -> AnswerTokens:
    """Find the answer tokens of a tokenizer; BackboneError if "Yes" or "No" is not one token, read off one position."""

    def variants(word: str) -> tuple[int, ...]:
        ids, lower = (tokenizer.encode(form, add_special_tokens=False) for form in (word, word.lower()))
        if len(ids) != 1:
            raise BackboneError(
                f"{name}: {word!r} is {len(ids)} tokens for its tokenizer, and the reranker reads the answer from one "
                f"token. Use a model whose tokenizer has it as one token."
            )
        return (*ids, *lower) if len(lower) == 1 else tuple(ids)

    return AnswerTokens(variants("Yes"), variants("No"))


def yes_log_odds(logits: torch.Tensor, answers: AnswerTokens, *, against: Against) -> torch.Tensor:
    """Log-odds of Yes (N,) float32 from float32 logits of the first answer token (N, V).

    Against "vocabulary", their sigmoid is the share of the affirmative tokens in the softmax over the whole vocabulary
    (VidVec, section 3.3); against "no", "Yes" is compared with "No" alone.
    """
    if against == "no":
        return logits[:, answers.yes[0]] - logits[:, answers.no[0]]
    yes = torch.logsumexp(logits[:, list(answers.yes)], dim=1)
    others = logits.clone()
    others[:, list(answers.yes)] = -torch.inf
    return yes - torch.logsumexp(others, dim=1)  # log p - log(1 - p), without the loss of 1 - p


def check_mode(mode: str) -> ScoreMode:
    """Return `mode`, or raise ValueError if it is not known."""
    if mode not in SCORE_MODES:
        raise ValueError(f"mode={mode!r} is not known. Allowed: {', '.join(SCORE_MODES)}.")
    return mode


@dataclass(frozen=True, eq=False)
class Answers:
    """Log-odds of Yes of N pairs, all of shape (N,) float64. NaN marks a pair that was skipped."""

    yes: FloatArray  # "Yes" or "yes" against the rest of the vocabulary
    yes_no: FloatArray  # "Yes" against "No"
    video_prior: FloatArray | None = None  # yes_no of the pair's video with no sentence; None if it was not asked
    text_prior: FloatArray | None = None  # yes_no of the pair's sentence with no video; None if it was not asked

    @property
    def missing(self) -> np.ndarray:
        """Which pairs were skipped (N,) bool."""
        return np.isnan(self.yes_no)

    def take(self, index: np.ndarray) -> Answers:
        """The answers of some pairs, by positions or a mask."""
        return self._each(lambda values: values[index])

    def without(self, failed: np.ndarray) -> Answers:
        """The same answers, with NaN for the pairs that a mask (N,) marks."""
        return self._each(lambda values: np.where(failed, np.nan, values))

    def _each(self, change: Callable[[FloatArray], FloatArray]) -> Answers:
        return replace(self, **{name: change(values) for name, values in vars(self).items() if values is not None})

    def log_odds(self, mode: ScoreMode, correction: PriorCorrection | None = None) -> FloatArray:
        """Log-odds of a match in a score mode (N,) float64, NaN where a pair was skipped.

        In mode "prior_corrected", they are ``yes_no`` less the priors, weighted by `correction` (default: wholly);
        ValueError for a prior that was not asked.
        """
        if check_mode(mode) != "prior_corrected":
            return self.yes if mode == "yes" else self.yes_no
        corrected, weights = self.yes_no, correction or PriorCorrection()
        for name, weight in (("video_prior", weights.video_weight), ("text_prior", weights.text_weight)):
            if weight == 0:
                continue
            if (prior := getattr(self, name)) is None:
                raise ValueError(f"mode='prior_corrected' needs {name} at weight {weight}: pass priors=True.")
            corrected = corrected - weight * prior
        return corrected


@dataclass(frozen=True)
class Pair:
    """One pair to score."""

    index: int  # position among the pairs of the call
    video: Any  # a video (or image) source of any kind that `VideoEncoder` takes
    text: str  # the sentence


def as_pair(index: int, pair: object) -> Pair:
    """Find out which side is the text; InputError, which names the pair, if it is not one text and one video."""
    if isinstance(pair, Mapping):
        if set(pair) != {"text", "video"}:
            raise InputError(f"pairs[{index}] has keys {sorted(map(str, pair))}; expected the keys 'text' and 'video'.")
        text, video = pair["text"], pair["video"]
    elif isinstance(pair, (tuple, list)) and len(pair) == 2:
        try:
            kinds = [kind_of(side) for side in pair]
        except ValueError as error:
            raise InputError(f"pairs[{index}]: {error}") from error
        if kinds.count("text") != 1:
            raise InputError(
                f"pairs[{index}] holds {kinds[0]} and {kinds[1]}; expected one text and one video. Pass {{'text': "
                "...} for text that looks like a file name."
            )
        text, video = pair if kinds[0] == "text" else reversed(pair)
        if isinstance(video, Mapping) and set(video) == {"video"}:
            video = video["video"]
    else:
        raise InputError(f"pairs[{index}] is a {type(pair).__name__}; expected (text, video) or (video, text).")
    words = text["text"] if isinstance(text, Mapping) else text
    if not isinstance(words, str) or not words.strip():
        raise InputError(f"pairs[{index}]: the text is empty; give some words.")
    return Pair(index, video, words)


@dataclass(frozen=True)
class AskOptions:
    """How the head is asked; `VideoReranker.answers` documents the fields."""

    priors: bool = False
    prompt: str | None = None
    on_error: OnError = "raise"
    show_progress_bar: bool | None = None
    device: str | torch.device | None = None
    processing_kwargs: ProcessingKwargs | None = None
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Raise ValueError if `on_error` is not known, or `batch_size` not positive."""
        check_on_error(self.on_error)
        if self.batch_size <= 0:
            raise ValueError(f"batch_size must be a positive integer, got {self.batch_size}.")

    def skip(self, error: InputError) -> None:
        """Raise the error of a pair, or log it."""
        if self.on_error == "raise":
            raise error
        logger.warning("skipped %s", error)


def check_indexed(name: str, items: object) -> None:
    """Raise TypeError for what has no positions, as a set, or numbers its items itself, as a Series does."""
    if not isinstance(items, (Sequence, np.ndarray)):
        raise TypeError(f"{name}: got a {type(items).__name__}; expected a list. Pass list({name}).")


def pairs_of(inputs: Sequence[object], options: AskOptions) -> Iterator[Pair]:
    """The pairs of a call, without those that are malformed, which raise or are logged."""
    for index, item in enumerate(inputs):
        try:
            yield as_pair(index, item)
        except InputError as error:
            options.skip(error)


def by_video(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Group pairs by their video, in order of first appearance. Equal paths and segments are one video."""
    groups: dict[object, list[Pair]] = {}
    for pair in pairs:
        video = pair.video
        key: object = id(video)  # arrays, bytes, handles: the same object is the same video
        if isinstance(video, (str, os.PathLike)):
            key = os.fspath(video)
        elif isinstance(video, VideoSegment) and isinstance(video.path, (str, os.PathLike)):
            key = (os.fspath(video.path), video.start, video.end)
        groups.setdefault(key, []).append(pair)
    return list(groups.values())


def rendered(
    processor: ProcessorMixin, prompt: str | None, *content: dict[str, Any], template: str | None = None
) -> str:
    """A user message of some parts, after `prompt` as the system message, as the chat template writes it."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": list(content)}]
    if prompt:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": prompt}]})
    # named, since smolvlm takes another one for a message with a video
    apply_chat_template: Any = processor.apply_chat_template  # its types say less than it takes
    return str(apply_chat_template(messages, tokenize=False, chat_template=template or processor.chat_template))


def around_video(processor: Any, prompt: str | None, *, template: str | None = None) -> tuple[str, str]:
    """What a prompt about a video holds before the placeholder and after it; `template` is the processor's if None."""
    before, _, after = rendered(processor, prompt, VIDEO_PART, template=template).partition(str(processor.video_token))
    return before, after


@dataclass(frozen=True)
class VideoPrompt:
    """The prompt of one video, up to where its sentences begin."""

    features: Features  # of the processor, for the video and an empty sentence
    tokens: int  # prompt tokens up to and including the last visual one
    between: list[int]  # token ids that the processor itself writes after the last visual token
    lead: str  # or text that it writes there, where its tokens merge with those of the sentence
    prefix: VideoPrefix | None  # what the sentences share, or None where each is read in one whole pass

    def followed_by(self, suffix: list[int]) -> Features:
        """Features of one whole prompt, of the token ids after the last visual one."""
        ids = self.features["input_ids"]
        tail = torch.tensor([suffix], device=ids.device)
        whole = torch.cat([ids[:, : self.tokens], tail], dim=1)  # (1, P + S)
        features: Features = {**self.features, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
        for key in ("mm_token_type_ids", "token_type_ids"):
            if key in features:
                features[key] = torch.cat([features[key][:, : self.tokens], torch.zeros_like(tail)], dim=1)
        return features


@dataclass
class HeadReader:
    """The head of a model, asked about sentences by token ids."""

    parts: Parts  # of the full model
    processor: Any  # whose chat template is the matching prompt
    answers: AnswerTokens
    prompt: str | None  # a system message
    sharing: Sharing | None  # how sentences share the prefix of a video; None is one whole pass per sentence
    _suffixes: dict[tuple[str, str], list[int]] = field(default_factory=dict)  # a sentence is asked of many videos

    @property
    def pad_token_id(self) -> int:
        """Of the tokenizer; what stands there is masked."""
        return self.processor.tokenizer.pad_token_id or 0

    def after(self, video: VideoPrompt, text: str) -> list[int]:
        """Token ids of a prompt after its last visual token; InputError if the sentence holds a video placeholder."""
        return [*video.between, *self._suffix(text, video.lead)]

    def _suffix(self, text: str, lead: str = "") -> list[int]:
        if (text, lead) not in self._suffixes:
            self._suffixes[text, lead] = self._ids(lead + self._written_after(text))
        return self._suffixes[text, lead]

    def _written_after(self, text: str) -> str:
        """What the chat template writes after the placeholder of a video."""
        mark = str(self.processor.video_token)
        whole = rendered(self.processor, self.prompt, VIDEO_PART, {"type": "text", "text": text})
        _, found, after = whole.partition(mark)
        if not found or mark in after:
            raise InputError(f"the text {text[:80]!r} contains the video placeholder {mark!r}.")
        return after

    def _ids(self, text: str) -> list[int]:
        return list(self.processor.tokenizer.encode(text, add_special_tokens=False))

    def video_prompt(self, features: Features, *, prefilled: bool = True) -> VideoPrompt:
        """Find where the sentences of a video's prompt begin, and prefill what comes before if they share it."""
        tokens = prefix_length(features, media_token_ids(self.parts))
        between, lead = self._between(features["input_ids"][0, tokens:].tolist())
        prefix = prefill(self.parts, features) if prefilled and self.sharing else None
        return VideoPrompt(features, tokens, between, lead, prefix)

    def _between(self, tail: list[int]) -> tuple[list[int], str]:
        """What the processor writes between the last visual token and the template's text, as ids or as text."""
        own = self._suffix("")
        if tail[len(tail) - len(own) :] == own:
            return tail[: len(tail) - len(own)], ""
        # line breaks of smolvlm after a video merge with that of the template
        written = self.processor.tokenizer.decode(tail, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        lead = written.removesuffix(self._written_after(""))
        if self._suffix("", lead) != tail:
            raise BackboneError(
                f"{type(self.processor).__name__} does not tokenize the end of a prompt as it does alone; please "
                "report it with the version of transformers."
            )
        return [], lead

    def about_video(self, video: VideoPrompt, suffixes: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-odds of Yes of each sentence about one video, against the vocabulary and against No, each (N,)."""
        if self.sharing is not None:
            hidden = self.read_shared(video, suffixes, self.sharing)  # (N, D)
        else:
            hidden = torch.cat([self.read_whole(video.followed_by(suffix)) for suffix in suffixes])
        return self.log_odds(hidden)

    def about_nothing(self, texts: Sequence[str]) -> torch.Tensor:
        """Log-odds of Yes against No of each sentence with no video at all (N,)."""
        prompts = [self._ids(rendered(self.processor, self.prompt, {"type": "text", "text": text})) for text in texts]
        if self.sharing is not None:
            hidden = read_suffixes(self.parts, no_prefix(self.parts), prompts, self.sharing)  # (N, D)
        else:
            hidden = torch.stack([self._read_text(ids) for ids in prompts])
        return self.log_odds(hidden)[1]

    def log_odds(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-odds of Yes of hidden states (N, D), against the vocabulary and against No, each (N,)."""
        rows: list[torch.Tensor] = []
        for chunk in torch.split(hidden, HEAD_ROWS):
            logits = logits_of(self.parts, chunk)  # (C, V)
            both = [yes_log_odds(logits, self.answers, against=over) for over in get_args(Against)]
            rows.append(torch.stack(both).double().cpu())  # (2, C)
        whole, against_no = torch.cat(rows, dim=1)  # (N,) each
        return whole, against_no

    def read_shared(self, video: VideoPrompt, suffixes: Sequence[list[int]], sharing: Sharing) -> torch.Tensor:
        """Hidden state (N, D) of the last token of each prompt, from the video's prefix."""
        prefix = video.prefix or prefill(self.parts, video.features)
        return read_suffixes(self.parts, prefix, suffixes, sharing)

    @torch.inference_mode()
    def read_whole(self, features: Features) -> torch.Tensor:
        """Hidden state (B, D) of the last token of whole left-padded prompts: the plain path, and the oracle."""
        return cast("torch.Tensor", self.parts.base(**model_inputs(features), use_cache=False).last_hidden_state[:, -1])

    @torch.inference_mode()
    def _read_text(self, ids: list[int]) -> torch.Tensor:
        inputs = torch.tensor([ids], device=self.parts.decoder.device)  # (1, S)
        output = self.parts.base(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False)
        return cast("torch.Tensor", output.last_hidden_state[0, -1])
