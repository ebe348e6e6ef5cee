"""How well a model retrieves: benchmarks, and metrics of score matrices with intervals. Importing it loads no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from vidembed.evaluation.evaluator import VideoTextRetrievalEvaluator

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Interval",
    "VideoTextRetrievalEvaluator",
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


def __getattr__(name: str) -> Any:
    if name == "VideoTextRetrievalEvaluator":
        from vidembed.evaluation.evaluator import VideoTextRetrievalEvaluator  # noqa: PLC0415 - it brings torch

        return VideoTextRetrievalEvaluator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
