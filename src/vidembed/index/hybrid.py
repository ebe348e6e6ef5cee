"""Search by captions: by their vectors, by their words, or by these and the vectors of the videos together (hybrid).

A hybrid search takes the best rows by each similarity, finds the others of these rows exactly, and orders them by
weights fitted on labelled queries (`fit_hybrid`), or where there are none by reciprocal rank fusion. A reranker's own
fusion is of the cosine with the video; that of the head with what orders hits here is fitted and kept with the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidembed.errors import IndexMismatchError
from vidembed.index.ann import read_record
from vidembed.index.captions import ROWS_AT_ONCE, Captions, open_captions
from vidembed.index.captions import facts as captions_facts
from vidembed.index.hits import By
from vidembed.index.rows import Row, cosines, rank_blocks
from vidembed.index.table import PLACE, ROW_ID, Block, VideoIndex
from vidembed.scoring import ScoreFusion
from vidembed.scoring.checks import FloatArray
from vidembed.scoring.hybrid import HybridWeights, ranks, reciprocal_rank_fusion

if TYPE_CHECKING:
    from vidembed.reranker import VideoReranker

POOL = 100
"""Least rows that a hybrid search takes by each similarity (ours): what is below the hundredth place by all three is
hardly among the first ten, and an approximate search has measured its recall up to a hundred."""

FILE = "hybrid-weights.json"


class Scores(NamedTuple):
    """What a search by captions says of a row, beside the cosine with the video; None where it has no caption."""

    caption: float | None = None  # cosine of query and caption
    text: float | None = None  # BM25 of the caption
    hybrid: float | None = None  # log-odds of a match by fitted weights, or the sum of reciprocal ranks

    def of(self, by: By) -> float:
        """Return what orders the row in a search by caption, text or hybrid; ValueError where it has no such score."""
        value: float | None = getattr(self, by)
        if value is None:
            raise ValueError(f"by: a hit has no score by {by}; give hits of a search by it")
        return value


def pool(k: int) -> int:
    """Return how many rows a hybrid search takes by each similarity for `k` hits."""
    return max(k, POOL)


@dataclass(frozen=True, slots=True)
class ByCaptions:
    """What a search by captions needs of an index."""

    by: By  # caption, text or hybrid
    captions: Captions
    weights: HybridWeights | None  # of a hybrid search; None: ranks are fused

    @classmethod
    def of(cls, index: VideoIndex, by: By) -> ByCaptions:
        """Open it; IndexMismatchError if the index has no captions, or has not what a search by them needs."""
        found = open_captions(index)
        if by != "caption":
            found.require_words()
        return cls(by, found, stored_weights(index, found) if by == "hybrid" else None)


def rank(
    index: VideoIndex,
    asked: ByCaptions,
    queries: NDArray[np.float64],
    texts: Sequence[str],
    *,
    k: int,
    by_video: Callable[[], list[list[Row]]],
    where: str | None = None,
) -> list[list[tuple[Row, Scores]]]:
    """Return the `k` best rows of each query by caption, text or hybrid, best first, then by URI, start and end.

    Args:
        index: At the version of the captions.
        asked: What orders the rows.
        queries: Unit vectors, shape (Q, D).
        texts: The words of each query.
        k: Most rows.
        by_video: Returns the best rows of each query by the cosine with the video, for a hybrid search.
        where: Which rows may be hits (`Filter.sql`). Default: all.
    """
    by, captions = asked.by, asked.captions
    allowed = None if where is None else index.row_ids(where)
    depth = pool(k) if by == "hybrid" else k
    ranked: list[list[list[Row]]] = []  # by each similarity, by query
    if by in {"caption", "hybrid"}:
        ranked.append(rank_blocks(index, captions.blocks(allowed), queries, k=depth))
    if by == "hybrid":
        ranked.append(by_video())
    results = []
    for number, (query, text) in enumerate(zip(queries, texts, strict=True)):
        ids = [np.array([row.row_id for row in rows[number]], dtype=np.uint64) for rows in ranked]
        words = None
        if by != "caption":
            words = captions.bm25(text)
            fits = np.ones(len(words[0]), np.bool_) if allowed is None else np.isin(words[0], allowed)
            ids.append(_best(index, words[0][fits], words[1][fits], depth))
        distinct = np.unique(np.concatenate(ids))
        results.append(_ordered(index, asked, query, distinct, words)[:k])
    return results


def _best(index: VideoIndex, row_ids: NDArray[np.uint64], scores: FloatArray, count: int) -> NDArray[np.uint64]:
    """The row ids of the highest scores, of equal ones by URI, start and end."""
    if len(row_ids) <= count:
        return row_ids
    least = np.partition(scores, -count)[-count]
    above, equal = row_ids[scores > least], row_ids[scores == least]
    if len(above) + len(equal) > count:  # captions may all be alike
        table = index.take(equal, PLACE[:3])
        order = table.sort_by([(name, "ascending") for name in PLACE[:3]])
        equal = order.column(ROW_ID).to_numpy()[: count - len(above)]
    return np.concatenate([above, equal])


def _ordered(
    index: VideoIndex,
    asked: ByCaptions,
    query: NDArray[np.float64],
    row_ids: NDArray[np.uint64],
    words: tuple[NDArray[np.uint64], FloatArray] | None,
) -> list[tuple[Row, Scores]]:
    """Rows (U,), whose ids rise, with all of their scores for a query, shape (D,), best first."""
    if not len(row_ids):
        return []
    features = np.full((len(row_ids), 3), np.nan)  # (U, 3), as `vidembed.scoring.hybrid.FEATURES`
    places: dict[int, tuple[str, float, float, float]] = {}  # by row id
    for first in range(0, len(row_ids), ROWS_AT_ONCE):
        taken = index.take(row_ids[first : first + ROWS_AT_ONCE], [*PLACE, "vector"]).combine_chunks()
        for batch in taken.to_batches():
            block = Block.of(batch)
            features[np.searchsorted(row_ids, block.row_ids), 0] = cosines(block.vectors, query)
            columns = zip(*(batch.column(name).to_pylist() for name in PLACE), strict=True)
            places |= zip(block.row_ids.tolist(), columns, strict=True)
    has, found = asked.captions.cosines(row_ids, query)
    features[has, 1] = found
    if words is not None:
        features[has, 2] = 0.0  # there is a caption, and it has no word of the query
        at = np.searchsorted(words[0], row_ids).clip(max=max(0, len(words[0]) - 1))
        hit = words[0][at] == row_ids if len(words[0]) else np.zeros(len(row_ids), np.bool_)
        features[hit, 2] = words[1][at[hit]]
    order = features[:, 1 if asked.by == "caption" else 2]
    if asked.by == "hybrid":
        order = np.round(_fused(features, asked.weights), 6)
    rows = []
    for row_id, each, score in zip(row_ids.tolist(), features, order, strict=True):
        uri, start, end, duration = places[row_id]
        caption, text = (None if np.isnan(value) else float(value) for value in each[1:])
        row = Row(-float(score), uri, start, end, float(each[0]), row_id, duration)
        rows.append((row, Scores(caption, text, float(score) if asked.by == "hybrid" else None)))
    return sorted(rows, key=lambda each: each[0])


def _fused(features: FloatArray, weights: HybridWeights | None) -> FloatArray:
    """What orders rows of a query, (U,), of their similarities (U, 3)."""
    if weights is not None:
        return weights.log_odds(features)
    # A caption without a word of the query is in no ranking.
    found = np.where(features[:, 2] > 0, features[:, 2], np.nan)
    return reciprocal_rank_fusion(ranks(features[:, 0]), ranks(features[:, 1]), ranks(found))


def stored_weights(index: VideoIndex, captions: Captions) -> HybridWeights | None:
    """Return the weights that were fitted for these captions, or None where there are none.

    IndexMismatchError for weights of other captions or of another model, or that cannot be read.
    """
    if (record := _stored(index, captions)) is None:
        return None
    with _readable(index):
        return HybridWeights(**record["weights"])


def stored_fusion(index: VideoIndex, by: By, reranker: VideoReranker) -> ScoreFusion | None:
    """Return the fusion of this reranker's log-odds with the score of hits by caption, text or hybrid.

    None where there is none: by video, or if `fit_hybrid` was not given a reranker, or could not fit this one. It lies
    in one file with the weights, so a hybrid search has ordered its hits by the weights that it was fitted for.

    Raises:
        IndexMismatchError: It was fitted on other captions, or with another reranker or score mode; the message says
            what to do.
    """
    if by == "video" or (record := _stored(index, open_captions(index))) is None or record.get("rerank") is None:
        return None
    from vidembed.calibration import differing_fields  # noqa: PLC0415 - it brings torch

    with _readable(index):
        fitted, made_for = record["rerank"], record["rerank_made_for"]
        fusion = ScoreFusion(**fitted["fusions"][by]) if by in fitted["fusions"] else None
        source = fitted["reranker"]
    if differing := differing_fields(made_for, answers_depend_on(reranker)):
        raise IndexMismatchError(
            f"rerank: the fusion for hits by {by} was fitted with another reranker ({source}; {', '.join(differing)} "
            f"differ). Use that one, or {_remedy(index)}"
        )
    return fusion


def answers_depend_on(reranker: VideoReranker) -> dict[str, Any]:
    """Return what the reranker's log-odds depend on, as JSON values."""
    priors = asdict(reranker.prior_correction) if reranker.mode == "prior_corrected" else None
    return {**reranker.fingerprint_fields(), "mode": reranker.mode, "prior_correction": priors}


