"""Words against the vectors of an index: cosine similarity, exact unless the result says otherwise."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, get_args

import numpy as np

from vidembed.index import ann, compact
from vidembed.index.ann import MAX_K, recall_at
from vidembed.index.bank import MAX_QUERY_CHARS, check_query, encode_queries, open_bank, unit_queries
from vidembed.index.exact import Filter, Row, batches, rank
from vidembed.index.table import ROW_ID

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidembed.index.meta import QueryEncoder
    from vidembed.index.table import VideoIndex

__all__ = [
    "MAX_QUERY_CHARS",
    "Hit",
    "Hits",
    "Method",
    "SearchOptions",
    "check_query",
    "nearest",
    "search",
    "search_many",
]


Merge: TypeAlias = Literal["none", "moments", "videos"]
"""`none` leaves hits as they are, `moments` drops those that overlap a better one, `videos` keeps the best of each."""
MERGES: tuple[Merge, ...] = get_args(Merge)

OVERLAP = 0.4
"""Share of the shorter of two hits that both may have in common (our choice). Windows that overlap by half, such as
`--segment 10 --overlap 5`, are above it, so that neighbours become one moment; those that overlap by a fifth stay."""


def check_merge(merge: str) -> None:
    """Refuse what is none of `MERGES`.

    Raises:
        ValueError: It is none.
    """
    if merge not in MERGES:
        raise ValueError(f"merge: got {merge!r}; one of {', '.join(MERGES)} is needed")


def overlap(one: Hit, other: Hit) -> float:
    """Return the share of the shorter of two hits that lies in both, 0 to 1; 0 for hits of different videos.

    This is the overlap coefficient of the two stretches of time (Szymkiewicz-Simpson: intersection over minimum). For
    stretches of one length it rises with their intersection over union, the usual measure of temporal non-maximum
    suppression. It is not that one, which is small for a short scene within a long window, though both show the same.
    """
    shorter = min(one.end_s - one.start_s, other.end_s - other.start_s)
    if one.uri != other.uri or shorter <= 0:
        return 0.0
    return max(0.0, min(one.end_s, other.end_s) - max(one.start_s, other.start_s)) / shorter


def merge_moments(hits: Sequence[Hit], *, limit: float = OVERLAP, k: int | None = None) -> list[Hit]:
    """Drop hits that overlap a better one of the same video: temporal non-maximum suppression.

    Greedy, as in object detection: from the best hit down, one is kept if no kept one overlaps it by more than `limit`.
    What was dropped suppresses nothing.

    Args:
        hits: Best first.
        limit: Largest `overlap` of hits that are both kept, 0 to less than 1.
        k: Stop at so many. Default: all.

    Returns:
        The hits that are kept, in their order.

    Raises:
        ValueError: `limit` is out of range.
    """
    if not 0 <= limit < 1:
        raise ValueError(f"limit: got {limit}; a share of at least 0 and below 1 is needed")
    kept: list[Hit] = []
    # Of each video, starts and ends of what is kept. One of two that are kept never lies within the other, so both rise
    # together, and those that a hit can overlap lie side by side.
    taken: dict[str, tuple[list[float], list[float]]] = {}
    for hit in hits:
        starts, ends = taken.setdefault(hit.uri, ([], []))
        first, behind = bisect_right(ends, hit.start_s), bisect_left(starts, hit.end_s)
        near = (replace(hit, start_s=starts[place], end_s=ends[place]) for place in range(first, behind))
        if any(overlap(hit, other) > limit for other in near):
            continue
        kept.append(hit)
        if len(kept) == k:
            break
        if hit.end_s > hit.start_s:  # one without length overlaps nothing
            place = bisect_left(starts, hit.start_s)
            starts.insert(place, hit.start_s)
            ends.insert(place, hit.end_s)
    return kept


def merge_videos(hits: Sequence[Hit], *, k: int | None = None) -> list[Hit]:
    """Keep the best hit of each video.

    Args:
        hits: Best first.
        k: Stop at so many. Default: all.

    Returns:
        The hits that are kept, in their order. `Hit.segments` says how many segments of each video rank no lower than
        the last of them.
    """
    best: dict[str, Hit] = {}
    met: dict[str, int] = {}
    since: dict[str, int] = {}  # met since the last that was kept
    for hit in hits:
        since[hit.uri] = since.get(hit.uri, 0) + (hit.segments or 1)
        if hit.uri not in best:
            best[hit.uri] = hit
            met |= {uri: met.get(uri, 0) + count for uri, count in since.items()}
            since.clear()
            if len(best) == k:
                break
    return [replace(hit, segments=met[uri]) for uri, hit in best.items()]


def merged(hits: Sequence[Hit], merge: Merge, *, k: int) -> list[Hit]:
    """Return the first `k` hits after merging.

    Args:
        hits: Best first.
        merge: How.
        k: Most hits to return.

    Raises:
        ValueError: `merge` is none of `MERGES`.
    """
    check_merge(merge)
    if merge == "none":
        return list(hits[:k])
    return merge_moments(hits, k=k) if merge == "moments" else merge_videos(hits, k=k)


MAX_QUERIES = 10_000
_DEEPER = 4  # times as many rows are looked at where those before gave too few hits


@dataclass(frozen=True, slots=True)
class Hit:
    """A segment that a search found.

    Attributes:
        uri: URI of the video, such as `file:///videos/a.mp4`.
        start_s: Where the segment starts, seconds.
        end_s: Where it ends, seconds.
        score: Cosine similarity to the query, -1 to 1, rounded to six decimals. Always that of the stored vector.
        probability: That the segment matches the query, 0 to 1, if a reranker was asked about it.
        normalized: Score by the query bank, up to 0, if hits are ordered by it.
        recall: Measured recall of the search that found it, if that was approximate.
        segments: How many segments of its video rank no lower than the last hit, if hits are merged to videos.
        context_start_s: Where the segment starts with what is around it, seconds, if that was asked for.
        context_end_s: Where that ends, seconds.
    """

    uri: str
    start_s: float
    end_s: float
    score: float
    probability: float | None = None
    normalized: float | None = None
    recall: float | None = None
    segments: int | None = None
    context_start_s: float | None = None
    context_end_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the hit as it stands in JSON; without what there is not, and `approximate` where it is."""
        fields = {key: value for key, value in asdict(self).items() if value is not None}
        return fields | ({"approximate": True} if self.recall is not None else {})


