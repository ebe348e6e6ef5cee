"""Hits: what a search returns, how they were found, and how those that overlap or are of one video are merged."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from typing import Literal, TypeAlias, get_args

By: TypeAlias = Literal["video", "caption", "text", "hybrid"]
"""What orders hits: the cosine with the video, that with its caption, BM25 of the caption's words, or all three."""
BYS: tuple[By, ...] = get_args(By)

Fusion: TypeAlias = Literal["fitted", "reciprocal_rank"]

Merge: TypeAlias = Literal["none", "moments", "videos"]
"""`none` leaves hits as they are, `moments` drops those that overlap a better one, `videos` keeps the best of each."""
MERGES: tuple[Merge, ...] = get_args(Merge)

Reranked: TypeAlias = Literal["head", "video", "caption", "text", "hybrid"]
"""What orders reranked hits: the head alone, or the head fused with their score of this kind."""

OVERLAP = 0.4
"""Share of the shorter of two hits that both may have in common (our choice). Windows that overlap by half, such as
`--segment 10 --overlap 5`, are above it, so that neighbours become one moment; those that overlap by a fifth stay."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A segment that a search found.

    Attributes:
        uri: URI of the video, such as `file:///videos/a.mp4`.
        start_s: Where the segment starts, seconds.
        end_s: Where it ends, seconds.
        score: Cosine similarity to the query, -1 to 1, rounded to six decimals. Always that of the stored vector of the
            video, whatever orders the hits.
        probability: That the segment matches the query, 0 to 1, if a reranker was asked about it.
        normalized: Score by the query bank, up to 0, if hits are ordered by it.
        recall: Measured recall of the search that found it, if that was approximate.
        segments: How many segments of its video rank no lower than the last hit, if hits are merged to videos.
        context_start_s: Where the segment starts with what is around it, seconds, if that was asked for.
        context_end_s: Where that ends, seconds.
        caption: What a model says of the segment, if the index holds that.
        caption_score: Cosine similarity of query and caption, of a search by caption or hybrid; orders the former.
        text_score: BM25 of the query's words in the caption, of a search by text or hybrid; orders the former.
        hybrid_score: Orders the hits of a hybrid search: log-odds of a match by fitted weights, or the sum of
            reciprocal ranks (`Method.fusion`).
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
    caption: str | None = None
    caption_score: float | None = None
    text_score: float | None = None
    hybrid_score: float | None = None

    def to_dict(self) -> dict[str, object]:
        """Return the hit as it stands in JSON: what there is, and `approximate` where it is."""
        fields = {key: value for key, value in asdict(self).items() if value is not None}
        return fields | ({"approximate": True} if self.recall is not None else {})


@dataclass(frozen=True, slots=True)
class Method:
    """How hits were found."""

    name: str  # `exact` or `ann`
    rows: int  # in the index
    recall: float | None = None  # measured against the exact search, if approximate; of the segments before merging
    recall_at: int | None = None  # the number of hits that it was measured at: the next of 10 and 100
    sample: int | None = None  # queries of the measurement: stored vectors, moved (`vidembed.index.ann.draw`)
    query_bank: bool | None = None  # whether hits are ordered by it; False: it has nothing to correct
    merge: Merge | None = None  # how hits were merged, if they were
    by: By | None = None  # what ordered them, if not the cosine with the video
    fusion: Fusion | None = None  # of a hybrid search: by fitted weights, or because there are none, by ranks
    captioned: int | None = None  # rows that have a caption, if captions were searched; the others are no hits by them
    reranked: Reranked | None = None  # what orders the hits that a reranker was asked about

    @property
    def approximate(self) -> bool:
        """Whether a hit may be missing."""
        return self.recall is not None

    def to_dict(self) -> dict[str, object]:
        """Return it as it stands in JSON."""
        fields = {key: value for key, value in asdict(self).items() if value is not None}
        return {"approximate": self.approximate, **fields}


class Hits(list[Hit]):
    """The hits of a query, best first, and the `method` by which they were found."""

    def __init__(self, hits: Iterable[Hit], method: Method) -> None:
        super().__init__(hits)
        self.method = method


def overlap(one: Hit, other: Hit) -> float:
    """Return the share of the shorter of two hits that lies in both, 0 to 1; 0 for hits of different videos."""
    # The overlap coefficient (Szymkiewicz-Simpson: intersection over minimum). Intersection over union, the usual
    # measure, is small for a short scene within a long window, though both show the same.
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
    # What is kept of each video, by time. One of two that are kept never lies within the other, so starts and ends rise
    # together, and those that a hit can overlap lie side by side.
    taken: dict[str, list[Hit]] = {}
    start, end = attrgetter("start_s"), attrgetter("end_s")
    for hit in hits:
        others = taken.setdefault(hit.uri, [])
        near = slice(bisect_right(others, hit.start_s, key=end), bisect_left(others, hit.end_s, key=start))
        if any(overlap(hit, other) > limit for other in others[near]):
            continue
        kept.append(hit)
        if len(kept) == k:
            break
        if hit.end_s > hit.start_s:  # one without length overlaps nothing
            insort(others, hit, key=start)
    return kept


def merge_videos(hits: Sequence[Hit], *, k: int | None = None) -> list[Hit]:
    """Keep the best hit of each video.

    Args:
        hits: Best first.
        k: Stop at so many. Default: all.

    Returns:
        The hits that are kept, in their order. `Hit.segments` counts the segments of each video that rank no lower than
        the last of them.
    """
    best: dict[str, Hit] = {}
    last = 0  # how many hits there are up to the last that is kept
    for place, hit in enumerate(hits, 1):
        if hit.uri not in best:
            best[hit.uri], last = hit, place
            if len(best) == k:
                break
    segments: Counter[str] = Counter()
    for hit in hits[:last]:
        segments[hit.uri] += hit.segments or 1
    return [replace(hit, segments=segments[uri]) for uri, hit in best.items()]


def merged(hits: Sequence[Hit], merge: Merge, *, k: int) -> list[Hit]:
    """Return the first `k` hits after merging."""
    if merge == "none":
        return list(hits[:k])
    return merge_moments(hits, k=k) if merge == "moments" else merge_videos(hits, k=k)


def time_range(start_s: float, end_s: float) -> str:
    """Return a stretch of time as people write it, such as `1:05.0-1:15.0`."""
    return f"{clock(start_s)}-{clock(end_s)}"


def clock(seconds: float) -> str:
    """Return a time as people write it, such as `1:05.0`."""
    minutes, rest = divmod(round(seconds, 1), 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{minutes}:{rest:04.1f}"
