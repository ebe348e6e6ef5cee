"""Taking out of P(Yes) what the model would say of a video, or a sentence, alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from vidembed.scoring import _checks
from vidembed.scoring._checks import FloatArray
from vidembed.scoring._files import read_numbers, write_numbers
from vidembed.scoring._logistic import fit_logistic, platt_targets

_KIND = "prior_correction"


def prior_corrected(
    log_odds: ArrayLike,
    *,
    video_prior: ArrayLike | None,
    text_prior: ArrayLike | None,
    video_weight: float = 1.0,
    text_weight: float = 1.0,
) -> FloatArray:
    """Subtract the content-free log-odds of the same video and of the same sentence.

    ``corrected[i, j] = log_odds[i, j] - video_weight * video_prior[j] - text_weight * text_prior[i]``. A content-free
    score is the model's answer with the other half left out: the video asked about with no sentence, the sentence with
    no video. Dividing by a power of a prior is subtracting its weighted logarithm: this is the candidate prior
    normalization of BLiM (arXiv 2507.23284), there for likelihoods of captions, here for the log-odds of Yes.

    What it does to rankings: ``text_prior[i]`` is one number for the whole row ``i``, so where a text ranks videos
    (text-to-video) it changes nothing, and only ``video_prior`` can. Where a video ranks texts it is the other way
    round: ``text_prior`` is what changes the ranking, and ``video_prior`` nothing. It is also there for calibration:
    one threshold or one Platt scaling for all queries needs scores that compare across rows.

    Args:
        log_odds: ``(Q, N)`` log-odds of Yes of sentence and video.
        video_prior: ``(N,)`` log-odds of Yes of each video without a sentence; None leaves it out.
        text_prior: ``(Q,)`` log-odds of Yes of each sentence without a video; None leaves it out.
        video_weight: 0 is no correction, 1 the whole prior. Default 1.
        text_weight: The same for the sentence's.

    Returns:
        ``(Q, N)`` float64 log-odds.

    Raises:
        ValueError: Both priors are None, or an argument is of another shape, not finite, or not a number.
    """
    corrected = _checks.matrix("log_odds", log_odds)
    video_weight, text_weight = _checks.number("video_weight", video_weight), _checks.number("text_weight", text_weight)
    if video_prior is None and text_prior is None:
        raise ValueError("video_prior=None, text_prior=None: expected at least one of them")
    if video_prior is not None:
        prior = _checks.vector("video_prior", video_prior, axis="N", length=corrected.shape[1])
        corrected = corrected - video_weight * prior[None, :]  # (Q, N)
    if text_prior is not None:
        prior = _checks.vector("text_prior", text_prior, axis="Q", length=corrected.shape[0])
        corrected = corrected - text_weight * prior[:, None]  # (Q, N)
    return corrected


@dataclass(frozen=True)
class PriorCorrection:
    """The weights of `prior_corrected`, kept together.

    Args:
        video_weight: Weight of the video's content-free log-odds.
        text_weight: Weight of the sentence's.

    Raises:
        ValueError: A weight is not a finite number.
    """

    video_weight: float = 1.0
    text_weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the fields and make them floats."""
        for name in ("video_weight", "text_weight"):
            object.__setattr__(self, name, _checks.number(f"PriorCorrection: {name}", getattr(self, name)))

    @classmethod
    def fit(
        cls, log_odds: ArrayLike, labels: ArrayLike, *, video_prior: ArrayLike | None, text_prior: ArrayLike | None
    ) -> PriorCorrection:
        """Fit the weights on labelled pairs.

        A logistic regression of the label on the pair's log-odds and priors, with Platt's targets; a weight is minus
        its prior's slope over that of the log-odds. Fit a `PlattScaling` on the corrected log-odds afterwards.

        Args:
            log_odds: ``(P,)`` log-odds of each pair.
            labels: ``(P,)``, 1 where the video matches the sentence, else 0.
            video_prior: ``(P,)`` content-free log-odds of the pair's video; None fixes the weight at 0.
            text_prior: ``(P,)`` content-free log-odds of the pair's sentence; None fixes the weight at 0.

        Raises:
            ValueError: Both priors are None, one class only, a feature that does not vary or is a linear function of
                the others, or log-odds that do not rise with the label once the priors are known.
        """
        pairs = _checks.vector("log_odds", log_odds, axis="P")
        targets = platt_targets(_checks.labels("labels", labels, pairs.size))
        given = {
            name: _checks.vector(name, prior, axis="P", length=pairs.size)
            for name, prior in (("video_prior", video_prior), ("text_prior", text_prior))
            if prior is not None
        }
        if not given:
            raise ValueError("video_prior=None, text_prior=None: expected at least one of them")
        features = np.column_stack([pairs, *given.values()])  # (P, 2 or 3)
        slope, *prior_slopes = fit_logistic(features, targets, ", ".join(["log_odds", *given])).tolist()[:-1]
        if slope <= 0:
            raise ValueError(
                f"log_odds: their slope is {slope:.3g} once the priors are known, so no weight makes them right; check "
                "the labels, or give more pairs"
            )
        weights = {name: -prior_slope / slope for name, prior_slope in zip(given, prior_slopes, strict=True)}
        return cls(weights.get("video_prior", 0.0), weights.get("text_prior", 0.0))

    def __call__(
        self, log_odds: ArrayLike, *, video_prior: ArrayLike | None, text_prior: ArrayLike | None
    ) -> FloatArray:
        """Return `prior_corrected` with these weights.

        Raises:
            ValueError: As for `prior_corrected`; or a prior is None whose weight is not 0.
        """
        for name, prior, weight in (
            ("video_prior", video_prior, self.video_weight),
            ("text_prior", text_prior, self.text_weight),
        ):
            if prior is None and weight != 0:
                raise ValueError(f"{name}=None: expected an array, as its weight is {weight}")
        return prior_corrected(
            log_odds,
            video_prior=video_prior,
            text_prior=text_prior,
            video_weight=self.video_weight,
            text_weight=self.text_weight,
        )

    def save(self, file: str | Path) -> None:
        """Write the weights to a JSON file."""
        write_numbers(file, _KIND, {"video_weight": self.video_weight, "text_weight": self.text_weight})

    @classmethod
    def load(cls, file: str | Path) -> PriorCorrection:
        """Read a file that `save` wrote.

        Raises:
            ValueError: It is not such a file.
        """
        return cls(**read_numbers(file, _KIND, ("video_weight", "text_weight")))
