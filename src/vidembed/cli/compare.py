"""`vidembed compare`."""

# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick

from __future__ import annotations

import gc
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vidembed.cli.console import print_json, print_table, say
from vidembed.cli.evaluate import benchmarks_of, temperatures_of
from vidembed.cli.options import (
    AllowMissing,
    Annotations,
    BatchSize,
    BenchmarkVideos,
    CheckCounts,
    Device,
    Dtype,
    OnUnreadable,
    Seed,
    ValidationVideos,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vidembed.evaluation.benchmark import Benchmark
    from vidembed.evaluation.loading import ModelName
    from vidembed.evaluation.result import EvaluationResult
    from vidembed.evaluation.temperatures import GivenTemperatures


def command(
    *,
    items: Annotated[
        list[str],
        typer.Argument(
            help="Models, the first being what the others are compared with: folders, vidembed/NAME or names on the "
            "Hub; a video MLLM as NAME@LAYER. With --results: folders of finished runs.",
            show_default=False,
        ),
    ],
    results: Annotated[
        bool, typer.Option("--results", help="Compare finished runs of `vidembed evaluate --out`; no model is loaded.")
    ] = False,
    benchmark: Annotated[str | None, typer.Option(help="As for `vidembed evaluate`.")] = None,
    annotations: Annotations = None,
    videos: BenchmarkVideos = None,
    split: Annotated[Path | None, typer.Option(help="List of video ids: only these.")] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Other captioned videos, on which temperatures are fitted: JSONL or CSV.")
    ] = None,
    validation_videos: ValidationVideos = None,
    temperature: Annotated[
        str | None, typer.Option(help="Of dual-softmax: a number, or two, T2V,V2T. Goes before a fitted one.")
    ] = None,
    allow_missing: AllowMissing = False,
    check_counts: CheckCounts = True,
    on_error: OnUnreadable = "raise",
    out: Annotated[
        Path | None, typer.Option(help="Folder for compare.json and one folder a model, from which a run goes on.")
    ] = None,
    clips: Annotated[int | None, typer.Option(help="Videos to draw for shapes and shapes-short.")] = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the comparison to stdout as JSON.")] = False,
) -> None:
    """Compare models on one benchmark, raw and with dual-softmax: recalls, and paired differences to the first."""
    if len(items) < 2:
        raise ValueError(f"compare: got {len(items)} of {'runs' if results else 'models'}; give at least 2")
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"out: {str(out)!r} is a file; name a folder")
    if results and benchmark is not None:
        raise ValueError("benchmark: finished runs have theirs; leave --benchmark or --results out")
    if not results and benchmark is None:
        raise ValueError("benchmark: give --benchmark, or --results to compare finished runs")
    from vidembed.evaluation.compare import compare

    if results or benchmark is None:
        from vidembed.evaluation.result import EvaluationResult

        found = [EvaluationResult.load(Path(item)) for item in items]
    else:
        from vidembed.evaluation.loading import ModelName

        names = [ModelName.parse(item) for item in items]
        with ExitStack() as stack:
            measured_on, known = benchmarks_of(
                benchmark,
                stack,
                annotations=annotations,
                videos=videos,
                split=split,
                validation=validation,
                validation_videos=validation_videos,
                validation_format=None,
                validation_split=None,
                allow_missing=allow_missing,
                check_counts=check_counts,
                clips=clips,
                seed=seed,
                out=out,
            )
            given = temperatures_of(temperature, None)
            found = _evaluated(
                names,
                measured_on,
                known,
                given,
                out,
                device,
                dtype,
                on_error=on_error,
                batch_size=batch_size,
                seed=seed,
            )
    comparison = compare(found, seed=seed)
    if out is not None:
        import json

        from vidembed.atomic import write_atomically

        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "compare.json", json.dumps(comparison.to_dict(), indent=1, allow_nan=False) + "\n")
        say(f"Wrote {out / 'compare.json'}")
    if as_json:
        print_json(comparison.to_dict())
    else:
        columns, rows = comparison.table()
        print_table(columns, rows, title=f"{comparison.benchmark.title}, {comparison.benchmark.split}")
        for model, count in comparison.failures.items():
            if count:
                say(f"{model}: {count} videos could not be read and count against it.")


def _evaluated(
    names: Sequence[ModelName],
    benchmark: Benchmark,
    validation: Benchmark | None,
    temperatures: GivenTemperatures,
    out: Path | None,
    device: str | None,
    dtype: str | None,
    *,
    on_error: Literal["raise", "count"],
    batch_size: int,
    seed: int,
) -> list[EvaluationResult]:
    from vidembed.evaluation.loading import load_any
    from vidembed.evaluation.run import evaluate

    for name in names:
        load_any(name, device=device, dtype=dtype)  # all of them, before the first one is run
        gc.collect()  # two models do not fit everywhere
    found = []
    for number, name in enumerate(names, start=1):
        say(f"{number} of {len(names)}: {name}")
        folder = None if out is None else out / f"{number}-{_slug(str(name))}"
        found.append(
            evaluate(
                benchmark,
                load_any(name, device=device, dtype=dtype),
                validation=validation,
                temperatures=temperatures,
                out=folder,
                model_name=str(name),
                on_error=on_error,
                batch_size=batch_size,
                seed=seed,
                show_progress_bar=True,
            )
        )
        gc.collect()
    return found


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[-80:].strip(".-") or "model"
