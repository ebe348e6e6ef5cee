"""Search by captions of the model's own, measured on the bundled model: text to video and back, as captions get worse.

Each clip is described and embedded in one prefill. Queries are captions and summaries that the world wrote, not the
model. Weights are fitted on other clips, with captions as wrong as those that are measured. With captions as they are,
the head orders the first candidates of some first stages again, with fusions fitted on those other clips.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidembed.captions import describe
from vidembed.encoder import VideoEncoder
from vidembed.evaluation.metrics import bootstrap_interval, paired_bootstrap, ranks, recall_at
from vidembed.evaluation.shapes import Clips, draw_sets
from vidembed.evaluation.two_stage import DIRECTIONS, Mask, candidate_mask, reranked, second_stage, top_candidates
from vidembed.reproduce.method import K_ALIGNED, KINDS, QUERIES, Values, is_true, points
from vidembed.reranker import VideoReranker
from vidembed.scoring import ScoreFusion
from vidembed.scoring.checks import FloatArray
from vidembed.scoring.hybrid import HybridWeights, mixed_vectors, reciprocal_rank_fusion
from vidembed.scoring.hybrid import ranks as places_of
from vidembed.shapes import CHECKPOINT, world
from vidembed.shapes.language import ADVERBS, EVENT_CLAUSES

SEEDS: Final = (0, 10, 20)  # of the sets that are searched, each by itself
FIT_SEED: Final = 303  # of the clips that weights are fitted on
NOISE: Final = (0.0, 0.1, 0.2, 0.3, 0.5)  # shares of words that tell an attribute, each made wrong
FIT_DEPTH: Final = 10  # candidates of each first stage and query that weights are fitted on
SIGNALS: Final = ("video", "caption", "BM25")  # similarities, in the order of the weights
BM25_K1, BM25_B = 1.2, 0.75  # as Lucene and LanceDB have them
STAGES: Final = ("video", "BM25", "caption", "video + caption", "reciprocal ranks", "fitted weights")
MIXED: Final = (0.0, 0.25, 0.5, 0.75, 1.0)  # weights of the caption in one vector of video and caption


@dataclass(frozen=True)
class Reranking:
    """A row of the table of reranked first stages: whose candidates, and which scores the head is fused with."""

    name: str
    stage: str
    fused_with: str | None  # a first stage; None for the head alone


RERANKINGS: Final = (
    Reranking("video, fused", "video", "video"),
    Reranking("BM25, fused", "BM25", "BM25"),
    Reranking("caption, fused", "caption", "caption"),
    Reranking("fitted weights, head alone", "fitted weights", None),
    Reranking("fitted weights, fused with video", "fitted weights", "video"),
    Reranking("fitted weights, fused", "fitted weights", "fitted weights"),
)
Signals = Mapping[str, FloatArray]  # similarities of queries and clips ``(T, V)`` by name
_WORDS: Final = (
    world.SHAPES,
    world.COLOURS,
    world.DIRECTIONS,
    world.SIZES,
    tuple(ADVERBS.values()),
    world.BACKGROUNDS,
    tuple(text for texts in EVENT_CLAUSES.values() for text in texts),
    world.CORNERS,
)
_ATTRIBUTE: Final = re.compile(
    "|".join(rf"\b{re.escape(word)}\b" for words in _WORDS for word in sorted(words, key=len, reverse=True))
)


@dataclass(frozen=True, eq=False)
class Described:
    """Clips with what the model makes of them."""

    clips: Clips
    vectors: FloatArray  # (V, D), of the clips, of length one
    captions: list[str]  # (V,), of the model's own


def worsened(caption: str, share: float, rng: np.random.Generator) -> str:
    """A caption in which each word that tells an attribute is made another of its kind with the probability `share`."""

    def other(match: re.Match[str]) -> str:
        if rng.random() >= share:
            return match[0]
        words = next(words for words in _WORDS if match[0] in words)
        wrong = [word for word in words if word != match[0]]
        return wrong[int(rng.integers(len(wrong)))]

    return _ATTRIBUTE.sub(other, caption)


def described(reranker: VideoReranker, encoder: VideoEncoder, clips: Clips) -> Described:
    """What the model says of clips, and their vectors, with one prefill a clip."""
    paths = [path for path, _ in clips]
    found = list(describe(reranker, paths, kinds=("dense",), agree=False, encoder=encoder))
    vectors = np.stack([one.vector for one in found if one.vector is not None]).astype(np.float64)  # (V, D)
    return Described(clips, vectors, [one.texts["dense"] for one in found])


def similarities(
    encoder: VideoEncoder, queries: Sequence[str], found: Described, captions: Sequence[str]
) -> dict[str, FloatArray]:
    """Similarities ``(T, V)`` of queries to clips, by `SIGNALS` and by `MIXED`; `captions` stand for the clips' own."""
    texts, own = (
        encoder.encode([{"text": text} for text in part], show_progress_bar=False).astype(np.float64)
        for part in (queries, captions)
    )
    mixed = {f"{weight:g}": texts @ mixed_vectors(found.vectors, own, weight).T for weight in MIXED}
    return {"video": texts @ found.vectors.T, "caption": texts @ own.T, "BM25": bm25(queries, captions), **mixed}


