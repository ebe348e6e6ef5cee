"""Words against an index: by the vectors of videos, exact unless the result says otherwise, or also by captions."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from vidembed.index import ann, bank, captions, hybrid
from vidembed.index.hits import BYS, MERGES, By, Hit, Hits, Merge, Method, merged
from vidembed.index.hybrid import ByCaptions, Scores
from vidembed.index.rows import Filter, Row, check_query, encode_queries, rank_all, unit_queries
from vidembed.index.schema import QueryEncoder
from vidembed.index.table import VideoIndex

MAX_QUERIES = 10_000
_DEEPER = 4  # times as many rows are looked at where those before gave too few hits


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How to search.

    Attributes:
        k: Most hits to return, at least 1.
        exact: Look at every row, whatever the number.
        keep: Which rows may be hits. Such a search is exact.
        copy: Search the ANN index of this quantization, `int8` or `binary`, and all of it, whatever the number of rows.
        bank: Normalize scores by the query bank of the index. Such a search is exact.
        merge: `moments` drops hits that overlap a better one of the same video, `videos` keeps the best of each video.
            There are `k` hits afterwards, if there are that many. Where 100 candidates of an approximate search give
            fewer, the search is exact.
        around: Also return the segment of each hit widened by so many seconds on both sides, within its video.
        by: What orders hits: `video`, the cosine with the video; `caption`, that with its caption; `text`, BM25 of the
            caption's words; `hybrid`, all three. By caption and text, rows without a caption are no hits.

    Raises:
        ValueError: A value is out of range, or options do not go together.
    """

    k: int = 10
    exact: bool = False
    keep: Filter | None = None
    copy: str | None = None
    bank: bool = False
    merge: Merge = "none"
    around: float | None = None
    by: By = "video"

    def __post_init__(self) -> None:
        """Check the values."""
        if self.k < 1:
            raise ValueError(f"k: got {self.k}; at least 1 is needed")
        if self.merge not in MERGES:
            raise ValueError(f"merge: got {self.merge!r}; one of {', '.join(MERGES)} is needed")
        if self.around is not None and not (math.isfinite(self.around) and self.around >= 0):
            raise ValueError(f"around: got {self.around}; seconds are needed, 0 or more")
        if self.by not in BYS:
            raise ValueError(f"by: got {self.by!r}; one of {', '.join(BYS)} is needed")
        if self.by != "video" and (self.copy is not None or self.bank):
            other = "bank" if self.bank else "compact"
            raise ValueError(
                f"{other}: it works on vectors of videos only; leave it out, or search by video instead of {self.by}"
            )
        if self.copy is None:
            return
        if self.k > ann.MAX_K:
            raise ValueError(
                f"k: got {self.k} for a search of quantized vectors, whose recall is measured up to {ann.MAX_K}; ask "
                "for fewer hits"
            )
        others = {"exact": self.exact, "a filter": self.is_filtered, "bank": self.bank}
        if clash := next((other for other, given in others.items() if given), None):
            raise ValueError(
                f"compact: got {self.copy!r} together with {clash}, which needs every row; leave one of them out"
            )

    @property
    def is_filtered(self) -> bool:
        """Whether some rows may be no hits."""
        return self.keep is not None and self.keep.any


class SearchKeywords(TypedDict, total=False):
    """The fields of `SearchOptions`, as keyword arguments that type checkers know."""

    k: int
    exact: bool
    keep: Filter | None
    copy: str | None
    bank: bool
    merge: Merge
    around: float | None
    by: By


