"""The method from end to end on the bundled model, in the paper's form: ``vidembed reproduce shapes``.

Trains nothing. On held-out clips written as files: recall at every layer, and for the final layer, the chosen layer,
the chosen layer reranked, the aligned final layer (VidVec-O) and the aligned one reranked, Recall@1/5/10 in both
directions, raw and with dual-softmax. Whatever is chosen or fitted (layer, calibration, fusion, temperatures) is chosen
or fitted on other held-out clips.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidembed.analysis import LayerAnalysis, analyze_layers, plot_layers
from vidembed.captions import CaptionedVideo
from vidembed.encoder import VideoEncoder
from vidembed.evaluation.metrics import bootstrap_interval, paired_bootstrap, ranks, recall_at
from vidembed.evaluation.two_stage import DualStages, reranked
from vidembed.registry import NAMESPACE
from vidembed.reproduce.rerank import DIRECTIONS, FITTED_ON, QUERIES, Scores, ask, draw, fit_on, told_by
from vidembed.reranker import VideoReranker
from vidembed.reranking.config import Fit
from vidembed.scoring import dual_softmax, fit_temperature
from vidembed.scoring.checks import FloatArray
from vidembed.shapes import CHECKPOINT
from vidembed.shapes.clips import ClipRecord
from vidembed.training.lora import merge_adapter

ALIGNED: Final = CHECKPOINT.parent / "aligned"
"""The bundled adapter: a LoRA of `align` on pairs of texts, for the final layer; `tools.shapes.package`."""

K_ZERO_SHOT: Final = 100
"""Candidates that are reranked with the model as it is (VidVec, arXiv 2602.08099, section 4)."""
K_ALIGNED: Final = 10
"""Candidates that are reranked with the optimized model (same place)."""

Written = Sequence[tuple[Path, ClipRecord]]


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: As the paper has it, and how it is reranked.
        stage: Whose similarities come first: "final", "chosen" or "aligned".
        mode: Score mode of the second stage, or None without one.
        k: Candidates of the second stage.
    """

    name: str
    stage: str
    mode: str | None = None
    k: int = 0


ROWS: Final = (
    Row("ZS, final layer", "final"),
    Row("ZS, chosen layer", "chosen"),
    Row("ZS, chosen layer + P(Yes)", "chosen", "yes", K_ZERO_SHOT),
    Row("ZS, chosen layer + fusion", "chosen", "fused", K_ZERO_SHOT),
    Row("O, final layer", "aligned"),
    Row("O, final layer + P(Yes)", "aligned", "yes", K_ALIGNED),
    Row("O, final layer + fusion", "aligned", "fused", K_ALIGNED),
)

PAPER: Final = (
    ("ZS, final layer", "14.3", "", ""),
    ("ZS, layer 24 of 28", "", "42.1", ""),
    ("ZS, layer 24 + P(Yes), K = 100", "", "52.1", ""),
    ("O, final layer", "48.4", "52.5", "54.9"),
    ("O, final layer + P(Yes), K = 10", "", "56.2", "54.9"),
)
"""VideoLLaMA3-7B on MSR-VTT 1k-A, Recall@1: text to video raw, with dual-softmax, video to text with dual-softmax
(VidVec, arXiv 2602.08099). Empty where the paper gives none."""


def similarities(
    encoder: VideoEncoder, written: Written, kinds: Mapping[str, Callable[[ClipRecord], str]]
) -> dict[str, FloatArray]:
    """Cosines of the texts of each kind with clips, (texts, clips) each, as `rerank.ask` orders them."""
    vectors = encoder.encode([path for path, _ in written], show_progress_bar=False).astype(np.float64)  # (N, D)
    found = {}
    for kind, say in kinds.items():
        texts = encoder.encode([{"text": say(record)} for _, record in written], show_progress_bar=False)
        found[kind] = np.asarray(texts.astype(np.float64) @ vectors.T)  # (T, N)
    return found


@dataclass(frozen=True, eq=False)
class Ranking:
    """The ranks of the right answers, for one row, kind of query and direction.

    Attributes:
        raw: ``(Q,)``.
        dual: ``(Q,)`` with dual-softmax.
        groups: ``(Q,)`` integers, equal where queries say the same: they are drawn together by a bootstrap.
    """

    raw: NDArray[np.int64]
    dual: NDArray[np.int64]
    groups: NDArray[np.int64]


