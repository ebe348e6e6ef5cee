"""`vidembed adapt`: a model is adapted to videos without labels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from vidembed.backbone.options import ModelOptions, kwargs_of
from vidembed.cli import options as cli

_WAYS = {"t2v": "text to video", "v2t": "video to text"}


def command(
    *,
    videos: Annotated[list[Path], Argument(help="Videos, and folders of videos.")],
    model: Annotated[str, Option(help="Video MLLM: a folder or a name on the Hub.")],
    out: Annotated[Path, Option(help="Folder to write: captions, figures, and the adapted model.")],
    clips: Annotated[int, Option(min=1, help="Largest number of videos to describe.")] = 500,
    held_out: Annotated[
        int | None, Option(help="Videos for measuring, not training. Default: a tenth, and at least 20.")
    ] = None,
    learning_rate: Annotated[float | None, Option(help="Peak learning rate. Default: 3e-4.")] = None,
    rank: Annotated[int, Option(help="Rank of the LoRA.")] = 16,
    seed: Annotated[
        int, Option(min=0, help="Random seed: chooses the videos to describe and to hold out, and drives the training.")
    ] = 0,
    adapter: cli.Adapter = False,
    model_options: ModelOptions | None = None,
    as_json: Annotated[bool, Option("--json", help="Write the figures to stdout as JSON, and nothing else.")] = False,
    overwrite: Annotated[
        bool, Option("--overwrite", help="Train again if the folder has other settings; its captions are kept.")
    ] = False,
) -> None:
    """Adapt a model to your videos without labels: it describes them, and trains its last layer on its own texts.

    Run it again to continue after the last complete step. It shows Recall@1 on held-out videos before and after
    training. If the mean fell, the exit code is 1.
    """
    from vidembed.text import require_train_extra

    require_train_extra()
    cli.check_folder(out)
    cli.show_logs("vidembed.training.adapting", logging.INFO)
    cli.show_logs("vidembed.training")  # pairs left out are not to pass unseen
    from vidembed.training import LoraSettings, adapt
    from vidembed.training.adapting import LORA

    with cli.misuse_of(OSError):  # no such model, or --out is taken
        found = adapt(
            model,
            videos,
            out,
            clips=clips,
            held_out=held_out,
            lora=LoraSettings(rank=rank, alpha=LORA.alpha),
            learning_rate=learning_rate,
            output="adapter" if adapter else "merged",
            seed=seed,
            overwrite=overwrite,
            progress=True,
            **kwargs_of(model_options),
        )
    if as_json:
        cli.print_json(found.to_dict())
    else:
        rows = [
            [kind, _WAYS[way], f"{figures['before']:.1f}", f"{figures['after']:.1f}", found.gain(kind, way).text("+")]
            for kind, ways in found.to_dict()["recall_at_1"].items()
            for way, figures in ways.items()
        ]
        title = f"R@1 in percent on {found.held_out} videos held out, by the model's own texts"
        cli.print_table(["queries", "", "before", "after", "gain (95 %)"], rows, title=title)
        typer.echo(str(found.folder))
    if found.mean_gain < 0:
        raise typer.Exit(cli.NOTHING_DONE)