def search(
    index: VideoIndex,
    encoder: QueryEncoder,
    query: str,
    *,
    name: str = "this model",
    asked: SearchOptions | None = None,
    **options: Unpack[SearchKeywords],
) -> Hits:
    """Return the `k` segments nearest to `query`, best first.

    The order is total: by score as printed, then URI, then start. Every row is looked at, unless the index has more
    rows than the threshold that it was built with and an ANN index of measured recall, or `copy` is given:
    `Hits.method` says which it was.

    Args:
        index: Where to look.
        encoder: The model that made the index.
        query: Words. Text that looks like a path is still words.
        name: What the model was loaded as, for messages.
        asked: How to search. Default: as `SearchOptions()`.
        options: Fields of `SearchOptions`, in place of those of `asked`: `k` (default 10), `exact`, `keep`, `copy`,
            `bank`, `merge`, `around`, `by`.

    Raises:
        ValueError: The query is empty or longer than `MAX_QUERY_CHARS`, an option is out of range, options do not go
            together, or the index has no such quantization or no bank.
        IndexMismatchError: The index or the bank was made by another model, or of another state of the index; or it has
            no captions, or none that fit, and the search is by them.
        RuntimeError: The model gave no usable vector for the query.
        TypeError: There is no such option.
    """
    asked = replace(asked or SearchOptions(), **options)
    check_query(query)
    return _encoded(index, encoder, [query], name, asked)[0]


def search_many(
    index: VideoIndex,
    encoder: QueryEncoder,
    queries: Sequence[str],
    *,
    name: str = "this model",
    asked: SearchOptions | None = None,
    **options: Unpack[SearchKeywords],
) -> list[Hits]:
    """Search many queries: encoded in one call, and where the search is exact, the vectors are read once for all.

    Args and errors are those of `search`. `queries` are 1 to `MAX_QUERIES`; an error says which of them is wrong.

    Returns:
        The hits of each query, in order.
    """
    if not 0 < len(queries) <= MAX_QUERIES:
        raise ValueError(f"queries: got {len(queries)}; 1 to {MAX_QUERIES} are allowed")
    asked = replace(asked or SearchOptions(), **options)
    for number, query in enumerate(queries):
        check_query(query, name=f"queries[{number}]")
    return _encoded(index, encoder, queries, name, asked)


def nearest(
    index: VideoIndex,
    vector: NDArray[np.float64],
    text: str = "",
    *,
    asked: SearchOptions | None = None,
    **options: Unpack[SearchKeywords],
) -> Hits:
    """Search as `search` does, for the vector, shape (D,), of a text, which only a search by text or hybrid needs.

    RuntimeError for a vector that is zero, not finite or too long.
    """
    queries = unit_queries(np.asarray(vector, dtype=np.float64)[None], index.meta.dimension)  # (1, D)
    return _nearest(index, queries, [text], replace(asked or SearchOptions(), **options))[0]


def _encoded(
    index: VideoIndex, encoder: QueryEncoder, queries: Sequence[str], name: str, asked: SearchOptions
) -> list[Hits]:
    index.meta.require_model(encoder, name=name)
    return _nearest(index, encode_queries(encoder, queries, dimension=index.meta.dimension), queries, asked)


def _nearest(index: VideoIndex, queries: NDArray[np.float64], texts: Sequence[str], asked: SearchOptions) -> list[Hits]:
    """Search for unit vectors, shape (Q, D), of texts. All is read of one version of the table."""
    index.latest()
    built, k, count = None, asked.k, len(index)
    if asked.copy is not None:
        built = ann.quantized(index, asked.copy)
    elif not (asked.exact or asked.bank or asked.is_filtered):
        built = ann.usable(index, hybrid.pool(k) if asked.by == "hybrid" else k)
    by_captions = None if asked.by == "video" else ByCaptions.of(index, asked.by)
    if asked.merge == "none":
        return _captioned(index, _ranked(index, queries, texts, asked, k, built, by_captions))
    # Ever more rows are ranked until there are `k` hits after merging, or no more rows. The depth grows by a factor, so
    # that even where all rows are of one video there are few rankings.
    files = functools.cache(lambda: len(index.files()))  # counted only if it matters
    # Every row is read for an exact ranking, so its first one may as well go deeper.
    depth = _DEEPER * k if built is None else k
    found: dict[int, Hits] = {}
    left = np.arange(len(queries))
    while len(left):
        words = [texts[place] for place in left.tolist()]
        ranked = _ranked(index, queries[left], words, asked, depth, built, by_captions)
        for place, each in zip(left.tolist(), ranked, strict=True):
            hits = merged(each, asked.merge, k=k)
            no_more = len(each) >= count or (built is None and len(each) < depth)
            if len(hits) == k or no_more or (asked.merge == "videos" and len(hits) == files()):
                found[place] = Hits(hits, replace(each.method, merge=asked.merge))
        left = np.array([place for place in left.tolist() if place not in found], dtype=np.intp)
        if depth >= ann.MAX_K:
            built = None  # recall is not known any deeper
        depth = _DEEPER * depth if built is None else min(_DEEPER * depth, ann.MAX_K)
    return _captioned(index, [found[place] for place in range(len(queries))])