def rank(row: Row, direction: str, measured: Scores, known: Scores, fit: Fit) -> Ranking:
    """Ranks of one row; temperatures are fitted on `known`."""
    mode, k = row.mode or "yes_no", row.k or 1
    other, _, other_positives = known.oriented(direction)
    temperature = fit_temperature(other, other_positives).temperature
    (first, second, positives), validation = (
        scores.oriented(direction, mode, fit, scores.asked(direction, k, temperature)) for scores in (measured, known)
    )
    if row.mode is None:
        raw, dual = first, dual_softmax(first, temperature=temperature)
    else:
        raw, dual = reranked(first, second, row.k), DualStages(*validation, k=row.k)(first, second)
    groups = np.unique(positives, axis=0, return_inverse=True)[1].reshape(-1)
    return Ranking(ranks(raw, positives), ranks(dual, positives), groups)


def recalls(found: NDArray[np.int64], groups: NDArray[np.int64]) -> dict[str, Any]:
    """Recall@1/5/10 in percent, and the 95 % interval of the first."""
    interval = bootstrap_interval(found == 1, seed=0, groups=groups)
    return {
        **{f"R@{k}": round(100 * recall_at(found, k), 1) for k in (1, 5, 10)},
        "interval": [round(100 * interval.low, 1), round(100 * interval.high, 1)],
    }


