"""`vidembed info`."""

# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from vidembed.cli.console import print_json, print_table


def command(
    *,
    folder: Annotated[Path, typer.Argument(help="Folder of an index, or a video file.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Write it to stdout as JSON.")] = False,
) -> None:
    """Show what an index holds and which model made it, or what a video is and how it is read."""
    if folder.is_file():
        _show_video(folder, as_json=as_json)
        return
    from vidembed.index import VideoIndex
    from vidembed.index.ingest.quarantine import read as read_quarantine
    from vidembed.index.retrieval.refresh import facts as search_facts

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
    rows += [["exact up to", f"{how['exact_up_to']} segments"], *_derived(how)]
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
    """Return a row for each fact about the ANN index, the compact copies and the query bank."""
    rows = [[f"ANN index: {key}", _said(value)] for key, value in (how["ann"] or {}).items()]
    for copy in how["compact"]:
        rows += [[f"compact {copy['name']}: {key}", _said(value)] for key, value in copy.items() if key != "name"]
    return rows + [[f"query bank: {key}", _said(value)] for key, value in (how["query_bank"] or {}).items()]


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
