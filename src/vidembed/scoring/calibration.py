"""Whether a P(Yes) of 0.8 is right 8 times in 10: measuring it, and Platt scaling to mend it."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidembed.plots import check_plot, new_figure
from vidembed.scoring.checks import (
    FloatArray,
    SavedNumbers,
    finite,
    in_unit_interval,
    matrix,
    number,
    vector,
    whole_number,
)
from vidembed.scoring.checks import labels as checked_labels

logger = logging.getLogger(__name__)
# probabilities are held this far from 0 and 1 before their log-odds are taken, so within +-27.6 (ours)
PROBABILITY_FLOOR = 1e-12
DEFAULT_BINS = 15  # bins of the expected calibration error (Guo et al. 2017, arXiv 1706.04599, table 1)
Kind = Literal["probabilities", "log_odds"]


def sigmoid(x: FloatArray) -> FloatArray:
    """``1 / (1 + exp(-x))`` without overflow."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, small) / (1.0 + small))


def platt_targets(labels: NDArray[np.bool_]) -> FloatArray:
    """Soften labels ``(P,)`` into (0, 1), where the likelihood has a finite maximum on separable data too.

    Source: Platt 1999; Lin, Lin & Weng, "A note on Platt's probabilistic outputs", Machine Learning 68, 2007.
    """
    matches = int(labels.sum())
    others = labels.size - matches
    if not (matches and others):
        raise ValueError(f"labels: expected both classes, got {matches} matches and {others} non-matches")
    return np.where(labels, (matches + 1.0) / (matches + 2.0), 1.0 / (others + 2.0))


def fit_logistic(features: FloatArray, targets: FloatArray, name: str) -> FloatArray:
    """Slopes and intercept ``(F + 1,)`` of a logistic fit of ``(P, F)`` features to targets ``(P,)`` inside (0, 1)."""
    center, spread = features.mean(axis=0), features.std(axis=0)  # (F,)
    if (spread <= 1e-12 * np.abs(features).max(axis=0)).any():
        raise ValueError(f"{name}: all values are the same; so nothing can be fitted")
    design = np.column_stack([(features - center) / spread, np.ones(len(features))])  # (P, F + 1)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(
            f"{name}: one score is a linear function of the others in these pairs; give more pairs, or leave that "
            f"score out"
        )
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - only fitting waits for its import

    # A soft target is one pair of each class, weighted by it and by the rest.
    fit = LogisticRegression(C=np.inf, fit_intercept=False, solver="newton-cholesky", tol=1e-10, max_iter=1000)
    classes = np.repeat([True, False], len(targets))
    fit.fit(np.concatenate([design, design]), classes, sample_weight=np.concatenate([targets, 1.0 - targets]))
    weights = fit.coef_[0]
    slopes = weights[:-1] / spread
    return np.append(slopes, weights[-1] - slopes @ center)


def log_odds(probabilities: ArrayLike) -> FloatArray:
    """``log(p / (1 - p))``, float64, of probabilities of any shape, held `PROBABILITY_FLOOR` away from 0 and 1."""
    p = in_unit_interval("probabilities", finite("probabilities", probabilities))
    p = np.clip(p, PROBABILITY_FLOOR, 1.0 - PROBABILITY_FLOOR)
    return np.asarray(np.log(p) - np.log1p(-p))


def _as_log_odds(values: ArrayLike, kind: Kind) -> FloatArray:
    if kind == "probabilities":
        try:
            return log_odds(values)
        except ValueError as error:
            raise ValueError(f"{error} (log-odds are given with kind='log_odds')") from error
    if kind == "log_odds":
        return finite("log_odds", values)
    raise ValueError(f"kind={kind!r}: expected 'probabilities' or 'log_odds'")


