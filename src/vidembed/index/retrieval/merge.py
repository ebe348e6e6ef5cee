"""Hits that tell of the same thing become one: moments that overlap, or all of a video's segments."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

if TYPE_CHECKING:
    from vidembed.index.retrieval.search import Hit

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
