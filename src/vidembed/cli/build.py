"""`vidembed build`."""

# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vidembed.cli.options import Dtype, Overwrite, PairVideos


def command(
    *,
    mllm: Annotated[str, typer.Argument(help="Video MLLM: a folder or a name on the Hub.", show_default=False)],
    layer: Annotated[
        str,
        typer.Option(
            metavar="INTEGER|auto",
            help="Decoder layer to read, from 1; -1 is the last, with its final norm; auto chooses it on --pairs.",
            show_default=False,
        ),
    ],
    pairs: Annotated[
        Path | None, typer.Option(help="For --layer auto: captioned videos, a .jsonl or .csv file.")
    ] = None,
    videos: PairVideos = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write the checkpoint to.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Name in the model store, instead of --out; it loads as vidembed/NAME.")
    ] = None,
    prefix: Annotated[bool, typer.Option(help="Put the paper's zero-shot line before each prompt.")] = True,
    dtype: Dtype = None,
    device: Annotated[str | None, typer.Option(help="Torch device for the check, such as cuda.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a search model of a video MLLM: a plain sentence-transformers checkpoint, checked before it is written."""
    if (out is None) == (name is None):
        raise ValueError("out: give --out DIR or --name NAME, one of them")
    number = _layer(layer)
    from vidembed.building import build

    try:
        written = build(
            mllm,
            layer=number,
            pairs=pairs,
            videos=videos,
            out=out,
            name=name,
            prefix="zero-shot" if prefix else None,
            dtype=dtype,
            device=device,
            overwrite=overwrite,
        )
    except OSError as error:  # no such model, or --out is taken
        raise ValueError(str(error)) from error
    typer.echo(str(written))


def _layer(value: str) -> int | Literal["auto"]:
    if value == "auto":
        return "auto"
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"layer: got {value!r}; give the number of a decoder layer, -1, or auto") from None
