"""Results made of numbers, without a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from tests.evaluation.stand_ins import plain_benchmark
from vidembed.evaluation.evaluator import Temperature
from vidembed.evaluation.result import (
    COLUMNS,
    DIRECTIONS,
    BenchmarkFacts,
    Column,
    EvaluationResult,
    figures,
    outcomes,
    rankings,
    told,
)
from vidembed.evaluation.two_stage import Tally


def made_up(
    seed: int = 0, *, skill: float = 1.0, name: str = "a model", videos: int = 30, **facts: Any
) -> EvaluationResult:
    """A result of random scores: two texts a video, which a model of more skill finds more often."""
    owners = tuple((row // 2,) for row in range(2 * videos))
    texts = [f"text {row}" for row in range(2 * videos)]
    benchmark = plain_benchmark([Path(f"v{at}.mp4") for at in range(videos)], texts, list(owners), **facts)
    right = benchmark.positives
    scores = 0.5 + 0.1 * (np.random.default_rng(seed).normal(size=right.shape) + skill * right)
    found: dict[str, dict[str, Any]] = {one: dict.fromkeys(DIRECTIONS) for one in COLUMNS}
    groups = {"t2v": np.array([one[0] for one in owners]), "v2t": np.arange(videos)}
    ranks = {f"groups.{way}": one for way, one in groups.items()}
    for way, turned, positives in (("t2v", scores, right), ("v2t", scores.T, right.T)):
        ranked = rankings(turned, None, temperature=0.05, second_temperature=None, k=None)
        for one, values in ranked.items():
            if values is not None:
                every = [np.ones(length, dtype=bool) for length in positives.shape]
                fared = outcomes(values, positives, rows=every[0], columns=every[1])
                ranks[f"{one}.{way}"] = fared.ranks
                found[one][way] = figures(fared, seed=0, groups=groups[way])
    return EvaluationResult(
        benchmark=BenchmarkFacts.of(benchmark),
        model={"name": name, "fingerprint": "f" * 64},
        rerank=None,
        temperatures={f"first.{way}": Temperature(0.05, "default, not fitted") for way in DIRECTIONS},
        validation=None,
        columns=tuple(Column(one, **of) for one, of in found.items()),
        failures=(),
        unanswered=(),
        work={one: told(Tally(3, 1, 2.0)) for one in ("videos", "texts", "pairs")},
        seconds=7.0,
        seed=0,
        versions={"python": "3"},
        hardware={"device": "cpu"},
        ranks=ranks,
    )


def changed(result: EvaluationResult, **fields: Any) -> EvaluationResult:
    """The same with other fields."""
    return dataclasses.replace(result, **fields)
