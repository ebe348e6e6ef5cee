"""Two opinions of a pair as one probability: the first stage's similarity and the head's log-odds.

Of the similarity, its gap to the query's best candidate is taken: how high cosines are differs from query to query,
long ones and short ones above all, and weights fitted on the one kind would not do for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from vidembed.scoring import _checks
from vidembed.scoring._checks import FloatArray
from vidembed.scoring._files import read_numbers, write_numbers
from vidembed.scoring._logistic import fit_logistic, platt_targets, sigmoid

_KIND = "score_fusion"
_FIELDS = ("log_odds_weight", "gap_weight", "intercept")


def similarity_gaps(similarities: ArrayLike, queries: Sequence[str] | None = None) -> FloatArray:
    """How far each similarity is below the best of the same query: at most 0.

    Args:
        similarities: ``(P,)`` of the first stage.
        queries: ``(P,)`` names of the queries that the pairs belong to; None if it is one query. The best candidate of
            each has to be among the pairs.

    Raises:
        ValueError: An argument is of another shape, or a similarity not finite.
    """
    values = _checks.vector("similarities", similarities, axis="P")
    if queries is None:
        return np.asarray(values - values.max())
    if len(queries) != values.size:
        raise ValueError(f"queries: expected {values.size} names, one a pair, got {len(queries)}")
    names, member = np.unique(np.asarray(queries, dtype=object), return_inverse=True)
    best = np.full(len(names), -np.inf)
    np.maximum.at(best, member, values)
    return np.asarray(values - best[member])


@dataclass(frozen=True)
class ScoreFusion:
    """``sigmoid(log_odds_weight * log_odds + gap_weight * gap + intercept)``.

    The logistic regression of "matches" on the head's log-odds and the gap of the first stage's similarity to the
    query's best candidate (`similarity_gaps`): a calibrated probability, and a ranking that leans on whichever of the
    two is the better judge of such pairs. A head that is weaker than the first stage gets little weight, where ranking
    by it alone would undo what the first stage did.

    Args:
        log_odds_weight: Weight of the head's log-odds.
        gap_weight: Weight of the gap.
        intercept: The bias, in log-odds.

    Raises:
        ValueError: A field is not a finite number.
    """

    log_odds_weight: float
    gap_weight: float
    intercept: float

    def __post_init__(self) -> None:
        """Check the fields and make them floats."""
        for name in _FIELDS:
            object.__setattr__(self, name, _checks.number(f"ScoreFusion: {name}", getattr(self, name)))

    @classmethod
    def fit(cls, log_odds: ArrayLike, gaps: ArrayLike, labels: ArrayLike) -> ScoreFusion:
        """Fit by maximum likelihood on labelled pairs, with Platt's targets.

        Args:
            log_odds: ``(P,)`` of the head.
            gaps: ``(P,)`` of the same pairs, from `similarity_gaps`.
            labels: ``(P,)``, 1 where the video matches the query, else 0. Give the pairs that a reranker will see, the
                top K of the first stage, for queries like those to come: long ones and short ones, if both will.

        Raises:
            ValueError: No pairs, one class only, a score that does not vary, or an argument of another shape or kind.
        """
        odds = _checks.vector("log_odds", log_odds, axis="P")
        below = _checks.vector("gaps", gaps, axis="P", length=odds.size)
        targets = platt_targets(_checks.labels("labels", labels, odds.size))
        weights = fit_logistic(np.column_stack([odds, below]), targets, "log_odds, gaps")  # (3,)
        return cls(*weights.tolist())

    def fused_log_odds(self, log_odds: ArrayLike, gaps: ArrayLike) -> FloatArray:
        """Log-odds of a match, of the shape of both arguments.

        Raises:
            ValueError: The shapes differ, or a value is not finite.
        """
        odds, below = _checks.finite("log_odds", log_odds), _checks.finite("gaps", gaps)
        if odds.shape != below.shape:
            raise ValueError(f"gaps: expected the shape of log_odds, {odds.shape}, got {below.shape}")
        return self.log_odds_weight * odds + self.gap_weight * below + self.intercept

    def __call__(self, log_odds: ArrayLike, gaps: ArrayLike) -> FloatArray:
        """Probability of a match, from 0 to 1; arguments and errors as for `fused_log_odds`."""
        return sigmoid(self.fused_log_odds(log_odds, gaps))

    def save(self, file: str | Path) -> None:
        """Write the weights to a JSON file."""
        write_numbers(file, _KIND, {name: getattr(self, name) for name in _FIELDS})

    @classmethod
    def load(cls, file: str | Path) -> ScoreFusion:
        """Read a file that `save` wrote.

        Raises:
            ValueError: It is not such a file.
        """
        return cls(**read_numbers(file, _KIND, _FIELDS))
