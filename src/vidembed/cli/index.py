"""`vidembed index` and `vidembed info`."""

# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict, Unpack

import typer
from typer import Argument, Option

from vidembed.cli.options import (
    NOTHING_DONE,
    PATH_VANISHED,
    Device,
    first_given,
    print_facts,
    print_json,
    print_table,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vidembed.encoder import VideoEncoder
    from vidembed.index import Derived, Report, VideoIndex
    from vidembed.index.table import ModelOptions
    from vidembed.video.segments import Cut

DEFAULT_MODEL = "vidembed/shapes"
SHAPES_WARNING = (
    "Note: vidembed/shapes knows only its own small world of moving coloured shapes. "
    "For other videos give --model; see `vidembed build --help`."
)


class RunOptions(TypedDict, total=False):
    """The options of both engines, as `vidembed.index.index_videos` takes them."""

    cut: Cut | None
    on_error: Literal["skip", "raise"]
    prune: bool
    rehash: bool
    retry: bool
    wait: bool
    batch_size: int
    timeout_s: float
    max_memory_bytes: int
    derived: Derived


def index_command(
    *,
    paths: Annotated[
        list[str],
        Argument(
            help="Videos, and folders of videos; with --engine ray also s3:// and other URIs.", show_default=False
        ),
    ],
    to: Annotated[
        Path, Option("--to", help="Folder of the index: new, empty, or an index to add to.", show_default=False)
    ],
    model: Annotated[
        str | None,
        Option(help=f"Model. Default: the index's own; for a new index, {DEFAULT_MODEL}.", show_default=False),
    ] = None,
    layer: Annotated[
        int | None, Option(help="Decoder layer to read, for a model that is not a vidembed checkpoint.")
    ] = None,
    segment: Annotated[
        float | None, Option(help="Cut videos into segments of this many seconds. Default: whole videos.")
    ] = None,
    overlap: Annotated[float | None, Option(help="Seconds that a segment shares with the next. Default: 0.")] = None,
    scenes: Annotated[
        bool, Option("--scenes", help="Cut videos where the picture changes (extra: scenes), not at fixed times.")
    ] = False,
    on_error: Annotated[
        Literal["skip", "raise"], Option(help="At a bad file: report it and go on, or end the run.")
    ] = "skip",
    prune: Annotated[bool, Option("--prune", help="Remove files that are no longer on disk.")] = False,
    rehash: Annotated[
        bool, Option("--rehash", help="Read files again whose size and time of last write have not changed.")
    ] = False,
    retry: Annotated[
        bool, Option("--retry", help="Try files again that could not be decoded before (the quarantine list).")
    ] = False,
    wait: Annotated[bool, Option("--wait", help="If another run is writing to the index, wait for its end.")] = False,
    batch_size: Annotated[int, Option(min=1, help="Segments handed to the model at once.")] = 32,
    decode_workers: Annotated[
        int | None, Option(min=1, help="Processes that decode. Default: one a core, at most 8.")
    ] = None,
    timeout: Annotated[float, Option(help="Seconds that the decoder may work on one file; then it is killed.")] = 600.0,
    max_memory: Annotated[float, Option(help="GiB of memory that one decoder may take (Linux).")] = 8.0,
    device: Device = None,
    fps: Annotated[float | None, Option(help="Frames looked at per second. Default: the model's.")] = None,
    max_frames: Annotated[int | None, Option(help="Most frames of a segment. Default: the model's.")] = None,
    quantize: Annotated[
        list[str] | None, Option(help="Quantize the ANN index as int8 or binary, also of few segments.")
    ] = None,
    compact: Annotated[list[str] | None, typer.Option(hidden=True, help="The earlier name of --quantize.")] = None,
    query_bank: Annotated[
        Path | None, Option(help="File of queries, one a line, for `search --bank`.", show_default=False)
    ] = None,
    exact_up_to: Annotated[
        int | None, Option(min=0, help="Segments up to which a search is exact. Default: 100,000.")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], Option(help="Where the work is done: here, or on a Ray cluster (extra: ray).")
    ] = "local",
    address: Annotated[
        str | None,
        Option(help="With --engine ray: the cluster. Default: RAY_ADDRESS, else one on this machine."),
    ] = None,
    workers: Annotated[int | None, Option(min=1, help="With --engine ray: copies of the model. Default: 1.")] = None,
    num_gpus: Annotated[
        float | None, Option(min=0, help="With --engine ray: GPUs of each; 0.5 has two share one. Default: 0.")
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Write the report to stdout as JSON.")] = False,
) -> None:
    """Index videos, so that they can be searched. Run again, it does only what is new or changed."""
    from vidembed.cli.search import read_queries
    from vidembed.index import Derived

    derived = Derived(
        exact_up_to, [*(quantize or ()), *(compact or ())], None if query_bank is None else read_queries(query_bank)
    )
    derived.check()
    options: RunOptions = {
        "cut": cut_of(segment, overlap, scenes=scenes),
        "on_error": on_error,
        "prune": prune,
        "rehash": rehash,
        "retry": retry,
        "wait": wait,
        "batch_size": batch_size,
        "timeout_s": timeout,
        "max_memory_bytes": int(max_memory * 2**30),
        "derived": derived,
    }
    sampling = {key: value for key, value in {"fps": fps, "max_frames": max_frames}.items() if value is not None}
    if engine == "local":
        if given := first_given({"address": address, "num-gpus": num_gpus, "workers": workers}):
            raise ValueError(f"{given}: it is for --engine ray; give that too, or leave it out")
        report, _ = run(
            paths,
            to,
            model=model,
            layer=layer,
            sampling=sampling,
            device=device,
            decode_workers=decode_workers,
            **options,
        )
    else:
        from vidembed.index.ingest import open_if_there
        from vidembed.ray import index_videos_ray

        asked = model_options(open_if_there(to), model, layer=layer, sampling=sampling, device=device)
        report = index_videos_ray(
            paths,
            to,
            model=asked.name,
            layer=asked.layer,
            sampling=asked.sampling,
            device=device,
            decoders=decode_workers,
            address=address,
            workers=workers or 1,
            num_gpus=num_gpus or 0,
            **options,
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


def run(
    paths: Sequence[str | Path],
    to: Path,
    *,
    model: str | None,
    layer: int | None = None,
    sampling: dict[str, float] | None = None,
    device: str | None = None,
    decode_workers: int | None = None,
    **options: Unpack[RunOptions],
) -> tuple[Report, VideoEncoder]:
    """Load the model, index `paths` on this machine and return the report and the model."""
    from vidembed.index import index_videos
    from vidembed.index.ingest import find_videos, open_if_there
    from vidembed.video import VIDEO_SUFFIXES

    existing = open_if_there(to)  # what is cheap to find wrong comes before the model is loaded
    find_videos(paths, VIDEO_SUFFIXES, indexed=existing.files if existing else tuple)
    asked = model_options(existing, model, layer=layer, sampling=sampling, device=device)
    encoder = asked.load()
    report = index_videos(
        paths, to, encoder, model=asked.name, layer=asked.layer, decode_workers=decode_workers, **options
    )
    return report, encoder


def model_options(
    index: VideoIndex | None,
    model: str | None,
    *,
    layer: int | None,
    sampling: dict[str, float] | None,
    device: str | None,
) -> ModelOptions:
    """Return how to load the model: as the index was made, where nothing else is given."""
    from vidembed.index.table import ModelOptions, stored_name
    from vidembed.video import Sampling

    name = stored_name(model) if model is not None else index.meta.model if index else DEFAULT_MODEL
    asked = ModelOptions(name, layer, sampling or {}, device)
    if index is not None and name == index.meta.model:
        layer = index.meta.layer if layer is None else layer
        asked = ModelOptions(name, layer, {**index.meta.sampling, **asked.sampling}, device)
    Sampling(**asked.sampling)  # checks the values
    if name == DEFAULT_MODEL:
        say(SHAPES_WARNING)
    return asked


def cut_of(segment: float | None, overlap: float | None, *, scenes: bool) -> Cut | None:
    """Return how the options ask to cut videos, or None where they do not; raises ValueError if they do not fit."""
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
    from vidembed.index.table import name_of
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


def info_command(
    *,
    folder: Annotated[Path, Argument(help="Folder of an index, or a video file.", show_default=False)],
    as_json: Annotated[bool, Option("--json", help="Write it to stdout as JSON.")] = False,
) -> None:
    """Show what an index holds and which model made it, or what a video is and how it is read."""
    if folder.is_file():
        from vidembed import probe

        video = asdict(probe(folder, scan=True))
        if not as_json:
            video |= {f"colour: {key}": value for key, value in (video.pop("colour") or {}).items()}
        (print_json if as_json else print_facts)(video)
        return
    from vidembed.index import VideoIndex
    from vidembed.index.commit import read as read_quarantine
    from vidembed.index.search import facts as search_facts

    index = VideoIndex.open(folder)
    meta = index.meta
    facts: dict[str, object] = {
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
    }
    how = search_facts(index)
    if as_json:
        last = {"fingerprint_fields": meta.fingerprint_fields, "schema_version": meta.schema_version, "search": how}
        print_json(facts | last)
        return
    facts["schema_version"] = meta.schema_version
    facts |= {f"fingerprint: {key}": value for key, value in meta.fingerprint_fields.items()}
    facts |= {"exact up to": f"{how['exact_up_to']} segments", "quantize": how["quantize"]}
    facts |= {f"ANN index: {key}": value for key, value in (how["ann"] or {}).items()}
    facts |= {f"query bank: {key}": value for key, value in (how["query_bank"] or {}).items()}
    print_facts(facts)
