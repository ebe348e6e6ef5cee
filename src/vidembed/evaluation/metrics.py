"""Retrieval metrics of score matrices, with intervals: ranks, recall, nDCG, precision, bootstrap. Numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidembed.scoring.checks import FloatArray, as_array, matrix, number, positive_mask, vector, whole_number

RESAMPLES = 2000  # default resamples of a bootstrap (ours)
LEVEL = 0.95  # default coverage of an interval (ours)
_DRAWS_AT_ONCE = 2_000_000  # indices drawn in one go: 16 MB


def ranks(scores: ArrayLike, positives: ArrayLike) -> NDArray[np.int64]:
    """Rank of the best right column of each row, ``(Q,)`` int64 from 1 to N; ties count against it.

    The rank is 1 plus the number of wrong columns that score at least as high as the best right one, so a model that
    gives every candidate the same score is ranked last, and other right columns never stand in the way.

    Args:
        scores: ``(Q, N)``, rows rank columns, greater is better; for the other direction give ``scores.T``.
        positives: ``(Q,)`` integers, the right column of each row, or ``(Q, N)`` booleans where several are right.

    Raises:
        ValueError: ``scores`` is not a finite ``(Q, N)`` matrix, or a row has no right column.
    """
    similarity, mask = _checked(scores, positives)
    best = np.where(mask, similarity, -np.inf).max(axis=1, keepdims=True)  # (Q, 1)
    return np.asarray(1 + ((similarity >= best) & ~mask).sum(axis=1), dtype=np.int64)


def recall_at(ranks: ArrayLike, k: int) -> float:
    """Share of the queries whose best right answer is among the first ``k``, from 0 to 1; a ValueError if no ranks."""
    return float((_checked_ranks(ranks) <= whole_number("k", k)).mean())


def median_rank(ranks: ArrayLike) -> float:
    """Median of the ranks ``(Q,)``; of an even number of queries the mean of the middle two. Errors as `recall_at`."""
    return float(np.median(_checked_ranks(ranks)))


def mean_rank(ranks: ArrayLike) -> float:
    """Mean of the ranks ``(Q,)``; errors as `recall_at`."""
    return float(_checked_ranks(ranks).mean())


def ndcg_at(scores: ArrayLike, positives: ArrayLike, k: int = 10) -> FloatArray:
    """Normalized discounted cumulative gain ``(Q,)`` of each query's first ``k``, from 0 to 1; ties count against it.

    Relevance is binary and the right column at place p gains ``1 / log2(1 + p)``; the sum is divided by that of the
    best order. ``k`` is at least 1, and more than N is N. Scores, positives, ties and errors are those of `ranks`.
    Source: Järvelin and Kekäläinen, 2002, with the discount of Burges et al., 2005.
    """
    right = _right_in_order(scores, positives)  # (Q, N)
    depth = min(whole_number("k", k), right.shape[1])
    discounts = 1 / np.log2(np.arange(2, depth + 2))  # (depth,)
    best = np.arange(depth) < right.sum(axis=1, keepdims=True)  # (Q, depth)
    return np.asarray((right[:, :depth] * discounts).sum(axis=1) / (best * discounts).sum(axis=1))


def average_precision(scores: ArrayLike, positives: ArrayLike) -> FloatArray:
    """Average precision ``(Q,)`` of each query, above 0 and at most 1; its mean over queries is mAP.

    The mean, over all right columns, of the share of right ones among the columns up to that one. With one right column
    it is the reciprocal of the rank. Arguments, ties and errors are those of `ranks`.
    """
    right = _right_in_order(scores, positives)  # (Q, N)
    precision = right.cumsum(axis=1) / np.arange(1, right.shape[1] + 1)  # (Q, N)
    return np.asarray((precision * right).sum(axis=1) / right.sum(axis=1))


def _checked(scores: ArrayLike, positives: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    similarity = matrix("scores", scores)
    return similarity, positive_mask("positives", positives, (similarity.shape[0], similarity.shape[1]))


def _right_in_order(scores: ArrayLike, positives: ArrayLike) -> NDArray[np.bool_]:
    """Whether the column at each place is right ``(Q, N)``, best score first, wrong before right among equals."""
    similarity, mask = _checked(scores, positives)
    order = np.lexsort((mask, -similarity), axis=1)  # (Q, N), by score, then wrong before right
    return np.take_along_axis(mask, order, axis=1)


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval."""

    estimate: float  # the mean of the values themselves, not of the resamples
    low: float  # lower end
    high: float  # upper end
    level: float  # share of the resamples' means between the two

    def percent(self) -> Interval:
        """The interval of shares in percent, or of differences in points."""
        return Interval(100 * self.estimate, 100 * self.low, 100 * self.high, self.level)

    def text(self, sign: str = "") -> str:
        """Such as ``"52.1 (49.0 to 55.2)"``; `sign` is "+" for differences."""
        return f"{self.estimate:{sign}.1f} ({self.low:{sign}.1f} to {self.high:{sign}.1f})"


