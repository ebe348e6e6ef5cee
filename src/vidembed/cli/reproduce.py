"""`vidembed reproduce`."""

# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vidembed.cli.console import print_json, say
from vidembed.cli.options import Device


def command(
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
    from vidembed.analysis.plot import can_plot
    from vidembed.backbone.load import check_device
    from vidembed.index.errors import MissingExtraError

    check_device(device)
    if out is not None and not can_plot():
        raise MissingExtraError('out: matplotlib is not installed; pip install "vidembed[plot]"')
    import torch

    from vidembed.reproduce import shapes

    result, curves = shapes.measure(
        clips=clips,
        layer_clips=layer_clips,
        fit_clips=fit_clips,
        seed=seed,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )
    if out is not None:
        for file in shapes.write(result, curves, out):
            say(f"Wrote {file}")
    if as_json:
        print_json(result)
    else:
        typer.echo(shapes.as_text(result))
