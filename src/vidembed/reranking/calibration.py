"""Fitting what turns answers into probabilities, and saying how far off they were before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidembed.reranking.answers import Answers, ScoreMode
from vidembed.scoring import (
    PlattScaling,
    PriorCorrection,
    ReliabilityCurve,
    ScoreFusion,
    _checks,
    reliability_curve,
    reliability_plot,
)
from vidembed.scoring._checks import FloatArray
from vidembed.scoring._logistic import sigmoid

FOLDS = 5
"""Default number of folds (ours)."""


@dataclass(frozen=True)
class Fit:
    """Numbers fitted on labelled pairs.

    Attributes:
        prior_correction: Weights of the priors; fitted in mode "prior_corrected" only.
        calibration: Of the log-odds of the mode.
        fusion: Of the same log-odds and the first stage's similarity, None without it.
    """

    prior_correction: PriorCorrection
    calibration: PlattScaling
    fusion: ScoreFusion | None


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """What calibration did. The curves "after" are of pairs that were not fitted on (cross-fitting).

    Attributes:
        mode: Score mode.
        pairs: Labelled pairs used.
        matches: How many of them match.
        skipped: Pairs left out because they have no score.
        fit: The numbers, fitted on all pairs.
        before: Reliability of the scores as they are.
        after: Reliability of the calibrated scores.
        fused: Reliability of log-odds and similarity fused, None without similarities.
    """

    mode: ScoreMode
    pairs: int
    matches: int
    skipped: int
    fit: Fit
    before: ReliabilityCurve
    after: ReliabilityCurve
    fused: ReliabilityCurve | None

    @property
    def ece_before(self) -> float:
        """Expected calibration error of the scores as they are."""
        return self.before.expected_calibration_error

    @property
    def ece_after(self) -> float:
        """Expected calibration error of the calibrated scores, on pairs that were not fitted on."""
        return self.after.expected_calibration_error

    @property
    def ece_fused(self) -> float | None:
        """The same of the fused scores, None without similarities."""
        return None if self.fused is None else self.fused.expected_calibration_error

    def to_dict(self) -> dict[str, Any]:
        """The numbers of the report, JSON-able, errors rounded to four decimals."""
        return {
            "mode": self.mode,
            "pairs": self.pairs,
            "matches": self.matches,
            "skipped": self.skipped,
            "calibration_error_before": round(self.ece_before, 4),
            "calibration_error_after": round(self.ece_after, 4),
            "calibration_error_fused": None if self.ece_fused is None else round(self.ece_fused, 4),
            "fit": asdict(self.fit),
        }

    def plot(self, path: str | Path) -> None:
        """Draw reliability before and after; errors as `vidembed.scoring.reliability_plot`."""
        reliability_plot(self.before, self.after, path)


def calibrate(
    answers: Answers,
    labels: ArrayLike,
    *,
    mode: ScoreMode,
    correction: PriorCorrection,
    groups: Sequence[str],
    first_stage: ArrayLike | None = None,
    folds: int = FOLDS,
    seed: int = 0,
) -> CalibrationReport:
    """Fit on labelled pairs, and report by cross-fitting.

    Args:
        answers: Of P pairs; those without a score are left out and counted.
        labels: ``(P,)``, 1 where the video matches the sentence.
        mode: Score mode.
        correction: Weights of the priors before, for the report.
        groups: ``(P,)`` names, here the sentences: pairs of one group are never fitted on and reported on at once.
        first_stage: ``(P,)`` similarities of the same pairs, to fit a fusion too; each group is one query's candidates.
        folds: Parts that the groups are dealt into, at least 2.
        seed: Of the deal.

    Raises:
        ValueError: One class only (in all, or in a fold's other pairs), fewer groups than 2, or an argument of another
            shape.
    """
    flags = _checks.labels("labels", labels, len(answers.yes_no))
    similarity = None if first_stage is None else _checks.vector("first_stage", first_stage, length=flags.size)
    if folds < 2:
        raise ValueError(f"folds={folds}: expected at least 2")
    kept = ~answers.missing
    answers, flags = answers.take(kept), flags[kept]
    similarity = None if similarity is None else similarity[kept]
    groups = [group for group, keep in zip(groups, kept, strict=True) if keep]
    if not flags.any() or flags.all():
        raise ValueError(
            f"labels: expected both classes, got {int(flags.sum())} matches among {flags.size} pairs with a score"
        )
    fold = _deal(groups, folds, seed)  # (P,)
    names = np.asarray(groups, dtype=object)  # (P,)

    after = np.empty(flags.size)
    fused = None if similarity is None else np.empty(flags.size)
    for number in range(int(fold.max()) + 1):
        rest, held = fold != number, fold == number
        if not flags[rest].any() or flags[rest].all():
            raise ValueError(f"labels: fold {number} leaves one class to fit on; give more pairs, or fewer folds")
        part = fit_numbers(
            answers.take(rest),
            flags[rest],
            mode,
            None if similarity is None else similarity[rest],
            names[rest].tolist(),
        )
        odds = answers.take(held).log_odds(mode, part.prior_correction)
        after[held] = part.calibration(odds, kind="log_odds")
        if fused is not None and similarity is not None and part.fusion is not None:
            fused[held] = part.fusion(odds, similarity[held], names[held].tolist())
    fit = fit_numbers(answers, flags, mode, similarity, groups)
    before = sigmoid(answers.log_odds(mode, correction))
    return CalibrationReport(
        mode=mode,
        pairs=int(flags.size),
        matches=int(flags.sum()),
        skipped=int((~kept).sum()),
        fit=fit,
        before=reliability_curve(before, flags),
        after=reliability_curve(after, flags),
        fused=None if fused is None else reliability_curve(fused, flags),
    )


def fit_numbers(
    answers: Answers,
    flags: NDArray[np.bool_],
    mode: ScoreMode,
    similarity: FloatArray | None = None,
    queries: Sequence[str] = (),
) -> Fit:
    """Fit prior weights (in mode "prior_corrected"), Platt scaling and, with similarities, fusion on all pairs."""
    correction = PriorCorrection()
    if mode == "prior_corrected":
        correction = PriorCorrection.fit(
            answers.yes_no, flags, video_prior=answers.video_prior, text_prior=answers.text_prior
        )
    odds = answers.log_odds(mode, correction)
    fusion = None if similarity is None else ScoreFusion.fit(odds, similarity, flags, queries)
    return Fit(correction, PlattScaling.fit(odds, flags, kind="log_odds"), fusion)


def _deal(groups: Sequence[str], folds: int, seed: int) -> NDArray[np.intp]:
    """Which fold each pair is in (P,): whole groups, dealt in a random order."""
    names, member = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
    if len(names) < 2:
        raise ValueError("pairs: expected at least 2 different sentences, to fit on some and report on others")
    places = np.random.default_rng(seed).permutation(len(names)) % min(folds, len(names))
    return np.asarray(places[member], dtype=np.intp)
