"""`vidembed evaluate`, `compare`, `mteb` and `reproduce`: models are measured."""

from __future__ import annotations

import gc
import json
import re
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from vidembed.backbone.options import ModelOptions, kwargs_of
from vidembed.cli import options as cli
from vidembed.text import write_atomically

if TYPE_CHECKING:
    from vidembed.evaluation.benchmark import Benchmark
    from vidembed.evaluation.mteb import TaskRun
    from vidembed.evaluation.result import EvaluationResult
    from vidembed.evaluation.two_stage import GivenTemperatures
    from vidembed.index.reranking import RerankerOptions

_CUTS = (1, 5, 10)


@dataclass(frozen=True, slots=True)
class BenchmarkOptions:
    """The options that say what to measure on, and on which captioned videos temperatures are fitted."""

    benchmark: str
    annotations: Path | None = None
    videos: Path | None = None
    split: Path | None = None
    validation: Path | None = None
    validation_videos: Path | None = None
    validation_format: str | None = None
    validation_split: Path | None = None
    allow_missing: bool = False
    check_counts: bool = True
    clips: int | None = None
    seed: int = 0

    def read(self, out: Path | None, stack: ExitStack) -> tuple[Benchmark, Benchmark | None]:
        """Read, or draw, the benchmark and the validation set; drawn clips without `out` go with `stack`."""
        from vidembed.evaluation import BENCHMARKS, read_benchmark
        from vidembed.evaluation.shapes import CLIPS, WORLDS, draw_world

        name = self.benchmark
        own = {"videos": self.videos, "split": self.split}
        if name in WORLDS:
            why = f"{name} generates its own videos, also for validation; leave it out"
            cli.refuse({"annotations": self.annotations, **own, "validation": self.validation}, why)
            if out is None:
                out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vidembed-")))
            clips = CLIPS if self.clips is None else self.clips
            return draw_world(name, out / "clips", clips=clips, seed=self.seed, show_progress_bar=True)
        if name not in BENCHMARKS:
            raise ValueError(f"benchmark: got {name!r}; expected one of {', '.join((*BENCHMARKS, *WORLDS))}")
        if self.clips is not None:
            raise ValueError(f"clips: {name} has its own videos; leave it out, it is only for {' and '.join(WORLDS)}")
        if self.validation is None and (self.validation_videos or self.validation_format or self.validation_split):
            raise ValueError(
                "validation: --validation-videos, --validation-format and --validation-split need --validation FILE"
            )
        if self.annotations is None:
            what = "its annotation file or the folder that contains it"
            raise ValueError(f"annotations: {name} needs --annotations, {what}")
        benchmark = read_benchmark(
            name, annotations=self.annotations, **own, allow_missing=self.allow_missing, check_counts=self.check_counts
        )
        if self.validation is None:
            return benchmark, None
        name, own = (
            self.validation_format or "custom",
            {"videos": self.validation_videos, "split": self.validation_split},
        )
        skip = self.allow_missing and name != "custom"
        # Another split than the published one has other counts.
        other = read_benchmark(name, annotations=self.validation, **own, allow_missing=skip, check_counts=False)
        return benchmark, other


