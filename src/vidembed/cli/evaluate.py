"""`vidembed evaluate`."""

from __future__ import annotations

import gc
import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vidembed.cli.options import (
    AllowMissing,
    Annotations,
    BatchSize,
    BenchmarkVideos,
    Calibration,
    CheckCounts,
    Device,
    Dtype,
    OnUnreadable,
    Reranker,
    ScoreMode,
    Seed,
    ValidationVideos,
    print_json,
    print_table,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vidembed.evaluation.benchmark import Benchmark
    from vidembed.evaluation.embedder import ModelName
    from vidembed.evaluation.mteb import TaskRun
    from vidembed.evaluation.result import EvaluationResult
    from vidembed.evaluation.two_stage import GivenTemperatures


# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick


def evaluate_command(
    *,
    model: Annotated[
        str, typer.Option(help="Model: a folder, vidembed/NAME, or a name on the Hub.", show_default=False)
    ],
    benchmark: Annotated[
        str,
        typer.Option(
            help="msrvtt, msvd, vatex, didemo, activitynet or custom; or shapes or shapes-short, which draw their own "
            "videos.",
            show_default=False,
        ),
    ],
    annotations: Annotations = None,
    videos: BenchmarkVideos = None,
    split: Annotated[Path | None, typer.Option(help="List of video ids: only these. Needed for some files.")] = None,
    rerank: Annotated[
        int | None, typer.Option(min=1, help="Ask a model's head about the first so many hits of every query.")
    ] = None,
    reranker: Reranker = None,
    score: ScoreMode = None,
    calibration: Calibration = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="Other captioned videos, on which dual-softmax temperatures are fitted: JSONL or CSV."),
    ] = None,
    validation_videos: ValidationVideos = None,
    validation_format: Annotated[
        str | None, typer.Option(help="Read --validation as this benchmark's file. Default: custom.")
    ] = None,
    validation_split: Annotated[Path | None, typer.Option(help="As --split, for --validation-format.")] = None,
    temperature: Annotated[
        str | None, typer.Option(help="Of the first stage: a number, or two, T2V,V2T. Goes before a fitted one.")
    ] = None,
    rerank_temperature: Annotated[
        str | None, typer.Option(help="Of the second stage: a number, or two, T2V,V2T. Goes before a fitted one.")
    ] = None,
    allow_missing: AllowMissing = False,
    check_counts: CheckCounts = True,
    on_error: OnUnreadable = "raise",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for result.json, report.md, report.html and the cache that a run goes on from."),
    ] = None,
    clips: Annotated[
        int | None, typer.Option(help="Videos to draw for shapes and shapes-short. Default: 200.", show_default=False)
    ] = None,
    seed: Seed = 0,
    layer: Annotated[int | None, typer.Option(help="Decoder layer to read, for a video MLLM.")] = None,
    batch_size: BatchSize = 32,
    device: Device = None,
    dtype: Dtype = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the result to stdout as JSON.")] = False,
) -> None:
    """Measure a model on a retrieval benchmark: raw, with dual-softmax, reranked, and both; run again, it goes on."""
    for_rerank = {
        "reranker": reranker,
        "score": score,
        "calibration": calibration,
        "rerank-temperature": rerank_temperature,
    }
    if rerank is None and (given := next((name for name, value in for_rerank.items() if value is not None), None)):
        raise ValueError(f"{given}: it is for --rerank K; give the number of candidates to look at")
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"out: {str(out)!r} is a file; name a folder")
    temperatures = temperatures_of(temperature, rerank_temperature)
    if score is not None:
        from vidembed.yes_no import check_mode

        check_mode(score)
    with ExitStack() as stack:
        measured_on, known = benchmarks_of(
            benchmark,
            stack,
            annotations=annotations,
            videos=videos,
            split=split,
            validation=validation,
            validation_videos=validation_videos,
            validation_format=validation_format,
            validation_split=validation_split,
            allow_missing=allow_missing,
            check_counts=check_counts,
            clips=clips,
            seed=seed,
            out=out,
        )
        from vidembed.evaluation.embedder import ModelName, load_encoder
        from vidembed.evaluation.run import evaluate

        encoder = load_encoder(ModelName(model, layer), device=device, dtype=dtype)
        head = None
        if rerank is not None:
            from vidembed.index.meta import load_reranker

            head = load_reranker(reranker, encoder, model=model, mode=score, calibration=calibration, device=device)
            if dtype is not None and encoder.backbone is None:
                head.to(encoder.dtype)
        result = evaluate(
            measured_on,
            encoder,
            reranker=head,
            k=rerank,
            validation=known,
            temperatures=temperatures,
            out=out,
            model_name=model,
            reranker_name=reranker or "",
            on_error=on_error,
            batch_size=batch_size,
            seed=seed,
            show_progress_bar=True,
        )
    if out is not None:
        say(f"Wrote {out / 'result.json'}, {out / 'report.md'} and {out / 'report.html'}")
    if as_json:
        print_json(result.to_dict())
    else:
        show(result)


