"""What becomes of scores before they rank: dual-softmax, query banks, fusion, priors, calibration. Numpy only."""

from __future__ import annotations

from vidembed.scoring.calibration import (
    PlattScaling,
    PriorCorrection,
    ReliabilityCurve,
    expected_calibration_error,
    log_odds,
    prior_corrected,
    reliability_curve,
    reliability_plot,
)
from vidembed.scoring.depth import FittedMargin, MarginPolicy
from vidembed.scoring.dual_softmax import DualSoftmax, FittedTemperature, dual_softmax, fit_temperature
from vidembed.scoring.fusion import ScoreFusion
from vidembed.scoring.hybrid import HybridWeights, mixed_vectors, reciprocal_rank_fusion
from vidembed.scoring.query_bank import QueryBank

__all__ = [
    "DualSoftmax",
    "FittedMargin",
    "FittedTemperature",
    "HybridWeights",
    "MarginPolicy",
    "PlattScaling",
    "PriorCorrection",
    "QueryBank",
    "ReliabilityCurve",
    "ScoreFusion",
    "dual_softmax",
    "expected_calibration_error",
    "fit_temperature",
    "log_odds",
    "mixed_vectors",
    "prior_corrected",
    "reciprocal_rank_fusion",
    "reliability_curve",
    "reliability_plot",
]
