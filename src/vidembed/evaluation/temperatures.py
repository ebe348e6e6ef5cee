"""Temperatures of dual-softmax, and where each came from: given, fitted on a validation set, or a default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from vidembed.scoring import fit_temperature
from vidembed.scoring._checks import FloatArray, number

DEFAULT_TEMPERATURE: Final = 0.01
"""Of cosines where none is given or fitted: 1 / 100, the bound of CLIP's learned scale (arXiv 2103.00020, 2.5)."""

DEFAULT_SECOND_TEMPERATURE: Final = 1.0
"""Of the head's log-odds where none is given or fitted: their exponentials are the odds themselves (ours)."""

Origin = Literal["given", "fitted", "default, not fitted"]


@dataclass(frozen=True)
class Temperature:
    """A temperature, and where it came from.

    Attributes:
        value: In the unit of the scores.
        origin: "given", "fitted" on the validation set, or "default, not fitted".
        queries: Validation queries that it was fitted on.
        recall_before: R@1 of those queries without dual-softmax, in percent.
        recall_after: The same with it.
    """

    value: float
    origin: Origin
    queries: int | None = None
    recall_before: float | None = None
    recall_after: float | None = None


@dataclass(frozen=True)
class GivenTemperatures:
    """Temperatures of the user's; None for those to be fitted, or else the default.

    Args:
        t2v: First stage, texts rank videos.
        v2t: First stage, videos rank texts.
        second_t2v: Second stage, texts rank videos.
        second_v2t: Second stage, videos rank texts.

    Raises:
        ValueError: One is not a finite number above 0.
    """

    t2v: float | None = None
    v2t: float | None = None
    second_t2v: float | None = None
    second_v2t: float | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("t2v", "v2t", "second_t2v", "second_v2t"):
            if (value := getattr(self, name)) is not None:
                number(f"temperature {name}", value, above_zero=True)

    def first(self, direction: str) -> float | None:
        """That of the first stage."""
        return self.t2v if direction == "t2v" else self.v2t

    def second(self, direction: str) -> float | None:
        """That of the second stage."""
        return self.second_t2v if direction == "t2v" else self.second_v2t


def choose(
    given: float | None, default: float, known: tuple[FloatArray, NDArray[np.bool_]] | None, *, what: str
) -> Temperature:
    """Take the given temperature, else fit one on the validation set, else take the default.

    Args:
        given: The user's.
        default: Where there is neither.
        known: ``(Q, N)`` scores and positives of the validation set, queries as rows.
        what: Named in an error.

    Raises:
        ValueError: The validation set is too small, or all its scores are equal.
    """
    if given is not None:
        return Temperature(given, "given")
    if known is None:
        return Temperature(default, "default, not fitted")
    try:
        fitted = fit_temperature(*known)
    except ValueError as error:
        raise ValueError(
            f"validation: no temperature of {what} can be fitted on it ({error}). Give a larger one, or the temperature"
        ) from error
    return Temperature(
        fitted.temperature, "fitted", fitted.queries, 100 * fitted.recall_before, 100 * fitted.recall_after
    )