def bm25(queries: Sequence[str], documents: Sequence[str]) -> FloatArray:
    """BM25 ``(Q, N)`` of words of two letters or more, as Lucene has it; unlike an index it takes no word stems."""
    from sklearn.feature_extraction.text import CountVectorizer  # noqa: PLC0415 - it takes a second

    counter = CountVectorizer()
    counts = counter.fit_transform(documents).toarray().astype(np.float64)  # (N, W)
    holding = (counts > 0).sum(axis=0)  # (W,)
    rarity = np.log1p((len(documents) - holding + 0.5) / (holding + 0.5))
    lengths = counts.sum(axis=1, keepdims=True)  # (N, 1)
    least = BM25_K1 * (1 - BM25_B + BM25_B * lengths / lengths.mean())
    weights = rarity * counts * (BM25_K1 + 1) / (counts + least)  # (N, W)
    asked = counter.transform(queries).toarray().astype(np.float64)  # (Q, W)
    return np.asarray(asked @ weights.T)


def fit_weights(parts: Sequence[tuple[Signals, Mask]]) -> HybridWeights:
    """Fit weights on the best candidates of each similarity, for all queries of all kinds."""
    features, labels, queries = [], [], []
    for kind, (signals, right) in enumerate(parts):
        stacked = np.stack([signals[name] for name in SIGNALS], axis=-1)  # (T, V, 3)
        for row, (values, flags) in enumerate(zip(stacked, right, strict=True)):
            best = np.unique(np.argsort(-values, axis=0)[:FIT_DEPTH])
            features.append(values[best])
            labels.append(flags[best])
            queries += [f"{kind} {row}"] * len(best)
    return HybridWeights.fit(np.concatenate(features), np.concatenate(labels), queries)


def stage_scores(name: str, signals: Signals, weights: HybridWeights) -> FloatArray:
    """Scores ``(Q, N)`` by which a first stage ranks, within each row."""
    if name in signals:
        return signals[name]
    if name == "video + caption":
        return signals["video"] + signals["caption"]
    stacked = np.stack([signals[one] for one in SIGNALS], axis=-1)  # (Q, N, 3)
    if name == "reciprocal ranks":
        return np.stack([reciprocal_rank_fusion(*map(places_of, row.T)) for row in stacked])
    return np.stack([weights.log_odds(row) for row in stacked])


def fit_fusion(parts: Sequence[tuple[FloatArray, FloatArray, Mask]]) -> ScoreFusion:
    """Fit the fusion of log-odds and first stage's scores, ``(T, V)`` with what is right, on the first of each text."""
    chosen, queries = [], []
    for kind, part in enumerate(parts):
        best = top_candidates(part[1], K_ALIGNED)  # (T, K)
        chosen.append([np.take_along_axis(one, best, axis=1).ravel() for one in part])
        queries += [f"{kind} {row}" for row in range(len(best)) for _ in range(best.shape[1])]
    odds, scores, labels = (np.concatenate(one) for one in zip(*chosen, strict=True))
    return ScoreFusion.fit(odds, scores, labels, queries)


