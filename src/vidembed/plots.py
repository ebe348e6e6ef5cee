"""Figures (extra: plot): Recall@1 by layer of one or several models, and the curves of a training run."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vidembed.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vidembed.analysis.result import LayerAnalysis, PromptAnalysis

FORMATS = (".png", ".svg", ".pdf")
_LINES = ("-", "--", ":", "-.")  # one a prompt and kind of query
Axis = Literal["auto", "block", "depth"]


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def check_plot(path: str | Path, *, function: str = "plot_layers") -> Path:
    """Find out before the work is done whether `function` could write a figure to `path`."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"path={str(path)!r}: expected a name that ends in .png, .svg or .pdf")
    if not can_plot():
        draws = f"{function} draws with matplotlib, which is not installed"
        raise MissingExtraError(f'{draws}; pip install "vidembed[plot]"')
    return path


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches; without pyplot, which would choose a window system for the whole process."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - of an extra

    return Figure(figsize=(width, height), layout="constrained")


def plot_layers(analyses: Sequence[LayerAnalysis], path: str | Path, *, x: Axis = "auto") -> None:
    """Draw Recall@1 on the reporting half by layer, text to video beside video to text (extra ``plot``).

    A line is a model with a prompt and a kind of query; the band is its interval, the star its chosen layer, and the
    square, apart from the line, layer -1: the last block with its trained final norm. Dual-softmax is not drawn.

    Args:
        analyses: One or more, in the order of the legend.
        path: File to write; its suffix is the format: .png, .svg or .pdf.
        x: "block" for the number of the block, "depth" for its share of the model's blocks, "auto" for the number
            where all models have the same depth.

    Raises:
        ValueError: There are no analyses, or `path` or `x` is none of those allowed.
        MissingExtraError: matplotlib is not installed.
    """
    path = check_plot(path)
    if not analyses:
        raise ValueError("analyses: expected at least one, got none.")
    if x not in ("auto", "block", "depth"):
        raise ValueError(f"x={x!r}: expected 'auto', 'block' or 'depth'.")
    if x == "auto":
        x = "block" if len({analysis.depth for analysis in analyses}) == 1 else "depth"
    figure = new_figure(10, 4.2)
    panels: tuple[Axes, Axes] = figure.subplots(1, 2, sharey=True)
    for panel, direction, title in zip(panels, ("t2v", "v2t"), ("text to video", "video to text"), strict=True):
        for number, analysis in enumerate(analyses):
            unit = analysis.depth if x == "depth" else 1
            for prompt, line in zip(analysis.prompts, _LINES * len(analysis.prompts), strict=False):
                label = analysis.model
                label += f", prefix {prompt.prefix}" if len({one.prefix for one in analysis.prompts}) > 1 else ""
                label += f", {prompt.kind} queries" if prompt.kind else ""
                _draw_prompt(panel, prompt, direction, unit, f"C{number % 10}", line, label)
        panel.set(title=title, xlabel="decoder block" if x == "block" else "depth (share of the blocks)")
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="Recall@1 (%)", ylim=(0, None))
    panels[0].legend(frameon=False, fontsize="small")
    figure.savefig(path)


def _draw_prompt(
    panel: Axes, prompt: PromptAnalysis, direction: str, unit: int, color: str, line: str, label: str
) -> None:
    """One line: `unit` is what block numbers are divided by."""
    *blocks, final = prompt.rows
    places = [row.layer / unit for row in blocks]
    found = [getattr(row, direction).recall_1 for row in blocks]
    panel.plot(places, [100 * r.estimate for r in found], linestyle=line, color=color, label=label)
    low, high = [100 * r.low for r in found], [100 * r.high for r in found]
    panel.fill_between(places, low, high, color=color, alpha=0.12, linewidth=0)
    end = 100 * getattr(final, direction).recall_1.estimate
    panel.plot(places[-1], end, marker="s", fillstyle="none", color=color, linestyle="none")
    chosen = prompt.row(prompt.chosen_layer)
    place = places[-1] if chosen.layer == -1 else chosen.layer / unit
    panel.plot(place, 100 * getattr(chosen, direction).recall_1.estimate, marker="*", markersize=12, color=color)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Read the log of a training run (`vidembed.training.LogFile`), a dict a line; nothing for a file that is missing.

    A last line cut off by a crash is left out.
    """
    path = Path(path)
    entries: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def plot_curves(log: str | Path, path: str | Path) -> None:
    """Draw the loss of a run's log above its recalls at 1; `path` and errors are those of `plot_layers`."""
    path = check_plot(path, function="plot_curves")
    figure = new_figure(6, 6)
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
