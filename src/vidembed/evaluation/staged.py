"""Two-stage ranking of whole score matrices: the top K of a first stage, ordered again by a second."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidembed.scoring import dual_softmax, fit_temperature
from vidembed.scoring._checks import FloatArray, matrix


def top_candidates(first: ArrayLike, k: int) -> NDArray[np.intp]:
    """Columns of each row's `k` highest scores ``(Q, min(k, N))``, best first; ties in the order of the columns.

    Raises:
        ValueError: ``first`` is not a finite ``(Q, N)`` matrix, or ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"k={k}: expected at least 1")
    return np.argsort(-matrix("first", first), axis=1, kind="stable")[:, :k]


def asked_mask(first: ArrayLike, k: int) -> NDArray[np.bool_]:
    """Which pairs the second stage is asked about ``(Q, N)``: the `k` best of each row; errors as `top_candidates`."""
    columns = top_candidates(first, k)
    mask = np.zeros(np.shape(first), dtype=np.bool_)
    np.put_along_axis(mask, columns, values=True, axis=1)
    return mask


def reranked(first: ArrayLike, second: ArrayLike, k: int) -> FloatArray:
    """Ranking scores of a two-stage search: the `k` best of `first` by `second`, the others below, by `first`.

    Args:
        first: ``(Q, N)`` of the first stage.
        second: ``(Q, N)`` of the second; values outside the `k` best are not looked at.
        k: Candidates that are ordered again.

    Returns:
        ``(Q, N)`` float64, to be ranked within each row.

    Raises:
        ValueError: Shapes differ, a score is not finite, or ``k`` is below 1.
    """
    one, two = matrix("first", first), matrix("second", second)
    if one.shape != two.shape:
        raise ValueError(f"second: expected shape {one.shape} as first's, got {two.shape}")
    asked = asked_mask(one, k)
    below = one - one.max(axis=1, keepdims=True) - 1.0  # at most -1
    least = np.where(asked, two, np.inf).min(axis=1, keepdims=True)
    return np.asarray(np.where(asked, two - least, below))  # from 0


def above_least(log_odds: ArrayLike, asked: ArrayLike) -> FloatArray:
    """Log-odds made fit for dual-softmax: above the least that was asked, and 0 where a pair was not.

    Dual-softmax weighs scores that are above zero, and probabilities near 0 or 1 leave it nothing to weigh.

    Args:
        log_odds: ``(Q, N)``.
        asked: ``(Q, N)`` booleans.
    """
    odds, mask = matrix("log_odds", log_odds), np.asarray(asked, dtype=np.bool_)
    return np.asarray(np.where(mask, odds - odds[mask].min(), 0.0))


class DualStages:
    """Dual-softmax on both stages, with temperatures fitted on a validation set.

    The first stage's scores are dual-softmaxed before the `k` best are taken, and so are the log-odds of the pairs that
    were asked about, over the queries that asked.

    Args:
        first: ``(Q, N)`` of the validation set.
        second: ``(Q, N)`` log-odds of the validation set.
        positives: ``(Q, N)`` booleans.
        k: Candidates that are ordered again.
    """

    def __init__(self, first: ArrayLike, second: ArrayLike, positives: ArrayLike, k: int) -> None:
        self.k = k
        self.first = fit_temperature(matrix("first", first), positives).temperature
        asked = asked_mask(dual_softmax(first, temperature=self.first), k)
        self.second = fit_temperature(above_least(second, asked), positives).temperature

    def __call__(self, first: ArrayLike, second: ArrayLike) -> FloatArray:
        """Ranking scores ``(Q, N)`` of another set."""
        one = dual_softmax(first, temperature=self.first)
        two = dual_softmax(above_least(second, asked_mask(one, self.k)), temperature=self.second)
        return reranked(one, two, self.k)