def bootstrap_interval(
    values: ArrayLike, *, seed: int, resamples: int = RESAMPLES, level: float = LEVEL, groups: ArrayLike | None = None
) -> Interval:
    """Percentile bootstrap interval of a mean over queries.

    Args:
        values: ``(Q,)``, one value a query, for example ``ranks == 1``.
        seed: Of the resampling, at least 0: the same seed gives the same interval.
        resamples: How often queries are drawn with replacement. Default `RESAMPLES`.
        level: Coverage, between 0 and 1. Default `LEVEL`.
        groups: ``(Q,)``, which queries are drawn together, such as the captions of one video: as independent draws
            they would make an interval too narrow. Default: every query on its own.

    Raises:
        ValueError: An argument is of another shape or kind, or out of range.
    """
    x = _values("values", values)
    seed, resamples = whole_number("seed", seed, least=0), whole_number("resamples", resamples)
    level = number("level", level)
    if not 0 < level < 1:
        raise ValueError(f"level={level!r}: expected a share between 0 and 1, such as 0.95")
    sums, counts = x, np.ones(x.size, dtype=np.float64)  # (G,) each
    if groups is not None:
        names = as_array("groups", groups)
        if names.shape != x.shape:
            raise ValueError(f"groups: expected shape {x.shape}, one group per value, got {names.shape}")
        place = np.unique(names, return_inverse=True)[1]
        sums = np.bincount(place, weights=x).astype(np.float64)
        counts = np.bincount(place).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    step = max(1, _DRAWS_AT_ONCE // sums.size)
    for start in range(0, resamples, step):
        drawn = rng.integers(0, sums.size, (min(step, resamples - start), sums.size))  # (resamples, G)
        means[start : start + step] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(x.mean()), float(low), float(high), level)


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    seed: int,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    groups: ArrayLike | None = None,
) -> Interval:
    """Interval of the mean of ``a - b``, ``(Q,)`` each, on the same queries: what two models share cancels.

    The other arguments and the errors are those of `bootstrap_interval`.
    """
    first, second = _values("a", a), _values("b", b)
    if first.shape != second.shape:
        raise ValueError(f"b: expected shape {first.shape}, one value per query, as in a, got {second.shape}")
    return bootstrap_interval(first - second, seed=seed, resamples=resamples, level=level, groups=groups)


def _values(name: str, value: ArrayLike) -> FloatArray:
    array = as_array(name, value)
    return vector(name, array.astype(np.float64) if array.dtype.kind == "b" else array, axis="Q")


def _checked_ranks(value: ArrayLike) -> NDArray[np.integer]:
    array = as_array("ranks", value)
    if array.ndim != 1 or array.size == 0 or array.dtype.kind not in "iu" or array.min() < 1:
        raise ValueError(
            f"ranks: expected (Q,) whole numbers from 1, at least one, got shape {array.shape} of {array.dtype}"
            + (f", the least is {array.min()}" if array.size and array.dtype.kind in "iuf" else "")
        )
    return array
