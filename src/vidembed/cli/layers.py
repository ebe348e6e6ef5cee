"""`vidembed layers`."""

# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vidembed.cli.console import print_json, say
from vidembed.cli.options import Device, Dtype, PairVideos

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vidembed.analysis import LayerAnalysis

_PREFIXES = {"both": ("none", "zero-shot"), "none": ("none",), "zero-shot": ("zero-shot",)}


def command(
    *,
    model: Annotated[
        list[str],
        typer.Option(
            help="Video MLLM: a folder or a name on the Hub. Give it again for several models.", show_default=False
        ),
    ],
    pairs: Annotated[Path, typer.Option(help="Captioned videos: a .jsonl or .csv file.", show_default=False)],
    videos: PairVideos = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the figures as JSON and as a plot.")] = None,
    prefix: Annotated[
        Literal["both", "none", "zero-shot"],
        typer.Option(help="The line before each prompt: the paper's, none, or one after the other."),
    ] = "zero-shot",
    device: Device = None,
    dtype: Dtype = None,
    plot: Annotated[Path | None, typer.Option(help="Draw Recall@1 by layer to this .png, .svg or .pdf file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the figures to stdout as JSON.")] = False,
) -> None:
    """Measure retrieval at every decoder layer of a video MLLM on captioned videos, and choose a layer."""
    _check_places(out, plot)
    from vidembed.analysis import analyze_layers
    from vidembed.analysis.layers import checked_pairs
    from vidembed.analysis.states import check_mllm
    from vidembed.backbone.load import check_device, check_dtype

    check_device(device)
    check_dtype(dtype)
    rows = checked_pairs(pairs, videos)
    analyses: list[LayerAnalysis] = []
    try:
        for name in model:
            check_mllm(name)  # all of them, before the first one is run
        for name in model:
            analyses.append(
                analyze_layers(
                    name, rows, prefixes=_PREFIXES[prefix], device=device, dtype=dtype, show_progress_bar=True
                )
            )
            gc.collect()  # two models do not fit everywhere
    except OSError as error:  # no such model
        raise ValueError(str(error)) from error
    _write(analyses, out, plot)
    if as_json:
        print_json([analysis.to_dict() for analysis in analyses])
    else:
        typer.echo("\n\n".join(analysis.table() for analysis in analyses))


def _check_places(out: Path | None, plot: Path | None) -> None:
    """Find out before the work is done that its results could not be written."""
    from vidembed.analysis.plot import check_plot
    from vidembed.index.errors import MissingExtraError

    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"out: {str(out)!r} is a file; name a folder")
    if plot is None:
        return
    if plot.is_dir() or not plot.absolute().parent.is_dir():
        raise ValueError(f"plot: {str(plot)!r} is a folder or in a folder that does not exist; name a file")
    try:
        check_plot(plot)
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error)) from error


def _write(analyses: Sequence[LayerAnalysis], out: Path | None, plot: Path | None) -> None:
    from vidembed.analysis import plot_layers
    from vidembed.analysis.plot import can_plot

    plots = [] if plot is None else [plot]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        taken: set[str] = set()
        for analysis in analyses:
            stem = plain = "layers-" + (re.sub(r"[^A-Za-z0-9._-]+", "-", analysis.model)[-80:] or "model")
            number = 1
            while stem in taken:  # two folders of the same name
                number += 1
                stem = f"{plain}-{number}"
            taken.add(stem)
            analysis.save(out / f"{stem}.json")
            say(f"Wrote {out / f'{stem}.json'}")
        if can_plot():
            plots.append(out / "layers.png")
        else:
            say('No plot: matplotlib is not installed; pip install "vidembed[plot]"')
    for file in plots:
        plot_layers(analyses, file)
        say(f"Wrote {file}")
