"""Parts that the commands share: exit codes of errors, output, checks of options, and options of several commands."""

from __future__ import annotations

import functools
import gc
import inspect
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

import typer
import typer.core
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer import Option

import vidembed
from vidembed import errors
from vidembed.backbone.options import ModelOptions, Quantization
from vidembed.text import printable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

NOTHING_DONE = 1
MISUSE = 2
PATH_VANISHED = 3
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
DEBUG_VARIABLE = "VIDEMBED_DEBUG"
# Net allocations before garbage is looked for, 700 in Python: importing torch and sentence-transformers makes a million
# objects that stay, and looking among them is a seventh of a start (`python -m benchmarks.start`; ours)
GARBAGE_THRESHOLD = 20_000
_show_in_python = warnings.showwarning


class ErrorsToExitCodes(typer.core.TyperGroup):
    """The commands, with errors shown as one paragraph on stderr and turned into exit codes."""

    def invoke(self, ctx: Any) -> Any:  # typer's own type of it is private
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("Interrupted. Finished work is kept; run the same command again to continue.")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of stdout, such as `head`, is gone; without this, flushing at exit complains.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(NOTHING_DONE) from None
        except errors.IndexingStoppedError as error:
            raise failed(error, NOTHING_DONE) from error
        except (
            ValueError,
            errors.VideoError,
            errors.MissingExtraError,
            errors.IndexBusyError,
            errors.CaptionsBusyError,
        ) as error:
            raise failed(error, MISUSE) from error
        except (
            errors.IndexDamagedError,
            errors.IndexWriteError,
            errors.ClusterError,
            FloatingPointError,
            OSError,
        ) as error:
            raise failed(error, NOTHING_DONE) from error
        except RuntimeError as error:
            torch = sys.modules.get("torch")  # it is slow to import, and without it there is no such error
            if torch is None or not isinstance(error, torch.OutOfMemoryError):
                raise
            raise failed(error, NOTHING_DONE) from error


def failed(error: Exception, code: int) -> typer.Exit:
    """Show an error, and return the exit to raise."""
    if os.environ.get(DEBUG_VARIABLE, "") not in {"", "0"}:
        typer.echo(shown("".join(traceback.format_exception(error))), err=True)
    say(f"Error: {' '.join(str(error).split())}")
    return typer.Exit(code)


@contextmanager
def misuse_of(*kinds: type[Exception]) -> Iterator[None]:
    """Turn errors that come from a wrong option, such as a model that is not there, into a ValueError."""
    try:
        yield
    except kinds as error:
        raise ValueError(str(error)) from error


def _version(value: bool) -> None:
    if value:
        typer.echo(f"vidembed {vidembed.__version__}")
        raise typer.Exit


