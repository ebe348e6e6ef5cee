"""Logistic regression on a handful of features, by Newton's method, with the targets of Platt scaling."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vidembed.scoring._checks import FloatArray

MAX_ITERATIONS = 100
"""Newton steps allowed (Lin, Lin & Weng 2007, algorithm 1); a handful are taken."""

TOLERANCE = 1e-10
"""Greatest component of the gradient per pair at which a fit is done, on standardized features."""


def sigmoid(x: FloatArray) -> FloatArray:
    """``1 / (1 + exp(-x))`` without overflow."""
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, small) / (1.0 + small))


def platt_targets(labels: NDArray[np.bool_]) -> FloatArray:
    """Soften labels: ``(N+ + 1) / (N+ + 2)`` for the matches and ``1 / (N- + 2)`` for the others.

    With targets inside (0, 1) the likelihood has a finite maximum on separable data too (Platt 1999; Lin, Lin & Weng,
    "A note on Platt's probabilistic outputs for support vector machines", Machine Learning 68, 2007).

    Raises:
        ValueError: All labels are of one class.
    """
    matches = int(labels.sum())
    others = labels.size - matches
    if not (matches and others):
        raise ValueError(f"labels: expected both classes, got {matches} matches and {others} others")
    return np.where(labels, (matches + 1.0) / (matches + 2.0), 1.0 / (others + 2.0))


def fit_logistic(features: FloatArray, targets: FloatArray, name: str) -> FloatArray:
    """Fit ``sigmoid(features @ slopes + intercept)`` to targets by maximum likelihood.

    Args:
        features: ``(P, F)``.
        targets: ``(P,)``, inside (0, 1).
        name: What the features are, for the error.

    Returns:
        ``(F + 1,)``: slopes, then intercept.

    Raises:
        ValueError: A feature does not vary, or is a linear function of the others: no unique answer.
        RuntimeError: Newton's method comes to no rest.
    """
    center, spread = features.mean(axis=0), features.std(axis=0)  # (F,)
    if (spread <= 1e-12 * np.abs(features).max(axis=0)).any():
        raise ValueError(f"{name}: all values are the same; nothing to fit on")
    design = np.column_stack([(features - center) / spread, np.ones(len(features))])  # (P, F + 1)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError(f"{name}: one is a linear function of the others in these pairs; give more, or leave it out")
    weights = _newton(design, targets)
    slopes = weights[:-1] / spread
    return np.append(slopes, weights[-1] - slopes @ center)


def _loss(logits: FloatArray, targets: FloatArray) -> float:
    return float((np.logaddexp(0.0, logits) - targets * logits).mean())


def _newton(design: FloatArray, targets: FloatArray) -> FloatArray:
    count = len(targets)
    weights = np.zeros(design.shape[1])
    weights[-1] = np.log(targets.sum() / (count - targets.sum()))
    loss = _loss(design @ weights, targets)
    for _ in range(MAX_ITERATIONS):
        probability = sigmoid(design @ weights)  # (P,)
        gradient = design.T @ (probability - targets) / count
        if np.abs(gradient).max() < TOLERANCE:
            return weights
        curvature = probability * (1.0 - probability)  # (P,)
        hessian = (design * curvature[:, None]).T @ design / count
        hessian[np.diag_indices_from(hessian)] += 1e-12  # as Lin, Lin & Weng: keeps it definite where all are sure
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (new := _loss(design @ (weights - size * step), targets)) > loss and size > 1e-10:
            size /= 2
        if new >= loss and np.abs(gradient).max() < 1e-6:  # rounding allows no further descent
            return weights
        weights, loss = weights - size * step, new
    raise RuntimeError(
        f"no fit within {MAX_ITERATIONS} Newton steps; the gradient is still {np.abs(gradient).max():.1e}"
    )
