"""Two opinions of a query's candidates as one probability each: the first stage's similarity and the head's log-odds.

Long queries have higher cosines than short ones, and there the first stage is the better judge. A head that does not
understand a query answers all of it alike. So the weight of each is read off the query's candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidembed.scoring.calibration import PlattScaling, sigmoid
from vidembed.scoring.checks import FloatArray, SavedNumbers, as_array, finite, number, vector
from vidembed.scoring.checks import labels as checked_labels

Weights = tuple[float, float, float, float, float]
_CONSTANT = ("log_odds_weight", "gap_weight", "intercept")
# weight of the squared coefficients beside the mean loss of a query (ours: of 1e-4 to 1e-2, the one with the highest
# recall in two-fold cross-validation on 200 clips of the bundled model)
RIDGE = 1e-3
SMALLEST_WEIGHT = 1e-9  # in the place of a weight of 0 or below, whose logarithm there is none of


@dataclass(frozen=True)
class ScoreFusion(SavedNumbers):
    """Log-odds of a match: ``slope * (head * log_odds + gap * (similarity - best similarity)) + intercept``.

    The weights are those of a query, from the N candidates that are scored together:

    - ``head = softplus(head_bias + head_by_mean * mean + head_by_square * mean_square)``, with mean and mean square of
      the candidates' log-odds: how far the head's answers are from those that it gives where it has no opinion;
    - ``gap = exp(gap_bias + gap_by_best * best)``, with the similarity of the best candidate.

    So the score of a candidate depends on which others are scored with it. Give all that are to be ranked, the first
    stage's best among them. `slope`, above 0, and `intercept` are of Platt scaling.
    """

    head_bias: float
    head_by_mean: float
    head_by_square: float
    gap_bias: float
    gap_by_best: float
    slope: float = 1.0
    intercept: float = 0.0
    kind: ClassVar = "score_fusion"

    @classmethod
    def constant(cls, *, log_odds_weight: float, gap_weight: float, intercept: float = 0.0) -> ScoreFusion:
        """Fuse with the same weights for every query, as older files say. One below 0 counts as 0."""
        head = max(number("ScoreFusion: log_odds_weight", log_odds_weight), SMALLEST_WEIGHT)
        gap = max(number("ScoreFusion: gap_weight", gap_weight), SMALLEST_WEIGHT)
        bias = head + np.log(-np.expm1(-head))  # the inverse of softplus
        return cls(float(bias), 0.0, 0.0, float(np.log(gap)), 0.0, 1.0, intercept)

    @classmethod
    def fit(
        cls, log_odds: ArrayLike, similarities: ArrayLike, labels: ArrayLike, queries: Sequence[str]
    ) -> ScoreFusion:
        """Fit on labelled pairs: the weights to rank matches first, then Platt scaling of the result.

        The weights have the greatest likelihood of a match among the candidates of each query (conditional logistic
        regression; McFadden, "Conditional logit analysis", 1974), every query counting alike.

        Args:
            log_odds: ``(P,)`` of the head.
            similarities: ``(P,)`` of the first stage.
            labels: ``(P,)``, 1 where the video matches the query, else 0.
            queries: ``(P,)`` names of the queries that the pairs belong to, like those to come, each with the top K of
                the first stage, which a reranker will see.

        Raises:
            ValueError: No query has both a match and another candidate, or an argument is of another shape or kind.
        """
        odds = vector("log_odds", log_odds, axis="P")
        flags = checked_labels("labels", labels, odds.size)
        places = _places(queries, odds.size)
        rows, cosines = _spread(odds, places), _spread(_similarities(similarities, odds), places)  # (Q, K) each
        right = _spread(flags.astype(np.float64), places) == 1  # (Q, K)
        used = right.any(axis=1) & (np.isfinite(rows) & ~right).any(axis=1)  # (Q,)
        if not used.any():
            reason = "no query has both a match and another candidate, so there is nothing to rank"
            raise ValueError(f"labels: {reason}; give the candidates of each query, matches and non-matches")
        weights = _fit_weights(rows[used], cosines[used], right[used])
        fused = cls(*weights).fused_log_odds(odds, similarities, queries)
        scaling = PlattScaling.fit(fused, flags, kind="log_odds")
        return cls(*weights, max(scaling.slope, SMALLEST_WEIGHT), scaling.intercept)

    def fused_log_odds(
        self, log_odds: ArrayLike, similarities: ArrayLike, queries: Sequence[str] | None = None
    ) -> FloatArray:
        """Log-odds of a match, of the shape of both arguments.

        Args:
            log_odds: ``(..., K)`` of a query's candidates. NaN where there is none: it is left out, and NaN comes back.
            similarities: Of the first stage, the same shape. NaN is left out likewise.
            queries: For flat lists ``(P,)``: names of the queries that the pairs belong to. None if it is one query.

        Raises:
            ValueError: The shapes differ, or a value is infinite.
        """
        odds = _candidates("log_odds", log_odds)
        cosines = _similarities(similarities, odds)
        if queries is None:
            return self._fused(odds, cosines)
        places = _places(queries, odds.size)
        return np.asarray(self._fused(_spread(odds, places), _spread(cosines, places))[places])

    def __call__(
        self, log_odds: ArrayLike, similarities: ArrayLike, queries: Sequence[str] | None = None
    ) -> FloatArray:
        """Probability of a match, from 0 to 1; arguments and errors as for `fused_log_odds`."""
        return sigmoid(self.fused_log_odds(log_odds, similarities, queries))

    def _fused(self, odds: FloatArray, cosines: FloatArray) -> FloatArray:
        mean, square, best = _of_queries(odds, cosines)  # (..., 1) each
        head = np.logaddexp(0.0, self.head_bias + self.head_by_mean * mean + self.head_by_square * square)
        gap = np.exp(self.gap_bias + self.gap_by_best * best)
        return np.asarray(self.slope * (head * odds + gap * (cosines - best)) + self.intercept)

    @classmethod
    def load(cls, file: str | Path) -> ScoreFusion:
        """Read a file that `save` wrote, also an older one; errors as for `PlattScaling.load`."""
        older = '"gap_weight"' in Path(file).read_text(encoding="utf-8")
        return cls.of(cls.read(file, _CONSTANT)) if older else super().load(file)

    @classmethod
    def of(cls, numbers: Mapping[str, float]) -> ScoreFusion:
        """Make one of its fields, or of the arguments of `constant`, which older files hold; errors as of those."""
        return cls.constant(**numbers) if "gap_weight" in numbers else cls(**numbers)


def _candidates(name: str, value: ArrayLike) -> FloatArray:
    """``(..., K)`` numbers, of which some may be NaN."""
    array = as_array(name, value)
    finite(name, np.where(np.isnan(array), 0.0, array) if array.dtype.kind == "f" else array)
    return np.asarray(array, dtype=np.float64)


def _similarities(value: ArrayLike, odds: FloatArray) -> FloatArray:
    cosines = _candidates("similarities", value)
    if cosines.shape != odds.shape:
        raise ValueError(f"similarities: expected the shape of log_odds, {odds.shape}, got {cosines.shape}")
    return cosines


def _places(queries: Sequence[str], count: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row and column of each pair in a matrix that has the candidates of a query in each row, (P,) each."""
    if len(queries) != count:
        raise ValueError(f"queries: expected {count} names, one per pair, got {len(queries)}")
    rows = np.unique(np.asarray(queries, dtype=object), return_inverse=True)[1].reshape(-1)  # (P,)
    order = np.argsort(rows, kind="stable")
    first = np.searchsorted(rows[order], rows[order])
    columns = np.empty(count, dtype=np.intp)
    columns[order] = np.arange(count) - first
    return rows, columns


