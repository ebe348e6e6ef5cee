"""Whether a P(Yes) of 0.8 is right 8 times in 10: measuring it, and Platt scaling to mend it."""

from __future__ import annotations

import importlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidembed.scoring import _checks
from vidembed.scoring._checks import FloatArray
from vidembed.scoring._files import read_numbers, write_numbers
from vidembed.scoring._logistic import fit_logistic, platt_targets, sigmoid

logger = logging.getLogger(__name__)

_KIND = "platt_scaling"

PROBABILITY_FLOOR = 1e-12
"""Probabilities are held this far from 0 and 1 before their log-odds are taken, so within +-27.6 (ours)."""

DEFAULT_BINS = 15
"""Bins of the expected calibration error (Guo et al. 2017, arXiv 1706.04599, table 1)."""

Kind = Literal["probabilities", "log_odds"]


def log_odds(probabilities: ArrayLike) -> FloatArray:
    """Return ``log(p / (1 - p))`` of probabilities, held `PROBABILITY_FLOOR` away from 0 and 1.

    Args:
        probabilities: Any shape, from 0 to 1.

    Returns:
        Float64 of the same shape.

    Raises:
        ValueError: A value is not finite or not from 0 to 1.
    """
    p = _checks.in_unit_interval("probabilities", _checks.finite("probabilities", probabilities))
    p = np.clip(p, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    return np.asarray(np.log(p) - np.log1p(-p))


def _as_log_odds(values: ArrayLike, kind: Kind) -> FloatArray:
    if kind == "probabilities":
        try:
            return log_odds(values)
        except ValueError as error:
            raise ValueError(f"{error} (log-odds are given with kind='log_odds')") from error
    if kind == "log_odds":
        return _checks.finite("log_odds", values)
    raise ValueError(f"kind={kind!r}: expected 'probabilities' or 'log_odds'")


@dataclass(frozen=True)
class PlattScaling:
    """Map a score's log-odds to a calibrated probability: ``sigmoid(slope * log_odds + intercept)``.

    With a slope above 0 the ranking is kept. A slope of 1 and an intercept of 0 change nothing.

    Args:
        slope: One over the temperature.
        intercept: The bias, in log-odds.

    Raises:
        ValueError: A field is not a finite number.
    """

    slope: float
    intercept: float

    def __post_init__(self) -> None:
        """Check the fields and make them floats."""
        for name in ("slope", "intercept"):
            object.__setattr__(self, name, _checks.number(f"PlattScaling: {name}", getattr(self, name)))

    @classmethod
    def fit(cls, values: ArrayLike, labels: ArrayLike, *, kind: Kind = "probabilities") -> PlattScaling:
        """Fit by maximum likelihood on labelled pairs, with Platt's targets.

        The targets are ``(N+ + 1) / (N+ + 2)`` and ``1 / (N- + 2)``, the minimum is found by Newton's method with
        backtracking (Lin, Lin & Weng, Machine Learning 68, 2007), so separable data has a finite answer.

        Args:
            values: ``(P,)`` scores of (query, video) pairs.
            labels: ``(P,)``, 1 where the video matches the query, else 0. Their share of matches becomes that of the
                result: give pairs in the proportion in which the scores will be read.
            kind: Whether ``values`` are probabilities or log-odds; never guessed.

        Raises:
            ValueError: No pairs, one class only, values all the same, or an argument of another shape or kind.
        """
        x = _checks.vector(kind, _as_log_odds(values, kind), axis="P")
        targets = platt_targets(_checks.labels("labels", labels, x.size))
        slope, intercept = fit_logistic(x[:, None], targets, kind)
        if slope <= 0:
            logger.warning("Platt scaling: slope %.3g is not above 0; the scores rank these pairs the wrong way", slope)
        return cls(float(slope), float(intercept))

    def __call__(self, values: ArrayLike, *, kind: Kind = "probabilities") -> FloatArray:
        """Return calibrated probabilities.

        Args:
            values: Scores, of any shape.
            kind: Whether they are probabilities or log-odds; never guessed.

        Returns:
            Float64 of the same shape, from 0 to 1.

        Raises:
            ValueError: A value is not finite, or not from 0 to 1 where a probability is expected.
        """
        return sigmoid(self.slope * _as_log_odds(values, kind) + self.intercept)

    def save(self, file: str | Path) -> None:
        """Write slope and intercept to a JSON file."""
        write_numbers(file, _KIND, {"slope": self.slope, "intercept": self.intercept})

    @classmethod
    def load(cls, file: str | Path) -> PlattScaling:
        """Read a file that `save` wrote.

        Raises:
            ValueError: It is not such a file.
        """
        return cls(**read_numbers(file, _KIND, ("slope", "intercept")))


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """How often pairs of a score matched, bin by bin.

    Attributes:
        edges: ``(bins + 1,)``, from 0 to 1; bin ``k`` holds ``edges[k] < p <= edges[k + 1]``, the first also 0.
        counts: ``(bins,)`` pairs in each bin.
        confidence: ``(bins,)`` mean probability of the bin's pairs; NaN where there are none.
        frequency: ``(bins,)`` share of them that match; NaN where there are none.
    """

    edges: FloatArray
    counts: NDArray[np.int64]
    confidence: FloatArray
    frequency: FloatArray

    @property
    def expected_calibration_error(self) -> float:
        """Mean of ``|frequency - confidence|`` over the pairs, from 0 to 1."""
        used = self.counts > 0
        gaps = np.abs(self.frequency[used] - self.confidence[used])
        return float((gaps * self.counts[used]).sum() / self.counts.sum())


def reliability_curve(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = DEFAULT_BINS) -> ReliabilityCurve:
    """Sort pairs into bins of equal width by probability, and count the matches.

    Args:
        probabilities: ``(P,)`` probabilities that a pair matches.
        labels: ``(P,)``, 1 where it does, else 0.
        bins: Number of bins. Default `DEFAULT_BINS`.

    Raises:
        ValueError: No pairs, an argument of another shape or kind, or ``bins`` not a whole number of at least 1.
    """
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 1:
        raise ValueError(f"bins={bins!r}: expected a whole number of at least 1")
    p = _checks.in_unit_interval("probabilities", _checks.vector("probabilities", probabilities, axis="P"))
    matches = _checks.labels("labels", labels, p.size)
    edges = np.linspace(0.0, 1.0, int(bins) + 1)
    place = np.searchsorted(edges[1:-1], p, side="left")  # (P,)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no pairs, no frequency
        confidence = np.bincount(place, weights=p, minlength=bins) / counts
        frequency = np.bincount(place, weights=matches, minlength=bins) / counts
    return ReliabilityCurve(edges, counts.astype(np.int64), confidence, frequency)


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = DEFAULT_BINS) -> float:
    """Mean gap between probability and frequency over bins of equal width, weighted by their pairs.

    After Guo et al. 2017 (arXiv 1706.04599), for the probability of a match rather than that of the class
    that was predicted: an error near 0 says that of the pairs with P = 0.2, a fifth match.

    Args:
        probabilities: ``(P,)`` probabilities that a pair matches.
        labels: ``(P,)``, 1 where it does, else 0.
        bins: Number of bins. Default `DEFAULT_BINS`.

    Returns:
        From 0, calibrated, to 1.

    Raises:
        ValueError: As for `reliability_curve`.
    """
    return reliability_curve(probabilities, labels, bins=bins).expected_calibration_error