def table(
    measured: dict[str, Scores], known: dict[str, Scores], fits: dict[str, Fit]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Recalls of every row, and what the last row gains over the others.

    Args:
        measured: By stage, of the clips that are reported on.
        known: By stage, of other clips.
        fits: By stage, of those.

    Returns:
        One entry a row with ``t2v``, ``t2v_dual``, ``v2t`` and ``v2t_dual``; and by column the paired difference in
        Recall@1 of the last row to each other one, in points, with its interval.
    """
    rankings = {
        (row.name, direction): rank(row, direction, measured[row.stage], known[row.stage], fits[row.stage])
        for row in ROWS
        for direction in DIRECTIONS
    }
    rows: list[dict[str, Any]] = []
    gains: dict[str, dict[str, list[float]]] = {}
    for row in ROWS:
        entry: dict[str, Any] = {"name": row.name, "k": row.k}
        for direction in DIRECTIONS:
            found, last = rankings[row.name, direction], rankings[ROWS[-1].name, direction]
            for column, mine, best in ((direction, found.raw, last.raw), (direction + "_dual", found.dual, last.dual)):
                entry[column] = recalls(mine, found.groups)
                if row is not ROWS[-1]:
                    gain = paired_bootstrap(best == 1, mine == 1, seed=0, groups=found.groups)
                    gains.setdefault(column, {})[row.name] = [
                        round(100 * value, 1) for value in (gain.estimate, gain.low, gain.high)
                    ]
        rows.append(entry)
    return rows, gains


def layer_curves(others: Written, device: str) -> dict[str, LayerAnalysis]:
    """Recall at every layer for captions and summaries; the layer is chosen on half of the clips."""
    return {
        kind: analyze_layers(
            f"{NAMESPACE}shapes-mllm",
            [CaptionedVideo(path, say(record)) for path, record in others],
            prefixes=("none",),
            device=device,
            show_progress_bar=True,
        )
        for kind, say in QUERIES.items()
    }


def aligned_encoder(adapter: Path, folder: Path, device: str) -> VideoEncoder:
    """The bundled model with an adapter merged into it, loaded as any checkpoint is.

    Raises:
        MissingExtraError: PEFT is not installed (the extra ``train``).
    """
    return VideoEncoder(merge_adapter(CHECKPOINT, adapter, folder / "aligned", device=device), device=device)


def measure(
    *,
    clips: int = 200,
    layer_clips: int = 800,
    fit_clips: int = 100,
    seed: int = 0,
    adapter: str | Path = ALIGNED,
    device: str = "cpu",
) -> tuple[dict[str, Any], dict[str, LayerAnalysis]]:
    """Everything that the module's first lines name.

    Args:
        clips: Held-out clips that the table is about; their captions are distinct.
        layer_clips: Other held-out clips: the layer is chosen on half of them, its curve drawn on the other half.
        fit_clips: How many of those fit calibration, fusion and temperatures.
        seed: Of the clips; the others are drawn with the next one.
        adapter: A folder that `align` wrote with ``output="adapter"``.
        device: Where the model runs.

    Returns:
        The figures, JSON values; and the layer analyses of captions and summaries.

    Raises:
        MissingExtraError: PEFT is not installed (the extra ``train``).
        ValueError: ``fit_clips`` exceeds ``layer_clips``, or there are too few.
    """
    if not 4 <= fit_clips <= layer_clips:
        raise ValueError(f"fit_clips={fit_clips}: expected from 4 to layer_clips={layer_clips}")
    with tempfile.TemporaryDirectory() as scratch:
        aligned = aligned_encoder(Path(adapter), Path(scratch), device)  # first: what it needs may be missing
        written, others = draw(Path(scratch), clips, layer_clips, seed)
        curves = layer_curves(others, device)
        layer = curves["captions"].chosen_layer
        reranker = VideoReranker(CHECKPOINT, device=device)
        stages: list[dict[str, dict[str, Scores]]] = []  # of measured and known clips: by kind and stage
        for part, kinds in ((written, QUERIES), (others[:fit_clips], FITTED_ON)):
            chosen = ask(reranker, layer, part, kinds)
            final = similarities(reranker.encoder(layer=-1, prefix=None), part, kinds)
            after = similarities(aligned, part, kinds)
            stages.append(
                {
                    kind: {
                        "chosen": scores,
                        "final": replace(scores, first=final[kind]),
                        "aligned": replace(scores, first=after[kind]),
                    }
                    for kind, scores in chosen.items()
                }
            )
    measured, known = stages
    fits = {
        stage: fit_on({kind: one[stage] for kind, one in known.items()}) for stage in ("final", "chosen", "aligned")
    }
    result: dict[str, Any] = {
        "clips": clips,
        "layer_clips": layer_clips,
        "fit_clips": fit_clips,
        "seed": seed,
        "layer": layer,
        "layers": {kind: _curve(curve) for kind, curve in curves.items()},
        "queries": {},
    }
    for kind, say in QUERIES.items():
        rows, gains = table(measured[kind], known[kind], fits)
        said = {
            (say(record), tuple(record.attributes[name] for name in told_by(record, kind))) for _, record in written
        }
        result["queries"][kind] = {"distinct": len({shown for _, shown in said}), "table": rows, "gains": gains}
    return result, curves


def _curve(analysis: LayerAnalysis) -> dict[str, Any]:
    """What a layer analysis found, as JSON values in percent and points."""

    def points(interval: Any) -> list[float]:
        return [round(100 * value, 1) for value in (interval.estimate, interval.low, interval.high)]

    return {
        "chosen": analysis.chosen_layer,
        "margin": {"t2v": points(analysis.margin.t2v), "v2t": points(analysis.margin.v2t)},
        "layers": [
            {"layer": row.layer, "t2v": points(row.t2v.recall_1), "v2t": points(row.v2t.recall_1)}
            for row in analysis.prompts[0].rows
        ],
    }


def as_text(result: dict[str, Any]) -> str:
    """The figures as Markdown, the paper's beside them."""
    curve = result["layers"]
    half = result["layer_clips"] // 2
    lines = [
        f"Layer chosen on {half} other clips: {result['layer']}. On {half} more, over the final one, R@1 in points:",
        "",
    ]
    for kind, found in curve.items():
        shown = [f"{value[0]:+.1f} ({value[1]:.1f} to {value[2]:.1f})" for value in found["margin"].values()]
        lines.append(f"- {kind}: layer {found['chosen']}, text to video {shown[0]}, video to text {shown[1]}")
    for kind, found in result["queries"].items():
        lines += [
            "",
            f"{result['clips']} clips, queries: {kind}, {found['distinct']} different ones; R@1 / 5 / 10 in percent",
            "",
            "| | K | text to video | with dual-softmax | video to text | with dual-softmax |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in found["table"]:
            cells = [
                " / ".join(f"{row[column][f'R@{k}']:.1f}" for k in (1, 5, 10))
                for column in ("t2v", "t2v_dual", "v2t", "v2t_dual")
            ]
            lines.append(f"| {row['name']} | {row['k'] or ''} | {' | '.join(cells)} |")
    lines += [
        "",
        "The paper, for the shape and not the size: VideoLLaMA3-7B on MSR-VTT 1k-A, R@1 (arXiv 2602.08099)",
        "",
        "| | text to video | with dual-softmax | video to text, with dual-softmax |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in PAPER),
    ]
    return "\n".join(lines)


def write(result: dict[str, Any], curves: dict[str, LayerAnalysis], out: Path) -> list[Path]:
    """Write ``shapes.json``, ``shapes.md`` and a plot of the layers a kind of query into a folder.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (the extra ``plot``).
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "shapes.json", out / "shapes.md"]
    files[0].write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    files[1].write_text(as_text(result) + "\n", encoding="utf-8")
    for kind, curve in curves.items():
        files.append(out / f"layers-{kind}.png")
        plot_layers([curve], files[-1])
    return files