@dataclass(frozen=True)
class PlattScaling(SavedNumbers):
    """Map a score's log-odds to a calibrated probability: ``sigmoid(slope * log_odds + intercept)``.

    With a slope above 0, one over the temperature, the ranking is kept. A slope of 1 and an intercept of 0 change
    nothing; the intercept is in log-odds.
    """

    slope: float
    intercept: float
    kind: ClassVar = "platt_scaling"

    @classmethod
    def fit(cls, values: ArrayLike, labels: ArrayLike, *, kind: Kind = "probabilities") -> PlattScaling:
        """Fit by maximum likelihood on labelled pairs, with Platt's targets (`platt_targets`).

        Args:
            values: ``(P,)`` scores of (query, video) pairs.
            labels: ``(P,)``, 1 where the video matches the query, else 0, in the proportion that will be met later.
            kind: Whether ``values`` are probabilities or log-odds; never guessed.

        Raises:
            ValueError: No pairs, one class only, values all the same, or an argument of another shape or kind.
        """
        x = vector(kind, _as_log_odds(values, kind), axis="P")
        targets = platt_targets(checked_labels("labels", labels, x.size))
        slope, intercept = fit_logistic(x[:, None], targets, kind)
        if slope <= 0:
            logger.warning("Platt scaling: slope %.3g is not above 0; the scores rank matches below non-matches", slope)
        return cls(float(slope), float(intercept))

    def __call__(self, values: ArrayLike, *, kind: Kind = "probabilities") -> FloatArray:
        """Return calibrated probabilities of scores, float64 of the same shape; `kind` and errors as for `fit`."""
        return sigmoid(self.slope * _as_log_odds(values, kind) + self.intercept)


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """How often pairs of a score matched, bin by bin.

    Edges are from 0 to 1; bin ``k`` holds ``edges[k] < p <= edges[k + 1]``, the first also 0.
    """

    edges: FloatArray  # ``(bins + 1,)``
    counts: NDArray[np.int64]  # ``(bins,)`` pairs in each bin
    confidence: FloatArray  # ``(bins,)`` mean probability of the bin's pairs; NaN where there are none
    frequency: FloatArray  # ``(bins,)`` share of them that match; NaN where there are none

    @property
    def expected_calibration_error(self) -> float:
        """Mean of ``|frequency - confidence|`` over the pairs, from 0 to 1."""
        used = self.counts > 0
        gaps = np.abs(self.frequency[used] - self.confidence[used])
        return float((gaps * self.counts[used]).sum() / self.counts.sum())


def reliability_curve(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = DEFAULT_BINS) -> ReliabilityCurve:
    """Sort ``(P,)`` probabilities of a match into `bins` of equal width, and count the matches: labels of 1, else 0.

    A ValueError if there are no pairs, or an argument is of another shape or kind.
    """
    bins = whole_number("bins", bins)
    p = in_unit_interval("probabilities", vector("probabilities", probabilities, axis="P"))
    matches = checked_labels("labels", labels, p.size)
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.searchsorted(edges[1:-1], p, side="left")  # (P,)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is NaN: no pairs, no frequency
        confidence = np.bincount(place, weights=p, minlength=bins) / counts
        frequency = np.bincount(place, weights=matches, minlength=bins) / counts
    return ReliabilityCurve(edges, counts.astype(np.int64), confidence, frequency)


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, *, bins: int = DEFAULT_BINS) -> float:
    """Mean gap between probability and frequency over bins of equal width, weighted by their pairs: from 0 to 1.

    After Guo et al. 2017 (arXiv 1706.04599), for the probability of a match rather than that of the class
    that was predicted: an error near 0 says that of the pairs with P = 0.2, a fifth match. Arguments and errors are
    those of `reliability_curve`.
    """
    return reliability_curve(probabilities, labels, bins=bins).expected_calibration_error


def reliability_plot(before: ReliabilityCurve, after: ReliabilityCurve, path: str | Path) -> None:
    """Draw two reliability curves, of scores before and after calibration, above the counts of the pairs in each bin.

    The suffix of `path` is the format: .png, .svg or .pdf; errors are those of `vidembed.plots.check_plot`.
    """
    path = check_plot(path, function="reliability_plot")
    figure = new_figure(5, 6)
    curve_axes, count_axes = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curve_axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="calibrated")
    for curve, name, color in ((before, "before", "tab:red"), (after, "after", "tab:blue")):
        used = curve.counts > 0
        how = {"color": color, "label": f"{name}: ECE {curve.expected_calibration_error:.3f}"}
        curve_axes.plot(curve.confidence[used], curve.frequency[used], marker="o", clip_on=False, **how)
        count_axes.stairs(curve.counts, curve.edges, color=color)
    curve_axes.set(ylabel="share of pairs that match", xlim=(0, 1), ylim=(0, 1))
    curve_axes.legend(frameon=False)
    count_axes.set(xlabel="predicted probability of a match", ylabel="pairs")
    figure.savefig(path)


