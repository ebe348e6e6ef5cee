"""What reranking is worth on the bundled model: ``python -m tools.shapes.rerank [--out FILE]``.

Recall on held-out clips of the first stage and of every score mode at two depths, in both directions, raw and with
dual-softmax; calibration error before and after; what adaptive depth saves. Everything that is fitted (layer, prior
weights, calibration, fusion, temperatures, margins) is fitted on other held-out clips.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from tools.shapes.scores import DIRECTIONS, FITTED_ON, QUERIES, Scores, ask, candidates, draw, fit_on
from vidembed.calibration import Fit
from vidembed.evaluation.metrics import ranks, recall_at
from vidembed.evaluation.two_stage import DualStages, candidate_mask, reranked, top_candidates
from vidembed.reranker import VideoReranker
from vidembed.scoring import MarginPolicy, PriorCorrection, dual_softmax, expected_calibration_error, fit_temperature
from vidembed.scoring.calibration import sigmoid
from vidembed.scoring.checks import FloatArray
from vidembed.shapes import CHECKPOINT
from vidembed.yes_no import SCORE_MODES

DEPTHS: Final = (10, 100)
"""K: what the paper reranks with its optimized model, and with the model as it is (VidVec, section 4)."""


def _recalls(scores: FloatArray, positives: NDArray[np.bool_]) -> dict[str, float]:
    found = ranks(scores, positives)
    return {f"R@{k}": round(100 * recall_at(found, k), 1) for k in (1, 5, 10)}


def table(measured: Scores, other: Scores, fit: Fit) -> list[dict[str, Any]]:
    """Recalls of each stage: one entry a score mode and depth; temperatures are fitted on `other`."""
    first_stage: dict[str, Any] = {"scores": "first stage", "k": 0}
    temperatures = {}
    for direction in DIRECTIONS:
        (first, _, positives), (known, _, known_positives) = measured.oriented(direction), other.oriented(direction)
        temperatures[direction] = fit_temperature(known, known_positives).temperature
        dual = dual_softmax(first, temperature=temperatures[direction])
        first_stage |= {direction: _recalls(first, positives), direction + "_dual": _recalls(dual, positives)}
    rows = [first_stage]
    whole = replace(fit, prior_correction=PriorCorrection())
    for name, mode, using in (
        *((mode, mode, fit) for mode in SCORE_MODES),
        ("whole prior", "prior_corrected", whole),
        ("fused", "fused", fit),
    ):
        for k in DEPTHS:
            entry: dict[str, Any] = {"scores": name, "k": k}
            for direction in DIRECTIONS:
                (first, second, positives), validation = (
                    scores.oriented(direction, mode, using, scores.asked(direction, k, temperatures[direction]))
                    for scores in (measured, other)
                )
                stages = DualStages(*validation, k)
                entry[direction] = _recalls(reranked(first, second, k), positives)
                entry[direction + "_dual"] = _recalls(stages(first, second), positives)
            rows.append(entry)
    return rows


def calibration_errors(measured: Scores, fit: Fit) -> dict[str, float]:
    """Expected calibration error on each text's top candidates: P(Yes) as it is, calibrated, and fused."""
    answers, similarities, labels, rows = candidates(measured)
    found = {"before": sigmoid(answers.yes_no), "after": fit.calibration(answers.yes_no, kind="log_odds")}
    if fit.fusion:
        found["fused"] = fit.fusion(answers.yes_no, similarities, [str(row) for row in rows])
    return {name: round(expected_calibration_error(p, labels), 4) for name, p in found.items()}


