"""`vidembed index`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vidembed.cli.options import NOTHING_DONE, PATH_VANISHED, Device, print_json, print_table, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vidembed.encoder import VideoEncoder
    from vidembed.index import Report, VideoIndex
    from vidembed.video.segments import Cut


# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick


DEFAULT_MODEL = "vidembed/shapes"
SHAPES_WARNING = (
    "Note: vidembed/shapes knows only its own small world of moving coloured shapes. "
    "For other videos give --model; see `vidembed build --help`."
)


def index_command(
    *,
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Videos, and folders of videos; with --engine ray also s3:// and other URIs.", show_default=False
        ),
    ],
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
    scenes: Annotated[
        bool, typer.Option("--scenes", help="Cut videos where the picture changes (extra: scenes), not at fixed times.")
    ] = False,
    on_error: Annotated[
        Literal["skip", "raise"], typer.Option(help="At a bad file: report it and go on, or end the run.")
    ] = "skip",
    prune: Annotated[bool, typer.Option("--prune", help="Remove files that are no longer on disk.")] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Read files again whose size and time of last write have not changed.")
    ] = False,
    retry: Annotated[
        bool, typer.Option("--retry", help="Try files again that could not be decoded before (the quarantine list).")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="If another run is writing to the index, wait for its end.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Segments handed to the model at once.")] = 32,
    decode_workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that decode. Default: one a core, at most 8.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Seconds that the decoder may work on one file; then it is killed.")
    ] = 600.0,
    max_memory: Annotated[float, typer.Option(help="GiB of memory that one decoder may take (Linux).")] = 8.0,
    device: Device = None,
    fps: Annotated[float | None, typer.Option(help="Frames looked at per second. Default: the model's.")] = None,
    max_frames: Annotated[int | None, typer.Option(help="Most frames of a segment. Default: the model's.")] = None,
    quantize: Annotated[
        list[str] | None, typer.Option(help="Quantize the ANN index as int8 or binary, also of few segments.")
    ] = None,
    compact: Annotated[list[str] | None, typer.Option(hidden=True, help="The earlier name of --quantize.")] = None,
    query_bank: Annotated[
        Path | None, typer.Option(help="File of queries, one a line, for `search --bank`.", show_default=False)
    ] = None,
    exact_up_to: Annotated[
        int | None, typer.Option(min=0, help="Segments up to which a search is exact. Default: 100,000.")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Where the work is done: here, or on a Ray cluster (extra: ray).")
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(help="With --engine ray: the cluster. Default: RAY_ADDRESS, else one on this machine."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="With --engine ray: copies of the model. Default: 1.")
    ] = None,
    num_gpus: Annotated[
        float | None, typer.Option(min=0, help="With --engine ray: GPUs of each; 0.5 has two share one. Default: 0.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write the report to stdout as JSON.")] = False,
) -> None:
    """Index videos, so that they can be searched. Run again, it does only what is new or changed."""
    from vidembed.cli.search import read_queries
    from vidembed.index import Derived

    derived = Derived(
        exact_up_to, [*(quantize or ()), *(compact or ())], None if query_bank is None else read_queries(query_bank)
    )
    derived.check()
    cluster = {"address": address, "workers": workers, "num_gpus": num_gpus}
    report = _run_on(
        engine,
        {name: value for name, value in cluster.items() if value is not None},
        paths,
        to,
        decode_workers=decode_workers,
        model=model,
        layer=layer,
        cut=cut_of(segment, overlap, scenes=scenes),
        on_error=on_error,
        prune=prune,
        rehash=rehash,
        retry=retry,
        wait=wait,
        batch_size=batch_size,
        timeout_s=timeout,
        max_memory_bytes=int(max_memory * 2**30),
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
    if report.vanished:
        say("The index has files of what was named, and no video is there now: nothing of it was removed.")
        raise typer.Exit(PATH_VANISHED)


def _run_on(
    engine: Literal["local", "ray"],
    cluster: dict[str, Any],
    paths: list[str],
    to: Path,
    *,
    decode_workers: int | None,
    **options: Any,
) -> Report:
    """Index with one of the engines."""
    if engine == "local":
        if cluster:
            given = min(cluster).replace("_", "-")
            raise ValueError(f"{given}: it is for --engine ray; give that too, or leave it out")
        return run(paths, to, decode_workers=decode_workers, **options)[0]
    from vidembed.index.ingest import open_if_there
    from vidembed.ray import index_videos_ray

    existing = open_if_there(to)
    name, layer, sampling = _as_before(existing, options.pop("model"), options.pop("layer"), options.pop("sampling"))
    if name == DEFAULT_MODEL:
        say(SHAPES_WARNING)
    return index_videos_ray(
        paths, to, model=name, layer=layer, sampling=sampling, decoders=decode_workers, **cluster, **options
    )


def run(
    paths: Sequence[str | Path],
    to: Path,
    *,
    model: str | None,
    layer: int | None = None,
    cut: Cut | None = None,
    sampling: dict[str, Any] | None = None,
    device: str | None = None,
    **options: Any,
) -> tuple[Report, VideoEncoder]:
    """Load the model and index `paths`; return both. What an index says of itself fills in for what is not given."""
    from vidembed.index import index_videos
    from vidembed.index.files import find_videos
    from vidembed.index.ingest import open_if_there
    from vidembed.index.meta import load_model
    from vidembed.video import VIDEO_SUFFIXES, Sampling

    existing = open_if_there(to)  # what is cheap to find wrong comes before the model is loaded
    find_videos(paths, VIDEO_SUFFIXES, indexed=existing.files if existing else tuple)
    name, layer, sampling = _as_before(existing, model, layer, sampling)
    Sampling(**sampling)
    if name == DEFAULT_MODEL:
        say(SHAPES_WARNING)
    encoder = load_model(name, layer=layer, sampling=sampling, device=device)
    return index_videos(paths, to, encoder, model=name, layer=layer, cut=cut, **options), encoder


def _as_before(
    index: VideoIndex | None, model: str | None, layer: int | None, sampling: dict[str, Any] | None
) -> tuple[str, int | None, dict[str, Any]]:
    """Return name, layer and sampling of the model, with what the index says of itself where nothing is given."""
    from vidembed.index.meta import stored_name

    sampling = sampling or {}
    name = stored_name(model) if model is not None else index.meta.model if index else DEFAULT_MODEL
    if index is None or name != index.meta.model:
        return name, layer, sampling
    return name, index.meta.layer if layer is None else layer, {**index.meta.sampling, **sampling}


def cut_of(segment: float | None, overlap: float | None, *, scenes: bool) -> Cut | None:
    """Return the cut that the options ask for, or None where they ask for none.

    Raises:
        ValueError: There is an overlap without segments, scenes and segments, or one of them is out of range.
    """
    from vidembed.video import Scenes, Windows

    if scenes:
        if segment is not None or overlap is not None:
            raise ValueError("scenes: got --scenes together with --segment or --overlap; give one kind of cut")
        return Scenes()
    if segment is None:
        if overlap is not None:
            raise ValueError(f"overlap: got {overlap} without --segment; give the length of the segments too")
        return None
    return Windows(segment, overlap or 0.0)


def show(report: Report) -> None:
    """Write a report for people: a table of what was skipped to stdout, and a summary."""
    from vidembed.index.files import name_of
    from vidembed.text import printable

    if report.skipped:
        print_table(
            ["skipped", "kind", "why"],
            [[name_of(problem.uri), problem.kind, problem.message] for problem in report.skipped],
        )
    if report.gone and not report.pruned:
        print_table(["no longer on disk (--prune removes them)"], [[name_of(uri)] for uri in report.gone])
    counts = {
        "indexed": report.indexed,
        "copied from equal files": report.copied,
        "moved": report.moved,
        "unchanged": report.unchanged,
        "skipped": len(report.skipped),
        "pruned" if report.pruned else "gone": len(report.gone),
    }
    done = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    held = f"{printable(report.index)} holds {report.files} files, {report.segments} segments"
    typer.echo(f"{done or 'Nothing done'}. {held}.")
    if report.quarantined:
        say(f"{report.quarantined} of the skipped files went into quarantine; `--retry` tries them again.")


# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick


def info_command(
    *,
    folder: Annotated[Path, typer.Argument(help="Folder of an index, or a video file.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Write it to stdout as JSON.")] = False,
) -> None:
    """Show what an index holds and which model made it, or what a video is and how it is read."""
    if folder.is_file():
        _show_video(folder, as_json=as_json)
        return
    from vidembed.index import VideoIndex
    from vidembed.index.commit import read as read_quarantine
    from vidembed.index.search import facts as search_facts

    index = VideoIndex.open(folder)
    meta = index.meta
    how = search_facts(index)
    facts: dict[str, Any] = {
        "index": str(folder),
        "files": len(index.files()),
        "segments": len(index),
        "dimension": meta.dimension,
        "segment_s": meta.segment_s,
        "overlap_s": meta.overlap_s,
        "scenes": meta.scenes,
        "quarantined": len(read_quarantine(folder)),
        "bytes": index.size_on_disk(),
        "created": meta.created,
        "model": meta.model,
        "layer": meta.layer,
        "sampling": meta.sampling,
        "model_fingerprint": meta.model_fingerprint,
        "fingerprint_fields": meta.fingerprint_fields,
        "schema_version": meta.schema_version,
        "search": how,
    }
    if as_json:
        print_json(facts)
        return
    fields = facts.pop("fingerprint_fields")
    how = facts.pop("search")
    rows = [[key, _said(value)] for key, value in facts.items()]
    rows += [[f"fingerprint: {key}", _said(value)] for key, value in fields.items()]
    rows += [["exact up to", f"{how['exact_up_to']} segments"], ["quantize", _said(how["quantize"])], *_derived(how)]
    print_table(["", "value"], rows)


def _show_video(path: Path, *, as_json: bool) -> None:
    """Print what `vidembed.probe` finds, with the discontinuities of the clock."""
    from vidembed import probe

    facts = asdict(probe(path, scan=True))
    if as_json:
        print_json(facts)
        return
    facts |= {f"colour: {key}": value for key, value in (facts.pop("colour") or {}).items()}
    print_table(["", "value"], [[key, _said(value)] for key, value in facts.items()])


def _derived(how: dict[str, Any]) -> list[list[str]]:
    """Return a row for each fact about the ANN index and the query bank."""
    rows = [[f"ANN index: {key}", _said(value)] for key, value in (how["ann"] or {}).items()]
    return rows + [[f"query bank: {key}", _said(value)] for key, value in (how["query_bank"] or {}).items()]


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