def global_options(
    *,
    debug: Annotated[
        bool, Option("--debug", envvar=DEBUG_VARIABLE, help="Show logs, and errors with their traceback.")
    ] = False,
    version: Annotated[  # noqa: ARG001 - the callback does the work
        bool, Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Search video by text with the multimodal language models people already have."""
    gc.set_threshold(GARBAGE_THRESHOLD, *gc.get_threshold()[1:])
    setup(debug=debug)


def setup(*, debug: bool) -> None:
    """Send logs to stderr, warnings and up, or all of vidembed's with `debug`."""
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainFormatter("%(levelname)s %(name)s: %(message)s"))
    warnings.showwarning = _show_warning
    logging.basicConfig(handlers=[handler], force=True)
    logging.getLogger("vidembed").setLevel(logging.DEBUG if debug else logging.ERROR)
    if not debug:  # what is slow, or not quantized, is not to pass unseen
        logging.getLogger("vidembed.backbone.options").setLevel(logging.WARNING)


def show_logs(name: str, level: int = logging.WARNING) -> None:
    """Show what a logger says of the run at hand from a level up, where that is not shown already."""
    if not logging.getLogger(name).isEnabledFor(level):
        logging.getLogger(name).setLevel(level)


class PlainFormatter(logging.Formatter):
    """Formats logs for a terminal: control characters are shown, and no line of a message looks like a new one."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        return shown(super().format(record))


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Show our own warnings as a message; the line of code that led to them helps nobody here."""
    if category.__module__ == errors.__name__:
        say(f"Warning: {message}")
    else:
        _show_in_python(message, category, *place, **more)


def plain(text: str) -> str:
    """Return text on one line, with an escape in place of what cannot be printed, if there is any."""
    return text if text.isprintable() else printable(text)


def shown(text: str) -> str:
    """Return text with what a terminal would act on written as an escape, and every line but the first indented."""
    return "\n    ".join(map(plain, text.rstrip("\n").split("\n")))


def say(message: str) -> None:
    """Write a line to stderr; stdout is for results. Whatever names are in it, it is one line, and text."""
    typer.echo(plain(message), err=True)


def print_json(value: object) -> None:
    """Write one JSON value to stdout, in ASCII, whatever names hold."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=True))


def print_table(columns: list[str], rows: list[list[str]], *, title: str | None = None) -> None:
    """Write a table to stdout. All of it is plain text: markup and control characters in names mean nothing."""
    table = Table(title=None if title is None else Text(plain(title)), title_justify="left")
    for column in columns:
        table.add_column(Text(plain(column)), overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console = Console(file=sys.stdout)
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no width; names should not be folded at 80
    console.print(table)


def print_facts(facts: Mapping[str, object]) -> None:
    """Write names and values to stdout as a table; all but text as JSON."""
    rows = [[name, value if isinstance(value, str) else json.dumps(value)] for name, value in facts.items()]
    print_table(["", "value"], rows)


def fill(kind: type[T], given: Mapping[str, object]) -> T:
    """Make a dataclass of the options that have the names of its fields; None leaves a field at its default."""
    names = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in given.items() if name in names and value is not None})


def refuse(options: Mapping[str, object], why: str) -> None:
    """Raise ValueError at the first option that is set, neither None nor False: it needs another one, or has no use."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise ValueError(f"{name}: {why}")


def check_folder(out: Path | None) -> None:
    """Raise ValueError at a file where a folder is to be written."""
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"out: {str(out)!r} is a file; give a folder")


def check_file(option: str, path: Path | None) -> None:
    """Raise ValueError at a file to be written that is a folder, or in a folder that does not exist."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise ValueError(
            f"{option}: {str(path)!r} is a folder, or its folder does not exist; give a file in a folder that exists"
        )


def check_score(mode: str | None) -> None:
    """Raise ValueError at an unknown score mode."""
    if mode is not None:
        from vidembed.yes_no import check_mode

        check_mode(mode)


def takes_model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that has a parameter `model_options` the options of `_LOADING` in its place.

    The model's `--quantize` is named `--quantize-model` too, and only so where vectors have an option of that word.
    """
    parameters = dict(inspect.signature(command, eval_str=True).parameters)
    if parameters.pop("model_options", None) is None:
        return command
    words = ["--quantize-model", *([] if {"quantize", "quantized"} & set(parameters) else ["--quantize"])]
    quantize = Option(*words, help="Load the weights in 8 or 4 bits (extra: quantize).", rich_help_panel=_PANEL)
    kinds = {**_LOADING, "quantize_model": Annotated[Quantization | None, quantize]}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        asked = {name: given.pop(name) for name in kinds}
        command(**given, model_options=_model_options(asked))

    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters |= {
        name: inspect.Parameter(name, keyword, default=None, annotation=kind) for name, kind in kinds.items()
    }
    del run.__wrapped__  # its signature is another one
    run.__signature__ = inspect.Signature([*parameters.values()])  # type: ignore[attr-defined]
    run.__annotations__ = {name: each.annotation for name, each in parameters.items()}
    return run


