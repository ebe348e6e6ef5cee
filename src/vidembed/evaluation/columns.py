"""The four ways to rank that a result always has: raw, dual-softmax, reranked, and both."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidembed.evaluation.staged import DualStages, asked_mask, reranked
from vidembed.scoring import ScoreFusion, dual_softmax
from vidembed.scoring._checks import FloatArray

DIRECTIONS: Final = ("t2v", "v2t")
COLUMNS: Final = {
    "raw": "raw",
    "dual_softmax": "dual-softmax",
    "rerank": "+ rerank",
    "rerank_dual_softmax": "+ both",
}
"""Columns by name, with their headings."""


class GivenStages(DualStages):
    """Dual-softmax on both stages with temperatures that are known.

    Args:
        first: Temperature of the first stage.
        second: Temperature of the second.
        k: Candidates that are ordered again.
    """

    def __init__(self, first: float, second: float, k: int) -> None:
        self.first, self.second, self.k = first, second, k


def needed(first: FloatArray, k: int, temperature: float) -> NDArray[np.bool_]:
    """Which pairs the second stage is asked about ``(Q, N)``, for both columns: the `k` best raw and dual-softmaxed.

    Args:
        first: ``(Q, N)`` of the first stage, queries as rows.
        k: Candidates a query.
        temperature: Of dual-softmax on the first stage.
    """
    return np.asarray(asked_mask(first, k) | asked_mask(dual_softmax(first, temperature=temperature), k))


def second_stage(
    first: FloatArray, odds: FloatArray, asked: NDArray[np.bool_], fusion: ScoreFusion | None = None
) -> FloatArray:
    """What the second stage ranks by ``(Q, N)``: log-odds, or log-odds fused with the first stage's similarity.

    A pair that was asked about and has no answer (NaN) stands below all that have one, so it counts against.

    Args:
        first: ``(Q, N)`` of the first stage, queries as rows.
        odds: ``(Q, N)`` log-odds, NaN where there is none.
        asked: ``(Q, N)``, which pairs were asked about.
        fusion: Of both stages, as the reranker has it; None for the log-odds alone.
    """
    answered = asked & np.isfinite(odds)
    known = np.where(answered, odds, 0.0)
    if fusion is not None:
        known = np.where(answered, fusion.fused_log_odds(np.where(answered, odds, np.nan), first), 0.0)
    least = known[answered].min() if answered.any() else 0.0
    return np.asarray(np.where(asked & ~answered, least - 1.0, known))


def rankings(
    first: FloatArray, second: FloatArray | None, *, temperature: float, second_temperature: float | None, k: int | None
) -> dict[str, FloatArray | None]:
    """Ranking scores ``(Q, N)`` of each of `COLUMNS`; None where the second stage was not run.

    Args:
        first: ``(Q, N)`` of the first stage, queries as rows.
        second: ``(Q, N)`` of `second_stage`, or None.
        temperature: Of dual-softmax on the first stage.
        second_temperature: Of dual-softmax on the second stage.
        k: Candidates of a query that are ordered again.
    """
    found: dict[str, FloatArray | None] = dict.fromkeys(COLUMNS)
    found["raw"], found["dual_softmax"] = first, dual_softmax(first, temperature=temperature)
    if second is not None and k is not None and second_temperature is not None:
        found["rerank"] = reranked(first, second, k)
        found["rerank_dual_softmax"] = GivenStages(temperature, second_temperature, k)(first, second)
    return found