def _remedy(index: VideoIndex) -> str:
    file = str(index.derived(FILE))
    return f"fit them again with `vidembed calibrate INDEX --hybrid --pairs FILE [--rerank K]`, or remove {file!r}"


@contextmanager
def _readable(index: VideoIndex) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        reason = f"by: the weights of hybrid search cannot be read ({error!r}); {_remedy(index)}"
        raise IndexMismatchError(reason) from error


def _stored(index: VideoIndex, captions: Captions) -> dict[str, Any] | None:
    """What `fit_hybrid` kept of these captions, or None if there is nothing; errors as `stored_weights`."""
    file = index.derived(FILE)
    if not file.exists():
        return None
    record = read_record(file) or {}
    of = {"model_fingerprint": index.meta.model_fingerprint, "caption_fingerprint": captions.meta.fingerprint}
    if any(record.get(name) != value for name, value in of.items()):
        reason = "by: the weights of hybrid search were fitted on other captions or vectors"
        raise IndexMismatchError(f"{reason}; {_remedy(index)}")
    return record


def facts(index: VideoIndex) -> dict[str, object] | None:
    """Return what `vidembed info` says of the captions of an index and how they are searched; None if it has none."""
    if (found := captions_facts(index)) is None:
        return None
    try:
        captions = open_captions(index)
        weights, record = stored_weights(index, captions), _stored(index, captions)
    except IndexMismatchError as error:
        return {**found, "fusion": f"none: {error}"}
    if weights is None or record is None:
        return {**found, "fusion": "reciprocal_rank"}
    rerank = record.get("rerank")
    fused = (
        None if rerank is None else {name: rerank[name] for name in ("reranker", "k")} | {"by": [*rerank["fusions"]]}
    )
    return {**found, "fusion": "fitted", **asdict(weights), "rerank": fused}
