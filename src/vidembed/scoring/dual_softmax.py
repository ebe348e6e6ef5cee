"""Dual-softmax at inference, for evaluation and batches; for one live query see `vidembed.scoring.query_bank`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidembed.progress import progress_bar
from vidembed.scoring.checks import FloatArray, SavedNumbers, matrix, number, positive_mask, vector

# weights under ``exp(-690)``, about 1e-300, are held there: they would underflow to 0 and tie all their candidates
LOG_WEIGHT_FLOOR = -690.0
# default grid of temperatures: these powers of ten times the standard deviation of the scores (ours)
GRID_DECADES = (-3.0, 2.0)
GRID_SIZE = 51  # default number of temperatures tried: ten a decade (ours)


def dual_softmax(scores: ArrayLike, *, temperature: float) -> FloatArray:
    """Multiply scores by their softmax over the queries: ``(Q, N)`` float64, to be ranked within each row.

    ``dual[i, j] = S[i, j] * Q * w[i, j]`` with ``w[i, j] = exp(S[i, j] / t) / sum_k exp(S[k, j] / t)``: column ``j``,
    a candidate, hands out its weight among the ``Q`` rows, the queries, and row ``i`` is then ranked by ``dual[i]``.
    This is the dual softmax of CAMoE (arXiv 2109.04290) for one direction of retrieval; the other is
    ``dual_softmax(scores.T, temperature=...)``. The factor ``Q`` changes no ranking; with it, the result tends to
    ``S`` itself as the temperature grows.

    It is meant for scores that are mostly above zero, as cosines of one model and P(Yes) are: of a score below zero a
    *small* weight makes more, and adding a constant to all scores changes the result.

    Args:
        scores: ``(Q, N)``, rows rank columns. All the queries of the evaluation or batch.
        temperature: Above 0, in the unit of the scores. Small is a hard assignment of candidates to queries.

    Raises:
        ValueError: ``scores`` is not a finite ``(Q, N)`` matrix, or ``temperature`` is not finite and above 0.
    """
    similarity = matrix("scores", scores)
    temperature = number("temperature", temperature, above_zero=True)
    # Shifted before the division, so that no temperature makes infinity minus infinity.
    with np.errstate(over="ignore"):
        logits = (similarity - similarity.max(axis=0)) / temperature  # (Q, N), each column's greatest is 0
    log_weights = logits - np.log(np.exp(logits).sum(axis=0))  # (Q, N)
    weights = np.exp(np.maximum(log_weights, LOG_WEIGHT_FLOOR))
    return np.asarray(similarity * weights * len(similarity), dtype=np.float64)


@dataclass(frozen=True)
class FittedTemperature:
    """A temperature of `dual_softmax`, in the unit of the scores, chosen on a validation set, and what it did there."""

    temperature: float
    recall_before: float  # R@1 of the scores as given, from 0 to 1; `recall_after` with the temperature
    recall_after: float
    mrr_before: float  # mean reciprocal rank of the best right column, likewise
    mrr_after: float
    queries: int  # queries it was chosen on


def fit_temperature(scores: ArrayLike, positives: ArrayLike, *, grid: ArrayLike | None = None) -> FittedTemperature:
    """Choose the temperature of `dual_softmax` for one direction on a validation set, never on the queries you report.

    The greatest R@1 wins; among equals the greatest mean reciprocal rank; of the longest run of grid points that are
    equal in both, the one nearest the middle on a logarithmic scale (of equals here, the greater temperature). A wrong
    column with the score of the right one counts as ranked before it. Nothing is random. No temperature need help:
    compare ``recall_after`` with ``recall_before``.

    Args:
        scores: ``(Q, N)`` validation scores, rows rank columns; for video-to-text give ``scores.T``.
        positives: ``(Q,)`` integers, the right column of each row, or ``(Q, N)`` booleans where several are right.
        grid: Temperatures to try, above 0. Default: `GRID_SIZE` log-spaced ones over `GRID_DECADES` powers of ten of
            the scores' standard deviation.

    Raises:
        ValueError: Fewer than 2 queries, scores that are all equal, or an argument of another shape or kind.
    """
    similarity = matrix("scores", scores)
    if len(similarity) < 2:
        raise ValueError(f"scores: expected at least 2 queries to fit a temperature on, got {len(similarity)}")
    mask = positive_mask("positives", positives, (similarity.shape[0], similarity.shape[1]))
    if grid is None:
        spread = float(similarity.std())
        if spread <= 1e-12 * float(np.abs(similarity).max()):
            raise ValueError(f"scores: all are {similarity.flat[0]}; no temperature can be fitted")
        grid = spread * np.logspace(*GRID_DECADES, GRID_SIZE)
    temperatures = np.unique(vector("grid", grid, axis="G"))  # ascending
    if temperatures[0] <= 0:
        raise ValueError(f"grid: expected temperatures above 0, got {temperatures[0]}")

    before = _figures(similarity, mask)
    figures = [
        _figures(dual_softmax(similarity, temperature=float(t)), mask)
        for t in progress_bar("Fitting", "temperatures", each=temperatures, shown=True, delay_s=2.0)
    ]
    best = max(figures)
    chosen = middle_of_plateau(np.log(temperatures), np.array([f == best for f in figures]))
    return FittedTemperature(float(temperatures[chosen]), before[0], best[0], before[1], best[1], len(similarity))


def _figures(ranking: FloatArray, mask: NDArray[np.bool_]) -> tuple[float, float]:
    """R@1 and mean reciprocal rank of the best right column; ties count against it."""
    best = np.where(mask, ranking, -np.inf).max(axis=1, keepdims=True)  # (Q, 1)
    ranks = 1 + ((ranking >= best) & ~mask).sum(axis=1)  # (Q,)
    return float((ranks == 1).mean()), round(float((1.0 / ranks).mean()), 12)  # rounded: equal whatever the order


def middle_of_plateau(positions: FloatArray, is_best: NDArray[np.bool_]) -> int:
    """Index of the point nearest the middle of the longest run of True; of equals the last."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], is_best.astype(np.int8), [0]))))
    runs = edges.reshape(-1, 2)  # (runs, 2): first, one past the last
    first, end = max(runs.tolist(), key=lambda run: (run[1] - run[0], run[0]))
    middle = (positions[first] + positions[end - 1]) / 2
    distance = np.round(np.abs(positions[first:end] - middle), 9)  # rounded: a tie is a tie whatever the unit
    return int(first + np.flatnonzero(distance == distance.min())[-1])


@dataclass(frozen=True)
class DualSoftmax(SavedNumbers):
    """The two fitted temperatures of a model: where texts rank videos (`t2v`), and where videos rank texts (`v2t`)."""

    t2v: float
    v2t: float
    kind: ClassVar = "dual_softmax"
    above_zero: ClassVar = True

    def text_to_video(self, scores: ArrayLike) -> FloatArray:
        """Return ``(Q, N)`` ranking scores of ``(Q, N)`` scores: each text's row ranks the videos."""
        return dual_softmax(scores, temperature=self.t2v)

    def video_to_text(self, scores: ArrayLike) -> FloatArray:
        """Return ``(N, Q)`` ranking scores of the same ``(Q, N)`` scores: each video's row ranks the texts."""
        return dual_softmax(matrix("scores", scores).T, temperature=self.v2t)
