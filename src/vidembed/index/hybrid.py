"""Search by captions: by their vectors, by their words, or by these and the vectors of the videos together (hybrid).

A hybrid search takes the best rows by each similarity, finds the others of these rows exactly, and orders them by
weights fitted on labelled queries (`fit_hybrid`), or where there are none by reciprocal rank fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from vidembed.errors import IndexMismatchError
from vidembed.index.ann import read_record, write_record
from vidembed.index.captions import ROWS_AT_ONCE, Captions, open_captions
from vidembed.index.captions import facts as captions_facts
from vidembed.index.commit import locked
from vidembed.index.rows import Ranking, Row, check_query, cosines, encode_queries, rank_all
from vidembed.index.table import PLACE, ROW_ID, Block, QueryEncoder, VideoIndex
from vidembed.scoring.checks import FloatArray
from vidembed.scoring.hybrid import HybridWeights, ranks, reciprocal_rank_fusion
from vidembed.video.clip import content_fingerprint

if TYPE_CHECKING:
    from vidembed.captions import CaptionedVideo

By: TypeAlias = Literal["video", "caption", "text", "hybrid"]
"""What orders hits: the cosine with the video, that with its caption, BM25 of the caption's words, or all three."""
BYS: tuple[By, ...] = get_args(By)
Fusion: TypeAlias = Literal["fitted", "reciprocal_rank"]

POOL = 100
"""Least rows that a hybrid search takes by each similarity (ours): what is below the hundredth place by all three is
hardly among the first ten, and an approximate search has measured its recall up to a hundred."""

FILE = "hybrid-weights.json"
_SEGMENTS = 4  # times as many rows as videos are looked at for the candidates of a fit


class Scores(NamedTuple):
    """What a search by captions says of a row, beside the cosine with the video; None where it has no caption."""

    caption: float | None = None  # cosine of query and caption
    text: float | None = None  # BM25 of the caption
    hybrid: float | None = None  # log-odds of a match by fitted weights, or the sum of reciprocal ranks


def pool(k: int) -> int:
    """Return how many rows a hybrid search takes by each similarity for `k` hits."""
    return max(k, POOL)


