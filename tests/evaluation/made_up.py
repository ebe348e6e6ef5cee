"""Results made of numbers, without a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from tests.evaluation.stand_ins import plain_benchmark
from vidembed.evaluation.result import BenchmarkFacts, EvaluationResult, Tally, columns_of
from vidembed.evaluation.two_stage import DIRECTIONS, Temperature


def made_up(
    seed: int = 0, *, skill: float = 1.0, name: str = "a model", videos: int = 30, **facts: Any
) -> EvaluationResult:
    """A result of random scores: two texts a video, which a model of more skill finds more often."""
    owners = tuple((row // 2,) for row in range(2 * videos))
    texts = [f"text {row}" for row in range(2 * videos)]
    benchmark = plain_benchmark([Path(f"v{at}.mp4") for at in range(videos)], texts, list(owners), **facts)
    right = benchmark.positives
    scores = 0.5 + 0.1 * (np.random.default_rng(seed).normal(size=right.shape) + skill * right)
    temperatures = {f"first.{way}": Temperature(0.05, "default, not fitted") for way in DIRECTIONS}
    columns, ranks = columns_of(benchmark, np.ones(videos, dtype=bool), scores, None, temperatures, None, seed=0)
    return EvaluationResult(
        benchmark=BenchmarkFacts.of(benchmark),
        model={"name": name, "fingerprint": "f" * 64},
        rerank=None,
        temperatures=temperatures,
        validation=None,
        columns=columns,
        failures=(),
        unanswered=(),
        work={one: Tally(3, 1, 2.0).facts() for one in ("videos", "texts", "pairs")},
        seconds=7.0,
        seed=0,
        versions={"python": "3"},
        hardware={"device": "cpu"},
        ranks=ranks,
    )


def changed(result: EvaluationResult, **fields: Any) -> EvaluationResult:
    """The same with other fields."""
    return dataclasses.replace(result, **fields)