def prior_corrected(
    log_odds: ArrayLike,
    *,
    video_prior: ArrayLike | None,
    text_prior: ArrayLike | None,
    video_weight: float = 1.0,
    text_weight: float = 1.0,
) -> FloatArray:
    """Subtract the content-free log-odds of the same video and of the same sentence: ``(Q, N)`` float64 log-odds.

    ``corrected[i, j] = log_odds[i, j] - video_weight * video_prior[j] - text_weight * text_prior[i]``. A content-free
    score is the model's answer with the other half left out: the video asked about with no sentence, the sentence with
    no video. Dividing by a power of a prior is subtracting its weighted logarithm: this is the candidate prior
    normalization of BLiM (arXiv 2507.23284), there for likelihoods of captions, here for the log-odds of Yes.

    Where a text ranks videos, only ``video_prior`` can change the ranking; where a video ranks texts, only
    ``text_prior``. Calibration needs both, as its scores compare across rows.

    Args:
        log_odds: ``(Q, N)`` log-odds of Yes of sentence and video.
        video_prior: ``(N,)`` log-odds of Yes of each video without a sentence; None leaves it out.
        text_prior: ``(Q,)`` log-odds of Yes of each sentence without a video; None leaves it out.
        video_weight: 0 is no correction, 1 the whole prior. Default 1.
        text_weight: The same for the sentence's.

    Raises:
        ValueError: Both priors are None, or an argument is of another shape, not finite, or not a number.
    """
    corrected = matrix("log_odds", log_odds)
    video_weight, text_weight = number("video_weight", video_weight), number("text_weight", text_weight)
    if video_prior is None and text_prior is None:
        raise ValueError("video_prior=None, text_prior=None: expected at least one of them")
    if video_prior is not None:
        prior = vector("video_prior", video_prior, axis="N", length=corrected.shape[1])
        corrected = corrected - video_weight * prior[None, :]  # (Q, N)
    if text_prior is not None:
        prior = vector("text_prior", text_prior, axis="Q", length=corrected.shape[0])
        corrected = corrected - text_weight * prior[:, None]  # (Q, N)
    return corrected


@dataclass(frozen=True)
class PriorCorrection(SavedNumbers):
    """The weights of `prior_corrected`, of the content-free log-odds of video and of sentence, kept together."""

    video_weight: float = 1.0
    text_weight: float = 1.0
    kind: ClassVar = "prior_correction"

    @classmethod
    def fit(
        cls, log_odds: ArrayLike, labels: ArrayLike, *, video_prior: ArrayLike | None, text_prior: ArrayLike | None
    ) -> PriorCorrection:
        """Fit the weights on ``(P,)`` labelled pairs, 1 where the video matches the sentence, else 0.

        A logistic regression of the label on the pair's log-odds and content-free priors, with Platt's targets; a
        weight is minus its prior's slope over that of the log-odds, and 0 for a prior of None. Fit a `PlattScaling` on
        the corrected log-odds afterwards.

        Raises:
            ValueError: Both priors are None, one class only, a feature that does not vary or is a linear function of
                the others, or log-odds that do not rise with the label once the priors are known.
        """
        pairs = vector("log_odds", log_odds, axis="P")
        targets = platt_targets(checked_labels("labels", labels, pairs.size))
        priors = (("video_prior", video_prior), ("text_prior", text_prior))
        given = {name: vector(name, prior, axis="P", length=pairs.size) for name, prior in priors if prior is not None}
        if not given:
            raise ValueError("video_prior=None, text_prior=None: expected at least one of them")
        features = np.column_stack([pairs, *given.values()])  # (P, 2 or 3)
        slope, *prior_slopes = fit_logistic(features, targets, ", ".join(["log_odds", *given])).tolist()[:-1]
        if slope <= 0:
            reason = f"their slope is {slope:.3g} with the priors, so no weight can correct them"
            raise ValueError(f"log_odds: {reason}; check the labels, or give more pairs")
        weights = {name: -prior_slope / slope for name, prior_slope in zip(given, prior_slopes, strict=True)}
        return cls(weights.get("video_prior", 0.0), weights.get("text_prior", 0.0))

    def __call__(
        self, log_odds: ArrayLike, *, video_prior: ArrayLike | None, text_prior: ArrayLike | None
    ) -> FloatArray:
        """Return `prior_corrected` with these weights; a ValueError too if a prior is None whose weight is not 0."""
        given = {"video_prior": (video_prior, self.video_weight), "text_prior": (text_prior, self.text_weight)}
        for name, (prior, weight) in given.items():
            if prior is None and weight != 0:
                raise ValueError(f"{name}=None: expected an array, as its weight is {weight}")
        return prior_corrected(log_odds, video_prior=video_prior, text_prior=text_prior, **asdict(self))
