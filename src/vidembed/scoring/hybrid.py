"""Several similarities of a query and its candidates as one score: fitted weights, or reciprocal rank fusion.

The similarities are the cosine with the video, the cosine with its caption, and BM25 of the caption's words. A
candidate without a caption has no value of the last two (NaN); it stays a candidate.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidembed.scoring.calibration import fit_logistic, platt_targets, sigmoid
from vidembed.scoring.checks import FloatArray, SavedNumbers, as_array, number
from vidembed.scoring.checks import labels as checked_labels

FEATURES = ("video", "caption", "text")
"""Columns of what is weighed: cosine with the video, cosine with the caption, BM25 of the caption's words."""

RRF_K = 60  # Cormack, Clarke & Buettcher, "Reciprocal Rank Fusion", SIGIR 2009, section 2

logger = logging.getLogger(__name__)


def ranks(scores: ArrayLike) -> FloatArray:
    """Ranks ``(N,)`` from 1 of scores ``(N,)``, the highest first; equal scores share the best rank, NaN has none."""
    values = _with_missing("scores", scores, ndim=1)
    known = ~np.isnan(values)
    found = np.full(values.shape, np.nan)
    found[known] = 1 + np.searchsorted(np.sort(-values[known]), -values[known], side="left")
    return found


def reciprocal_rank_fusion(*ranks: ArrayLike, k: float = RRF_K) -> FloatArray:
    """Sum of ``1 / (k + rank)`` over rankings of the same candidates, float64 ``(N,)``; higher is better.

    Args:
        *ranks: ``(N,)`` each, from 1. NaN where a ranking does not hold a candidate: it adds nothing there.
        k: What ranks are added to. Default: 60, as Cormack et al. 2009.

    Raises:
        ValueError: No rankings, of different lengths, or with a rank below 1 or infinite.
    """
    k = number("k", k, above_zero=True)
    if not ranks:
        raise ValueError("ranks: got none; at least one ranking is needed")
    lists = [_with_missing(f"ranks[{place}]", each, ndim=1) for place, each in enumerate(ranks)]
    for place, each in enumerate(lists):
        if each.shape != lists[0].shape or (each < 1).any():
            least = f", the least {np.nanmin(each)}" if (each < 1).any() else ""
            raise ValueError(f"ranks[{place}]: expected {lists[0].size} ranks of 1 or more, got {each.size}{least}")
    return np.asarray(np.nansum([1.0 / (k + each) for each in lists], axis=0))


@dataclass(frozen=True)
class HybridWeights(SavedNumbers):
    """Log-odds of a match: the sum of ``weight * gap`` over the similarities, and the intercept.

    A gap is a similarity less the best of the query's candidates, 0 or below. So a query whose similarities are all
    high, as those of a long one, counts like another, and a candidate's score depends on no other one than the best.
    No spread is taken of a query's candidates: those of the pairs of the fit are in the weights. Where a candidate
    has no value, its gap is the mean gap of those pairs, as if it were one of them like any other.
    """

    video_weight: float
    caption_weight: float
    text_weight: float
    intercept: float
    caption_mean: float  # mean gap of the pairs of the fit
    text_mean: float
    kind: ClassVar = "hybrid_weights"

    @classmethod
    def fit(cls, features: ArrayLike, labels: ArrayLike, queries: Sequence[str] | None = None) -> HybridWeights:
        """Fit by logistic regression on labelled pairs, with Platt's targets (`platt_targets`).

        A similarity that is the same everywhere, as of words that are in no caption, gets the weight 0.

        Args:
            features: ``(P, 3)`` similarities in the order of `FEATURES`. NaN where a pair has none.
            labels: ``(P,)``, 1 where the video matches the query, else 0.
            queries: ``(P,)`` names of the queries that the pairs belong to, each with its best candidates, like those
                to come. None: they are one query's.

        Raises:
            ValueError: One class only, nothing that varies, similarities that are a linear function of each other, or
                an argument of another shape or kind.
        """
        values = _similarities(features)  # (P, 3)
        names = np.zeros(len(values), dtype=object) if queries is None else np.asarray(queries, dtype=object)
        if names.shape != (len(values),):
            raise ValueError(f"queries: expected {len(values)} names, one per pair, got shape {names.shape}")
        targets = platt_targets(checked_labels("labels", labels, len(values)))
        gaps = np.empty_like(values)
        for name in dict.fromkeys(names.tolist()):
            gaps[names == name] = _gaps(values[names == name])
        if np.isnan(gaps[:, 0]).any():
            raise ValueError("features: a pair has no video similarity (NaN); every pair needs one")
        known = ~np.isnan(gaps)
        means = np.where(known, gaps, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)  # (3,)
        filled = np.where(known, gaps, means)
        varies = filled.std(axis=0) > 1e-12 * np.maximum(np.abs(filled).max(axis=0), 1.0)
        if not varies.any():
            raise ValueError("features: all values are the same, so nothing can be fitted")
        slopes = np.zeros(3)
        *slopes[varies], intercept = fit_logistic(filled[:, varies], targets, "features")
        for name, slope in zip(FEATURES, slopes, strict=True):
            if slope < 0:
                logger.warning("hybrid weights: %s has weight %.3g: it ranks matches below non-matches", name, slope)
        video, caption, text = slopes.tolist()
        return cls(video, caption, text, float(intercept), float(means[1]), float(means[2]))

    def log_odds(self, features: ArrayLike) -> FloatArray:
        """Log-odds of a match ``(N,)`` of a query's candidates; `features` ``(N, 3)`` as for `fit`, never NaN.

        Give all candidates that are to be ranked, the best by each similarity among them.
        """
        gaps = _gaps(_similarities(features))
        filled = np.where(np.isnan(gaps), [0.0, self.caption_mean, self.text_mean], gaps)
        return np.asarray(filled @ [self.video_weight, self.caption_weight, self.text_weight] + self.intercept)

    def __call__(self, features: ArrayLike) -> FloatArray:
        """Probability of a match, 0 to 1, ``(N,)``; else as `log_odds`."""
        return sigmoid(self.log_odds(features))


def _with_missing(name: str, value: ArrayLike, *, ndim: int) -> FloatArray:
    """Numbers, of which some may be NaN, as float64; a ValueError for other ones or another number of axes."""
    array: NDArray[np.generic] = as_array(name, value)
    if array.ndim != ndim or array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected numbers of {ndim} axes, got shape {array.shape} of {array.dtype}")
    numbers = array.astype(np.float64)
    if np.isinf(numbers).any():
        raise ValueError(f"{name}: {int(np.isinf(numbers).sum())} values are infinite; use NaN for missing values")
    return numbers


def _similarities(features: ArrayLike) -> FloatArray:
    values = _with_missing("features", features, ndim=2)
    if values.shape[1] != len(FEATURES) or not len(values):
        raise ValueError(f"features: expected shape (P, 3) with columns {', '.join(FEATURES)}, got {values.shape}")
    return values


def _gaps(values: FloatArray) -> FloatArray:
    """Similarities ``(N, 3)`` of one query less the best of each column; NaN stays."""
    return np.asarray(values - np.where(np.isnan(values), -np.inf, values).max(axis=0))
