"""How well a model retrieves: benchmarks, and metrics of score matrices with intervals. Importing it loads no torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vidembed.evaluation.benchmark import BENCHMARKS, Benchmark, read_benchmark
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
    from vidembed.evaluation.result import EvaluationResult
    from vidembed.evaluation.run import evaluate
    from vidembed.evaluation.shapes import draw_world

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "EvaluationResult",
    "Interval",
    "VideoTextRetrievalEvaluator",
    "average_precision",
    "bootstrap_interval",
    "draw_world",
    "evaluate",
    "mean_rank",
    "median_rank",
    "ndcg_at",
    "paired_bootstrap",
    "ranks",
    "read_benchmark",
    "recall_at",
]


# these bring torch, or take time
_LATE = {
    "EvaluationResult": "result",
    "VideoTextRetrievalEvaluator": "evaluator",
    "draw_world": "shapes",
    "evaluate": "run",
}


def __getattr__(name: str) -> object:
    if name in _LATE:
        return getattr(importlib.import_module(f"{__name__}.{_LATE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