def measure_captions(
    *, layer: int, clips: int = 200, fit_clips: int = 100, seed: int = 0, device: str = "cpu"
) -> Values:
    """Recall of each first stage by kind of query, direction and share of wrong words, as JSON values.

    Three sets of `clips` are searched, each by itself, with `layer` of the bundled model; `fit_clips` others fit the
    weights. The seeds of all are offset by `seed`. Intervals draw queries that are true of the same clips together.
    Also, text to video: ``mixed``, recall@1 of one vector of video and caption by weight, at each share; and
    ``reranked``, with captions as they are, recalls of `RERANKINGS` of `K_ALIGNED` candidates, with fusions fitted on
    the `fit_clips`, and ``gains``, what the last row is above the others and above its first stage, in points.
    """
    reranker = VideoReranker(CHECKPOINT, device=device)
    encoder = reranker.encoder(layer=layer, prefix=None)
    with tempfile.TemporaryDirectory() as scratch:
        sizes = [(seed + one, clips) for one in SEEDS] + [(seed + FIT_SEED, fit_clips)]
        sets = [described(reranker, encoder, one) for one in draw_sets(Path(scratch), sizes)]  # the last is fitted on
        right = [{kind: _right(kind, found.clips) for kind in QUERIES} for found in sets]
        curve, again = [], None
        for share in NOISE:
            rng = np.random.default_rng((seed, round(100 * share)))
            worse = [[worsened(text, share, rng) for text in found.captions] for found in sets]
            signals = [
                {
                    kind: similarities(encoder, [KINDS[kind](record) for _, record in found.clips], found, captions)
                    for kind in QUERIES
                }
                for found, captions in zip(sets, worse, strict=True)
            ]
            weights = fit_weights([(signals[-1][kind], right[-1][kind]) for kind in QUERIES])
            of_kind = {
                kind: [(one[kind], mask[kind]) for one, mask in zip(signals[:-1], right, strict=False)]
                for kind in QUERIES
            }
            tables = {kind: _table(parts, weights) for kind, parts in of_kind.items()}
            mixed = {kind: _mixed(parts) for kind, parts in of_kind.items()}
            curve.append({"share": share, "weights": asdict(weights), "queries": tables, "mixed": mixed})
            if again is None:
                again = _reranked(reranker, sets, signals, right, weights)
    sizes_of = {"clips": clips, "sets": len(SEEDS), "fit_clips": fit_clips, "layer": layer}
    return {**sizes_of, "noise": curve, "reranked": again}


def _right(kind: str, clips: Clips) -> Mask:
    """Which clips (T, V) the text of each clip is true of."""
    return np.array([[is_true(kind, one, other) for _, other in clips] for _, one in clips])


def _groups(masks: Sequence[Mask]) -> NDArray[np.intp]:
    """Numbers of queries (Q,) of several sets, the same for those that are true of the same clips."""
    groups = []
    for number, mask in enumerate(masks):
        alike = np.unique(mask, axis=0, return_inverse=True)[1].reshape(-1)
        groups += [(number, int(one)) for one in alike]
    return np.unique(np.array(groups), axis=0, return_inverse=True)[1].reshape(-1)


def _recalls(places: NDArray[np.int64], groups: NDArray[np.intp]) -> Values:
    """Recalls of ranks (Q,) in percent, and the interval of the first."""
    interval = bootstrap_interval(places == 1, seed=0, groups=groups)
    return {**{f"R@{k}": round(100 * recall_at(places, k), 1) for k in (1, 5, 10)}, "interval": points(interval)[1:]}


def _mixed(sets: Sequence[tuple[Signals, Mask]]) -> dict[str, float]:
    """Recall@1 in percent, text to video, of one vector of video and caption, by the weight of the caption."""
    found = {
        f"{weight:g}": np.concatenate([ranks(signals[f"{weight:g}"], right) for signals, right in sets])
        for weight in MIXED
    }
    return {weight: round(100 * recall_at(places, 1), 1) for weight, places in found.items()}


