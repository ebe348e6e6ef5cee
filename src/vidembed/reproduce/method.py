"""The method from end to end on the bundled model, in the paper's form: ``vidembed reproduce shapes``.

Trains nothing. On held-out clips: recall at every layer, and of `ROWS` Recall@1/5/10 in both directions, raw and with
dual-softmax. Layer, fusion and temperatures are chosen or fitted on other held-out clips.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidembed.analysis import LayerAnalysis, analyze_layers
from vidembed.analysis.own_queries import LEAST, caption_videos, own_texts
from vidembed.analysis.result import PromptAnalysis
from vidembed.captions import CaptionedVideo
from vidembed.encoder import VideoEncoder
from vidembed.evaluation.metrics import Interval, bootstrap_interval, paired_bootstrap, ranks, recall_at
from vidembed.evaluation.shapes import Clips, draw_clips
from vidembed.evaluation.two_stage import DIRECTIONS, DualStages, Mask, needed, rankings, second_stage, top_candidates
from vidembed.registry import NAMESPACE
from vidembed.reranker import VideoReranker
from vidembed.scoring import ScoreFusion, fit_temperature
from vidembed.scoring.checks import FloatArray
from vidembed.shapes import CHECKPOINT
from vidembed.shapes.clips import ClipRecord
from vidembed.shapes.language import SUMMARY_ATTRIBUTES
from vidembed.training.lora import merge_adapter

# the bundled adapter: a LoRA of `align` on pairs of texts, for the final layer
ALIGNED: Final = CHECKPOINT.parent / "aligned"
K_ZERO_SHOT: Final = 100  # candidates that are reranked with the model as it is (VidVec, arXiv 2602.08099, section 4)
K_ALIGNED: Final = 10  # candidates that are reranked with the optimized model (same place)
FIT_DEPTH: Final = 10  # candidates of each query that the fusion is fitted on
# kinds of queries that the fusion is fitted on: also lists of words, which the head does not understand, and
# statements, some long and some short
KINDS: Final[dict[str, Callable[[ClipRecord], str]]] = {
    "captions": lambda record: record.caption,
    "summaries": lambda record: record.summary,
    "tags": lambda record: record.tags,
    "statements": lambda record: record.right,
}
QUERIES: Final = ("captions", "summaries")  # kinds that are reported on
COLUMNS: Final = ("t2v", "t2v_dual", "v2t", "v2t_dual")
Values = dict[str, Any]  # figures as JSON values


@dataclass(frozen=True)
class Row:
    """A line of the table: the layer whose similarities come first, and how candidates are reranked, if they are."""

    name: str
    stage: str
    mode: str | None = None  # "yes" is P(Yes), "fused" log-odds fused with the similarity
    k: int = 0  # candidates


ROWS: Final = (
    Row("ZS, final layer", "final"),
    Row("ZS, layer chosen without labels", "own"),
    Row("ZS, chosen layer", "chosen"),
    Row("ZS, chosen layer + P(Yes)", "chosen", "yes", K_ZERO_SHOT),
    Row("ZS, chosen layer + fusion", "chosen", "fused", K_ZERO_SHOT),
    Row("O, final layer", "aligned"),
    Row("O, final layer + P(Yes)", "aligned", "yes", K_ALIGNED),
    Row("O, final layer + fusion", "aligned", "fused", K_ALIGNED),
)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of all pairs of texts and clips, ``(T, V)`` each."""

    first: FloatArray  # cosines
    yes: FloatArray  # log-odds of Yes against the rest of the vocabulary
    yes_no: FloatArray  # log-odds of Yes against No
    positives: Mask  # which clips a text is true of

    def odds(self, mode: str) -> FloatArray:
        """The log-odds that a mode ranks by."""
        return self.yes_no if mode == "fused" else self.yes

    def oriented(self, direction: str) -> Scores:
        """The same with queries as rows."""
        return self if direction == "t2v" else Scores(self.first.T, self.yes.T, self.yes_no.T, self.positives.T)


def is_true(kind: str, described: ClipRecord, shown: ClipRecord) -> bool:
    """Whether one clip's text of a kind is true of another; short ones, without a background, name four attributes."""
    short = kind == "summaries" or (kind == "statements" and "background" not in described.right)
    names = SUMMARY_ATTRIBUTES if short else tuple(described.attributes)
    return all(described.attributes[name] == shown.attributes[name] for name in names)


