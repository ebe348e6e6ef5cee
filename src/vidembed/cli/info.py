"""`vidembed info`: what an index holds, or what a video is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal
from typer import Argument, Option

from vidembed.cli import options as cli

if TYPE_CHECKING:
    from vidembed.index import VideoIndex
    from vidembed.index.commit import Entry

LISTED = 10  # files in quarantine that the page names; JSON has all


def command(
    *,
    folder: Annotated[Path, Argument(help="Folder of an index, or a video file.")],
    verbose: Annotated[
        bool, Option("--verbose", "-v", help="Also show fingerprints, versions and every measurement.")
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Write everything to stdout as JSON.")] = False,
) -> None:
    """Show what an index holds and which model made it, or what a video is and how it is read."""
    if folder.is_file():
        from vidembed import probe

        facts: dict[str, Any] = asdict(probe(folder, scan=True))
        lines = video_lines(facts)
    else:
        from vidembed.index import VideoIndex
        from vidembed.index.commit import read as read_quarantine

        index, quarantine = VideoIndex.open(folder), read_quarantine(folder)
        facts = index_facts(index, quarantine)
        lines = index_lines(facts)
    if as_json:
        cli.print_json(facts)
        return
    typer.echo(cli.plain(str(folder)))
    for name, text in lines:
        typer.echo(f"  {name:<11} {cli.plain(text)}")
    if verbose:
        cli.print_facts(flat(facts))


def index_facts(index: VideoIndex, quarantine: Mapping[str, Entry]) -> dict[str, Any]:
    """Return all that is known of an index without loading its model. The names are those of `--json`."""
    from vidembed.index.ingest import facts as search_facts

    meta = asdict(index.meta)
    durations: dict[str, float] = {}
    for batch in index.scan(["uri", "duration"]):
        durations.update(zip(batch.column("uri").to_pylist(), batch.column("duration").to_pylist(), strict=True))
    shown = ("uri", "kind", "message", "since")
    return {
        "index": str(index.folder),
        "files": len(durations),
        "segments": len(index),
        "duration_s": round(sum(durations.values()), 3),
        **{name: meta[name] for name in ("dimension", "segment_s", "overlap_s", "scenes")},
        "quarantined": len(quarantine),
        "quarantine": [{name: getattr(entry, name) for name in shown} for entry in quarantine.values()],
        "bytes": index.size_on_disk(),
        "created": meta["created"],
        "updated": index.updated.isoformat(timespec="seconds"),
        **{name: meta[name] for name in ("model", "layer", "sampling", "model_fingerprint")},
        "fingerprint_fields": meta["fingerprint_fields"],
        "schema_version": meta["schema_version"],
        "search": search_facts(index),
    }


def index_lines(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield name and text of each line about an index."""
    from vidembed.index.table import name_of

    yield "videos", f"{count(facts['files'], 'video')}, {length(facts['duration_s'])}"
    windows, overlap = facts["segment_s"], facts["overlap_s"]
    cut = "one for each video" if windows is None else f"{windows:g} s long"
    cut = (
        "cut where the picture changes"
        if facts["scenes"]
        else cut + (f", overlapping by {overlap:g} s" * bool(overlap))
    )
    yield "segments", f"{facts['segments']:,}, {cut}"
    layer = facts["layer"] or facts["fingerprint_fields"].get("layer")
    at = f", layer {layer}" if layer else ""
    yield "model", f"{facts['model']}{at}, vectors of {facts['dimension']} numbers"
    sampling = facts["sampling"]
    yield "frames", f"{sampling['fps']:g} per second, at most {sampling['max_frames']} per segment"
    search = facts["search"]
    if captions := search.get("captions"):
        fusion = {"fitted": "by fitted weights", "reciprocal_rank": "by ranks, no weights were fitted"}
        hybrid = fusion.get(captions["fusion"], captions["fusion"])
        yield "captions", f"{captions['segments']:,} of {facts['segments']:,} segments, by {captions['model']}"
        yield "", f"hybrid search: {hybrid}"
    else:
        yield "captions", "none"
    yield "search", _search(search)
    if bank := search["query_bank"]:
        state = "" if bank["fresh"] else ", out of date: run `vidembed index` again"
        yield "query bank", f"{bank.get('queries', 'unreadable')}{' queries' * ('queries' in bank)}{state}"
    yield "quarantine", count(facts["quarantined"], "file") if facts["quarantined"] else "none"
    for entry in facts["quarantine"][:LISTED]:
        yield "", f"{name_of(entry['uri'])}: {entry['kind']}: {entry['message']}"
    if (more := facts["quarantined"] - LISTED) > 0:
        yield "", f"and {count(more, 'other')}, which --json lists"
    yield "size", decimal(facts["bytes"])
    yield "updated", f"{moment(facts['updated'])} (created {moment(facts['created'])})"


