"""`vidembed info`."""

# ruff: noqa: PLC0415 - commands import what they need when they run, so that --help is quick

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from vidembed.cli.console import print_json, print_table


def command(
    *,
    folder: Annotated[Path, typer.Argument(help="Folder of the index.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Write it to stdout as JSON.")] = False,
) -> None:
    """Say what an index holds and which model made it."""
    from vidembed.index import VideoIndex

    index = VideoIndex.open(folder)
    meta = index.meta
    facts: dict[str, Any] = {
        "index": str(folder),
        "files": len(index.files()),
        "segments": len(index),
        "dimension": meta.dimension,
        "segment_s": meta.segment_s,
        "overlap_s": meta.overlap_s,
        "bytes": index.size_on_disk(),
        "created": meta.created,
        "model": meta.model,
        "layer": meta.layer,
        "sampling": meta.sampling,
        "model_fingerprint": meta.model_fingerprint,
        "fingerprint_fields": meta.fingerprint_fields,
        "schema_version": meta.schema_version,
    }
    if as_json:
        print_json(facts)
        return
    fields = facts.pop("fingerprint_fields")
    rows = [[key, _said(value)] for key, value in facts.items()]
    rows += [[f"fingerprint: {key}", _said(value)] for key, value in fields.items()]
    print_table(["", "value"], rows)


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