def score(
    reranker: VideoReranker, encoders: Mapping[str, VideoEncoder], clips: Clips, kinds: Sequence[str]
) -> dict[str, dict[str, Scores]]:
    """Score every clip with every text by stage and kind, one prefill a clip, which the encoder "chosen" shares."""
    paths, records = [path for path, _ in clips], [record for _, record in clips]
    texts = {kind: [KINDS[kind](record) for record in records] for kind in kinds}
    every = list(dict.fromkeys(text for of_kind in texts.values() for text in of_kind))
    answers, chosen = reranker.answers_and_embeddings(every, paths, encoders["chosen"], show_progress_bar=True)
    yes, yes_no = (odds.reshape(len(paths), len(every)).T for odds in (answers.yes, answers.yes_no))  # (every, V)
    rows = {kind: [every.index(text) for text in of_kind] for kind, of_kind in texts.items()}
    right = {kind: np.array([[is_true(kind, one, other) for other in records] for one in records]) for kind in kinds}
    found: dict[str, dict[str, Scores]] = {}
    for stage, encoder in encoders.items():
        vectors = chosen if stage == "chosen" else encoder.encode(paths, show_progress_bar=False)  # (V, D)
        queries = encoder.encode([{"text": text} for text in every], show_progress_bar=False)  # (every, D)
        first = queries.astype(np.float64) @ vectors.astype(np.float64).T  # (every, V)
        # (T, V) of each kind
        found[stage] = {kind: Scores(first[at], yes[at], yes_no[at], right[kind]) for kind, at in rows.items()}
    return found


def fit_fusion(known: Sequence[Scores]) -> ScoreFusion:
    """Fit the fusion on the top candidates of every text, of all kinds at once."""
    parts, queries = [], []
    for kind, scores in enumerate(known):
        best = top_candidates(scores.first, FIT_DEPTH)  # (T, K)
        all_pairs = (scores.yes_no, scores.first, scores.positives)
        parts.append([np.take_along_axis(one, best, axis=1).ravel() for one in all_pairs])
        queries += [f"{kind} {row}" for row in range(len(best)) for _ in range(best.shape[1])]
    odds, similarity, labels = (np.concatenate(one) for one in zip(*parts, strict=True))
    return ScoreFusion.fit(odds, similarity, labels, queries)


def rank(row: Row, measured: Scores, known: Scores, fusion: ScoreFusion) -> dict[str, NDArray[np.int64]]:
    """Ranks of the right answers ``(Q,)`` by `COLUMNS`; temperatures are fitted on `known`."""
    found = {}
    for way in DIRECTIONS:
        one, other = measured.oriented(way), known.oriented(way)
        temperature = fit_temperature(other.first, other.positives).temperature
        names, by = ("raw", "dual_softmax"), rankings(one.first, temperature=temperature)
        if row.mode is not None:
            fused = fusion if row.mode == "fused" else None
            second, other_second = (
                second_stage(part.first, part.odds(row.mode), needed(part.first, row.k, temperature), fused)
                for part in (one, other)
            )
            last = DualStages(other.first, other_second, other.positives, row.k).second
            names = ("rerank", "rerank_dual_softmax")
            by = rankings(one.first, second, temperature=temperature, second_temperature=last, k=row.k)
        for column, name in zip((way, f"{way}_dual"), names, strict=True):
            if (scores := by[name]) is not None:
                found[column] = ranks(scores, one.positives)
    return found


def table(measured: Mapping[str, Scores], known: Mapping[str, Scores], fusions: Mapping[str, ScoreFusion]) -> Values:
    """The table of one kind of query, from scores by stage of the clips that are reported on and of others.

    It has ``distinct`` (how many queries differ in what they are true of), ``table`` (recalls by row and column) and
    ``gains`` (by column the paired difference in Recall@1 of the last row to each other one, in points, with interval).
    """
    found = {row.name: rank(row, measured[row.stage], known[row.stage], fusions[row.stage]) for row in ROWS}
    groups = {}  # queries that are true of the same are drawn together by a bootstrap
    for column in COLUMNS:
        positives = next(iter(measured.values())).oriented(column[:3]).positives
        groups[column] = np.unique(positives, axis=0, return_inverse=True)[1].reshape(-1)
    rows: list[Values] = []
    gains: dict[str, dict[str, list[float]]] = {}
    for row in ROWS:
        entry: Values = {"name": row.name, "k": row.k}
        for column, places in found[row.name].items():
            interval = bootstrap_interval(places == 1, seed=0, groups=groups[column])
            entry[column] = {f"R@{k}": round(100 * recall_at(places, k), 1) for k in (1, 5, 10)}
            entry[column]["interval"] = points(interval)[1:]
            if row is not ROWS[-1]:
                best = found[ROWS[-1].name][column]
                gain = paired_bootstrap(best == 1, places == 1, seed=0, groups=groups[column])
                gains.setdefault(column, {})[row.name] = points(gain)
        rows.append(entry)
    return {"distinct": len(np.unique(groups["t2v"])), "table": rows, "gains": gains}


