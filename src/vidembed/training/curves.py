"""The log of a run, one JSON object a line, and its loss and recall curves."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

_KEPT = ("loss", "grad_norm", "learning_rate", "false_negatives")


class LogFile(TrainerCallback):
    """Writes what the trainer logs to a file of JSON lines, and shows a bar on stderr.

    Lines of training hold ``step``, ``loss``, ``grad_norm``, ``learning_rate`` and ``false_negatives``; lines of
    evaluation hold ``step`` and every metric, named ``eval_...``.

    Args:
        path: The file. Lines after the step that a run begins at are removed then: they are made again.
        progress: Whether to show the bar.
    """

    def __init__(self, path: str | Path, *, progress: bool = False) -> None:
        self.path = Path(path)
        self.progress = progress
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:  # noqa: ARG002
        """Drop lines of steps that are yet to come."""
        kept = [entry for entry in read_log(self.path) if entry["step"] <= state.global_step and state.global_step]
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, unit="step", desc="aligning", disable=not self.progress
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_kwargs: Any) -> None:  # noqa: ARG002
        """Write a line."""
        values = {key: value for key, value in (logs or {}).items() if key in _KEPT or _is_metric(key)}
        if values:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **values}) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:  # noqa: ARG002
        """Move the bar."""
        self._bar.update()

    def on_train_end(self, args: Any, state: Any, control: Any, **_kwargs: Any) -> None:  # noqa: ARG002
        """Close the bar."""
        self._bar.close()


def _is_metric(key: str) -> bool:
    return key.startswith("eval_") and not key.endswith(("_runtime", "_per_second"))


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Read a log back; nothing for a file that is not there. A last line cut off by a crash is left out."""
    path = Path(path)
    entries: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def plot_curves(log: str | Path, path: str | Path) -> None:
    """Draw the loss above the recalls at 1.

    Args:
        log: The log of a run.
        path: File to write; its suffix is the format: .png, .svg or .pdf.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: The suffix is another.
    """
    path = Path(path)
    if path.suffix.lower() not in {".png", ".svg", ".pdf"}:
        raise ValueError(f"path={str(path)!r}: expected a name that ends in .png, .svg or .pdf")
    try:  # a figure without pyplot, which would choose a window system for the whole process
        module: Any = importlib.import_module("matplotlib.figure")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'plot_curves draws with matplotlib, which is not installed; pip install "vidembed[plot]"'
        ) from error
    figure = module.Figure(figsize=(6, 6), layout="constrained")
    loss_axes, recall_axes = figure.subplots(2, 1, sharex=True)
    entries = read_log(log)
    losses = [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]
    loss_axes.plot([step for step, _ in losses], [loss for _, loss in losses], color="tab:red")
    loss_axes.set(ylabel="loss", ylim=(0, None))
    metrics = sorted({key for entry in entries for key in entry if key.startswith("eval_") and key.endswith("R@1")})
    for metric in metrics:
        points = [(entry["step"], entry[metric]) for entry in entries if metric in entry]
        label = metric.removeprefix("eval_").removesuffix("_R@1").replace("_", " ")
        recall_axes.plot([step for step, _ in points], [value for _, value in points], marker="o", label=label)
    recall_axes.set(xlabel="step", ylabel="R@1, %", ylim=(0, 100))
    if metrics:
        recall_axes.legend(frameon=False)
    figure.savefig(path)