def adaptive_depth(measured: Scores, other: Scores, fit: Fit) -> list[dict[str, float]]:
    """What a margin fitted on `other` saves of the passes of the greater depth, and what it costs, text to video."""

    def best(scores: Scores) -> list[Any]:
        columns = top_candidates(scores.first, max(DEPTHS))
        asked = candidate_mask(scores.first, max(DEPTHS))
        return [np.take_along_axis(matrix, columns, 1) for matrix in scores.oriented("t2v", "fused", fit, asked)]

    known, (first, second, right) = best(other), best(measured)
    found = []
    for top_k in (1, 5, 10):
        policy = MarginPolicy.fit(*known, top_k=top_k).policy
        asked = policy.asked(first, top_k=top_k)  # (Q, K)
        everything, some = (
            np.mean([_hit(second[row][mask], right[row][mask], top_k) for row, mask in enumerate(which)])
            for which in (np.ones_like(asked), asked)
        )
        found.append(
            {
                "top_k": top_k,
                "margin": round(policy.margin, 4),
                "passes_saved": round(float(1 - asked.mean()), 3),
                "recall_all_asked": round(100 * float(everything), 1),
                "recall": round(100 * float(some), 1),
            }
        )
    return found


def _hit(scores: FloatArray, right: NDArray[np.bool_], top_k: int) -> bool:
    return bool(right.any() and (scores[~right] >= scores[right].max()).sum() < top_k)


def measure(*, clips: int = 200, other_clips: int = 100, seed: int = 0, device: str = "cpu") -> dict[str, Any]:
    """Everything that the module's first lines name.

    Args:
        clips: Held-out clips that are reported on; their captions are distinct.
        other_clips: Other held-out clips, that everything is fitted on.
        seed: Of the clips; the others are drawn with the next one.
        device: Where the model runs.
    """
    layer = json.loads((CHECKPOINT / "figures.json").read_text(encoding="utf-8"))["best_layer"]
    reranker = VideoReranker(CHECKPOINT, device=device)
    with tempfile.TemporaryDirectory() as scratch:
        written, others = draw(Path(scratch), clips, other_clips, seed)
        measured, known = ask(reranker, layer, written), ask(reranker, layer, others, FITTED_ON)
    result: dict[str, Any] = {"clips": clips, "other_clips": other_clips, "seed": seed, "layer": layer, "queries": {}}
    fit = fit_on(known)
    result["fit"] = asdict(fit)
    for kind in QUERIES:
        result["queries"][kind] = {
            "table": table(measured[kind], known[kind], fit),
            "calibration_error": calibration_errors(measured[kind], fit),
            "adaptive_depth": adaptive_depth(measured[kind], known[kind], fit),
        }
    return result


def as_text(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = []
    for kind, found in result["queries"].items():
        lines += [
            f"Queries: {kind}; R@1 / 5 / 10 in percent",
            "",
            "| scores | K | text to video | with dual-softmax | video to text | with dual-softmax |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for row in found["table"]:
            cells = [
                " / ".join(f"{value:.1f}" for value in row[name].values())
                for name in ("t2v", "t2v_dual", "v2t", "v2t_dual")
            ]
            lines.append(f"| {row['scores']} | {row['k'] or ''} | {' | '.join(cells)} |")
        error = found["calibration_error"]
        lines += [
            "",
            "Calibration error: {before:.3f} as it is, {after:.3f} calibrated, {fused:.3f} fused.".format_map(error),
            "",
        ]
        lines += [
            f"Adaptive depth, top {one['top_k']} of K = {max(DEPTHS)}: {100 * one['passes_saved']:.0f} % of the passes "
            f"saved, R@{one['top_k']} {one['recall_all_asked']:.1f} -> {one['recall']:.1f}."
            for one in found["adaptive_depth"]
        ]
        lines.append("")
    prior = result["fit"]["prior_correction"]
    lines.append("Fitted prior weights: video {video_weight:.2f}, sentence {text_weight:.2f}.".format_map(prior))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.shapes.rerank", description=__doc__)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--other-clips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="figures as JSON")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    result = measure(clips=options.clips, other_clips=options.other_clips, seed=options.seed, device=options.device)
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(as_text(result))  # noqa: T201 - the command's result


if __name__ == "__main__":
    main()
