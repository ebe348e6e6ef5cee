"""`vidembed evaluate`."""

# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vidembed.cli.console import print_json, print_table, say
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
)

if TYPE_CHECKING:
    from vidembed.evaluation.benchmark import Benchmark
    from vidembed.evaluation.result import EvaluationResult
    from vidembed.evaluation.temperatures import GivenTemperatures


def command(
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
        from vidembed.reranking.answers import check_mode

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
        from vidembed.evaluation.loading import ModelName, load_encoder
        from vidembed.evaluation.run import evaluate

        encoder = load_encoder(ModelName(model, layer), device=device, dtype=dtype)
        head = None
        if rerank is not None:
            from vidembed.index.model import load_reranker

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
    from vidembed.evaluation.temperatures import GivenTemperatures

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
    from vidembed.evaluation.world import CLIPS, WORLDS, draw_world

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
    from vidembed.evaluation.columns import DIRECTIONS
    from vidembed.evaluation.report import HEADINGS, figure_columns, figure_rows, title_of

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
