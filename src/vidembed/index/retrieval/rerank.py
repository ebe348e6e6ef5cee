"""The hits of a search, ordered again by the head of a model that looks at each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vidembed.index.files import path_of
from vidembed.video import VideoSegment

if TYPE_CHECKING:
    from vidembed.index.retrieval.search import Hit
    from vidembed.reranker import VideoReranker

logger = logging.getLogger(__name__)


def rerank(hits: Sequence[Hit], reranker: VideoReranker, query: str) -> list[Hit]:
    """Return the hits with the probability that each matches the query, most probable first.

    If the reranker was calibrated together with a first stage, the probability is made of similarity and head.

    Args:
        hits: Of a search for `query`.
        reranker: Asked about each hit's segment.
        query: Words.

    Returns:
        All hits. Those that could not be asked about, because the video is gone or damaged, come last, in their order,
        without a probability; the log says why.
    """
    if not hits:
        return []
    ranking = reranker.rank(
        {"text": query},
        [VideoSegment(path_of(hit.uri), hit.start_s, hit.end_s) for hit in hits],
        first_stage=[hit.score for hit in hits],
        on_error="skip",
    )
    asked = [replace(hits[found["corpus_id"]], probability=found["score"]) for found in ranking]
    left = {found["corpus_id"] for found in ranking}
    rest = [hit for place, hit in enumerate(hits) if place not in left]
    if rest:
        logger.warning("%d of %d hits could not be asked about and come last", len(rest), len(hits))
    return [*asked, *rest]
