"""How well a model retrieves: metrics of score matrices, with intervals. Numpy only."""

from __future__ import annotations

from vidembed.evaluation.metrics import (
    Interval,
    bootstrap_interval,
    mean_rank,
    median_rank,
    paired_bootstrap,
    ranks,
    recall_at,
)

__all__ = [
    "Interval",
    "bootstrap_interval",
    "mean_rank",
    "median_rank",
    "paired_bootstrap",
    "ranks",
    "recall_at",
]