def _model_options(given: Mapping[str, Any]) -> ModelOptions | None:
    """Make them of what was given; None where nothing was."""
    fields_given = {_FIELDS.get(name, name): value for name, value in given.items() if value is not None}
    if "model_kwargs" in fields_given:
        try:
            fields_given["model_kwargs"] = json.loads(fields_given["model_kwargs"])
        except json.JSONDecodeError as error:
            shape = """a JSON object such as '{"max_memory": {"0": "8GB"}}'"""
            raise ValueError(f"model-kwargs: {error}; expected {shape}") from error
    return ModelOptions(**fields_given) if fields_given else None


def named(options: ModelOptions | None) -> dict[str, object]:
    """Return what was given of them, by the names of the options of the command line."""
    words = {value: key for key, value in _FIELDS.items()}
    found = {} if options is None else {each.name: getattr(options, each.name) for each in fields(options)}
    return {words.get(name, name).replace("_", "-"): value for name, value in found.items() if value}


_FIELDS = {"attn": "attn_implementation", "quantize_model": "quantize"}  # of which the command line has another name
_PANEL = "Loading the model"
_LOADING: dict[str, Any] = {
    name: Annotated[str | None, Option(help=text, metavar=shape, rich_help_panel=_PANEL)]
    for name, text, shape in (
        ("device", "Torch device, such as cpu or cuda.", None),
        ("device_map", "Instead of --device: auto spreads the model over all GPUs.", None),
        ("dtype", "float32, bfloat16 or float16. Default: the model's.", None),
        ("attn", "Attention implementation: sdpa, eager, flash_attention_2, ...", None),
        ("revision", "Commit, tag or branch of a model on the Hub.", None),
        ("model_kwargs", "More arguments for from_pretrained of transformers.", "JSON"),
    )
}
Device = Annotated[str | None, Option(help="Torch device, such as cpu or cuda.")]
BatchSize = Annotated[int, Option(min=1, help="Inputs per batch.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace the output if it exists.")]
Merge: TypeAlias = Literal["moments", "videos", "none"]
By: TypeAlias = Literal["video", "caption", "text", "hybrid"]
Adapter = Annotated[
    bool, Option("--adapter/--merge", help="Write the PEFT adapter alone, or a merged checkpoint (default).")
]
# of what reads an index
IndexModel = Annotated[
    str | None, Option(help="Name or folder to load the model from. Default: the one stored in the index.")
]
# of what reranks when it is asked to
NoMirror = Annotated[
    bool, Option("--no-mirror", help="Do not read or write the mirror, a copy of the vectors for fast exact search.")
]
Reranker = Annotated[
    str | None,
    Option(help="With --rerank: a saved reranker or a video MLLM. Default: the one that belongs to the model."),
]
ScoreMode = Annotated[
    str | None, Option(help="With --rerank: yes, yes_no or prior_corrected. Default: the reranker's own.")
]
Calibration = Annotated[Path | None, Option(help="With --rerank: calibration written by `vidembed calibrate`.")]
# of what reads captioned videos
PairVideos = Annotated[Path | None, Option(help="Folder of the videos in --pairs. Default: the folder of that file.")]
# of what evaluates on a benchmark
Annotations = Annotated[Path | None, Option(help="The published annotation file, or its folder.")]
BenchmarkVideos = Annotated[Path | None, Option(help="Folder of the videos.")]
ValidationVideos = Annotated[
    Path | None, Option(help="Folder of the videos in --validation. Default: the folder of that file.")
]
AllowMissing = Annotated[
    bool, Option("--allow-missing", help="Leave out videos whose file is missing; the result lists them.")
]
CheckCounts = Annotated[bool, Option(help="Stop if the numbers of videos and texts differ from the published ones.")]
OnUnreadable = Annotated[
    Literal["raise", "count"],
    Option(help="For a video that cannot be read: stop, or count it as not found and list it."),
]
Seed = Annotated[int, Option(min=0, help="Random seed of the bootstrap and of generated videos.")]