def rank(
    index: VideoIndex,
    captions: Captions,
    queries: NDArray[np.float64],
    texts: Sequence[str],
    *,
    by: By,
    k: int,
    where: str | None,
    by_video: Callable[[], list[list[Row]]],
    weights: HybridWeights | None,
) -> list[list[tuple[Row, Scores]]]:
    """Return the `k` best rows of each query by caption, text or hybrid, best first, then by URI, start and end.

    Args:
        index: At the version of `captions`.
        captions: Of the index.
        queries: Unit vectors, shape (Q, D).
        texts: The words of each query.
        by: What orders the rows.
        k: Most rows.
        where: Which rows may be hits (`Filter.sql`).
        by_video: Returns the best rows of each query by the cosine with the video, for a hybrid search.
        weights: Of a hybrid search; None for reciprocal rank fusion.
    """
    allowed = None
    if where is not None:
        found = [batch.column(ROW_ID).to_numpy() for batch in index.scan(["start_s"], where)]
        allowed = np.concatenate([np.empty(0, np.uint64), *found])
    depth = pool(k) if by == "hybrid" else k
    candidates: list[list[NDArray[np.uint64]]] = [[] for _ in texts]
    if by in {"caption", "hybrid"}:
        ranking = Ranking(queries, depth, partial(index.take, columns=PLACE))
        for block in captions.blocks(allowed):
            ranking.add(block)
        for ids, rows in zip(candidates, ranking.best, strict=True):
            ids.append(np.array([row.row_id for row in rows], dtype=np.uint64))
    if by == "hybrid":
        for ids, rows in zip(candidates, by_video(), strict=True):
            ids.append(np.array([row.row_id for row in rows], dtype=np.uint64))
    results = []
    for query, text, ids in zip(queries, texts, candidates, strict=True):
        words = None
        if by != "caption":
            words = captions.bm25(text)
            fits = np.ones(len(words[0]), np.bool_) if allowed is None else np.isin(words[0], allowed)
            ids.append(_best(index, words[0][fits], words[1][fits], depth))
        distinct = np.unique(np.concatenate(ids))
        results.append(_ordered(index, captions, query, distinct, words, by=by, k=k, weights=weights))
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
    captions: Captions,
    query: NDArray[np.float64],
    row_ids: NDArray[np.uint64],
    words: tuple[NDArray[np.uint64], FloatArray] | None,
    *,
    by: By,
    k: int,
    weights: HybridWeights | None,
) -> list[tuple[Row, Scores]]:
    """The best of rows (U,), whose ids rise, for a query, shape (D,), with all of their scores."""
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
    has, found = captions.cosines(row_ids, query)
    features[has, 1] = found
    if words is not None:
        features[has, 2] = 0.0  # there is a caption, and it has no word of the query
        at = np.searchsorted(words[0], row_ids).clip(max=max(0, len(words[0]) - 1))
        hit = words[0][at] == row_ids if len(words[0]) else np.zeros(len(row_ids), np.bool_)
        features[hit, 2] = words[1][at[hit]]
    order = np.round(_fused(features, weights), 6) if by == "hybrid" else features[:, 1 if by == "caption" else 2]
    rows = []
    for row_id, each, score in zip(row_ids.tolist(), features, order, strict=True):
        uri, start, end, duration = places[row_id]
        caption, text = (None if np.isnan(value) else float(value) for value in each[1:])
        row = Row(-float(score), uri, start, end, float(each[0]), row_id, duration)
        rows.append((row, Scores(caption, text, float(score) if by == "hybrid" else None)))
    return sorted(rows, key=lambda each: each[0])[:k]


def _fused(features: FloatArray, weights: HybridWeights | None) -> FloatArray:
    """What orders rows of a query, (U,), of their similarities (U, 3)."""
    if weights is not None:
        return weights.log_odds(features)
    found = np.where(
        features[:, 2] > 0, features[:, 2], np.nan
    )  # a caption without a word of the query is in no ranking
    return reciprocal_rank_fusion(ranks(features[:, 0]), ranks(features[:, 1]), ranks(found))


def stored_weights(index: VideoIndex, captions: Captions) -> HybridWeights | None:
    """Return the weights that were fitted for these captions, or None where there are none.

    IndexMismatchError for weights of other captions or of another model, or that cannot be read.
    """
    file = index.derived(FILE)
    if not file.exists():
        return None
    record = read_record(file) or {}
    remedy = f"fit them again with `vidembed calibrate INDEX --hybrid --pairs FILE`, or remove {str(file)!r}"
    of = {"model_fingerprint": index.meta.model_fingerprint, "caption_fingerprint": captions.meta.fingerprint}
    if any(record.get(name) != value for name, value in of.items()):
        raise IndexMismatchError(
            f"by: the weights of hybrid search were fitted before the captions or the vectors changed; {remedy}"
        )
    try:
        return HybridWeights(**record["weights"])
    except (KeyError, TypeError, ValueError) as error:
        raise IndexMismatchError(f"by: the weights of hybrid search cannot be read ({error}); {remedy}") from error


@dataclass(frozen=True, slots=True)
class HybridReport:
    """What `fit_hybrid` did.

    Attributes:
        weights: That were fitted and stored.
        queries: Texts that pairs were fitted on.
        pairs: Pairs of text and candidate video.
        matches: How many of them match.
        missed: Texts left out, since no video that they are about was among their candidates.
    """

    weights: HybridWeights
    queries: int
    pairs: int
    matches: int
    missed: int

    def to_dict(self) -> dict[str, object]:
        """Return the report as it stands in JSON."""
        return asdict(self)


