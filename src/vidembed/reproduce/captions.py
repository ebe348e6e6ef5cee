"""Search by captions of the model's own, measured on the bundled model: text to video and back, as captions get worse.

Each clip is described and embedded in one prefill. Queries are captions and summaries that the world wrote, not the
model. Weights are fitted on other clips, with captions as wrong as those that are measured.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from vidembed.captions import describe
from vidembed.encoder import VideoEncoder
from vidembed.evaluation.metrics import bootstrap_interval, ranks, recall_at
from vidembed.evaluation.shapes import Clips, draw_sets
from vidembed.evaluation.two_stage import DIRECTIONS, Mask
from vidembed.reproduce.method import KINDS, QUERIES, Values, is_true, points
from vidembed.reranker import VideoReranker
from vidembed.scoring.checks import FloatArray
from vidembed.scoring.hybrid import HybridWeights, reciprocal_rank_fusion
from vidembed.scoring.hybrid import ranks as places_of
from vidembed.shapes import CHECKPOINT, world
from vidembed.shapes.clips import ClipRecord
from vidembed.shapes.language import ADVERBS, EVENT_CLAUSES

SEEDS: Final = (0, 10, 20)  # of the sets that are searched, each by itself
FIT_SEED: Final = 303  # of the clips that weights are fitted on
NOISE: Final = (0.0, 0.1, 0.2, 0.3, 0.5)  # shares of words that tell an attribute, each made wrong
FIT_DEPTH: Final = 10  # candidates of each first stage and query that weights are fitted on
SIGNALS: Final = ("video", "caption", "BM25")  # similarities, in the order of the weights
BM25_K1, BM25_B = 1.2, 0.75  # as Lucene and LanceDB have them
STAGES: Final = ("video", "BM25", "caption", "video + caption", "reciprocal ranks", "fitted weights")
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

    records: list[ClipRecord]
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
    paths, records = [path for path, _ in clips], [record for _, record in clips]
    found = list(describe(reranker, paths, kinds=("dense",), agree=False, encoder=encoder))
    vectors = np.stack([one.vector for one in found if one.vector is not None]).astype(np.float64)  # (V, D)
    return Described(records, vectors, [one.texts["dense"] for one in found])


def similarities(
    encoder: VideoEncoder, queries: Sequence[str], found: Described, captions: Sequence[str]
) -> dict[str, FloatArray]:
    """Similarities ``(T, V)`` of queries to clips, by `SIGNALS`; `captions` stand for the clips' own."""
    texts, own = (
        encoder.encode([{"text": text} for text in part], show_progress_bar=False).astype(np.float64)
        for part in (queries, captions)
    )
    return {"video": texts @ found.vectors.T, "caption": texts @ own.T, "BM25": bm25(queries, captions)}


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


def fit_weights(parts: Sequence[tuple[Mapping[str, FloatArray], Mask]]) -> HybridWeights:
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


def stage_scores(name: str, signals: Mapping[str, FloatArray], weights: HybridWeights) -> FloatArray:
    """Scores ``(Q, N)`` by which a first stage ranks, within each row."""
    if name in signals:
        return signals[name]
    if name == "video + caption":
        return signals["video"] + signals["caption"]
    stacked = np.stack([signals[one] for one in SIGNALS], axis=-1)  # (Q, N, 3)
    if name == "reciprocal ranks":
        return np.stack([reciprocal_rank_fusion(*map(places_of, row.T)) for row in stacked])
    return np.stack([weights.log_odds(row) for row in stacked])


def measure_captions(
    *, layer: int, clips: int = 200, fit_clips: int = 100, seed: int = 0, device: str = "cpu"
) -> Values:
    """Recall of each first stage by kind of query, direction and share of wrong words, as JSON values.

    Three sets of `clips` are searched, each by itself, with `layer` of the bundled model; `fit_clips` others fit the
    weights. The seeds of all are offset by `seed`. Intervals draw queries that are true of the same clips together.
    """
    reranker = VideoReranker(CHECKPOINT, device=device)
    encoder = reranker.encoder(layer=layer, prefix=None)
    with tempfile.TemporaryDirectory() as scratch:
        sizes = [(seed + one, clips) for one in SEEDS] + [(seed + FIT_SEED, fit_clips)]
        *measured, known = (described(reranker, encoder, one) for one in draw_sets(Path(scratch), sizes))
    curve = []
    for share in NOISE:
        rng = np.random.default_rng((seed, round(100 * share)))
        worse = [[worsened(text, share, rng) for text in found.captions] for found in (*measured, known)]
        signals = [
            {kind: _of_kind(encoder, kind, found, captions) for kind in QUERIES}
            for found, captions in zip((*measured, known), worse, strict=True)
        ]
        weights = fit_weights([signals[-1][kind] for kind in QUERIES])
        tables = {kind: _table([one[kind] for one in signals[:-1]], weights) for kind in QUERIES}
        curve.append({"share": share, "weights": asdict(weights), "queries": tables})
    return {"clips": clips, "sets": len(SEEDS), "fit_clips": fit_clips, "layer": layer, "noise": curve}


def _of_kind(
    encoder: VideoEncoder, kind: str, found: Described, captions: Sequence[str]
) -> tuple[dict[str, FloatArray], Mask]:
    right = np.array([[is_true(kind, one, other) for other in found.records] for one in found.records])  # (T, V)
    return similarities(encoder, [KINDS[kind](record) for record in found.records], found, captions), right


def _table(sets: Sequence[tuple[Mapping[str, FloatArray], Mask]], weights: HybridWeights) -> list[dict[str, Any]]:
    rows = []
    for name in STAGES:
        row: dict[str, Any] = {"name": name}
        for way in DIRECTIONS:
            places, groups = [], []
            for number, (signals, right) in enumerate(sets):
                oriented = {one: scores if way == "t2v" else scores.T for one, scores in signals.items()}
                positives = right if way == "t2v" else right.T
                places.append(ranks(stage_scores(name, oriented, weights), positives))
                alike = np.unique(positives, axis=0, return_inverse=True)[1].reshape(-1)
                groups += [(number, int(one)) for one in alike]
            found = np.concatenate(places)
            numbered = np.unique(np.array(groups), axis=0, return_inverse=True)[1].reshape(-1)
            interval = bootstrap_interval(found == 1, seed=0, groups=numbered)
            row[way] = {f"R@{k}": round(100 * recall_at(found, k), 1) for k in (1, 5, 10)}
            row[way]["interval"] = points(interval)[1:]
        rows.append(row)
    return rows