def _reranked(
    reranker: VideoReranker,
    sets: Sequence[Described],
    signals: Sequence[Mapping[str, Signals]],
    right: Sequence[Mapping[str, Mask]],
    weights: HybridWeights,
) -> Values:
    """The table of `RERANKINGS` by kind of query; the last of the `sets` fits the fusions, the others are measured."""
    stages = {row.stage for row in RERANKINGS}
    scores = [
        {stage: {kind: stage_scores(stage, of_kind[kind], weights) for kind in QUERIES} for stage in stages}
        for of_kind in signals
    ]
    odds = [_odds(reranker, found.clips, of_stage) for found, of_stage in zip(sets, scores, strict=True)]
    fusions = {
        stage: fit_fusion([(odds[-1][kind], scores[-1][stage][kind], right[-1][kind]) for kind in QUERIES])
        for stage in stages
    }
    queries = {}
    for kind in QUERIES:
        groups = _groups([mask[kind] for mask in right[:-1]])
        found: dict[str, NDArray[np.int64]] = {}
        for row in RERANKINGS:
            places = []
            for of_stage, answers, mask in zip(scores[:-1], odds, right, strict=False):
                first = of_stage[row.stage][kind]
                other = first if row.fused_with is None else of_stage[row.fused_with][kind]
                fusion = None if row.fused_with is None else fusions[row.fused_with]
                candidates = candidate_mask(first, K_ALIGNED)
                second = second_stage(np.where(candidates, other, np.nan), answers[kind], candidates, fusion)
                places.append(ranks(reranked(first, second, K_ALIGNED), mask[kind]))
            found[row.name] = np.concatenate(places)
        last = RERANKINGS[-1]
        before = [ranks(one[last.stage][kind], mask[kind]) for one, mask in zip(scores[:-1], right, strict=False)]
        others = {last.stage: np.concatenate(before), **{name: one for name, one in found.items() if name != last.name}}
        gains = {
            name: points(paired_bootstrap(found[last.name] == 1, one == 1, seed=0, groups=groups))
            for name, one in others.items()
        }
        rows = [{"name": name, "t2v": _recalls(one, groups)} for name, one in found.items()]
        queries[kind] = {"table": rows, "gains": gains}
    return {"k": K_ALIGNED, "queries": queries}


def _odds(
    reranker: VideoReranker, clips: Clips, scores: Mapping[str, Mapping[str, FloatArray]]
) -> dict[str, FloatArray]:
    """The head's log-odds (T, V) by kind of query, NaN but for the candidates of some first stage."""
    wanted = {
        kind: np.any([candidate_mask(of_kind[kind], K_ALIGNED) for of_kind in scores.values()], axis=0)
        for kind in QUERIES
    }
    pairs = {
        (KINDS[kind](clips[row][1]), column)
        for kind, mask in wanted.items()
        for row, column in np.argwhere(mask).tolist()
    }
    ordered = sorted(pairs, key=lambda pair: (pair[1], pair[0]))
    answers = reranker.answers([({"text": text}, clips[column][0]) for text, column in ordered])
    known = dict(zip(ordered, answers.log_odds("yes_no").tolist(), strict=True))
    found = {kind: np.full(mask.shape, np.nan) for kind, mask in wanted.items()}
    for kind, mask in wanted.items():
        for row, column in np.argwhere(mask).tolist():
            found[kind][row, column] = known[KINDS[kind](clips[row][1]), column]
    return found


def _table(sets: Sequence[tuple[Signals, Mask]], weights: HybridWeights) -> list[Values]:
    rows = []
    for name in STAGES:
        row: Values = {"name": name}
        for way in DIRECTIONS:
            places, masks = [], []
            for signals, right in sets:
                oriented = {one: scores if way == "t2v" else scores.T for one, scores in signals.items()}
                masks.append(right if way == "t2v" else right.T)
                places.append(ranks(stage_scores(name, oriented, weights), masks[-1]))
            row[way] = _recalls(np.concatenate(places), _groups(masks))
        rows.append(row)
    return rows