def fit_hybrid(
    folder: str | Path,
    encoder: QueryEncoder,
    rows: Iterable[CaptionedVideo],
    *,
    candidates: int = 50,
    name: str = "this model",
    wait: bool = False,
) -> HybridReport:
    """Fit the weights of hybrid search on texts and the videos that they are about, and store them in the index.

    Candidates of a text are the best videos of the index by reciprocal rank fusion, of a video its best segment. Those
    that the text is about match, the others do not; if rows have labels, only pairs with one are fitted on. Videos
    are told apart by their bytes. Use texts like the queries to come, and not those that you evaluate with.

    Args:
        folder: Of an index with captions.
        encoder: The model that made the index.
        rows: Such as `vidembed.captions.read_captioned_videos` reads.
        candidates: Most videos of each text.
        name: What the model was loaded as, for messages.
        wait: Where another run is writing to the index, wait for its end. Otherwise, refuse.

    Raises:
        ValueError: There are too few pairs, or what `HybridWeights.fit` refuses.
        IndexMismatchError: The index is of another model, or has no captions.
        IndexBusyError: Another run is writing to the index, and `wait` is False.
    """
    index = VideoIndex.open(folder)
    index.meta.require_model(encoder, name=name)
    captions = open_captions(index)
    captions.require_words()
    content = cache(content_fingerprint)
    labels: dict[str, dict[str, bool | None]] = {}  # by text, by content
    for row in rows:
        labels.setdefault(row.text, {})[content(row.video)] = row.label
    for text in labels:
        check_query(text, name="pairs")
    texts = list(labels)
    queries = encode_queries(encoder, texts, dimension=index.meta.dimension)  # (Q, D)
    contents = {file.uri: file.content_fingerprint for file in index.files().values()}
    depth = _SEGMENTS * candidates
    by_video = partial(rank_all, index, queries, k=depth)
    asked: dict[str, Any] = {"by": "hybrid", "k": depth, "where": None, "by_video": by_video, "weights": None}
    features: list[tuple[float, ...]] = []
    flags: list[bool] = []
    names: list[str] = []
    missed = 0
    for text, ranked in zip(texts, rank(index, captions, queries, texts, **asked), strict=True):
        best: dict[str, tuple[float, ...]] = {}  # by content; the segment that is ranked first
        for found, scores in ranked:
            missing = (np.nan if each is None else each for each in scores[:2])
            best.setdefault(contents[found.uri], (found.score, *missing))
        known = labels[text]
        is_labelled = any(label is not None for label in known.values())
        asked_of = [each for each in list(best)[:candidates] if each in known or not is_labelled]
        right = [known.get(each, False) is not False for each in asked_of]
        if not asked_of or not (is_labelled or any(right)):
            missed += 1
            continue
        features += [best[each] for each in asked_of]
        flags += right
        names += [text] * len(right)
    if not features:
        raise ValueError(
            f"pairs: none of {len(texts)} texts finds its video among {candidates} candidates of the index; check "
            f"that the videos are indexed and captioned"
        )
    weights = HybridWeights.fit(np.array(features), flags, names)
    record = {"model_fingerprint": index.meta.model_fingerprint, "caption_fingerprint": captions.meta.fingerprint}
    report = HybridReport(weights, len(texts) - missed, len(flags), sum(flags), missed)
    with locked(Path(folder), wait=wait):
        write_record(index.derived(FILE), {**record, **report.to_dict()})
    return report


def facts(index: VideoIndex) -> dict[str, object] | None:
    """Return what `vidembed info` says of the captions of an index and how they are searched; None if it has none."""
    if (found := captions_facts(index)) is None:
        return None
    try:
        weights = stored_weights(index, open_captions(index))
    except IndexMismatchError as error:
        return {**found, "fusion": f"none: {error}"}
    return (
        {**found, "fusion": "reciprocal_rank"} if weights is None else {**found, "fusion": "fitted", **asdict(weights)}
    )
