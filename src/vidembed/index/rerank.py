"""The hits of a search, ordered again by the head of a model that looks at each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vidembed.index.files import is_local, path_of
from vidembed.video import VideoSegment

if TYPE_CHECKING:
    from vidembed.index.search import Hit
    from vidembed.reranker import VideoReranker


logger = logging.getLogger(__name__)


def rerank(
    hits: Sequence[Hit],
    reranker: VideoReranker,
    query: str,
    *,
    context: bool = False,
    fingerprint: str | None = None,
) -> list[Hit]:
    """Return the hits with the probability that each matches the query, most probable first.

    If the reranker was calibrated together with a first stage, the probability is made of similarity and head. The
    similarity is that of the hits if their encoder is the one that was calibrated with, else the reranker finds it.

    Args:
        hits: Of a search for `query`.
        reranker: Asked about each hit's segment.
        query: Words.
        context: Ask about each segment with what is around it, for hits of a search with `around`.
        fingerprint: `VideoEncoder.fingerprint` of the encoder that found the hits; None if it is not known.

    Returns:
        All hits. Those that could not be asked about, because the video is gone, damaged or no file of this machine,
        come last, in their order, without a probability; the log says why.

    Raises:
        ValueError: `context` is given, and a hit says nothing of what is around it.
    """
    if not hits:
        return []
    segments = [_segment(hit, context=context) for hit in hits]
    local = [place for place, segment in enumerate(segments) if segment is not None]
    order: list[tuple[int, float]] = []
    if local:
        documents, similarities = [segments[place] for place in local], [hits[place].score for place in local]
        first_stage = _first_stage(reranker, fingerprint, similarities)
        ranking = reranker.rank({"text": query}, documents, first_stage=first_stage, on_error="skip")
        order = [(local[found["corpus_id"]], found["score"]) for found in ranking]
    asked = [replace(hits[place], probability=score) for place, score in order]
    left = {place for place, _ in order}
    rest = [hit for place, hit in enumerate(hits) if place not in left]
    if rest:
        logger.warning("%d of %d hits could not be asked about and come last", len(rest), len(hits))
    return [*asked, *rest]


def _first_stage(reranker: VideoReranker, fingerprint: str | None, similarities: list[float]) -> Any:
    """The similarities to fuse with: a fusion is of one encoder's similarities, and wrong with those of another."""
    known = reranker.first_stage
    if reranker.fusion is None or known is None or known.fingerprint == fingerprint:
        return similarities
    if reranker.can_fuse:
        return "own"
    logger.warning(
        "the reranker was calibrated with another encoder than that of the index; hits are ordered by its "
        "head alone. Calibrate it with this encoder (vidembed calibrate --encoder)."
    )
    return None


def _segment(hit: Hit, *, context: bool) -> VideoSegment | None:
    """Return what to ask about, or None where there is no file of this machine."""
    start, end = hit.start_s, hit.end_s
    if context:
        if hit.context_start_s is None or hit.context_end_s is None:
            raise ValueError(
                f"context: the hit {hit.uri!r} says nothing of what is around it; search with around=SECONDS"
            )
        start, end = hit.context_start_s, hit.context_end_s
    return VideoSegment(path_of(hit.uri), start, end) if is_local(hit.uri) else None