def points(interval: Interval) -> list[float]:
    """An estimate and the ends of its interval in percent, rounded to a tenth."""
    return [round(100 * value, 1) for value in (interval.estimate, interval.low, interval.high)]


def aligned_encoder(adapter: Path, folder: Path, device: str) -> VideoEncoder:
    """The bundled model with an adapter merged into it, loaded as any checkpoint is; it needs the extra ``train``."""
    return VideoEncoder(merge_adapter(CHECKPOINT, adapter, folder / "aligned", device=device), device=device)


def measure(
    *,
    clips: int = 200,
    layer_clips: int = 800,
    fit_clips: int = 100,
    seed: int = 0,
    adapter: str | Path = ALIGNED,
    own_clips: int = 200,
    device: str = "cpu",
) -> tuple[Values, LayerAnalysis]:
    """Everything that the module's first lines name, as JSON values, and the analysis of the layers.

    The table is about held-out `clips` with distinct captions, drawn by `seed`. Of `layer_clips` others, of the next
    seed, half choose the layer, by captions and summaries alike, and half draw its curve, and `fit_clips` of them fit
    fusion and temperatures. `own_clips` of them, without their texts, choose a layer by what the model says of them.
    `adapter` is a folder that `align` wrote with ``output="adapter"``.
    """
    if not 4 <= fit_clips <= layer_clips:
        raise ValueError(f"fit_clips={fit_clips}: expected from 4 to layer_clips={layer_clips}")
    with tempfile.TemporaryDirectory() as scratch:
        aligned = aligned_encoder(Path(adapter), Path(scratch), device)  # first: what it needs may be missing
        drawn, others = draw_clips(Path(scratch), clips, layer_clips, seed)
        mllm = f"{NAMESPACE}shapes-mllm"
        pairs = {kind: [CaptionedVideo(path, KINDS[kind](record)) for path, record in others] for kind in QUERIES}
        options: dict[str, Any] = {"prefixes": ("none",), "device": device, "show_progress_bar": True}
        analysis = analyze_layers(mllm, pairs, **options)
        layer = analysis.chosen_layer
        unlabelled = [path for path, _ in others[:own_clips]]
        full = VideoEncoder(mllm, layer=layer, prefix=None, device=device)
        own = own_texts(caption_videos(full, unlabelled), least=min(LEAST, layer_clips // 2), seed=seed)
        own_layer = analyze_layers(mllm, own.queries(), dual_softmax=False, **options).chosen_layer
        reranker = VideoReranker(CHECKPOINT, device=device)
        final, chosen, unaided = (reranker.encoder(layer=one, prefix=None) for one in (-1, layer, own_layer))
        encoders = {"final": final, "chosen": chosen, "own": unaided, "aligned": aligned}
        measured = score(reranker, encoders, drawn, QUERIES)
        known = score(reranker, encoders, others[:fit_clips], tuple(KINDS))
    fusions = {stage: fit_fusion(list(of_kind.values())) for stage, of_kind in known.items()}
    queries = {}
    for kind in QUERIES:
        shown, fitted = ({stage: scores[kind] for stage, scores in part.items()} for part in (measured, known))
        queries[kind] = table(shown, fitted, fusions)
    sizes = {"clips": clips, "layer_clips": layer_clips, "fit_clips": fit_clips, "seed": seed}
    layers = {kind: _curve(curve) for kind, curve in analysis.curves.items()}
    found = {"layer": own_layer, "described": own.described, "used": len(own.texts), "kind": own.kind}
    return {**sizes, "layer": layer, "without_labels": found, "layers": layers, "queries": queries}, analysis


def _curve(curve: PromptAnalysis) -> Values:
    """An analysis of one kind of query as JSON values in percent and points."""
    layers = [
        {"layer": one.layer, "t2v": points(one.t2v.recall_1), "v2t": points(one.v2t.recall_1)} for one in curve.rows
    ]
    margin = {"t2v": points(curve.margin.t2v), "v2t": points(curve.margin.v2t)}
    return {"chosen": curve.chosen_layer, "margin": margin, "layers": layers}
