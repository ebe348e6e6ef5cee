"""What reranking is worth on the bundled model: ``python -m vidembed.reproduce.rerank [--out FILE]``.

Recall on held-out clips of the first stage and of every score mode at two depths, in both directions, raw and with
dual-softmax; calibration error before and after; what adaptive depth saves. Everything that is fitted (layer, prior
weights, calibration, fusion, temperatures, margins) is fitted on other held-out clips.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from vidembed.evaluation.metrics import ranks, recall_at
from vidembed.evaluation.two_stage import (
    DualStages,
    candidate_mask,
    needed,
    reranked,
    second_stage,
    top_candidates,
)
from vidembed.reranker import VideoReranker
from vidembed.reranking.config import Fit, fit_numbers
from vidembed.scoring import MarginPolicy, PriorCorrection, dual_softmax, expected_calibration_error, fit_temperature
from vidembed.scoring.calibration import sigmoid
from vidembed.scoring.checks import FloatArray
from vidembed.shapes import CHECKPOINT
from vidembed.shapes.clips import ClipRecord, iterate_clips, write_clip, write_clips
from vidembed.shapes.language import SUMMARY_ATTRIBUTES
from vidembed.yes_no import SCORE_MODES, Answers, ScoreMode, check_mode

logger = logging.getLogger(__name__)

DEPTHS: Final = (10, 100)
"""K: what the paper reranks with its optimized model, and with the model as it is (VidVec, section 4)."""
FIT_DEPTH: Final = 10
"""Candidates of each query that calibration, fusion and prior weights are fitted on."""
QUERIES: Final[dict[str, Callable[[ClipRecord], str]]] = {
    "captions": lambda record: record.caption,
    "summaries": lambda record: record.summary,
}
SENTENCES: Final[dict[str, Callable[[ClipRecord], str]]] = {**QUERIES, "statements": lambda record: record.right}
"""What prior weights and calibration are fitted on: statements are short ones, some long and some short."""
FITTED_ON: Final[dict[str, Callable[[ClipRecord], str]]] = {**SENTENCES, "tags": lambda record: record.tags}
"""What the fusion is fitted on: also lists of words. The head does not understand them, which a fusion can see by a
query's candidates, and a calibration of single answers cannot: it would be wrong for sentences too."""
DIRECTIONS: Final = ("t2v", "v2t")


@dataclass(frozen=True, eq=False)
class Scores:
    """Everything asked of one set of clips with one kind of query; matrices are (texts, clips).

    Attributes:
        first: Cosines.
        answers: Of the head, each flattened from (texts, clips).
        positives: Which clips a text is true of.
    """

    first: FloatArray
    answers: Answers
    positives: NDArray[np.bool_]

    def asked(self, direction: str, k: int, temperature: float) -> NDArray[np.bool_]:
        """Which pairs the second stage is asked about ``(Q, N)``, as `vidembed.evaluation.two_stage.needed`."""
        return needed(self.oriented(direction)[0], k, temperature)

    def oriented(
        self, direction: str, mode: str = "yes_no", fit: Fit | None = None, asked: NDArray[np.bool_] | None = None
    ) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
        """First stage, second stage (log-odds of a score mode, or "fused") and positives, with queries as rows.

        Args:
            direction: "t2v" or "v2t".
            mode: A score mode, or "fused".
            fit: The numbers for it.
            asked: ``(Q, N)``, the candidates that are fused with each other; None for all.
        """
        prior = fit.prior_correction if fit else None
        flat = self.answers.log_odds("yes_no" if mode == "fused" else check_mode(mode), prior)
        first, odds, positives = self.first, flat.reshape(self.first.shape), self.positives
        if direction == "v2t":
            first, odds, positives = first.T, odds.T, positives.T
        if mode == "fused" and fit and fit.fusion:
            odds = second_stage(first, odds, np.ones_like(positives) if asked is None else asked, fit.fusion)
        return first, odds, positives


