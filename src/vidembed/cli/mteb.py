"""`vidembed mteb`."""

# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vidembed.cli.console import print_json, print_table, say
from vidembed.cli.options import BatchSize, Device

if TYPE_CHECKING:
    from vidembed.evaluation.mteb import TaskRun

_CUTS = (1, 5, 10)


def command(
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