def temperatures_of(first: str | None, second: str | None) -> GivenTemperatures:
    """Read the temperatures of both stages.

    Raises:
        ValueError: They are not one or two numbers above 0.
    """
    from vidembed.evaluation.two_stage import GivenTemperatures

    t2v, v2t = _pair("temperature", first)
    second_t2v, second_v2t = _pair("rerank-temperature", second)
    return GivenTemperatures(t2v, v2t, second_t2v, second_v2t)


def _pair(name: str, text: str | None) -> tuple[float | None, float | None]:
    if text is None:
        return None, None
    parts = text.split(",")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ValueError(f"{name}: got {text!r}; expected a number such as 0.02, or two, T2V,V2T")
    return numbers[0], numbers[-1]


def benchmarks_of(
    name: str,
    stack: ExitStack,
    *,
    annotations: Path | None,
    videos: Path | None,
    split: Path | None,
    validation: Path | None,
    validation_videos: Path | None,
    validation_format: str | None,
    validation_split: Path | None,
    allow_missing: bool,
    check_counts: bool,
    clips: int | None,
    seed: int,
    out: Path | None,
) -> tuple[Benchmark, Benchmark | None]:
    """Read, or draw, the benchmark and the validation set; drawn clips without `out` go with `stack`.

    Raises:
        ValueError: An option does not go with the benchmark, or as `read_benchmark` and `draw_world`.
    """
    from vidembed.evaluation import BENCHMARKS, read_benchmark
    from vidembed.evaluation.shapes import CLIPS, WORLDS, draw_world

    files: dict[str, Any] = {"annotations": annotations, "videos": videos, "split": split, "validation": validation}
    if name in WORLDS:
        if given := next((option for option, value in files.items() if value is not None), None):
            raise ValueError(f"{given}: {name} draws its own videos, and others for validation; leave it out")
        folder = Path(stack.enter_context(_scratch())) if out is None else out / "clips"
        return draw_world(name, folder, clips=CLIPS if clips is None else clips, seed=seed, show_progress_bar=True)
    if name not in BENCHMARKS:
        raise ValueError(f"benchmark: got {name!r}; expected one of {', '.join((*BENCHMARKS, *WORLDS))}")
    if clips is not None:
        raise ValueError(f"clips: {name} has its own videos; it is for {' and '.join(WORLDS)}")
    if validation is None and (validation_videos or validation_format or validation_split):
        raise ValueError("validation: give --validation FILE together with --validation-videos and the like")
    if annotations is None:
        raise ValueError(f"annotations: {name} needs --annotations, its annotation file or the folder that holds it")
    measured_on = read_benchmark(
        name,
        annotations=annotations,
        videos=videos,
        split=split,
        allow_missing=allow_missing,
        check_counts=check_counts,
    )
    known = None
    if validation is not None:
        known = read_benchmark(
            validation_format or "custom",
            annotations=validation,
            videos=validation_videos,
            split=validation_split,
            allow_missing=allow_missing and validation_format not in (None, "custom"),
            check_counts=False,  # it is another split than the published one
        )
    return measured_on, known


def _scratch() -> Any:
    import tempfile

    return tempfile.TemporaryDirectory(prefix="vidembed-")


def show(result: EvaluationResult) -> None:
    """Write the figures of a result to stdout as tables, and what else to know to stderr."""
    from vidembed.evaluation.report import HEADINGS, figure_columns, figure_rows, title_of
    from vidembed.evaluation.two_stage import DIRECTIONS

    for way in DIRECTIONS:
        rows = [list(row) for row in figure_rows(result, way)]
        print_table(list(figure_columns(result)), rows, title=f"{title_of(result)}: {HEADINGS[way]}")
    for name, one in result.temperatures.items():
        say(f"Temperature, {name.replace('.', ' stage, ')}: {one.value:.4g}, {one.origin}")
    if result.failures:
        say(f"{len(result.failures)} videos could not be read and count against the model:")
        for failure in result.failures:
            say(f"  {ascii(failure.video_id)[1:-1]}: {ascii(failure.reason)[1:-1]}")
    if result.benchmark.missing:
        say(f"{len(result.benchmark.missing)} videos without a file were left out.")
    for name, tally in result.work.items():
        if tally["per_second"]:
            say(f"{tally['per_second']:.2f} {name} a second ({tally['computed']} computed, {tally['cached']} cached)")


# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick


_CUTS = (1, 5, 10)


def mteb_command(
    *,
    model: Annotated[
        str, typer.Option(help="Checkpoint: a folder, vidembed/NAME, or a name on the Hub.", show_default=False)
    ],
    tasks: Annotated[str, typer.Option(help="Names of mteb's tasks, with commas between: MSRVTTT2V,MSRVTTV2T.")] = "",
    benchmark: Annotated[
        str | None, typer.Option(help="All tasks of a benchmark of mteb, such as 'MVEB(text, video, v1)'.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results; mteb makes results/MODEL/REVISION in it.")] = Path(),
    device: Device = None,
    batch_size: BatchSize = 32,
    frames: Annotated[
        Literal["file", "mteb"],
        typer.Option(help="file: frames as everywhere in vidembed. mteb: frames that mteb samples, with torchcodec."),
    ] = "file",
    as_json: Annotated[bool, typer.Option("--json", help="Write mteb's results to stdout as JSON.")] = False,
) -> None:
    """Run tasks of mteb (extra: mteb). Their data come from the Hugging Face Hub; results there already are kept."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"out: {str(out)!r} is a file; name a folder")
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names and benchmark is None:
        raise ValueError("tasks: give --tasks NAME,NAME or --benchmark NAME")
    from vidembed.backbone.load import check_device
    from vidembed.evaluation.mteb import run_tasks

    check_device(device)
    runs = run_tasks(model, names, benchmark=benchmark, out=out, device=device, batch_size=batch_size, frames=frames)
    for run in runs:
        say(f"{'Kept' if run.kept else 'Wrote'} {run.file}")
    if as_json:
        print_json([json.loads(run.file.read_text(encoding="utf-8")) for run in runs])
        return
    print_table(
        ["task", "main score", "value", *(f"R@{k}" for k in _CUTS)],
        [[run.name, run.metric, f"{run.score:.4f}", *_recalls(run)] for run in runs],
    )


def _recalls(run: TaskRun) -> list[str]:
    """Hit rates of mteb, which are what papers on video retrieval call R@k; of a task with one split and subset."""
    entries = [entry for split in run.result.scores.values() for entry in split]
    found = [entries[0].get(f"hit_rate_at_{k}") if len(entries) == 1 else None for k in _CUTS]
    return ["" if value is None else f"{100 * value:.1f}" for value in found]


# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick


def reproduce_command(
    *,
    what: Annotated[  # noqa: ARG001 - the only one there is
        Literal["shapes"], typer.Argument(help="shapes: the bundled model on held-out clips that it draws itself.")
    ],
    clips: Annotated[int, typer.Option(help="Clips that the table is about.", min=4)] = 200,
    layer_clips: Annotated[int, typer.Option(help="Other clips, to choose the layer on.", min=8)] = 800,
    fit_clips: Annotated[int, typer.Option(help="How many of those fit everything else.", min=4)] = 100,
    seed: Annotated[int, typer.Option(help="Of the clips.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the figures as JSON, Markdown and plots.")] = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the figures to stdout as JSON.")] = False,
) -> None:
    """Measure the method from end to end: layers, reranking, text-only alignment and both. Trains nothing."""
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"out: {str(out)!r} is a file; name a folder")
    from vidembed.backbone.load import check_device
    from vidembed.errors import MissingExtraError
    from vidembed.plots import can_plot

    check_device(device)
    if out is not None and not can_plot():
        raise MissingExtraError('out: matplotlib is not installed; pip install "vidembed[plot]"')
    import torch

    from vidembed.evaluation import reproduce

    result, curves = reproduce.measure(
        clips=clips,
        layer_clips=layer_clips,
        fit_clips=fit_clips,
        seed=seed,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )
    if out is not None:
        for file in reproduce.write(result, curves, out):
            say(f"Wrote {file}")
    if as_json:
        print_json(result)
    else:
        typer.echo(reproduce.as_text(result))


# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick


def compare_command(
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
    from vidembed.evaluation.report import compare

    if results or benchmark is None:
        from vidembed.evaluation.result import EvaluationResult

        found = [EvaluationResult.load(Path(item)) for item in items]
    else:
        from vidembed.evaluation.embedder import ModelName

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

        from vidembed.text import write_atomically

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
    from vidembed.evaluation.embedder import load_any
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
