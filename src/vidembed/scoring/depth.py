"""How deep to rerank: which candidates are worth a pass of the model, judged by the first stage's scores alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidembed.scoring.checks import FloatArray, SavedNumbers, as_array, finite, matrix, number

MARGINS_TRIED = 513  # margins that a fit tries, evenly spaced among the pairs (ours)


@dataclass(frozen=True)
class MarginPolicy(SavedNumbers):
    """Leaves out candidates whose first-stage score is more than a margin below that of the last place to fill.

    Of candidates with scores ``s`` and ``top_k`` places, those with ``s >= s_(top_k) - margin`` are asked about, where
    ``s_(top_k)`` is the ``top_k``-th highest. The ``top_k`` best are always among them. The others would have to gain
    more than the margin, which is in the unit of the scores and at least 0, to enter the top.

    Raises:
        ValueError: The margin is below 0 or not a finite number.
    """

    margin: float

    kind: ClassVar = "margin_policy"

    def __post_init__(self) -> None:
        """Check the margin."""
        super().__post_init__()
        if self.margin < 0:
            raise ValueError(f"MarginPolicy: margin={self.margin!r}: expected a finite number of at least 0")

    def asked(self, first_stage: ArrayLike, *, top_k: int) -> NDArray[np.bool_]:
        """Which of ``(K,)`` or ``(Q, K)`` candidates are worth a pass, to fill `top_k` places: booleans of that shape.

        A ValueError if `top_k` is below 1, or a score is not finite.
        """
        if top_k < 1:
            raise ValueError(f"top_k={top_k}: expected at least 1")
        scores = finite("first_stage", first_stage)
        rows = np.atleast_2d(scores)  # (Q, K)
        return np.asarray((rows >= _last_score(rows, top_k) - self.margin).reshape(scores.shape))

    @classmethod
    def fit(
        cls, first_stage: ArrayLike, reranked: ArrayLike, positives: ArrayLike, *, top_k: int, max_loss: float = 0.005
    ) -> FittedMargin:
        """Find the smallest margin that costs at most `max_loss` of recall, on queries with known answers.

        Args:
            first_stage: ``(Q, K)`` first-stage scores of each query's candidates.
            reranked: ``(Q, K)`` scores that the candidates are ranked by once asked about.
            positives: ``(Q, K)`` booleans, which candidates are right; rows without any count as missed either way.
            top_k: Places to be filled: recall is counted at `top_k`.
            max_loss: Share of queries, from 0 to 1, that may lose their right candidate. Default 0.005 (ours).

        Raises:
            ValueError: Shapes differ, a score is not finite, `positives` are no booleans, `top_k` is below 1, or
                `max_loss` is out of range.
        """
        first = matrix("first_stage", first_stage, columns="K")
        second = matrix("reranked", reranked, columns="K", width=first.shape[1])
        right = as_array("positives", positives)
        if second.shape != first.shape or right.shape != first.shape or right.dtype.kind != "b":
            raise ValueError(
                f"reranked, positives: expected shape {first.shape} as first_stage's, positives boolean; got "
                f"{second.shape}, {right.shape} of {right.dtype}"
            )
        if not 0 <= number("max_loss", max_loss) <= 1:
            raise ValueError(f"max_loss={max_loss!r}: expected a share from 0 to 1")
        gaps = np.maximum(_last_score(first, top_k) - first, 0.0).ravel()  # the margins at which something changes
        gaps = np.unique(np.quantile(gaps, np.linspace(0.0, 1.0, MARGINS_TRIED), method="higher"))
        full = _recall(second, right, np.ones_like(right), top_k)

        def loss(margin: float) -> float:
            return full - _recall(second, right, cls(margin).asked(first, top_k=top_k), top_k)

        # recall need not rise steadily with the margin: the smallest one beyond which the loss stays allowed
        margin = float(gaps[-1])
        for gap in gaps[::-1]:
            if loss(float(gap)) > max_loss:
                break
            margin = float(gap)
        policy = cls(margin)
        asked = policy.asked(first, top_k=top_k)
        return FittedMargin(policy, top_k, float(1 - asked.mean()), full, _recall(second, right, asked, top_k))


@dataclass(frozen=True)
class FittedMargin:
    """A fitted policy and what it does to the pairs that it was fitted on."""

    policy: MarginPolicy
    top_k: int  # places that it was fitted for
    passes_saved: float  # share of the passes that are not made, from 0 to 1
    recall_full: float  # recall at `top_k` with every candidate asked about
    recall: float  # recall at `top_k` under the policy

    @property
    def recall_lost(self) -> float:
        """What the policy costs."""
        return self.recall_full - self.recall


def _last_score(rows: FloatArray, top_k: int) -> FloatArray:
    """Score ``(Q, 1)`` in the last of the places to be filled."""
    place = min(top_k, rows.shape[1])
    return -np.partition(-rows, place - 1, axis=1)[:, place - 1 : place]


def _recall(scores: FloatArray, right: NDArray[np.bool_], asked: NDArray[np.bool_], top_k: int) -> float:
    """Share of rows with a right one among the `top_k` best asked candidates; ties count against."""
    best = np.where(right & asked, scores, -np.inf).max(axis=1, keepdims=True)  # (Q, 1)
    before = ((scores >= best) & asked & ~right).sum(axis=1)  # (Q,)
    return float(((before < top_k) & np.isfinite(best[:, 0])).mean())
