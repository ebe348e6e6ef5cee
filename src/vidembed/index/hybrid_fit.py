"""Fit what orders hits by captions: weights of a hybrid search, and fusions of their scores with a reranker's head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vidembed.index.ann import write_record
from vidembed.index.captions import open_captions
from vidembed.index.commit import locked
from vidembed.index.hits import By
from vidembed.index.hybrid import FILE, ByCaptions, Scores, answers_depend_on, pool, rank
from vidembed.index.rows import Row, check_query, encode_queries, rank_all
from vidembed.index.schema import QueryEncoder
from vidembed.index.table import VideoIndex, is_local, path_of
from vidembed.scoring import ScoreFusion
from vidembed.scoring.hybrid import HybridWeights
from vidembed.video import VideoSegment
from vidembed.video.clip import content_fingerprint

if TYPE_CHECKING:
    from vidembed.captions import CaptionedVideo
    from vidembed.reranker import VideoReranker

BY_CAPTIONS: tuple[By, ...] = ("caption", "text", "hybrid")
RERANKED = 10  # hits of each text that fusions are fitted on: as `vidembed calibrate` of a reranker (VidVec, section 4)
_SEGMENTS = 4  # times as many rows as videos are looked at for the candidates of a fit


@dataclass(frozen=True, slots=True)
class RerankReport:
    """How the head was fused with the scores of hits by captions.

    Attributes:
        reranker: What the reranker was made of.
        k: Most hits of each text that fusions were fitted on, those by each of `BY_CAPTIONS`.
        asked: Pairs of text and segment that the head was asked about.
        skipped: How many of them it could not be asked about.
        fusions: By what orders the hits.
        unfitted: Why there is none for hits by others.
    """

    reranker: str
    k: int
    asked: int
    skipped: int
    fusions: dict[str, ScoreFusion]
    unfitted: dict[str, str]


@dataclass(frozen=True, slots=True)
class HybridReport:
    """What `fit_hybrid` did.

    Attributes:
        weights: That were fitted and stored.
        queries: Texts that pairs were fitted on.
        pairs: Pairs of text and candidate video.
        matches: How many of them match.
        missed: Texts left out, since no video that they are about was among their candidates.
        rerank: The fusions with a reranker's head, None without a reranker.
    """

    weights: HybridWeights
    queries: int
    pairs: int
    matches: int
    missed: int
    rerank: RerankReport | None = None

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
    reranker: VideoReranker | None = None,
    rerank_k: int = RERANKED,
) -> HybridReport:
    """Fit the weights of hybrid search on texts and the videos that they are about, and store them in the index.

    With a reranker, also the fusions of its head with what orders hits by caption, by text and by these weights, on the
    first `rerank_k` videos of each text.

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
        reranker: Asked about hits, in its score mode. Without one, fusions that were fitted before are removed.
        rerank_k: Videos of each text that it is asked about, of each kind of search; default 10.

    Raises:
        ValueError: There are too few pairs, what `HybridWeights.fit` refuses, or no fusion can be fitted.
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

    def found(by: By, k: int, weights: HybridWeights | None) -> Iterator[tuple[str, list[_Candidate]]]:
        depth = _SEGMENTS * k
        by_video = partial(rank_all, index, queries, k=pool(depth))
        asked = ByCaptions(by, captions, weights)
        for text, ranked in zip(texts, rank(index, asked, queries, texts, k=depth, by_video=by_video), strict=True):
            yield text, _candidates(ranked, labels[text], contents, k)

    features: list[tuple[float, ...]] = []
    flags: list[bool] = []
    names: list[str] = []
    missed = 0
    for text, pairs in found("hybrid", candidates, None):
        if not any(pair.matches for pair in pairs) and (not pairs or not _is_labelled(labels[text])):
            missed += 1
            continue
        scores = [(pair.row.score, *(np.nan if one is None else one for one in pair.scores[:2])) for pair in pairs]
        features += scores
        flags += [pair.matches for pair in pairs]
        names += [text] * len(pairs)
    if not features:
        raise ValueError(
            f"pairs: none of {len(texts)} texts has its video among {candidates} candidates of the index; check that "
            "the videos are indexed and captioned"
        )
    weights = HybridWeights.fit(np.array(features), flags, names)
    record: dict[str, object] = {
        "model_fingerprint": index.meta.model_fingerprint,
        "caption_fingerprint": captions.meta.fingerprint,
    }
    rerank = None
    if reranker is not None:
        hits = {by: list(found(by, rerank_k, weights)) for by in BY_CAPTIONS}
        rerank = _fit_fusions(hits, reranker, rerank_k)
        record["rerank_made_for"] = answers_depend_on(reranker)
    report = HybridReport(weights, len(texts) - missed, len(flags), sum(flags), missed, rerank)
    with locked(Path(folder), wait=wait):
        write_record(index.derived(FILE), {**record, **report.to_dict()})
    return report


class _Candidate(NamedTuple):
    """The best segment of a video that a text is compared with."""

    row: Row
    scores: Scores
    matches: bool


def _is_labelled(known: Mapping[str, bool | None]) -> bool:
    return any(label is not None for label in known.values())


def _candidates(
    ranked: Iterable[tuple[Row, Scores]], known: Mapping[str, bool | None], contents: Mapping[str, str], count: int
) -> list[_Candidate]:
    """The first `count` videos, and where videos have labels for the text (by content), those with one."""
    best: dict[str, tuple[Row, Scores]] = {}  # by content; the segment that is ranked first
    for row, scores in ranked:
        best.setdefault(contents[row.uri], (row, scores))
    is_labelled = _is_labelled(known)
    kept = [content for content in list(best)[:count] if content in known or not is_labelled]
    return [_Candidate(*best[content], known.get(content, False) is not False) for content in kept]


def _fit_fusions(
    hits: Mapping[By, list[tuple[str, list[_Candidate]]]], reranker: VideoReranker, k: int
) -> RerankReport:
    """Ask the head about all hits, each pair once, and fit a fusion for each kind of search."""
    pairs = dict.fromkeys(
        (text, row.uri, row.start_s, row.end_s)
        for of_texts in hits.values()
        for text, found in of_texts
        for row, _, _ in found
        if is_local(row.uri)
    )
    asked = [({"text": text}, VideoSegment(path_of(uri), start, end)) for text, uri, start, end in pairs]
    priors = reranker.mode == "prior_corrected"
    answers = reranker.answers(asked, priors=priors, on_error="skip", show_progress_bar=True)
    odds = dict(zip(pairs, answers.log_odds(reranker.mode, reranker.prior_correction).tolist(), strict=True))
    fusions: dict[str, ScoreFusion] = {}
    unfitted: dict[str, str] = {}
    for by, of_texts in hits.items():
        known = [
            (odds.get((text, row.uri, row.start_s, row.end_s), np.nan), scores.of(by), matches, text)
            for text, found in of_texts
            for row, scores, matches in found
        ]
        if not (answered := [one for one in known if not np.isnan(one[0])]):
            unfitted[by] = "the head could not be asked about any hit"
            continue
        log_odds, similarities, labels, texts = zip(*answered, strict=True)
        try:
            fusions[by] = ScoreFusion.fit(log_odds, similarities, labels, texts)
        except ValueError as error:
            unfitted[by] = str(error)
    if not fusions:
        raise ValueError(f"rerank: no fusion can be fitted on the hits of these texts ({unfitted})")
    skipped = int(np.isnan(list(odds.values())).sum())
    return RerankReport(reranker.source, k, len(pairs), skipped, fusions, unfitted)
