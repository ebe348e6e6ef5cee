"""`vidembed index`."""

# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vidembed.cli.console import NOTHING_DONE, print_json, print_table, say

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder
    from vidembed.index import Report, VideoIndex, Windows

DEFAULT_MODEL = "vidembed/shapes"
SHAPES_WARNING = (
    "Note: vidembed/shapes knows only its own small world of moving coloured shapes. "
    "For other videos give --model; see `vidembed build --help`."
)


def command(
    *,
    paths: Annotated[list[Path], typer.Argument(help="Videos, and folders of videos.", show_default=False)],
    to: Annotated[
        Path, typer.Option("--to", help="Folder of the index: new, empty, or an index to add to.", show_default=False)
    ],
    model: Annotated[
        str | None,
        typer.Option(help=f"Model. Default: the index's own; for a new index, {DEFAULT_MODEL}.", show_default=False),
    ] = None,
    layer: Annotated[
        int | None, typer.Option(help="Decoder layer to read, for a model that is not a vidembed checkpoint.")
    ] = None,
    segment: Annotated[
        float | None, typer.Option(help="Cut videos into segments of this many seconds. Default: whole videos.")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(help="Seconds that a segment shares with the next. Default: 0.")
    ] = None,
    on_error: Annotated[
        Literal["skip", "raise"], typer.Option(help="At a bad file: report it and go on, or end the run.")
    ] = "skip",
    prune: Annotated[bool, typer.Option("--prune", help="Remove files that are no longer on disk.")] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Read files again whose size and time of last write have not changed.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Segments handed to the model at once.")] = 32,
    device: Annotated[str | None, typer.Option(help="Torch device, such as cpu or cuda.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames looked at per second. Default: the model's.")] = None,
    max_frames: Annotated[int | None, typer.Option(help="Most frames of a segment. Default: the model's.")] = None,
    compact: Annotated[
        list[str] | None,
        typer.Option(help="Keep a copy for `search --compact`: int8, binary, float32-N. Give it again for more."),
    ] = None,
    query_bank: Annotated[
        Path | None, typer.Option(help="File of queries, one a line, for `search --bank`.", show_default=False)
    ] = None,
    exact_up_to: Annotated[
        int | None, typer.Option(min=0, help="Segments up to which a search is exact. Default: 100,000.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the report to stdout as JSON.")] = False,
) -> None:
    """Index videos, so that they can be searched. Run again, it does only what is new or changed."""
    from vidembed.cli.search import read_queries
    from vidembed.index import Derived

    derived = Derived(exact_up_to, compact or (), None if query_bank is None else read_queries(query_bank))
    derived.check()
    report, _ = run(
        paths,
        to,
        model=model,
        layer=layer,
        windows=windows_of(segment, overlap),
        on_error=on_error,
        prune=prune,
        rehash=rehash,
        batch_size=batch_size,
        device=device,
        sampling={key: value for key, value in {"fps": fps, "max_frames": max_frames}.items() if value is not None},
        derived=derived,
    )
    if as_json:
        print_json(report.to_dict())
    else:
        show(report)
    if not report.any_in_index:
        say("Nothing could be indexed.")
        raise typer.Exit(NOTHING_DONE)


def run(
    paths: list[Path],
    to: Path,
    *,
    model: str | None,
    layer: int | None = None,
    windows: Windows | None = None,
    sampling: dict[str, Any] | None = None,
    device: str | None = None,
    **options: Any,
) -> tuple[Report, VideoEncoder]:
    """Load the model and index `paths`; return both. What an index says of itself fills in for what is not given."""
    from vidembed.index import index_videos
    from vidembed.index.files import find_videos
    from vidembed.index.ingest.indexer import open_if_there
    from vidembed.index.model import load_model, stored_name
    from vidembed.video import VIDEO_SUFFIXES, Sampling

    existing = open_if_there(to)  # what is cheap to find wrong comes before the model is loaded
    find_videos(paths, VIDEO_SUFFIXES)
    Sampling(**(sampling or {}))
    name = stored_name(model) if model is not None else existing.meta.model if existing else DEFAULT_MODEL
    if existing is not None and name == existing.meta.model:
        layer, sampling = _as_before(existing, layer, sampling or {})
    if name == DEFAULT_MODEL:
        say(SHAPES_WARNING)
    encoder = load_model(name, layer=layer, sampling=sampling, device=device)
    return index_videos(paths, to, encoder, model=name, layer=layer, windows=windows, **options), encoder


def _as_before(index: VideoIndex, layer: int | None, sampling: dict[str, Any]) -> tuple[int | None, dict[str, Any]]:
    return index.meta.layer if layer is None else layer, {**index.meta.sampling, **sampling}


def windows_of(segment: float | None, overlap: float | None) -> Windows | None:
    """Return the windows that the options ask for, or None where they ask for none.

    Raises:
        ValueError: There is an overlap without segments, or one of them is out of range.
    """
    from vidembed.index import Windows

    if segment is None:
        if overlap is not None:
            raise ValueError(f"overlap: got {overlap} without --segment; give the length of the segments too")
        return None
    return Windows(segment, overlap or 0.0)


def show(report: Report) -> None:
    """Write a report for people: a table of what was skipped to stdout, and a summary."""
    from vidembed.index.files import path_of

    if report.skipped:
        print_table(
            ["skipped", "kind", "why"],
            [[str(path_of(problem.uri)), problem.kind, problem.message] for problem in report.skipped],
        )
    if report.gone and not report.pruned:
        print_table(["no longer on disk (--prune removes them)"], [[str(path_of(uri))] for uri in report.gone])
    counts = {
        "indexed": report.indexed,
        "copied from equal files": report.copied,
        "unchanged": report.unchanged,
        "skipped": len(report.skipped),
        "pruned" if report.pruned else "gone": len(report.gone),
    }
    done = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    typer.echo(f"{done or 'Nothing done'}. {report.index} holds {report.files} files, {report.segments} segments.")
