"""The figures of one ranking: recall with intervals, ranks, nDCG and mAP; what could not be read counts against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidembed.evaluation.metrics import (
    Interval,
    average_precision,
    bootstrap_interval,
    mean_rank,
    median_rank,
    ndcg_at,
    ranks,
)
from vidembed.scoring._checks import FloatArray

CUTS: Final = (1, 5, 10)
"""Ranks of the recalls: those that papers on video retrieval report (VidVec, tables 1 to 3)."""

NDCG_DEPTH: Final = 10
"""Places that nDCG looks at (ours)."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """How each query fared.

    Attributes:
        ranks: ``(Q,)`` int64 of the best right answer, from 1; N + 1 where it was never found.
        ndcg: ``(Q,)`` nDCG of the first `NDCG_DEPTH`, from 0 to 1.
        average_precision: ``(Q,)``, from 0 to 1.
    """

    ranks: NDArray[np.int64]
    ndcg: FloatArray
    average_precision: FloatArray


@dataclass(frozen=True)
class Figures:
    """The figures of one direction of one ranking; shares are in percent.

    Attributes:
        queries: How many.
        recall_1: R@1 with its interval.
        recall_5: R@5 with its interval.
        recall_10: R@10 with its interval.
        median_rank: MdR, from 1.
        mean_rank: MnR, from 1.
        ndcg_10: nDCG@10.
        mean_average_precision: mAP.
    """

    queries: int
    recall_1: Interval
    recall_5: Interval
    recall_10: Interval
    median_rank: float
    mean_rank: float
    ndcg_10: float
    mean_average_precision: float

    @property
    def recalls(self) -> tuple[Interval, ...]:
        """R@1, R@5 and R@10."""
        return self.recall_1, self.recall_5, self.recall_10


def outcomes(
    scores: ArrayLike, positives: NDArray[np.bool_], *, rows: NDArray[np.bool_], columns: NDArray[np.bool_]
) -> Outcomes:
    """How each query fared, those included that could not be asked.

    A query that could not be asked, or none of whose right answers could be read, is never found: its rank is N + 1 and
    its other figures are 0. Where only some right answers could be read, the others count as never found.

    Args:
        scores: ``(rows, columns)`` of the queries and answers that could be read.
        positives: ``(Q, N)`` of all queries and all answers.
        rows: ``(Q,)``, which queries could be read.
        columns: ``(N,)``, which answers could be read.

    Raises:
        ValueError: Scores are of another shape or not finite.
    """
    count, width = positives.shape
    found = Outcomes(np.full(count, width + 1, dtype=np.int64), np.zeros(count), np.zeros(count))
    right = positives[np.ix_(rows, columns)]  # (rows, columns)
    has_answer = right.any(axis=1)
    if not has_answer.any():
        return found
    given, mask = np.asarray(scores)[has_answer], right[has_answer]
    at = np.flatnonzero(rows)[has_answer]
    here, all_right = mask.sum(axis=1), positives[at].sum(axis=1)
    found.ranks[at] = ranks(given, mask)
    found.ndcg[at] = ndcg_at(given, mask, NDCG_DEPTH) * _best_gain(here) / _best_gain(all_right)
    found.average_precision[at] = average_precision(given, mask) * here / all_right
    return found


def _best_gain(right: NDArray[np.integer]) -> FloatArray:
    """Gain of the best order with so many right answers, ``(Q,)``."""
    gains = np.cumsum(1 / np.log2(np.arange(2, NDCG_DEPTH + 2)))
    return np.asarray(gains[np.minimum(right, NDCG_DEPTH) - 1])


def figures(found: Outcomes, *, seed: int, groups: NDArray[np.intp] | None = None) -> Figures:
    """Means over the queries, with 95 % bootstrap intervals of the recalls.

    Args:
        found: Of `outcomes`.
        seed: Of the bootstrap.
        groups: ``(Q,)``, which queries are of one video; whole groups are drawn then.
    """
    recalls = [_percent(bootstrap_interval(found.ranks <= cut, seed=seed, groups=groups)) for cut in CUTS]
    return Figures(
        queries=len(found.ranks),
        recall_1=recalls[0],
        recall_5=recalls[1],
        recall_10=recalls[2],
        median_rank=median_rank(found.ranks),
        mean_rank=mean_rank(found.ranks),
        ndcg_10=100 * float(found.ndcg.mean()),
        mean_average_precision=100 * float(found.average_precision.mean()),
    )


def _percent(interval: Interval) -> Interval:
    return Interval(100 * interval.estimate, 100 * interval.low, 100 * interval.high, interval.level)