def _spread(values: FloatArray, places: tuple[NDArray[np.intp], NDArray[np.intp]]) -> FloatArray:
    """``(P,)`` as ``(Q, K)``, NaN where a query has fewer candidates than others."""
    rows, columns = places
    matrix = np.full((rows.max() + 1, columns.max() + 1), np.nan)
    matrix[places] = values
    return matrix


def _of_queries(odds: FloatArray, cosines: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean and mean square of a query's log-odds, and its best similarity: ``(..., 1)`` each; 0 where all is NaN."""
    known = np.isfinite(odds)
    count = np.maximum(known.sum(axis=-1, keepdims=True), 1)
    filled = np.where(known, odds, 0.0)
    best = np.where(np.isfinite(cosines), cosines, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
    mean, square = (values.sum(axis=-1, keepdims=True) / count for values in (filled, filled**2))
    return mean, square, np.where(np.isfinite(best), best, 0.0)


def _fit_weights(odds: FloatArray, cosines: FloatArray, right: NDArray[np.bool_]) -> Weights:
    """The first five fields of `ScoreFusion`, of ``(Q, K)`` candidates."""
    from scipy.optimize import minimize  # noqa: PLC0415 - only fitting needs it
    from scipy.special import logsumexp  # noqa: PLC0415 - likewise

    known = np.isfinite(odds)
    of_queries = _of_queries(odds, cosines)
    facts = np.concatenate(of_queries, axis=1)  # (Q, 3)
    center, spread = facts.mean(axis=0), facts.std(axis=0)
    varies = spread > 1e-9 * np.maximum(np.abs(center), 1.0)
    scale = np.where(varies, spread, np.inf)  # what does not vary has no weight
    mean, square, best = ((facts - center) / scale).T[:, :, None]  # (Q, 1) each
    filled, gaps = np.where(known, odds, 0.0), np.where(known, cosines - of_queries[2], 0.0)

    def loss(at: FloatArray) -> float:
        head = np.logaddexp(0.0, at[0] + at[1] * mean + at[2] * square)
        scores = head * filled + np.exp(at[3] + at[4] * best) * gaps  # (Q, K)
        of_all = logsumexp(np.where(known, scores, -np.inf), axis=1)
        of_right = logsumexp(np.where(right, scores, -np.inf), axis=1)
        return float((of_all - of_right).mean() + RIDGE * (at[1] ** 2 + at[2] ** 2 + at[4] ** 2))

    at = minimize(loss, np.array([0.0, 0.0, 0.0, np.log(10.0), 0.0]), method="L-BFGS-B", bounds=[(-30, 30)] * 5).x
    by_mean, by_square, by_best = at[[1, 2, 4]] / scale
    head_bias, gap_bias = at[0] - by_mean * center[0] - by_square * center[1], at[3] - by_best * center[2]
    return float(head_bias), float(by_mean), float(by_square), float(gap_bias), float(by_best)