def _captioned(index: VideoIndex, results: list[Hits]) -> list[Hits]:
    """Return hits with their captions, if the index has any."""
    if not index.has_captions:
        return results
    contents = index.of_files((hit.uri for hits in results for hit in hits), "content_fingerprint")
    known = captions.texts_of(index, contents.values())
    return [
        Hits(
            (replace(hit, caption=known.get((contents[hit.uri], hit.start_s, hit.end_s))) for hit in hits), hits.method
        )
        for hits in results
    ]


def _ranked(
    index: VideoIndex,
    queries: NDArray[np.float64],
    texts: Sequence[str],
    asked: SearchOptions,
    k: int,
    built: ann.Ann | None,
    by_captions: ByCaptions | None,
) -> list[Hits]:
    """Return the `k` best rows for each query, by the ANN index or exactly, with nothing merged."""
    method = Method("exact", len(index))
    where = None if asked.keep is None else asked.keep.sql(index)
    if asked.bank:
        results = []
        for rows, normalized in bank.open_bank(index).rank(index, queries, k=k, where=where):
            how = replace(method, query_bank=normalized is not None)
            hits = _hits([(row, None) for row in rows], how, asked.around)
            for place, value in enumerate(normalized or ()):
                hits[place] = replace(hits[place], normalized=round(value, 6))
            results.append(hits)
        return results
    depth = hybrid.pool(k) if asked.by == "hybrid" else k
    effort: tuple[int, int] | None = None
    if built is not None and asked.by in {"video", "hybrid"}:
        recall, effort = built.recall, (built.nprobes, built.refine)
        if asked.copy is not None and built.full_recall is not None:  # in every partition
            recall, effort = built.full_recall, (len(index), built.full_refine or ann.FULL_REFINES[-1])
        at = next(each for each in ann.MEASURED_K if depth <= each)  # the next one up that recall was measured at
        method = replace(method, name="ann", recall=recall[str(at)], recall_at=at, sample=built.sample)

    def by_video() -> list[list[Row]]:
        if effort is None:
            return rank_all(index, queries, k=depth, where=where)
        return [ann.find(index, query, depth, effort) for query in queries]

    if by_captions is None:
        return [_hits([(row, None) for row in rows], method, asked.around) for rows in by_video()]
    method = replace(method, by=asked.by, captioned=len(by_captions.captions.row_ids))
    if asked.by == "hybrid":
        method = replace(method, fusion="reciprocal_rank" if by_captions.weights is None else "fitted")
    ranked = hybrid.rank(index, by_captions, queries, texts, k=k, where=where, by_video=by_video)
    return [_hits(rows, method, asked.around) for rows in ranked]


def _hits(rows: Iterable[tuple[Row, Scores | None]], method: Method, around: float | None) -> Hits:
    hits = Hits([], method)
    for row, more in rows:
        hit = Hit(row.uri, row.start_s, row.end_s, row.score, recall=method.recall)
        if more is not None:
            hit = replace(hit, caption_score=more.caption, text_score=more.text, hybrid_score=more.hybrid)
        if around is not None:
            # A segment's end is rounded, a duration is not.
            end = max(row.end_s, min(row.duration, row.end_s + around))
            start = max(0.0, row.start_s - around)
            hit = replace(hit, context_start_s=round(start, 6), context_end_s=round(end, 6))
        hits.append(hit)
    return hits
