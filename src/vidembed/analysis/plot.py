"""Recall@1 by layer as a figure, of one or several models."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vidembed.analysis.result import LayerAnalysis, PromptAnalysis

FORMATS = (".png", ".svg", ".pdf")
_LINES = ("-", "--", ":", "-.")  # one a prompt

Axis = Literal["auto", "block", "depth"]


def check_plot(path: str | Path) -> Path:
    """Find out before the work is done whether a figure could be written to `path`.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: The suffix is none of `FORMATS`.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"path={str(path)!r}: expected a name that ends in .png, .svg or .pdf")
    if not can_plot():
        raise ModuleNotFoundError(
            'plot_layers draws with matplotlib, which is not installed; pip install "vidembed[plot]"'
        )
    return path


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_layers(analyses: Sequence[LayerAnalysis], path: str | Path, *, x: Axis = "auto") -> None:
    """Draw Recall@1 on the reporting half by layer, text to video beside video to text.

    A line is a model with a prompt; the band is its interval, the star its chosen layer, and the square, apart from the
    line, layer -1: the last block with its trained final norm. Dual-softmax is not drawn.

    Args:
        analyses: One or more, in the order of the legend.
        path: File to write; its suffix is the format: .png, .svg or .pdf.
        x: "block" for the number of the block, "depth" for its share of the model's blocks, "auto" for the number
            where all models have the same depth.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        ValueError: There is nothing to draw, the suffix is another, or `x` is not known.
    """
    path = check_plot(path)
    if not analyses:
        raise ValueError("analyses: expected at least one, got none.")
    if x not in ("auto", "block", "depth"):
        raise ValueError(f"x={x!r}: expected 'auto', 'block' or 'depth'.")
    if x == "auto":
        x = "block" if len({analysis.depth for analysis in analyses}) == 1 else "depth"
    # not pyplot, which would choose a window system for the whole process
    figure = importlib.import_module("matplotlib.figure").Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, direction, title in zip(panels, ("t2v", "v2t"), ("text to video", "video to text"), strict=True):
        for number, analysis in enumerate(analyses):
            for prompt, line in zip(analysis.prompts, _LINES * len(analysis.prompts), strict=False):
                label = analysis.model if len(analysis.prompts) == 1 else f"{analysis.model}, prefix {prompt.prefix}"
                _draw(panel, prompt, direction, analysis.depth if x == "depth" else 1, f"C{number % 10}", line, label)
        panel.set(title=title, xlabel="decoder block" if x == "block" else "depth (share of the blocks)")
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="Recall@1 (%)", ylim=(0, None))
    panels[0].legend(frameon=False, fontsize="small")
    figure.savefig(path)


def _draw(panel: Any, prompt: PromptAnalysis, direction: str, unit: int, color: str, line: str, label: str) -> None:
    """One line: `unit` is what block numbers are divided by."""
    *blocks, final = prompt.rows
    places = [row.layer / unit for row in blocks]
    found = [getattr(row, direction).recall_1 for row in blocks]
    panel.plot(places, [100 * r.estimate for r in found], linestyle=line, color=color, label=label)
    panel.fill_between(
        places, [100 * r.low for r in found], [100 * r.high for r in found], color=color, alpha=0.12, linewidth=0
    )
    end = 100 * getattr(final, direction).recall_1.estimate
    panel.plot(places[-1], end, marker="s", fillstyle="none", color=color, linestyle="none")
    chosen = prompt.row(prompt.chosen_layer)
    place = places[-1] if chosen.layer == -1 else chosen.layer / unit
    panel.plot(place, 100 * getattr(chosen, direction).recall_1.estimate, marker="*", markersize=12, color=color)