def evaluate_command(
    *,
    model: Annotated[str, Option(help="Model: a folder, vidembed/NAME, or a name on the Hub.")],
    benchmark: Annotated[
        str,
        Option(
            help="msrvtt, msvd, vatex, didemo, activitynet or custom; or shapes or shapes-short, which generate their "
            "own videos."
        ),
    ],
    annotations: cli.Annotations = None,
    videos: cli.BenchmarkVideos = None,
    split: Annotated[
        Path | None, Option(help="File with the ids of the videos to use. Some annotation files need it.")
    ] = None,
    rerank: Annotated[int | None, Option(min=1, metavar="K", help="Rerank the first K hits of every query.")] = None,
    reranker: cli.Reranker = None,
    score: cli.ScoreMode = None,
    calibration: cli.Calibration = None,
    validation: Annotated[
        Path | None, Option(help="Other captioned videos to fit dual-softmax temperatures on: JSONL or CSV.")
    ] = None,
    validation_videos: cli.ValidationVideos = None,
    validation_format: Annotated[
        str | None, Option(help="Format of --validation: the name of a benchmark. Default: custom.")
    ] = None,
    validation_split: Annotated[Path | None, Option(help="As --split, for --validation.")] = None,
    temperature: Annotated[
        str | None,
        Option(help="Dual-softmax temperature of the first stage: a number, or T2V,V2T. Used instead of a fitted one."),
    ] = None,
    rerank_temperature: Annotated[
        str | None,
        Option(
            help="Dual-softmax temperature of the second stage: a number, or T2V,V2T. Used instead of a fitted one."
        ),
    ] = None,
    allow_missing: cli.AllowMissing = False,
    check_counts: cli.CheckCounts = True,
    on_error: cli.OnUnreadable = "raise",
    out: Annotated[
        Path | None,
        Option(
            help="Folder for result.json, report.md, report.html and a cache, from which an interrupted run continues."
        ),
    ] = None,
    clips: Annotated[int | None, Option(help="Videos to generate for shapes and shapes-short. Default: 200.")] = None,
    seed: cli.Seed = 0,
    layer: Annotated[int | None, Option(help="Decoder layer to read, for a video MLLM.")] = None,
    batch_size: cli.BatchSize = 32,
    model_options: ModelOptions | None = None,
    as_json: Annotated[bool, Option("--json", help="Write the result to stdout as JSON.")] = False,
) -> None:
    """Measure a model on a retrieval benchmark: raw, with dual-softmax, reranked, and with both."""
    given = locals()  # all options by their names
    if rerank is None:
        why = "it needs --rerank K; give the number of candidates to rerank, or leave this out"
        named = {"reranker": reranker, "score": score, "calibration": calibration}
        cli.refuse({**named, "rerank-temperature": rerank_temperature}, why)
    cli.check_folder(out)
    temperatures = temperatures_of(temperature, rerank_temperature)
    cli.check_score(score)
    asked = cli.fill(BenchmarkOptions, given)
    with ExitStack() as stack:
        measured_on, fitted_on = asked.read(out, stack)
        from vidembed.encoder import load_encoder
        from vidembed.evaluation.run import evaluate
        from vidembed.index.reranking import load_stages

        load = partial(load_encoder, model, layer=layer, options=model_options)
        head = None
        if rerank is None:
            encoder = load()
        else:
            same: RerankerOptions = {"mode": score, "calibration": calibration, "options": model_options}
            encoder, head = load_stages(load, reranker, model=model, layer=layer, **same)
        how = {name: given[name] for name in ("out", "on_error", "batch_size", "seed")} | {"validation": fitted_on}
        how |= {"reranker": head, "reranker_name": reranker or "", "k": rerank, "show_progress_bar": True}
        result = evaluate(measured_on, encoder, model_name=model, temperatures=temperatures, **how)
    if out is not None:
        cli.say(f"Wrote {out / 'result.json'}, {out / 'report.md'} and {out / 'report.html'}")
    if as_json:
        cli.print_json(result.to_dict())
    else:
        show(result)


def temperatures_of(first: str | None, second: str | None = None) -> GivenTemperatures:
    """Read the temperatures of both stages; raises ValueError unless each is one or two numbers above 0."""
    from vidembed.evaluation.two_stage import GivenTemperatures

    found: list[float | None] = []
    for name, text in (("temperature", first), ("rerank-temperature", second)):
        try:
            numbers = [None] if text is None else [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) not in (1, 2):
            raise ValueError(f"{name}: got {text!r}; expected a number such as 0.02, or two numbers, T2V,V2T")
        found += [numbers[0], numbers[-1]]
    return GivenTemperatures(*found)


def show(result: EvaluationResult) -> None:
    """Write the figures of a result to stdout as tables, and what else to know to stderr."""
    from vidembed.evaluation.report import HEADINGS, figure_columns, figure_rows, title_of
    from vidembed.evaluation.two_stage import DIRECTIONS

    for way in DIRECTIONS:
        rows = [list(row) for row in figure_rows(result, way)]
        cli.print_table(list(figure_columns(result)), rows, title=f"{title_of(result)}: {HEADINGS[way]}")
    for name, one in result.temperatures.items():
        cli.say(f"Temperature, {name.replace('.', ' stage, ')}: {one.value:.4g}, {one.origin}")
    if result.failures:
        cli.say(f"{len(result.failures)} videos could not be read and count as not found:")
        for failure in result.failures:
            cli.say(f"  {ascii(failure.video_id)[1:-1]}: {ascii(failure.reason)[1:-1]}")
    if result.benchmark.missing:
        cli.say(f"{len(result.benchmark.missing)} videos were left out, because their file is missing.")
    for name, tally in result.work.items():
        if tally["per_second"]:
            counts = f"{tally['computed']} computed, {tally['cached']} cached"
            cli.say(f"{tally['per_second']:.2f} {name} a second ({counts})")


