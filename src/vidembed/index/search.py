"""Words against an index: by the vectors of videos, exact unless the result says otherwise, or also by captions."""

from __future__ import annotations

import functools
import logging
import math
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, Unpack, get_args

import numpy as np
from numpy.typing import NDArray

from vidembed.backbone.options import ModelOptions, kwargs_of
from vidembed.errors import BackboneError
from vidembed.index import ann, bank, captions, hybrid, mirror
from vidembed.index.hybrid import BYS, By, Fusion, Scores
from vidembed.index.rows import Filter, Row, check_query, encode_queries, rank_all, unit_queries
from vidembed.index.table import QueryEncoder, VideoIndex, among, is_local, path_of
from vidembed.registry import CONFIG_FILE, NAMESPACE, find_model, portable_name, resolve_model
from vidembed.scoring import HybridWeights, ScoreFusion
from vidembed.video import Sampling, VideoSegment

if TYPE_CHECKING:
    from vidembed.checkpoint import CheckpointConfig
    from vidembed.encoder import VideoEncoder
    from vidembed.reranker import VideoReranker

MAX_QUERIES = 10_000
_DEEPER = 4  # times as many rows are looked at where those before gave too few hits

logger = logging.getLogger(__name__)

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
        others = {"exact": self.exact, "a filter": self.keep is not None and self.keep.any, "bank": self.bank}
        if clash := next((other for other, given in others.items() if given), None):
            raise ValueError(
                f"compact: got {self.copy!r} together with {clash}, which needs every row; leave one of them out"
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
    by: By


def search(
    index: VideoIndex, encoder: QueryEncoder, query: str, *, name: str = "this model", **options: Unpack[SearchKeywords]
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
        options: Fields of `SearchOptions`: `k` (default 10), `exact`, `keep`, `copy`, `bank`, `merge`, `around`, `by`.

    Raises:
        ValueError: The query is empty or longer than `MAX_QUERY_CHARS`, an option is out of range, options do not go
            together, or the index has no such quantization or no bank.
        IndexMismatchError: The index or the bank was made by another model, or of another state of the index; or it has
            no captions, or none that fit, and the search is by them.
        RuntimeError: The model gave no usable vector for the query.
    """
    asked = SearchOptions(**options)
    check_query(query)
    index.meta.require_model(encoder, name=name)
    return _nearest(index, encode_queries(encoder, [query], dimension=index.meta.dimension), [query], asked)[0]


def search_many(
    index: VideoIndex,
    encoder: QueryEncoder,
    queries: Sequence[str],
    *,
    name: str = "this model",
    **options: Unpack[SearchKeywords],
) -> list[Hits]:
    """Search many queries: encoded in one call, and where the search is exact, the vectors are read once for all.

    Args and errors are those of `search`. `queries` are 1 to `MAX_QUERIES`; an error says which of them is wrong.

    Returns:
        The hits of each query, in order.
    """
    if not 0 < len(queries) <= MAX_QUERIES:
        raise ValueError(f"queries: got {len(queries)}; 1 to {MAX_QUERIES} are allowed")
    asked = SearchOptions(**options)
    for number, query in enumerate(queries):
        check_query(query, name=f"queries[{number}]")
    index.meta.require_model(encoder, name=name)
    return _nearest(index, encode_queries(encoder, queries, dimension=index.meta.dimension), queries, asked)


def nearest(index: VideoIndex, vector: NDArray[np.float64], text: str = "", **options: Unpack[SearchKeywords]) -> Hits:
    """Search as `search` does, for the vector, shape (D,), of a text, which only a search by text or hybrid needs.

    RuntimeError for a vector that is zero, not finite or too long.
    """
    queries = unit_queries(np.asarray(vector, dtype=np.float64)[None], index.meta.dimension)  # (1, D)
    return _nearest(index, queries, [text], SearchOptions(**options))[0]


def _nearest(index: VideoIndex, queries: NDArray[np.float64], texts: Sequence[str], asked: SearchOptions) -> list[Hits]:
    """Search for unit vectors, shape (Q, D), of texts. All is read of one version of the table."""
    index.latest()
    built, k, count = None, asked.k, len(index)
    if asked.copy is not None:
        built = ann.quantized(index, asked.copy)
    elif not (asked.exact or asked.bank or (asked.keep is not None and asked.keep.any)):
        built = ann.usable(index, hybrid.pool(k) if asked.by == "hybrid" else k)
    by_captions = None if asked.by == "video" else ByCaptions.of(index, asked.by)
    if asked.merge == "none":
        return _captioned(index, _ranked(index, queries, texts, asked, k, built, count, by_captions))
    # Ever more rows are ranked until there are `k` hits after merging, or no more rows. The depth grows by a factor, so
    # that even where all rows are of one video there are few rankings.
    files = functools.cache(lambda: len(index.files()))  # counted only if it matters
    # Every row is read for an exact ranking, so its first one may as well go deeper.
    depth = _DEEPER * k if built is None else k
    found: dict[int, Hits] = {}
    left = np.arange(len(queries))
    while len(left):
        words = [texts[place] for place in left.tolist()]
        ranked = _ranked(index, queries[left], words, asked, depth, built, count, by_captions)
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


@dataclass(frozen=True, slots=True)
class ByCaptions:
    """What a search by captions needs of an index."""

    captions: captions.Captions
    weights: HybridWeights | None  # None: ranks are fused

    @classmethod
    def of(cls, index: VideoIndex, by: By) -> ByCaptions:
        """Open it; IndexMismatchError if the index has no captions, or has not what a search by them needs."""
        found = captions.open_captions(index)
        if by != "caption":
            found.require_words()
        return cls(found, hybrid.stored_weights(index, found) if by == "hybrid" else None)


def _captioned(index: VideoIndex, results: list[Hits]) -> list[Hits]:
    """Return hits with their captions, if the index has any."""
    if not index.has_captions:
        return results
    contents: dict[str, str] = {}  # by URI
    uris = list({hit.uri for hits in results for hit in hits})
    for first in range(0, len(uris), captions.AT_ONCE):
        for batch in index.scan(["uri", "content_fingerprint"], among(uris[first : first + captions.AT_ONCE])):
            contents |= zip(*(batch.column(name).to_pylist() for name in ("uri", "content_fingerprint")), strict=True)
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
    count: int,
    by_captions: ByCaptions | None,
) -> list[Hits]:
    """Return the `k` best of the `count` rows for each query, by the ANN index or exactly, with nothing merged."""
    method = Method("exact", count)
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
            recall, effort = built.full_recall, (count, built.full_refine or ann.FULL_REFINES[-1])
        at = next(each for each in ann.MEASURED_K if depth <= each)  # the next one up that recall was measured at
        method = replace(method, name="ann", recall=recall[str(at)], recall_at=at, sample=built.sample)

    def by_video() -> list[list[Row]]:
        if effort is None:
            return rank_all(index, queries, k=depth, where=where)
        return [ann.find(index, query, depth, effort) for query in queries]

    if by_captions is None:
        return [_hits([(row, None) for row in rows], method, asked.around) for rows in by_video()]
    found, weights = by_captions.captions, by_captions.weights
    method = replace(method, by=asked.by, captioned=len(found.row_ids))
    if asked.by == "hybrid":
        method = replace(method, fusion="reciprocal_rank" if weights is None else "fitted")
    asking: dict[str, Any] = {"by": asked.by, "k": k, "where": where, "by_video": by_video, "weights": weights}
    return [_hits(rows, method, asked.around) for rows in hybrid.rank(index, found, queries, texts, **asking)]


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


def rerank(
    hits: Hits,
    reranker: VideoReranker,
    query: str,
    *,
    count: int | None = None,
    context: bool = False,
    fingerprint: str | None = None,
    fusion: ScoreFusion | None = None,
) -> Hits:
    """Return the hits with the probability that each matches the query, most probable first.

    If the reranker was calibrated together with a first stage, the probability of hits by video is made of similarity
    and head. The similarity is that of the hits if their encoder is the one that was calibrated with, else the reranker
    finds it. That of hits by caption, text or hybrid is made of their score and the head by `fusion`, else of the head
    alone. `Method.reranked` says which it was.

    Args:
        hits: Of a search for `query`.
        reranker: Asked about each hit's segment.
        query: Words.
        count: Ask about the first so many; the others follow in their order. Default: all.
        context: Ask about each segment with what is around it, for hits of a search with `around`.
        fingerprint: `VideoEncoder.fingerprint` of the encoder that found the hits; None if it is not known.
        fusion: For hits by caption, text or hybrid: what `stored_fusion` returns for the index, `by` and the reranker.

    Returns:
        All hits. Those that could not be asked about, because the video is gone, damaged or no file of this machine,
        come after those that were, in their order, without a probability; the log says why.

    Raises:
        ValueError: `context` is given, and a hit says nothing of what is around it; or `fusion` is for hits by video.
    """
    by: By = hits.method.by or "video"
    if fusion is not None and by == "video":
        raise ValueError("fusion: it is for hits by caption, text or hybrid; those by video take the reranker's own")
    first, rest = hits[:count], hits[len(hits[:count]) :]
    segments: dict[int, VideoSegment] = {}  # of the hits that are files of this machine, by position
    for place, hit in enumerate(first):
        start, end = (hit.context_start_s, hit.context_end_s) if context else (hit.start_s, hit.end_s)
        if start is None or end is None:
            raise ValueError(f"context: the hit {hit.uri!r} has no times around it; search with around=SECONDS")
        if is_local(hit.uri):
            segments[place] = VideoSegment(path_of(hit.uri), start, end)
    asked: dict[int, Hit] = {}
    reranked: Reranked = "head"
    if segments:
        places = list(segments)
        similarities: list[float] | Literal["own"] | None = None
        if by == "video":
            similarities = _similarities(reranker, [first[place].score for place in places], fingerprint)
        elif fusion is not None:
            scores = [Scores(hit.caption_score, hit.text_score, hit.hybrid_score) for hit in first]
            similarities = [scores[place].of(by) for place in places]
        documents = list(segments.values())
        how: dict[str, Any] = {"first_stage": similarities, "fusion": fusion, "on_error": "skip"}
        for found in reranker.rank({"text": query}, documents, **how):
            place = places[found["corpus_id"]]
            asked[place] = replace(first[place], probability=found["score"])
            reranked = by if "match" in found else "head"
    unasked = [hit for place, hit in enumerate(first) if place not in asked]
    if unasked:
        logger.warning("%d of %d hits could not be asked about and come after the others", len(unasked), len(first))
    return Hits([*asked.values(), *unasked, *rest], replace(hits.method, reranked=reranked))


def _similarities(
    reranker: VideoReranker, scores: list[float], fingerprint: str | None
) -> list[float] | Literal["own"] | None:
    """What the reranker's own fusion takes for hits with these cosines, found by the encoder with the fingerprint."""
    known = reranker.first_stage
    if reranker.fusion is None or known is None or known.fingerprint == fingerprint:
        return scores
    if reranker.can_fuse:  # a fusion is of one encoder's similarities, and wrong with another's
        return "own"
    logger.warning(
        "the reranker was calibrated with another encoder than that of the index; hits are ordered by its "
        "head alone. Calibrate it with this encoder (vidembed calibrate --encoder)."
    )
    return None


def load_stages(
    load: Callable[[], VideoEncoder],
    reranker: str | None,
    *,
    model: str,
    layer: int | None = None,
    sampling: Mapping[str, Any] | None = None,
    **how: Unpack[RerankerOptions],
) -> tuple[VideoEncoder, VideoReranker]:
    """Load an encoder and the reranker that goes with it, on one copy of the weights wherever that is possible.

    An encoder that is a video MLLM or a recipe shares the weights of its MLLM. A checkpoint with weights of its own is
    not loaded at all where the reranker's MLLM gives the same vectors (`encoder_beside`).

    Args:
        load: Loads the encoder by itself.
        reranker: As `load_reranker` takes it, and so are `how`.
        model: Name of the encoder.
        layer: That `load` asks for, if it does.
        sampling: Fields of its frame grid to set, as `load` sets them.
    """
    config, options = _with_weights(model, layer), how.get("options")
    # other weights than those that the checkpoint's fingerprint is of
    if config is None or (options is not None and (options.dtype or options.quantize)):
        encoder = load()
        return encoder, load_reranker(reranker, encoder, model=model, **how)
    grid = Sampling(**{**config.sampling, **(sampling or {})})
    head = _open_reranker(reranker or _fitting(model, config.source), grid, **how)
    encoder = encoder_beside(head, load, model=model, layer=layer, sampling=sampling)
    return encoder, _introduced(head, encoder)


def encoder_beside(
    head: VideoReranker,
    load: Callable[[], VideoEncoder],
    *,
    model: str,
    layer: int | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> VideoEncoder:
    """The encoder named `model`, as `load_stages`: on the weights of a reranker with the same ones, else loaded."""
    config = _with_weights(model, layer)
    own = None if config is None else _encoder_of(head, config, config.fingerprint)
    if own is None:
        return load()
    own.sampling = replace(own.sampling, **(sampling or {}))
    return own


def _with_weights(model: str, layer: int | None) -> CheckpointConfig | None:
    """What a checkpoint with weights of its own says of itself; None for anything else, and if it has another layer."""
    from vidembed.checkpoint import CheckpointConfig  # noqa: PLC0415 - it brings torch

    file = Path(resolve_model(model)).expanduser() / CONFIG_FILE
    config = CheckpointConfig.read(file) if file.is_file() else None
    if config is None or config.recipe is not None or layer not in (None, config.layer):
        return None
    return config


def _encoder_of(head: VideoReranker, config: CheckpointConfig, fingerprint: str) -> VideoEncoder | None:
    """The encoder with this fingerprint on the weights of a reranker; None, and a line in the log, if it has others."""
    if portable_name(head.source) != config.source:
        logger.info("encoder and reranker are two models in memory: one is of %r", config.source)
        return None
    with suppress(BackboneError):  # of another depth, or a reranker that does not hold the MLLM's template
        own = head.encoder(layer=config.layer, prefix=config.prefix, sampling=Sampling(**config.sampling))
        if own.fingerprint == fingerprint:
            return own
    logger.warning(
        "encoder and reranker are two models in memory: the reranker's MLLM does not give the vectors of the "
        "checkpoint that was cut from %r, which may have another dtype or another version. Build a recipe of the MLLM "
        "(vidembed build) to keep its weights in memory once.",
        config.source,
    )
    return None


class RerankerOptions(TypedDict, total=False):
    """How a reranker is loaded; the fields are documented by `load_reranker`."""

    mode: Any
    calibration: Path | None
    visual_cache: Path | None
    options: ModelOptions | None


def load_reranker(
    name: str | None, encoder: VideoEncoder, *, model: str, **how: Unpack[RerankerOptions]
) -> VideoReranker:
    """Load the reranker that goes with the encoder of an index, with its frame grid; ValueError where there is none.

    An encoder with weights of its own goes over to those of the reranker, if they are the same.

    Args:
        name: A reranker, or a video MLLM with its head. None: the encoder's own MLLM if it holds it, else
            ``<model>-rerank`` if such a one is bundled or built, else what the encoder's checkpoint was built from.
        encoder: Of the index.
        model: Name that it was loaded by.
        **how: ``mode``, the score mode, None for the reranker's own; ``calibration``, the file that
            `VideoReranker.save_calibration` wrote; ``visual_cache``, the folder to keep visual tokens in from search
            to search, None for nowhere; ``options``, how the encoder was loaded, for a reranker with weights of its
            own: its device is by default that of the encoder, and its revision the newest.
    """
    if name is None and encoder.backbone is not None:
        return _introduced(encoder.reranker(**_opened(how)), encoder)
    config = encoder.checkpoint_config
    if name is None:
        name = _fitting(model, config.source if config else "")
    options = how.get("options") or ModelOptions()
    if options.device is None and options.device_map is None:
        how["options"] = replace(options, device=str(encoder.device))
    head = _open_reranker(name, encoder.sampling, **how)
    if encoder.backbone is None and config is not None and encoder.device == head.device:
        now = replace(config, sampling=encoder.sampling.as_dict())
        if (own := _encoder_of(head, now, encoder.fingerprint)) is not None:
            encoder.use_modules(own)
    return _introduced(head, encoder)


def _fitting(model: str, source: str) -> str:
    """The name of the reranker that goes with an encoder that holds no head."""
    if model.startswith(NAMESPACE) and find_model(model + "-rerank") is not None:
        return model + "-rerank"
    if source.count("/") != 1:  # it is a name on the Hub, or a folder of which only the last part was kept
        raise ValueError(
            f"reranker: {model!r} has no reranker, and the model it was built from is not known ({source!r} "
            "cannot be loaded). Give --reranker: the video MLLM, or a saved reranker."
        )
    return source


def _opened(how: RerankerOptions) -> dict[str, Any]:
    from vidembed.visual_cache import VisualTokenCache  # noqa: PLC0415 - it brings torch

    folder = how.get("visual_cache")
    cache = None if folder is None else VisualTokenCache(folder)
    return {"mode": how.get("mode"), "calibration": how.get("calibration"), "visual_cache": cache}


def _open_reranker(name: str, sampling: Sampling, **how: Unpack[RerankerOptions]) -> VideoReranker:
    from vidembed.reranker import VideoReranker  # noqa: PLC0415 - it brings torch

    options = how.get("options")
    options = options and replace(options, revision=None)  # which is the encoder's
    try:
        return VideoReranker(name, sampling=sampling, **kwargs_of(options), **_opened(how))
    except OSError as error:
        raise ValueError(f"reranker: {name!r} cannot be loaded: {error}") from error


def _introduced(reranker: VideoReranker, encoder: VideoEncoder) -> VideoReranker:
    """The reranker, which knows the encoder if its fusion was fitted with it."""
    known = reranker.first_stage
    if known is not None and not reranker.can_fuse and known.fingerprint == encoder.fingerprint:
        reranker.use_first_stage(encoder)
    return reranker


@dataclass(frozen=True, slots=True)
class Derived:
    """What an index shall have beside its rows.

    Attributes:
        exact_up_to: Rows up to which searches are exact, and no ANN index is built; remembered, however many rows there
            are. None: what an earlier run gave, or `vidembed.index.ann.EXACT_UP_TO`.
        compact: The quantization of the ANN index, `int8` or `binary`, at most one. With one there is an ANN index
            however many rows there are; remembered. None: what an earlier run gave.
        query_bank: Queries of a new query bank. None: the one that is there stays.
        beta: Inverse temperature of the bank. None: that of the one that is there, or the default.
    """

    exact_up_to: int | None = None
    compact: Sequence[str] = ()
    query_bank: Sequence[str] | None = None
    beta: float | None = None

    def check(self, dimension: int | None = None) -> None:
        """Refuse what cannot be, with ValueError, before anything is indexed."""
        ann.check_threshold(self.exact_up_to)
        for name in self.compact:
            ann.check_quantization(name, dimension)
        if len(set(self.compact)) > 1:
            raise ValueError(f"compact: got {', '.join(self.compact)}; an index has one quantization; give one of them")
        if self.query_bank is not None:
            bank.check_queries(self.query_bank)


def refresh(index: VideoIndex, encoder: QueryEncoder, derived: Derived | None = None, *, progress: bool = True) -> None:
    """Bring ANN index, query bank and captions of an index up to date, or make the former two, as `derived` asks for.

    An interruption leaves each as it was, or stale and therefore unused. Nobody else may be writing to the index.
    """
    derived = derived or Derived()
    quantize = next(iter(derived.compact), None)
    written = ann.refresh(index, exact_up_to=derived.exact_up_to, quantize=quantize)  # first: it makes a version
    if derived.query_bank is not None or index.derived(bank.FILE).exists():
        written |= bank.refresh(index, encoder, derived.query_bank, beta=derived.beta, progress=progress)
    if index.has_captions:
        written |= captions.refresh(index)
    stamp = index.stamp()
    stale = [file for file in index.derived("").glob(mirror.FILES) if stamp not in file.name]
    for file in [*index.compact_copies(), *stale]:  # copies are of earlier versions
        with suppress(OSError):  # Windows keeps a mirror that a search has open; the next search removes it
            file.unlink()
    if written:
        index.flush()


def facts(index: VideoIndex) -> dict[str, Any]:
    """Return what `vidembed info` says of how an index is searched: its settings and derived files."""
    derived = {"ann": ann.facts(index), "query_bank": bank.facts(index), "mirror": mirror.facts(index)}
    derived |= {"captions": found} if (found := hybrid.facts(index)) else {}
    return ann.settings(index)._asdict() | derived