def _search(search: Mapping[str, Any]) -> str:
    """Return how the index is searched."""
    found = search["ann"]
    if found is None:
        return f"exact (up to {search['exact_up_to']:,} segments)"
    kind = f"{search['quantize'] or 'approximate'} index"
    recall = ", ".join(f"recall@{k} {value:.3f}" for k, value in found.get("recall", {}).items())
    measured = f" ({recall} against the exact search)" if recall else ""
    return (
        f"approximate, {kind}{measured}" if found["used"] else f"exact; {kind} not used: {found['why_not']}{measured}"
    )


def video_lines(facts: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield name and text of each line about a video."""
    duration, fps, frames = facts["duration"], facts["fps"], facts["num_frames_estimate"]
    yield "video", f"{facts['width']} x {facts['height']}, {facts['codec']} in {facts['container']}"
    rate = f", {fps:.4g} frames per second" if fps else ""
    about = f", about {frames:,} frames" if frames else ""
    yield "length", f"{'not declared' if duration is None else length(duration)}{rate}{about}"
    if facts["start_s"]:
        yield "starts", f"at {facts['start_s']:g} s on the clock of a player"
    if facts["discontinuities"]:
        yield "clock", f"{count(facts['discontinuities'], 'jump')}, as in joined recordings"
    colour = facts["colour"] or {"conversion": "none"}
    steps = [
        f"rotated by {facts['rotation']} degrees" if facts["rotation"] else "",
        "mirrored" if facts["mirrored"] else "",
        "deinterlaced" if facts["interlaced"] else "",
        colour["conversion"] if colour["conversion"] != "none" else "",
    ]
    yield "converted", ", ".join(filter(None, steps)) or "nothing to convert"
    others = [str(stream) for stream in facts["streams"] if stream != facts["stream"]]
    yield "read from", f"stream {facts['stream']}" + (f"; other video streams: {', '.join(others)}" if others else "")
    yield "sound", "yes" if facts["has_audio"] else "none"


def flat(facts: Mapping[str, Any]) -> dict[str, object]:
    """Return facts in one level: those of an inner object under its name, but for settings that stand together."""
    names = {"fingerprint_fields": "fingerprint", "search": "", "ann": "ANN index", "query_bank": "query bank"}
    found: dict[str, object] = {}
    for name, value in facts.items():
        shown = names.get(name, name)
        if isinstance(value, Mapping) and name not in ("sampling", "scenes", "recall", "full_recall"):
            inner = flat(value) if name == "search" else value
            found |= {f"{shown}: {key}" if shown else key: each for key, each in inner.items()}
        elif name != "quarantine":
            found[shown] = value
    return found


def count(number: int, what: str) -> str:
    """Return a number with a noun, such as `1 video` or `2,000 videos`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def moment(text: str) -> str:
    """Return a time of ISO 8601 as a person reads it, to the minute, such as `2026-11-29 17:40 UTC`."""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def length(seconds: float) -> str:
    """Return a duration as a person reads it, such as `3 h 12 min`, `4 min 5 s` or `1.5 s`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours:,} h {minutes_left} min" if hours else f"{minutes} min {rest} s"
