"""What the head said of pairs, and the log-odds that each score mode makes of it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np

from vidembed.scoring import PriorCorrection
from vidembed.scoring._checks import FloatArray

ScoreMode = Literal["yes", "yes_no", "prior_corrected"]
SCORE_MODES: tuple[ScoreMode, ...] = get_args(ScoreMode)


def check_mode(mode: str) -> ScoreMode:
    """Return `mode` if it is known.

    Raises:
        ValueError: It is not.
    """
    for known in SCORE_MODES:
        if mode == known:
            return known
    raise ValueError(f"mode={mode!r} is not known. Allowed: {', '.join(SCORE_MODES)}.")


@dataclass(frozen=True, eq=False)
class Answers:
    """Log-odds of Yes of N pairs, all of shape (N,) float64. NaN marks a pair that was skipped.

    Attributes:
        yes: "Yes" or "yes" against the rest of the vocabulary.
        yes_no: "Yes" against "No".
        video_prior: "Yes" against "No" of the pair's video asked about with no sentence; None if it was not asked.
        text_prior: "Yes" against "No" of the pair's sentence with no video; None if it was not asked.
    """

    yes: FloatArray
    yes_no: FloatArray
    video_prior: FloatArray | None = None
    text_prior: FloatArray | None = None

    @property
    def missing(self) -> np.ndarray:
        """Which pairs were skipped (N,) bool."""
        return np.isnan(self.yes_no)

    def take(self, index: np.ndarray) -> Answers:
        """The answers of some pairs, by positions or a mask."""
        return Answers(
            self.yes[index],
            self.yes_no[index],
            None if self.video_prior is None else self.video_prior[index],
            None if self.text_prior is None else self.text_prior[index],
        )

    def without(self, failed: np.ndarray) -> Answers:
        """The same answers, with NaN in the place of those that a mask (N,) marks."""
        blank = np.where(failed, np.nan, 0.0)  # (N,)
        values: dict[str, FloatArray | None] = {item.name: getattr(self, item.name) for item in fields(self)}
        return Answers(**{name: each + blank for name, each in values.items() if each is not None})

    def log_odds(self, mode: ScoreMode, correction: PriorCorrection | None = None) -> FloatArray:
        """Log-odds of a match in a score mode.

        Args:
            mode: "yes", "yes_no", or "prior_corrected": ``yes_no`` less the weighted priors.
            correction: Weights of the priors; default ``PriorCorrection()``, the whole of both.

        Returns:
            (N,) float64, NaN where a pair was skipped.

        Raises:
            ValueError: `mode` is not known, or needs a prior that was not asked.
        """
        check_mode(mode)
        if mode == "yes":
            return self.yes
        if mode == "yes_no":
            return self.yes_no
        weights = correction or PriorCorrection()
        corrected = self.yes_no
        for name, prior, weight in (
            ("video_prior", self.video_prior, weights.video_weight),
            ("text_prior", self.text_prior, weights.text_weight),
        ):
            if weight == 0:
                continue
            if prior is None:
                raise ValueError(f"mode='prior_corrected' needs {name} at weight {weight}: ask with priors=True.")
            corrected = corrected - weight * prior
        return corrected
