"""`vidembed clip`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from vidembed.backbone.options import ModelOptions
from vidembed.cli import options as cli

if TYPE_CHECKING:
    from vidembed.index import Hit
    from vidembed.video import VideoSegment

DEFAULT_SUFFIX = ".mkv"  # of a video whose own kind of file is not written; Matroska holds most codecs


def command(
    *,
    what: Annotated[
        str,
        Argument(
            metavar="SOURCE|WORDS",
            help="A video, or a URI such as file:///a.mp4#t=10,20; with --in, words to search for.",
        ),
    ],
    out: Annotated[Path, Option(help="File to write; its suffix sets the format. With --top, a folder.")],
    start: Annotated[
        float | None, Option("--from", help="Start in seconds, as a player shows them. Default: the beginning.")
    ] = None,
    end: Annotated[float | None, Option("--to", help="End in seconds. Default: the end of the video.")] = None,
    folder: Annotated[Path | None, Option("--in", help="Search this index for the words, and cut a hit.")] = None,
    hit: Annotated[int | None, Option(min=1, help="With --in: number of the hit, from 1. Default: the first.")] = None,
    top: Annotated[
        int | None, Option(min=1, metavar="N", help="With --in: cut the first N hits, into the folder --out.")
    ] = None,
    around: Annotated[float, Option(help="Also include this many seconds before and after.")] = 0.0,
    merge: Annotated[cli.Merge, Option(help="With --in: as for `vidembed search`.")] = "moments",
    by: Annotated[cli.By, Option(help="With --in: as for `vidembed search`.")] = "video",
    model: Annotated[
        str | None,
        Option(help="With --in: name or folder to load the model from. Default: the one stored in the index."),
    ] = None,
    model_options: ModelOptions | None = None,
    force: Annotated[bool, Option("--force", help="Replace files that exist.")] = False,
    as_json: Annotated[bool, Option("--json", help="Write the result to stdout as JSON.")] = False,
) -> None:
    """Copy a part of a video, or a hit of a search, to a file without re-encoding. It starts at a key frame."""
    from vidembed.index import SearchOptions
    from vidembed.index.rows import check_query

    SearchOptions(merge=merge, around=around)
    if folder is None:
        why = "it needs a search; give --in INDEX, and words in place of the video"
        cli.refuse({"--hit": hit, "--top": top, "--model": model, "--device and the like": model_options}, why)
        segment = _of_file(what, start, end, around)
        check_out(out, force=force)
        done = [_cut(segment, out, force=force)]
    else:
        check_query(what)
        if start is not None or end is not None:
            raise ValueError("from, to: a hit has its own times; leave them out, or widen the hit with --around")
        if hit is not None and top is not None:
            raise ValueError(f"hit: got {hit} together with --top {top}; give one of them")
        check_out(out, folder=top is not None, force=force)
        from vidembed.index import VideoIndex, search
        from vidembed.index.hybrid import ByCaptions

        index = VideoIndex.open(folder)
        if by != "video":
            ByCaptions.of(index, by)  # before the model is loaded
        encoder = index.meta.load_encoder(model, model_options)
        k, name = top or hit or 1, model or index.meta.model
        hits = search(index, encoder, what, k=k, name=name, merge=merge, around=around, by=by)
        if top is None and len(hits) < (hit or 1):
            raise ValueError(f"hit: got {hit or 1}; the search has {len(hits)} hits")
        done = [_cut_hit(hits[-1], out, force=force)] if top is None else _cut_all(hits, out, force=force)
    if as_json:
        cli.print_json(done if top is not None else done[0])
    else:
        typer.echo("".join(f"{cli.plain(str(each['path']))}\n" for each in done), nl=False)
    if not done:
        cli.say("Nothing was cut.")
        raise typer.Exit(cli.NOTHING_DONE)


def check_out(out: Path, *, folder: bool = False, force: bool) -> None:
    """Raise ValueError at a target that cannot be written."""
    from vidembed.video.trim import check_target

    if folder and out.exists() and not out.is_dir():
        raise ValueError(f"out: {str(out)!r} is a file; with --top, give a folder")
    if not folder:
        with _target_is_out():
            check_target(out, overwrite=force)


@contextmanager
def _target_is_out() -> Iterator[None]:
    """Name the options in errors that the library has about its argument `target`."""
    try:
        yield
    except (FileExistsError, ValueError) as error:
        message = str(error).replace("target:", "out:", 1)
        raise ValueError(message.replace("pass overwrite=True", "replace it with --force")) from error


def _of_file(what: str, start: float | None, end: float | None, around: float) -> VideoSegment:
    """Read the name of a video, with the times of its URI or of the options."""
    from vidembed.uri import parse_video_uri
    from vidembed.video import VideoSegment

    uri = f"video+{what}" if what[:7].lower() == "file://" else what
    named = parse_video_uri(uri)
    source = Path(what) if named is None else Path(named.source)
    if named is not None and (named.start or named.end is not None):
        if start is not None or end is not None:
            raise ValueError(f"from, to: {what!r} has times already; give them once")
        start, end = named.start, named.end
    if start is None and end is None:
        raise ValueError("from, to: give at least one of them, in seconds; to copy a whole video, copy its file")
    asked = VideoSegment(source, start or 0.0, end)  # checks the times
    return VideoSegment(source, max(0.0, asked.start - around), None if end is None else end + around)


def _cut_hit(hit: Hit, target: Path, *, force: bool) -> dict[str, object]:
    from vidembed.index.table import is_local, path_of
    from vidembed.video import VideoSegment

    if not is_local(hit.uri):
        raise ValueError(f"in: the hit {hit.uri!r} is not a file on this machine; copy it here, and cut the copy")
    if hit.context_start_s is None or hit.context_end_s is None:
        raise RuntimeError("the search did not return the seconds around the hits")
    segment = VideoSegment(path_of(hit.uri), hit.context_start_s, hit.context_end_s)
    return _cut(segment, target, force=force) | {"score": hit.score}


def _cut_all(hits: Sequence[Hit], out: Path, *, force: bool) -> list[dict[str, object]]:
    """Cut hits into a folder; a message says why one cannot be cut."""
    from vidembed.index.table import file_name_of
    from vidembed.video import VideoError
    from vidembed.video.trim import MUXERS

    targets = []
    for rank, hit in enumerate(hits, start=1):
        name = Path(file_name_of(hit.uri))
        suffix = name.suffix if name.suffix.lower() in MUXERS else DEFAULT_SUFFIX
        targets.append(out / f"{rank:0{len(str(len(hits)))}d}-{name.stem}{suffix}")
        if targets[-1].exists() and not force:
            raise ValueError(f"out: {str(targets[-1])!r} exists; choose another folder, or replace it with --force")
    out.mkdir(parents=True, exist_ok=True)
    done = []
    for hit, target in zip(hits, targets, strict=True):
        try:
            done.append(_cut_hit(hit, target, force=force))
        except (VideoError, ValueError) as error:
            cli.say(f"Not cut: {error}")
    return done


def _cut(segment: VideoSegment, target: Path, *, force: bool) -> dict[str, object]:
    """Cut a segment, and return what the file holds."""
    from vidembed.index.hits import time_range
    from vidembed.video.trim import cut_clip

    with _target_is_out():
        made = cut_clip(segment.path, target, segment.start, segment.end, overwrite=force)
    source = str(segment.path)
    cli.say(f"Wrote {made.path}: {time_range(made.start_s, made.end_s)} of {source}")
    if made.start_s < segment.start:
        cli.say(
            f"It begins {segment.start - made.start_s:.3f} s earlier, at a key frame, because nothing is re-encoded."
        )
    if made.left_out:
        cli.say(f"Left out: {', '.join(made.left_out)}.")
    return {
        "path": str(made.path.absolute()),
        "source": source,
        "asked_start_s": segment.start,
        "asked_end_s": segment.end,
        "start_s": made.start_s,
        "end_s": made.end_s,
        "left_out": list(made.left_out),
    }