@dataclass(frozen=True, slots=True)
class Method:
    """How hits were found.

    Attributes:
        name: `exact`, `ann`, or `compact` and the name of the copy, such as `compact int8`.
        rows: Rows in the index.
        recall: Measured recall against the exact search, if approximate.
        recall_at: The number of hits that it was measured at: the next of 10 and 100.
        sample: Queries of the measurement: stored vectors, moved (`vidembed.index.ann.draw`).
        query_bank: Whether hits are ordered by the query bank. With a bank, False says that it has nothing to correct.
        merge: How hits were merged, if they were. Recall is that of the segments before.
    """

    name: str
    rows: int
    recall: float | None = None
    recall_at: int | None = None
    sample: int | None = None
    query_bank: bool | None = None
    merge: Merge | None = None

    @property
    def approximate(self) -> bool:
        """Whether a hit may be missing."""
        return self.recall is not None

    def to_dict(self) -> dict[str, Any]:
        """Return it as it stands in JSON."""
        fields = {key: value for key, value in asdict(self).items() if value is not None}
        return {"approximate": self.approximate, **fields}


class Hits(list[Hit]):
    """The hits of a query, best first, and how they were found.

    Attributes:
        method: How.
    """

    def __init__(self, hits: Iterable[Hit], method: Method) -> None:
        """Wrap hits."""
        super().__init__(hits)
        self.method = method


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How to search; the arguments of `search`, which documents them.

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

    def __post_init__(self) -> None:
        """Check the values."""
        if self.k < 1:
            raise ValueError(f"k: got {self.k}; at least 1 is needed")
        check_options(
            k=self.k,
            exact=self.exact,
            keep=self.keep,
            copy=self.copy,
            bank=self.bank,
            merge=self.merge,
            around=self.around,
        )


class SearchKeywords(TypedDict, total=False):
    """The fields of `SearchOptions`, as keyword arguments."""

    k: int
    exact: bool
    keep: Filter | None
    copy: str | None
    bank: bool
    merge: Merge
    around: float | None


def search(
    index: VideoIndex,
    encoder: QueryEncoder,
    query: str,
    *,
    k: int = 10,
    name: str = "this model",
    exact: bool = False,
    keep: Filter | None = None,
    copy: str | None = None,
    bank: bool = False,
    merge: Merge = "none",
    around: float | None = None,
) -> Hits:
    """Return the `k` segments nearest to `query`, best first.

    The order is total: by score as printed, then URI, then start. Every row is looked at, unless the index has more
    rows than the threshold that it was built with and an ANN index of measured recall, or `copy` is given:
    `Hits.method` says which it was.

    Args:
        index: Where to look.
        encoder: The model that made the index.
        query: Words. Text that looks like a path is still words.
        k: Most hits to return, at least 1.
        name: What the model was loaded as, for messages.
        exact: Look at every row, whatever the number.
        keep: Which rows may be hits. Such a search is exact.
        copy: Search this compact copy first, such as `int8`, and rescore what it brings.
        bank: Normalize scores by the query bank of the index. Such a search is exact.
        merge: `moments` drops hits that overlap a better one of the same video, `videos` keeps the best of each video
            (`vidembed.index.search`). There are `k` hits afterwards, if there are that many. Where 100
            candidates of an approximate search give fewer, the search is exact.
        around: Let each hit tell where its segment starts and ends with so many seconds on both sides, within its
            video. Score and segment stay as they are.

    Raises:
        ValueError: The query is empty or longer than `MAX_QUERY_CHARS`, `k`, `merge` or `around` is out of range,
            options do not go together, or the index has no such copy or no bank.
        IndexMismatchError: The index, the copy or the bank was made by another model or of another state of the index.
        RuntimeError: The model gave no usable vector for the query.
    """
    check_query(query, k)
    check_options(k=k, exact=exact, keep=keep, copy=copy, bank=bank, merge=merge, around=around)
    index.meta.require_model(encoder, name=name)
    # A dict, since a bare string could be taken for the path of a video.
    vector = np.asarray(encoder.encode_query({"text": query}), dtype=np.float64).reshape(-1)  # (D,)
    return nearest(index, vector, k=k, exact=exact, keep=keep, copy=copy, bank=bank, merge=merge, around=around)


