"""The same benchmark for several models: their recalls, and paired differences to the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from vidembed.evaluation.columns import COLUMNS, DIRECTIONS
from vidembed.evaluation.metrics import Interval, paired_bootstrap
from vidembed.evaluation.report import interval
from vidembed.evaluation.result import BenchmarkFacts, EvaluationResult

COMPARED: Final = ("raw", "dual_softmax")
"""Columns that are compared: those that need no reranker."""

SCHEMA_VERSION: Final = 1


@dataclass(frozen=True)
class ComparedRow:
    """One model, one column and one direction.

    Attributes:
        model: Its name.
        column: One of `COMPARED`.
        direction: "t2v" or "v2t".
        recall_1: R@1 in percent, with its interval.
        recall_5: R@5 in percent.
        recall_10: R@10 in percent.
        difference: R@1 less that of the first model in points, on the same queries; None for the first itself.
        temperature_origin: Where the temperature of dual-softmax came from; None of raw.
    """

    model: str
    column: str
    direction: str
    recall_1: Interval
    recall_5: float
    recall_10: float
    difference: Interval | None
    temperature_origin: str | None


@dataclass(frozen=True)
class Comparison:
    """Several models on one benchmark.

    Attributes:
        benchmark: What they were measured on.
        models: Their names, the first being what the others are compared with.
        rows: By column, direction and model.
        failures: Videos that could not be read and count against a model, by its name.
        seed: Of the bootstrap.
    """

    benchmark: BenchmarkFacts
    models: tuple[str, ...]
    rows: tuple[ComparedRow, ...]
    failures: dict[str, int]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {"kind": "vidembed_comparison", "schema_version": SCHEMA_VERSION, **asdict(self)}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Heads and cells for people; figures in percent, differences in points."""
        level = f"{100 * self.rows[0].recall_1.level:g} %"
        heads = ["ranking", "direction", "model", f"R@1 ({level})", "R@5", "R@10", f"R@1 less the first ({level})"]
        cells = []
        for row in self.rows:
            less = "" if row.difference is None else _signed(row.difference)
            recalls = [interval(row.recall_1), f"{row.recall_5:.1f}", f"{row.recall_10:.1f}"]
            cells.append([_column(row), row.direction.upper(), row.model, *recalls, less])
        return heads, cells


def compare(results: Sequence[EvaluationResult], *, seed: int = 0) -> Comparison:
    """Compare finished results on one benchmark by a paired bootstrap over its queries, grouped by video.

    Args:
        results: At least two; the others are compared with the first.
        seed: Of the bootstrap.

    Raises:
        ValueError: There are fewer than two, or they are not of the same videos and texts.
    """
    if len(results) < 2:
        raise ValueError(f"results: got {len(results)}, expected at least 2 to compare")
    first = results[0]
    names = _names(results)
    for name, one in zip(names, results, strict=True):
        if one.benchmark.digest != first.benchmark.digest:
            raise ValueError(
                f"results: {name} was measured on {one.benchmark.title} ({one.benchmark.videos} videos, "
                f"{one.benchmark.texts} texts) and {names[0]} on {first.benchmark.title} ({first.benchmark.videos} "
                f"videos, {first.benchmark.texts} texts), or on others of the same number; compare like with like"
            )
    rows = [
        _row(name, one, first, column, way, seed)
        for column in COMPARED
        for way in DIRECTIONS
        for name, one in zip(names, results, strict=True)
    ]
    failures = {name: len(one.failures) for name, one in zip(names, results, strict=True)}
    return Comparison(first.benchmark, tuple(names), tuple(rows), failures, seed)


def _row(name: str, one: EvaluationResult, first: EvaluationResult, column: str, way: str, seed: int) -> ComparedRow:
    found = one.column(column).of(way)
    key = f"{column}.{way}"
    arrays = [result.ranks.get(key) for result in (one, first)]
    if found is None or any(ranks is None for ranks in arrays):
        raise ValueError(f"results: {name} holds no ranks of {COLUMNS[column]}, {way}; evaluate again")
    difference = None
    if one is not first:
        mine, theirs = (np.asarray(ranks) == 1 for ranks in arrays)
        less = paired_bootstrap(mine, theirs, seed=seed, groups=first.ranks[f"groups.{way}"])
        difference = Interval(100 * less.estimate, 100 * less.low, 100 * less.high, less.level)
    origin = one.temperatures[f"first.{way}"].origin if column == "dual_softmax" else None
    return ComparedRow(
        model=name,
        column=column,
        direction=way,
        recall_1=found.recall_1,
        recall_5=found.recall_5.estimate,
        recall_10=found.recall_10.estimate,
        difference=difference,
        temperature_origin=origin,
    )


def _names(results: Sequence[EvaluationResult]) -> list[str]:
    """A name for each, all different."""
    names: list[str] = []
    for one in results:
        plain = str(one.model.get("name") or "unnamed")
        same = sum(name == plain or name.startswith(f"{plain} (") for name in names)
        names.append(plain if not same else f"{plain} ({same + 1})")
    return names


def _column(row: ComparedRow) -> str:
    name = COLUMNS[row.column]
    return name if row.temperature_origin in (None, "fitted") else f"{name} ({row.temperature_origin})"


def _signed(value: Interval) -> str:
    return f"{value.estimate:+.1f} ({value.low:+.1f} to {value.high:+.1f})"
