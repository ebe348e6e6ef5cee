"""`vidembed index`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from vidembed.backbone.options import ModelOptions
from vidembed.cli import options as cli
from vidembed.cli.search import read_queries

if TYPE_CHECKING:
    from vidembed.captions import CaptionRecord
    from vidembed.encoder import VideoEncoder
    from vidembed.index import CaptionReport, Report, VideoIndex
    from vidembed.video.segments import Cut

DEFAULT_MODEL = "vidembed/shapes"
SHAPES_WARNING = (
    "Note: vidembed/shapes knows only videos of moving coloured shapes. "
    "For other videos, give --model; see `vidembed build --help`."
)


def index_command(
    *,
    paths: Annotated[
        list[str], Argument(help="Videos, and folders of videos; with --engine ray also s3:// and other URIs.")
    ],
    to: Annotated[Path, Option("--to", help="Folder of the index: new, empty, or an index to add to.")],
    model: Annotated[
        str | None,
        Option(help=f"Model: a name or a folder. Default: that of the index; for a new index, {DEFAULT_MODEL}."),
    ] = None,
    layer: Annotated[
        int | None, Option(help="Decoder layer to read, for a model that is not a vidembed checkpoint.")
    ] = None,
    segment: Annotated[
        float | None, Option(help="Cut videos into segments of this many seconds. Default: whole videos.")
    ] = None,
    overlap: Annotated[float | None, Option(help="Seconds that a segment shares with the next. Default: 0.")] = None,
    scenes: Annotated[
        bool, Option("--scenes", help="Cut videos at scene changes instead of fixed times (extra: scenes).")
    ] = False,
    on_error: Annotated[
        Literal["skip", "raise"], Option(help="For a file that cannot be indexed: report it and continue, or stop.")
    ] = "skip",
    prune: Annotated[bool, Option("--prune", help="Remove files that are no longer on disk.")] = False,
    rehash: Annotated[
        bool, Option("--rehash", help="Read all files again, also those of unchanged size and modification time.")
    ] = False,
    retry: Annotated[
        bool, Option("--retry", help="Try the files on the quarantine list again, which could not be decoded before.")
    ] = False,
    wait: Annotated[bool, Option("--wait", help="If another run is writing to the index, wait until it ends.")] = False,
    batch_size: Annotated[int, Option(min=1, help="Segments per batch.")] = 32,
    decode_workers: Annotated[
        int | None,
        Option(min=1, help="Decoding processes. Default: one per core, less one where the model is on a GPU."),
    ] = None,
    timeout: Annotated[float, Option(help="Seconds after which the decoder of a file is killed.")] = 600.0,
    max_memory: Annotated[float, Option(help="Memory limit of one decoding process, in GiB (Linux).")] = 8.0,
    model_options: ModelOptions | None = None,
    fps: Annotated[float | None, Option(help="Frames to sample per second. Default: the model's.")] = None,
    max_frames: Annotated[int | None, Option(help="Most frames per segment. Default: the model's.")] = None,
    quantize: Annotated[
        list[str] | None,
        Option(help="Build a quantized approximate (ANN) index, int8 or binary, for any number of segments."),
    ] = None,
    compact: Annotated[list[str] | None, Option(hidden=True, help="The earlier name of --quantize.")] = None,
    query_bank: Annotated[Path | None, Option(help="File of queries, one per line, for `search --bank`.")] = None,
    captions: Annotated[
        Path | None,
        Option(help="Captions written by `vidembed caption`, for `search --by`. Segments must be cut as in the index."),
    ] = None,
    replace_captions: Annotated[
        bool,
        Option(
            "--replace-captions",
            help="With --captions: remove captions in the index of another model or other prompts.",
        ),
    ] = False,
    marked_captions: Annotated[
        bool, Option("--marked-captions", help="With --captions: also use captions that are marked as doubtful.")
    ] = False,
    exact_up_to: Annotated[
        int | None, Option(min=0, help="Largest number of segments that is searched exactly. Default: 100,000.")
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], Option(help="Where to run: on this machine, or on a Ray cluster (extra: ray).")
    ] = "local",
    address: Annotated[
        str | None,
        Option(help="With --engine ray: address of the cluster. Default: RAY_ADDRESS, else one on this machine."),
    ] = None,
    workers: Annotated[int | None, Option(min=1, help="With --engine ray: copies of the model. Default: 1.")] = None,
    num_gpus: Annotated[
        float | None,
        Option(min=0, help="With --engine ray: GPUs per copy; with 0.5, two copies share one. Default: 0."),
    ] = None,
    as_json: Annotated[bool, Option("--json", help="Write the report to stdout as JSON.")] = False,
) -> None:
    """Index videos so that they can be searched. Run it again to add new and changed files."""
    given = locals()  # all options by their names
    from vidembed.index import Derived, add_captions, index_videos
    from vidembed.index.commit import open_if_there
    from vidembed.index.files import find_videos
    from vidembed.video import VIDEO_SUFFIXES

    bank = None if query_bank is None else read_queries(query_bank)
    derived = Derived(exact_up_to, [*(quantize or ()), *(compact or ())], bank)
    derived.check()
    records = caption_records(captions, replace=replace_captions, marked=marked_captions)
    same = ("on_error", "prune", "rehash", "retry", "wait", "batch_size")  # named as the library names them
    options = {name: given[name] for name in same} | {
        "cut": cut_of(segment, overlap, scenes=scenes),
        "timeout_s": timeout,
        "max_memory_bytes": int(max_memory * 2**30),
        "derived": derived,
    }
    if engine == "local":
        why = "it needs --engine ray; give that too, or leave this out"
        cli.refuse({"address": address, "num-gpus": num_gpus, "workers": workers}, why)
    existing = open_if_there(to)  # what is cheap to find wrong comes before the model is loaded
    if engine == "local":
        find_videos(paths, VIDEO_SUFFIXES, indexed=existing.files if existing else tuple)
    sampling = {name: given[name] for name in ("fps", "max_frames") if given[name] is not None}
    name, layer, sampling = asked_model(existing, model, layer, sampling)
    options |= {"model": name, "layer": layer}
    load = partial(_load, name, layer=layer, sampling=sampling, options=model_options)
    encoder = None
    if engine == "local":
        encoder = load()
        report = index_videos(paths, to, encoder, decode_workers=decode_workers, **options)
    else:
        from vidembed.ray import index_videos_ray

        options |= {"sampling": sampling, "decoders": decode_workers, "address": address}
        options |= {"model_options": model_options, "workers": workers or 1, "num_gpus": num_gpus or 0}
        report = index_videos_ray(paths, to, **options)
    added = None
    if records and report.any_in_index:
        encoder = encoder or load()
        replace, marked = replace_captions, marked_captions
        added = add_captions(to, encoder, records, name=name, marked=marked, replace=replace, wait=wait)
    finish(report, added, captions, as_json=as_json)


def finish(report: Report, added: CaptionReport | None, captions: Path | None, *, as_json: bool) -> None:
    """Write the reports of videos and captions, and exit with the code that they mean."""
    if as_json:
        cli.print_json(report.to_dict() | ({} if added is None else {"captions": added.to_dict()}))
    else:
        show(report)
    if added is not None and not as_json:
        show_captions(added)
    if not report.any_in_index:
        cli.say("No video could be indexed.")
        raise typer.Exit(cli.NOTHING_DONE)
    if captions is not None and (added is None or not added.added + added.unchanged):
        cli.say(
            f"No caption of {str(captions)!r} could be used: they belong to other files or other times, or are marked."
        )
        raise typer.Exit(cli.NOTHING_DONE)
    if report.vanished:
        cli.say("A path that you gave has files in the index, but no video now. They were not removed from the index.")
        raise typer.Exit(cli.PATH_VANISHED)


def caption_records(captions: Path | None, *, replace: bool, marked: bool) -> list[CaptionRecord]:
    """Return the records of a file of captions; raises ValueError if it is damaged, or is not given and needed."""
    from vidembed.captions import read_captions

    if captions is None:
        cli.refuse({"replace-captions": replace, "marked-captions": marked}, "it needs --captions FILE")
        return []
    return list(read_captions(captions))


def _load(name: str, **how: Any) -> VideoEncoder:
    from vidembed.encoder import load_encoder

    return load_encoder(name, **how)


def asked_model(
    index: VideoIndex | None, model: str | None, layer: int | None, sampling: dict[str, Any]
) -> tuple[str, int | None, dict[str, Any]]:
    """Return name, layer and sampling of the model to load: as the index was made, where nothing else is given."""
    from vidembed.video import Sampling

    name = index.meta.model if index else DEFAULT_MODEL
    if model is not None:  # a folder by its absolute path, so that a search finds it from anywhere
        path = Path(model).expanduser()
        name = str(path.resolve()) if path.is_dir() else model
    if index is not None and name == index.meta.model:
        layer = index.meta.layer if layer is None else layer
        sampling = {**index.meta.sampling, **sampling}
    Sampling(**sampling)  # checks the values
    if name == DEFAULT_MODEL:
        cli.say(SHAPES_WARNING)
    return name, layer, sampling


def cut_of(segment: float | None, overlap: float | None, *, scenes: bool) -> Cut | None:
    """Return how the options ask to cut videos, or None where they do not; raises ValueError if they do not fit."""
    from vidembed.video import Scenes, Windows

    if scenes:
        if segment is not None or overlap is not None:
            raise ValueError("scenes: got --scenes together with --segment or --overlap; give one of them")
        return Scenes()
    if segment is not None:
        return Windows(segment, overlap or 0.0)
    if overlap is not None:
        raise ValueError(f"overlap: got {overlap} without --segment; give --segment SECONDS too")
    return None


def show(report: Report) -> None:
    """Write a report for people: a table of what was skipped to stdout, and a summary."""
    from vidembed.index.table import name_of

    if report.skipped:
        rows = [[name_of(problem.uri), problem.kind, problem.message] for problem in report.skipped]
        cli.print_table(["skipped", "kind", "reason"], rows)
    if report.gone and not report.pruned:
        cli.print_table(["no longer on disk (--prune removes them)"], [[name_of(uri)] for uri in report.gone])
    counts = {
        "indexed": report.indexed,
        "copied from equal files": report.copied,
        "moved": report.moved,
        "unchanged": report.unchanged,
        "skipped": len(report.skipped),
        "pruned" if report.pruned else "gone": len(report.gone),
    }
    done = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    held = f"{cli.plain(report.index)} holds {report.files} files, {report.segments} segments"
    typer.echo(f"{done or 'Nothing done'}. {held}.")
    if report.quarantined:
        cli.say(f"{report.quarantined} of the skipped files were put into quarantine; `--retry` tries them again.")


def show_captions(report: CaptionReport) -> None:
    """Write what became of captions for people: a table of those that were refused to stdout, and a summary."""
    if report.refused:
        rows = [[problem.uri, problem.kind, problem.message] for problem in report.refused]
        cli.print_table(["caption refused", "kind", "reason"], rows)
    counts = {
        "added": report.added,
        "unchanged": report.unchanged,
        "left out because marked": report.marked,
        "without a text": report.without_text,
        "of other files or times": report.unmatched,
        "refused": len(report.refused),
    }
    done = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    typer.echo(f"Captions: {done or 'none'}. {report.captioned} of {report.segments} segments have one.")