def search_many(
    index: VideoIndex,
    encoder: QueryEncoder,
    queries: Sequence[str],
    *,
    k: int = 10,
    name: str = "this model",
    exact: bool = False,
    keep: Filter | None = None,
    copy: str | None = None,
    bank: bool = False,
    merge: Merge = "none",
    around: float | None = None,
) -> list[Hits]:
    """Search many queries: encoded in one call, and where the search is exact, the vectors are read once for all.

    Args:
        index: As for `search`.
        encoder: As for `search`.
        queries: At least one, at most `MAX_QUERIES`.
        k: As for `search`.
        name: As for `search`.
        exact: As for `search`.
        keep: As for `search`.
        copy: As for `search`.
        bank: As for `search`.
        merge: As for `search`.
        around: As for `search`.

    Returns:
        The hits of each query, in order.

    Raises:
        ValueError: As for `search`; the message says which query.
        IndexMismatchError: As for `search`.
        RuntimeError: As for `search`.
    """
    if not 0 < len(queries) <= MAX_QUERIES:
        raise ValueError(f"queries: got {len(queries)}; 1 to {MAX_QUERIES} are taken at once")
    for number, query in enumerate(queries):
        check_query(query, k, name=f"queries[{number}]")
    check_options(k=k, exact=exact, keep=keep, copy=copy, bank=bank, merge=merge, around=around)
    index.meta.require_model(encoder, name=name)
    vectors = encode_queries(encoder, queries, dimension=index.meta.dimension)
    return _nearest(index, vectors, _Way(exact, keep, copy, bank), k=k, merge=merge, around=around)


def check_options(
    *,
    k: int,
    exact: bool,
    keep: Filter | None,
    copy: str | None,
    bank: bool,
    merge: Merge = "none",
    around: float | None = None,
) -> None:
    """Refuse options that are out of range or do not go together; cheap, so it can come before the model is loaded.

    Raises:
        ValueError: They are or do not.
    """
    check_merge(merge)
    if around is not None and not (math.isfinite(around) and around >= 0):
        raise ValueError(f"around: got {around}; seconds are needed, 0 or more")
    if copy is None:
        return
    compact.check_k(k)
    others = {"exact": exact, "a filter": keep is not None and keep.any, "bank": bank}
    if clash := next((other for other, given in others.items() if given), None):
        raise ValueError(f"compact: got {copy!r} together with {clash}, which needs every row; leave one of them out")


def nearest(
    index: VideoIndex,
    vector: NDArray[np.float64],
    *,
    k: int,
    exact: bool = False,
    keep: Filter | None = None,
    copy: str | None = None,
    bank: bool = False,
    merge: Merge = "none",
    around: float | None = None,
) -> Hits:
    """Return the `k` segments whose vectors have the highest cosine with `vector`, best first.

    Args:
        index: Where to look.
        vector: Shape (D,).
        k: Most hits to return, at least 1.
        exact: As for `search`.
        keep: As for `search`.
        copy: As for `search`.
        bank: As for `search`.
        merge: As for `search`.
        around: As for `search`.

    Raises:
        ValueError: As for `search`.
        IndexMismatchError: As for `search`.
        RuntimeError: `vector` is of another length than those of the index, not finite, or zero.
    """
    check_options(k=k, exact=exact, keep=keep, copy=copy, bank=bank, merge=merge, around=around)
    queries = unit_queries(np.asarray(vector, dtype=np.float64)[None], index.meta.dimension)  # (1, D)
    return _nearest(index, queries, _Way(exact, keep, copy, bank), k=k, merge=merge, around=around)[0]


