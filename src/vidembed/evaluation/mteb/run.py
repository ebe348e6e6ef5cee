"""Runs of mteb's tasks."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mteb
from mteb.abstasks import AbsTask
from mteb.models import ModelMeta
from mteb.results import TaskResult

from vidembed.evaluation.mteb.encoder import Frames, load_encoder
from vidembed.index.errors import MissingExtraError


class TaskDataError(OSError):
    """The data of a task could not be loaded."""


@dataclass(frozen=True)
class TaskRun:
    """What came of one task.

    Attributes:
        name: Of the task.
        metric: Its main score, as mteb names it, such as "ndcg_at_10".
        score: The value, the mean over splits and subsets, as mteb has it.
        result: Everything that mteb measured.
        file: Where mteb wrote it.
        kept: Whether it was there already, and the task was not run again.
    """

    name: str
    metric: str
    score: float
    result: TaskResult
    file: Path
    kept: bool


def run_tasks(
    model: str | Path,
    tasks: Sequence[str | AbsTask] = (),
    *,
    benchmark: str | None = None,
    out: str | Path,
    device: str | None = None,
    batch_size: int = 32,
    frames: Frames = "file",
    show_progress_bar: bool = True,
) -> list[TaskRun]:
    """Run tasks of mteb one by one. Results are files as mteb writes them; those there already are not run again.

    Args:
        model: A vidembed checkpoint, as `VideoEncoder` takes it.
        tasks: Names of tasks, such as "MSRVTTT2V", or tasks.
        benchmark: Also all tasks of this benchmark of mteb, such as "MVEB(text, video, v1)".
        out: Folder; mteb writes ``results/MODEL/REVISION/TASK.json`` in it. A folder of a checkpoint is filed under
            ``local__NAME``, and its revision is its fingerprint.
        device: Torch device.
        batch_size: Inputs embedded at once.
        frames: As `load_encoder` takes.
        show_progress_bar: Whether to show bars.

    Raises:
        ValueError: A task is unknown, or takes what the model does not.
        TaskDataError: The data of a task could not be loaded, offline for example.
        VideoError: A video of a task could not be decoded.
        MissingExtraError: `frames` is "mteb", and torchcodec is not installed.
        OSError: There is no such model, or `out` cannot be written.
    """
    if frames == "mteb" and importlib.util.find_spec("torchcodec") is None:
        raise MissingExtraError('torchcodec is not installed, by which mteb reads videos; pip install "mteb[video]"')
    chosen = _chosen(tasks, benchmark)
    cache = mteb.ResultCache(out)
    is_folder = Path(model).is_dir()
    wrapper = load_encoder(
        f"local/{Path(model).resolve().name}" if is_folder else str(model),
        device=device,
        checkpoint=str(model) if is_folder else None,
        frames=frames,
    )
    meta = wrapper.mteb_model_meta
    for task in chosen:
        _check_takes(meta, task)  # all of them, before the first one is run
    runs = []
    for task in chosen:
        name = task.metadata.name
        saved = cache.load_task_result(name, meta)
        kept = saved is not None and not saved.get_missing_evaluations(task)
        if not kept:
            _load(task)
        done = mteb.evaluate(
            wrapper,
            task,
            cache=cache,
            co2_tracker=False,
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": show_progress_bar},
            show_progress_bar=show_progress_bar,
        )
        task.unload_data()
        (result,) = done.task_results
        file = cache.get_task_result_path(name, meta)
        runs.append(TaskRun(name, task.metadata.main_score, float(result.get_score()), result, file, kept))
    return runs


def _chosen(tasks: Sequence[str | AbsTask], benchmark: str | None) -> list[AbsTask]:
    if isinstance(tasks, str):
        raise TypeError(f"tasks={tasks!r}: expected a list of tasks, such as [{tasks!r}]")
    try:
        chosen = [mteb.get_task(task) if isinstance(task, str) else task for task in tasks]
    except KeyError as error:
        raise ValueError(f"tasks: {_said(error)} `mteb available-tasks` lists them.") from error
    try:
        chosen += mteb.get_benchmark(benchmark).tasks if benchmark is not None else []
    except KeyError as error:
        raise ValueError(f"benchmark: {_said(error)} `mteb available-benchmarks` lists them.") from error
    if not chosen:
        raise ValueError("tasks: none given; give names of mteb's tasks, such as MSRVTTT2V, or a benchmark")
    return list({task.metadata.name: task for task in chosen}.values())


def _said(error: KeyError) -> str:
    return str(error.args[0]).removeprefix("KeyError: ")


def _check_takes(meta: ModelMeta, task: AbsTask) -> None:
    """Refuse a task of which a part would be left out; mteb itself only warns where both sides keep something."""
    if missing := sorted(set(task.metadata.modalities) - set(meta.modalities)):
        raise ValueError(
            f"tasks: {task.metadata.name} is of {', '.join(task.metadata.modalities)}, and the model takes no "
            f"{' and no '.join(missing)}"
        )


def _load(task: AbsTask) -> None:
    try:
        task.load_data()
    except (OSError, ImportError) as error:
        raise TaskDataError(
            f"{task.metadata.name}: its data, {task.metadata.dataset['path']}, could not be loaded: {error}. mteb "
            "takes them from the Hugging Face Hub; fetch them once with the network, and later runs go without it."
        ) from error
