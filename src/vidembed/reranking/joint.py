"""One prefill a video for both halves of the method: the sentences asked of it, and its embedding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vidembed.backbone import Parts, find_parts
from vidembed.backbone.prefix import VideoPrefix, can_share_prefix, read_suffixes
from vidembed.encoding.pipeline import OnError, check_on_error
from vidembed.reranking.answers import Answers
from vidembed.reranking.inference import PrefixSharingCrossEncoder, told_apart
from vidembed.reranking.pairs import Pair, VideoGroup, by_video
from vidembed.reranking.reader import VideoPrompt
from vidembed.scoring._checks import FloatArray

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder


@torch.inference_mode()
def answers_and_embeddings(
    reranker: PrefixSharingCrossEncoder,
    texts: Sequence[str],
    videos: Sequence[Any],
    encoder: VideoEncoder,
    *,
    priors: bool = False,
    prompt: str | None = None,
    on_error: OnError = "raise",
    **how: Any,
) -> tuple[Answers, np.ndarray]:
    """`VideoReranker.answers_and_embeddings`, which documents the arguments."""
    check_on_error(on_error)
    if reason := _why_apart(reranker, encoder, prompt):
        raise ValueError(reason)
    pairs = list(told_apart([{"text": text, "video": video} for video in videos for text in texts], on_error))
    found = np.full((3, len(videos) * len(texts)), np.nan)
    vectors = np.full((len(videos), encoder.get_embedding_dimension() or 0), np.nan, dtype=np.float32)
    for group, vector in _ask_and_embed(
        reranker, pairs, encoder, found, priors=priors, prompt=prompt, on_error=on_error, **how
    ):
        vectors[[pair.index // len(texts) for pair in group.pairs]] = vector
    return _as_answers(reranker, pairs, found, priors=priors, prompt=prompt), vectors


@torch.inference_mode()
def answers_and_similarities(
    reranker: PrefixSharingCrossEncoder,
    inputs: Sequence[Any],
    encoder: VideoEncoder,
    *,
    priors: bool = False,
    prompt: str | None = None,
    on_error: OnError = "raise",
    **how: Any,
) -> tuple[Answers, FloatArray]:
    """Ask the head about pairs, and compare sentence and video of each by an encoder.

    Where encoder and reranker share weights and the beginning of their prompts, one prefill a video serves both; else
    the encoder runs each video by itself.

    Args:
        reranker: Whose head is asked.
        inputs: N pairs, as `VideoReranker.predict` takes.
        encoder: The first stage.
        priors: As `VideoReranker.answers`.
        prompt: Of the reranker, as `VideoReranker.answers`.
        on_error: As `VideoReranker.answers`.
        **how: The other arguments of `VideoReranker.answers`.

    Returns:
        Answers of the pairs, and their cosines (N,) float64; both NaN where a pair failed.
    """
    check_on_error(on_error)
    pairs = list(told_apart(inputs, on_error))
    found = np.full((3, len(inputs)), np.nan)
    similarity = np.full(len(inputs), np.nan)
    texts = list(dict.fromkeys(pair.text for pair in pairs))
    if not texts:
        return _as_answers(reranker, pairs, found, priors=priors, prompt=prompt), similarity
    asked: dict[str, Any] = {"on_error": on_error, "show_progress_bar": False, "convert_to_numpy": True}
    queries = dict(zip(texts, encoder.encode_query([{"text": text} for text in texts], **asked), strict=True))

    def compare(group: VideoGroup, vector: np.ndarray) -> None:
        for pair in group.pairs:
            similarity[pair.index] = _cosine(queries[pair.text], vector)

    if _why_apart(reranker, encoder, prompt) is None:
        for group, vector in _ask_and_embed(
            reranker, pairs, encoder, found, priors=priors, prompt=prompt, on_error=on_error, **how
        ):
            compare(group, vector)
        answers = _as_answers(reranker, pairs, found, priors=priors, prompt=prompt)
    else:
        answers = reranker.answers(inputs, priors=priors, prompt=prompt, on_error=on_error, **how)
        groups = by_video(pairs)
        videos = encoder.encode_document([{"video": group.video} for group in groups], **asked)
        for group, vector in zip(groups, videos, strict=True):
            compare(group, vector)
    failed = answers.missing | np.isnan(similarity)
    similarity[failed] = np.nan
    return answers.without(failed), similarity


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)  # (D,) each; shorter than 1 if they were truncated
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def _ask_and_embed(
    reranker: PrefixSharingCrossEncoder,
    pairs: Sequence[Pair],
    encoder: VideoEncoder,
    found: np.ndarray,
    *,
    priors: bool,
    prompt: str | None,
    on_error: OnError,
    show_progress_bar: bool | None = None,
    device: str | torch.device | None = None,
    processing_kwargs: dict[str, Any] | None = None,
) -> Iterator[tuple[VideoGroup, np.ndarray]]:
    """Write the answers about each video into `found` (3, N), and yield its pairs and its vector (D,)."""
    reader = reranker._reader
    view: Parts = find_parts(encoder._transformer.model)
    tail = _rendered(encoder, prompt)[1]
    eol = list(encoder._transformer.processor.tokenizer.encode(tail, add_special_tokens=False))
    for group, video in reranker.video_prompts(
        pairs,
        prompt=prompt,
        on_error=on_error,
        show_progress_bar=show_progress_bar,
        device=device,
        processing_kwargs=processing_kwargs,
    ):
        prefix = reader.prefill(video)
        assert prefix is not None  # noqa: S101 - `_why_apart` has seen that it can be shared
        reranker.ask(reader, group, video, prefix, found, priors=priors, prompt=prompt, on_error=on_error)
        yield group, _embed(view, prefix, video, eol)[: encoder.get_embedding_dimension()]


def _as_answers(
    reranker: PrefixSharingCrossEncoder, pairs: Sequence[Pair], found: np.ndarray, *, priors: bool, prompt: str | None
) -> Answers:
    yes, yes_no, video_prior = found  # (N,) each
    if not priors:
        return Answers(yes, yes_no)
    return Answers(yes, yes_no, video_prior, reranker.text_priors(pairs, yes_no, prompt))


def _embed(view: Parts, prefix: VideoPrefix, video: VideoPrompt, eol: list[int]) -> np.ndarray:
    """Vector of the video (D,): the first blocks of the prefix are those that the cut decoder would have made."""
    hidden = read_suffixes(view, prefix.first(view.depth), [video.between + eol])  # (1, D)
    vector: np.ndarray = torch.nn.functional.normalize(hidden.float(), dim=1)[0].cpu().numpy()
    return vector


def _why_apart(reranker: PrefixSharingCrossEncoder, encoder: VideoEncoder, prompt: str | None) -> str | None:
    """Why one prefill cannot serve both, or None if it can."""
    if encoder.backbone is None or reranker.backbone is None or encoder.backbone.model is not reranker.backbone.model:
        return "encoder: it has other weights than this reranker; make it with reranker.encoder(layer=...)."
    if encoder.sampling != reranker.sampling:
        return f"encoder: its frame grid is {encoder.sampling}, and the reranker's {reranker.sampling}."
    if not (reranker.shared_prefix and can_share_prefix(find_parts(encoder.backbone.model))):
        return "answers_and_embeddings needs shared_prefix=True, and attention 'sdpa' or 'eager'."
    heads = [_rendered(model, prompt)[0] for model in (reranker, encoder)]
    if heads[0] != heads[1]:
        return (
            f"encoder: its prompt begins with {heads[1]!r} and the reranker's with {heads[0]!r}, so that they share no "
            "prefill. Make it with prefix=None."
        )
    return None


def _rendered(model: PrefixSharingCrossEncoder | VideoEncoder, prompt: str | None) -> tuple[str, str]:
    """What a model's prompt about a video holds before the placeholder and after it."""
    processor: Any = model._transformer.processor
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "video", "video": "placeholder"}]}]
    if prompt:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": prompt}]})
    head, _, tail = str(processor.apply_chat_template(messages, tokenize=False)).partition(str(processor.video_token))
    return head, tail
