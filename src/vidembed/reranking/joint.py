"""One prefill a video for both halves of the method: the sentences asked of it, and its embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from vidembed.backbone import Parts, find_parts
from vidembed.backbone.prefix import VideoPrefix, read_suffixes
from vidembed.encoding.inference import PipelinedSentenceTransformer
from vidembed.encoding.pipeline import OnError, check_on_error
from vidembed.reranking.answers import Answers
from vidembed.reranking.inference import PrefixSharingCrossEncoder, told_apart
from vidembed.reranking.reader import VideoPrompt


@torch.inference_mode()
def answers_and_embeddings(
    reranker: PrefixSharingCrossEncoder,
    texts: Sequence[str],
    videos: Sequence[Any],
    encoder: PipelinedSentenceTransformer,
    *,
    priors: bool = False,
    prompt: str | None = None,
    on_error: OnError = "raise",
    show_progress_bar: bool | None = None,
    device: str | torch.device | None = None,
    processing_kwargs: dict[str, Any] | None = None,
) -> tuple[Answers, np.ndarray]:
    """`VideoReranker.answers_and_embeddings`, which documents the arguments."""
    check_on_error(on_error)
    _check_alike(reranker, encoder)
    reader = reranker._reader
    view: Parts = find_parts(encoder._transformer.model)
    eol = _eol_suffix(reranker, encoder, prompt)
    pairs = list(told_apart([{"text": text, "video": video} for video in videos for text in texts], on_error))
    found = np.full((3, len(videos) * len(texts)), np.nan)
    width = encoder.get_embedding_dimension() or 0
    vectors = np.full((len(videos), width), np.nan, dtype=np.float32)
    for group, video in reranker.video_prompts(
        pairs,
        prompt=prompt,
        on_error=on_error,
        show_progress_bar=show_progress_bar,
        device=device,
        processing_kwargs=processing_kwargs,
    ):
        prefix = reader.prefill(video)
        if prefix is None:
            raise ValueError("answers_and_embeddings needs shared_prefix=True, and attention 'sdpa' or 'eager'.")
        reranker.ask(reader, group, video, prefix, found, priors=priors, prompt=prompt, on_error=on_error)
        vectors[[pair.index // len(texts) for pair in group.pairs]] = _embed(view, prefix, video, eol)[:width]
    yes, yes_no, video_prior = found
    text_prior = reranker.text_priors(pairs, yes_no, prompt) if priors else None
    return Answers(yes, yes_no, video_prior if priors else None, text_prior), vectors


def _embed(view: Parts, prefix: VideoPrefix, video: VideoPrompt, eol: list[int]) -> np.ndarray:
    """Vector of the video (D,): the first blocks of the prefix are those that the cut decoder would have made."""
    hidden = read_suffixes(view, prefix.first(view.depth), [video.between + eol])  # (1, D)
    vector: np.ndarray = torch.nn.functional.normalize(hidden.float(), dim=1)[0].cpu().numpy()
    return vector


def _check_alike(reranker: PrefixSharingCrossEncoder, encoder: PipelinedSentenceTransformer) -> None:
    if encoder.backbone is None or reranker.backbone is None or encoder.backbone.model is not reranker.backbone.model:
        raise ValueError("encoder: it has other weights than this reranker; make it with reranker.encoder(layer=...).")
    if encoder.sampling != reranker.sampling:
        raise ValueError(f"encoder: its frame grid is {encoder.sampling}, and the reranker's {reranker.sampling}.")


def _eol_suffix(
    reranker: PrefixSharingCrossEncoder, encoder: PipelinedSentenceTransformer, prompt: str | None
) -> list[int]:
    """Token ids of the one-word prompt after the video, if it begins as the matching prompt does."""
    heads, tails = [], []
    for model in (reranker, encoder):
        processor: Any = model._transformer.processor
        messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "video", "video": "placeholder"}]}]
        if prompt:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": prompt}]})
        rendered = str(processor.apply_chat_template(messages, tokenize=False))
        head, _, tail = rendered.partition(str(processor.video_token))
        heads.append(head)
        tails.append(tail)
    if heads[0] != heads[1]:
        raise ValueError(
            f"encoder: its prompt begins with {heads[1]!r} and the reranker's with {heads[0]!r}, so that they share no "
            "prefill. Make it with prefix=None."
        )
    tokenizer: Any = encoder._transformer.processor.tokenizer
    return list(tokenizer.encode(tails[1], add_special_tokens=False))
