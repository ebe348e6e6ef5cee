"""How well a model retrieves: benchmarks, and metrics of score matrices with intervals. Importing it loads no torch."""

from __future__ import annotations

from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.benchmarks import BENCHMARKS, read_benchmark
from vidembed.evaluation.metrics import (
    Interval,
    average_precision,
    bootstrap_interval,
    mean_rank,
    median_rank,
    ndcg_at,
    paired_bootstrap,
    ranks,
    recall_at,
)

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Interval",
    "average_precision",
    "bootstrap_interval",
    "mean_rank",
    "median_rank",
    "ndcg_at",
    "paired_bootstrap",
    "ranks",
    "read_benchmark",
    "recall_at",
]