def compare_command(
    *,
    items: Annotated[
        list[str],
        Argument(
            help="Models: folders, vidembed/NAME or names on the Hub; a video MLLM as NAME@LAYER. All are compared "
            "with the first. With --results: folders of finished runs."
        ),
    ],
    results: Annotated[
        bool, Option("--results", help="Compare finished runs of `vidembed evaluate --out`; no model is loaded.")
    ] = False,
    benchmark: Annotated[str | None, Option(help="As for `vidembed evaluate`.")] = None,
    annotations: cli.Annotations = None,
    videos: cli.BenchmarkVideos = None,
    split: Annotated[Path | None, Option(help="File with the ids of the videos to use.")] = None,
    validation: Annotated[
        Path | None, Option(help="Other captioned videos to fit temperatures on: JSONL or CSV.")
    ] = None,
    validation_videos: cli.ValidationVideos = None,
    temperature: Annotated[
        str | None, Option(help="Dual-softmax temperature: a number, or T2V,V2T. Used instead of a fitted one.")
    ] = None,
    allow_missing: cli.AllowMissing = False,
    check_counts: cli.CheckCounts = True,
    on_error: cli.OnUnreadable = "raise",
    out: Annotated[
        Path | None,
        Option(help="Folder for compare.json, and a folder per model from which an interrupted run continues."),
    ] = None,
    clips: Annotated[int | None, Option(help="Videos to generate for shapes and shapes-short.")] = None,
    seed: cli.Seed = 0,
    batch_size: cli.BatchSize = 32,
    model_options: ModelOptions | None = None,
    as_json: Annotated[bool, Option("--json", help="Write the comparison to stdout as JSON.")] = False,
) -> None:
    """Compare models on one benchmark, raw and with dual-softmax: recall, and paired difference to the first model."""
    given = locals()  # all options by their names
    if len(items) < 2:
        raise ValueError(f"compare: got {len(items)} of {'runs' if results else 'models'}; give at least 2")
    cli.check_folder(out)
    if results == (benchmark is not None):
        with_results = "it cannot be used with --results; leave one of them out"
        without = "give --benchmark, or --results to compare finished runs"
        raise ValueError(f"benchmark: {with_results if results else without}")
    from vidembed.evaluation.embedder import ModelName, load_any
    from vidembed.evaluation.report import compare
    from vidembed.evaluation.result import EvaluationResult
    from vidembed.evaluation.run import evaluate

    if benchmark is None:
        found = [EvaluationResult.load(Path(item)) for item in items]
    else:
        names = [ModelName.parse(item) for item in items]
        asked = cli.fill(BenchmarkOptions, given)
        with ExitStack() as stack:
            measured_on, fitted_on = asked.read(out, stack)
            how = {name: given[name] for name in ("on_error", "batch_size", "seed")}
            how |= {"validation": fitted_on, "temperatures": temperatures_of(temperature)}
            for name in names:
                load_any(name, model_options)  # all of them, before the first one is run
                gc.collect()  # two models do not fit everywhere
            found = []
            for number, name in enumerate(names, start=1):
                cli.say(f"{number} of {len(names)}: {name}")
                slug = re.sub(r"[^A-Za-z0-9._-]+", "-", str(name))[-80:].strip(".-") or "model"
                how["out"] = None if out is None else out / f"{number}-{slug}"
                encoder = load_any(name, model_options)
                found.append(evaluate(measured_on, encoder, model_name=str(name), show_progress_bar=True, **how))
                del encoder
                gc.collect()
    comparison = compare(found, seed=seed)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / "compare.json", json.dumps(comparison.to_dict(), indent=1, allow_nan=False) + "\n")
        cli.say(f"Wrote {out / 'compare.json'}")
    if as_json:
        cli.print_json(comparison.to_dict())
        return
    columns, rows = comparison.table()
    cli.print_table(columns, rows, title=f"{comparison.benchmark.title}, {comparison.benchmark.split}")
    for model, count in comparison.failures.items():
        if count:
            cli.say(f"{model}: {count} videos could not be read and count as not found.")