def reliability_plot(before: ReliabilityCurve, after: ReliabilityCurve, path: str | Path) -> None:
    """Draw two reliability curves, one above the counts of the pairs in each bin.

    Args:
        before: The curve of the scores as they are.
        after: The curve of the calibrated scores.
        path: File to write; its suffix is the format: .png, .svg or .pdf.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: The suffix is another.
    """
    path = Path(path)
    if path.suffix.lower() not in {".png", ".svg", ".pdf"}:
        raise ValueError(f"path={str(path)!r}: expected a name that ends in .png, .svg or .pdf")
    figure = _new_figure()
    curve_axes, count_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curve_axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="calibrated")
    for curve, name, color in ((before, "before", "tab:red"), (after, "after", "tab:blue")):
        used = curve.counts > 0
        label = f"{name}: ECE {curve.expected_calibration_error:.3f}"
        curve_axes.plot(
            curve.confidence[used], curve.frequency[used], marker="o", clip_on=False, color=color, label=label
        )
        count_axes.stairs(curve.counts, curve.edges, color=color)
    curve_axes.set(ylabel="share of pairs that match", xlim=(0, 1), ylim=(0, 1))
    curve_axes.legend(frameon=False)
    count_axes.set(xlabel="predicted probability of a match", ylabel="pairs")
    figure.savefig(path)


def _new_figure() -> Any:
    """A figure without pyplot, which would choose a window system for the whole process."""
    try:
        module = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'reliability_plot draws with matplotlib, which is not installed; pip install "vidembed[plot]"'
        ) from error
    return module.Figure(figsize=(5, 6), layout="constrained")