def ask(
    reranker: VideoReranker,
    layer: int,
    written: Sequence[tuple[Path, ClipRecord]],
    kinds: Mapping[str, Callable[[ClipRecord], str]] = QUERIES,
) -> dict[str, Scores]:
    """Embed the clips, and ask about each with every text of some kinds, in one prefill a clip."""
    encoder = reranker.encoder(layer=layer, prefix=None)
    paths, records = [path for path, _ in written], [record for _, record in written]
    texts = {kind: [say(record) for record in records] for kind, say in kinds.items()}
    every = list(dict.fromkeys(text for told in texts.values() for text in told))
    answers, vectors = reranker.answers_and_embeddings(every, paths, encoder, priors=True, show_progress_bar=True)
    queries = encoder.encode([{"text": text} for text in every])
    similarity = queries.astype(np.float64) @ vectors.astype(np.float64).T  # (every, clips)
    cells = np.arange(len(every) * len(paths)).reshape(len(paths), len(every)).T  # answers are listed clip by clip
    found = {}
    for kind, told in texts.items():
        rows = np.array([every.index(text) for text in told])
        positives = np.array([[is_true(kind, one, other) for other in records] for one in records])
        found[kind] = Scores(similarity[rows], answers.take(cells[rows].reshape(-1)), positives)
    return found


def told_by(record: ClipRecord, kind: str) -> tuple[str, ...]:
    """Names of the attributes that a clip's text of a kind tells."""
    short = kind == "summaries" or (kind == "statements" and "background" not in record.right)  # all long ones name it
    return SUMMARY_ATTRIBUTES if short else tuple(record.attributes)


def is_true(kind: str, said: ClipRecord, shown: ClipRecord) -> bool:
    """Whether one clip's text of a kind is true of another."""
    return all(said.attributes[name] == shown.attributes[name] for name in told_by(said, kind))


def _recalls(scores: FloatArray, positives: NDArray[np.bool_]) -> dict[str, float]:
    found = ranks(scores, positives)
    return {f"R@{k}": round(100 * recall_at(found, k), 1) for k in (1, 5, 10)}


def _candidates(scores: Scores) -> tuple[Answers, FloatArray, NDArray[np.bool_], NDArray[np.intp]]:
    """Answers, similarities, labels and number of the text, of each text's best clips by the first stage, (P,)."""
    best = top_candidates(scores.first, FIT_DEPTH)  # (T, K)
    rows = np.repeat(np.arange(len(best)), best.shape[1])
    columns = best.reshape(-1)
    answers = scores.answers.take(np.ravel_multi_index((rows, columns), scores.first.shape))
    return answers, scores.first[rows, columns], scores.positives[rows, columns], rows


def fit_on(known: Mapping[str, Scores]) -> Fit:
    """Fit on the top candidates of every text: prior weights and calibration on sentences, fusion on every kind."""

    def fit(kinds: Collection[str], mode: ScoreMode) -> Fit:
        answers, similarities, labels, rows = zip(*(_candidates(known[kind]) for kind in kinds), strict=True)
        joined = Answers(*(np.concatenate([getattr(one, field.name) for one in answers]) for field in fields(Answers)))
        queries = [f"{kind} {row}" for kind, some in zip(kinds, rows, strict=True) for row in some]
        return fit_numbers(joined, np.concatenate(labels), mode, np.concatenate(similarities), queries)

    sentences = [kind for kind in known if kind in SENTENCES]
    prior = fit(sentences, "prior_corrected").prior_correction
    return Fit(prior, fit(sentences, "yes_no").calibration, fit(known, "yes_no").fusion)


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
    answers, similarities, labels, rows = _candidates(measured)
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


def draw(
    folder: Path, clips: int, other_clips: int, seed: int
) -> tuple[list[tuple[Path, ClipRecord]], list[tuple[Path, ClipRecord]]]:
    """Write the clips that are reported on, and others that none of them equals."""
    written = write_clips(folder / "measured", clips, "test", seed)
    taken = {tuple(record.attributes.values()) for _, record in written}
    fresh = (record for record in iterate_clips("test", seed + 1) if tuple(record.attributes.values()) not in taken)
    others = [(write_clip(one.scene, folder / f"other-{one.name}.mp4"), one) for one in islice(fresh, other_clips)]
    return written, others


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
    parser = argparse.ArgumentParser(prog="python -m vidembed.reproduce.rerank", description=__doc__)
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