def mteb_command(
    *,
    model: Annotated[str, Option(help="Checkpoint: a folder, vidembed/NAME, or a name on the Hub.")],
    tasks: Annotated[str, Option(help="Tasks of mteb, separated by commas, such as MSRVTTT2V,MSRVTTV2T.")] = "",
    benchmark: Annotated[
        str | None, Option(help="Run all tasks of a benchmark of mteb, such as 'MVEB(text, video, v1)'.")
    ] = None,
    out: Annotated[Path, Option(help="Folder for the results; mteb writes to results/MODEL/REVISION in it.")] = Path(),
    model_options: ModelOptions | None = None,
    batch_size: cli.BatchSize = 32,
    frames: Annotated[
        Literal["file", "mteb"],
        Option(help="file: vidembed samples frames, as elsewhere. mteb: mteb samples frames, with torchcodec."),
    ] = "file",
    as_json: Annotated[bool, Option("--json", help="Write mteb's results to stdout as JSON.")] = False,
) -> None:
    """Run tasks of mteb (extra: mteb). Data come from the Hugging Face Hub. Existing results are kept."""
    cli.check_folder(out)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names and benchmark is None:
        raise ValueError("tasks: give --tasks NAME,NAME or --benchmark NAME")
    from vidembed.backbone.load import check_device
    from vidembed.evaluation.mteb import run_tasks

    kwargs = kwargs_of(model_options)
    check_device(kwargs.get("device"))
    runs = run_tasks(model, names, benchmark=benchmark, out=out, batch_size=batch_size, frames=frames, **kwargs)
    for run in runs:
        cli.say(f"{'Kept' if run.kept else 'Wrote'} {run.file}")
    if as_json:
        cli.print_json([json.loads(run.file.read_text(encoding="utf-8")) for run in runs])
        return
    cli.print_table(
        ["task", "main score", "value", *(f"R@{k}" for k in _CUTS)],
        [[run.name, run.metric, f"{run.score:.4f}", *_recalls(run)] for run in runs],
    )


def _recalls(run: TaskRun) -> list[str]:
    """Hit rates of mteb, which are what papers on video retrieval call R@k; of a task with one split and subset."""
    entries = [entry for split in run.result.scores.values() for entry in split]
    found = [entries[0].get(f"hit_rate_at_{k}") if len(entries) == 1 else None for k in _CUTS]
    return ["" if value is None else f"{100 * value:.1f}" for value in found]


def reproduce_command(
    *,
    what: Annotated[  # noqa: ARG001 - the only one there is
        Literal["shapes"], Argument(help="shapes: the bundled model on generated held-out clips.")
    ],
    clips: Annotated[int, Option(help="Clips to measure on.", min=4)] = 200,
    layer_clips: Annotated[int, Option(help="Other clips to choose the layer on.", min=8)] = 800,
    fit_clips: Annotated[
        int, Option(help="How many of --layer-clips fit the calibration and the temperatures.", min=4)
    ] = 100,
    seed: Annotated[int, Option(help="Random seed of the clips.", min=0)] = 0,
    out: Annotated[Path | None, Option(help="Folder for the figures as JSON, Markdown and plots.")] = None,
    device: cli.Device = None,
    as_json: Annotated[bool, Option("--json", help="Write the figures to stdout as JSON.")] = False,
) -> None:
    """Measure the whole method: layers, reranking, text-only alignment, captions. It trains nothing."""
    cli.check_folder(out)
    from vidembed.backbone.load import check_device
    from vidembed.text import require

    check_device(device)
    if out is not None:
        require("plot", "matplotlib", purpose="out")
    import torch

    from vidembed.reproduce import as_text, measure, measure_captions, write

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    result, analysis = measure(clips=clips, layer_clips=layer_clips, fit_clips=fit_clips, seed=seed, device=device)
    layer = result["layer"]
    result["captions"] = measure_captions(layer=layer, clips=clips, fit_clips=fit_clips, seed=seed, device=device)
    if out is not None:
        for file in write(result, analysis, out):
            cli.say(f"Wrote {file}")
    if as_json:
        cli.print_json(result)
    else:
        typer.echo(as_text(result))
