"""The command line: `vidembed`, one module a command.

The commands import what they need when they run, so that `--help` does not wait for torch.
"""

from __future__ import annotations

from typing import Annotated

import typer

import vidembed
from vidembed.cli import clip, demo, evaluate, index, model, options, search, serve

__all__ = ["app", "main"]

app = typer.Typer(
    name="vidembed",
    help="Search video by text with the multimodal language models people already have.",
    cls=options.ErrorsToExitCodes,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("index")(index.index_command)
app.command("search")(search.command)
app.command("clip")(clip.command)
app.command("serve")(serve.command)
app.command("info")(index.info_command)
app.command("build")(model.build_command)
app.command("layers")(model.layers_command)
app.command("train")(model.train_command)
app.command("calibrate")(model.calibrate_command)
app.command("evaluate")(evaluate.evaluate_command)
app.command("compare")(evaluate.compare_command)
app.command("mteb")(evaluate.mteb_command)
app.command("reproduce")(evaluate.reproduce_command)
app.command("demo")(demo.command)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"vidembed {vidembed.__version__}")
        raise typer.Exit


@app.callback()
def global_options(
    *,
    debug: Annotated[
        bool, typer.Option("--debug", envvar=options.DEBUG_VARIABLE, help="Show logs, and errors with their traceback.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - the callback does the work
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Search video by text with the multimodal language models people already have."""
    options.setup(debug=debug)


def main() -> None:
    """Run the command line.

    Exit codes: 0 done, 1 nothing could be done, 2 misuse, 3 a named path vanished, 130 interrupted.
    """
    app()