@dataclass(frozen=True, slots=True)
class _Way:
    """How rows are ranked, as `search` has it."""

    exact: bool
    keep: Filter | None
    copy: str | None
    bank: bool

    def approximate(self, index: VideoIndex, k: int) -> bool:
        """Whether a search for `k` hits may miss some."""
        every = self.exact or self.bank or (self.keep is not None and self.keep.any)
        return self.copy is not None or (not every and ann.usable(index, k) is not None)


@dataclass(slots=True)
class _Found:
    """What was found for a query.

    Attributes:
        hits: Best first.
        rows: Id of a row of each video among them, by its URI.
    """

    hits: Hits
    rows: dict[str, int] = field(default_factory=dict)


def _nearest(
    index: VideoIndex,
    queries: NDArray[np.float64],
    way: _Way,
    *,
    k: int,
    merge: Merge,
    around: float | None,
) -> list[Hits]:
    """Search for unit vectors, shape (Q, D). All is read of one version of the table."""
    index.latest()
    found = _ranked(index, queries, way, k) if merge == "none" else _merged(index, queries, way, k, merge)
    if around is not None:
        for each in found:
            _widen(index, each, around)
    return [each.hits for each in found]


def _merged(index: VideoIndex, queries: NDArray[np.float64], way: _Way, k: int, merge: Merge) -> list[_Found]:
    """Rank ever more rows until there are `k` hits after merging, or no more rows.

    The depth grows by a factor, so that even where all rows are of one video there are few rankings.
    """
    count = len(index)
    files: int | None = None  # counted only if it matters
    approximate = way.approximate(index, k)
    # Every row is read for an exact ranking, so its first one may as well go deeper.
    depth = k if approximate else _DEEPER * k
    found: dict[int, _Found] = {}
    left = np.arange(len(queries))
    while len(left):
        for place, each in zip(left.tolist(), _ranked(index, queries[left], way, depth), strict=True):
            looked_at = len(each.hits)
            hits = merged(each.hits, merge, k=k)
            no_more = looked_at >= count or (not approximate and looked_at < depth)
            if len(hits) < k and merge == "videos" and files is None:
                files = len(index.files())
            if len(hits) == k or len(hits) == files or no_more:
                each.hits = Hits(hits, replace(each.hits.method, merge=merge))
                found[place] = each
        left = np.array([place for place in left.tolist() if place not in found], dtype=np.intp)
        if approximate and depth >= MAX_K:  # recall is not known any deeper
            way, approximate = replace(way, exact=True, copy=None), False
        depth = min(_DEEPER * depth, MAX_K) if approximate else _DEEPER * depth
    return [found[place] for place in range(len(queries))]


def _ranked(index: VideoIndex, queries: NDArray[np.float64], way: _Way, k: int) -> list[_Found]:
    """Return the `k` best rows of each query, with nothing merged."""
    method = Method("exact", len(index))
    if way.bank:
        results = []
        for rows, normalized in open_bank(index).rank(index, queries, k=k, keep=way.keep):
            each = _found(rows, replace(method, query_bank=normalized is not None))
            if normalized is not None:
                each.hits[:] = [
                    replace(hit, normalized=round(value, 6)) for hit, value in zip(each.hits, normalized, strict=True)
                ]
            results.append(each)
        return results
    if way.copy is not None:
        opened = compact.open_compact(index, way.copy)
        at, recall = recall_at(opened.recall, k)
        method = Method(f"compact {way.copy}", len(index), recall, at, int(opened.record["sample"]))
        found = opened.find(index, queries, k)
    elif way.approximate(index, k) and (built := ann.usable(index, k)) is not None:
        at, recall = recall_at(built.recall, k)
        method = Method("ann", len(index), recall, at, built.sample)
        found = [built.find(index, query, k) for query in queries]
    else:
        found = rank(batches(index, way.keep), queries, k=k)
    return [_found(rows, method) for rows in found]


def _found(rows: Sequence[Row], method: Method) -> _Found:
    hits = (Hit(row.uri, row.start_s, row.end_s, row.score, recall=method.recall) for row in rows)
    return _Found(Hits(hits, method), {row.uri: row.row_id for row in rows})


def _widen(index: VideoIndex, found: _Found, around: float) -> None:
    """Let hits tell where they start and end with what is around them."""
    ids = sorted({found.rows[hit.uri] for hit in found.hits})
    table = index.take(ids, ["duration"]) if ids else None
    lengths = {} if table is None else dict(zip(table[ROW_ID].to_pylist(), table["duration"].to_pylist(), strict=True))
    for place, hit in enumerate(found.hits):
        end = min(lengths[found.rows[hit.uri]], hit.end_s + around)
        found.hits[place] = replace(
            hit,
            context_start_s=round(max(0.0, hit.start_s - around), 6),
            context_end_s=round(max(hit.end_s, end), 6),  # a segment's end is rounded, the duration is not
        )
