"""Files beside the table that are derived from it and can be made again: where they are, and how they are written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vidembed import atomic

DERIVED_FOLDER = "derived"
FORMAT_VERSION = 1


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """See `vidembed.atomic.replacing`; the folder is made with the first of its files."""
    file.parent.mkdir(exist_ok=True)
    with atomic.replacing(file) as draft:
        yield draft


def write_record(file: Path, record: dict[str, Any]) -> None:
    """Write a JSON object."""
    with replacing(file) as draft:
        draft.write_text(json.dumps({"format_version": FORMAT_VERSION, **record}, indent=1, allow_nan=False) + "\n")


def read_record(file: Path) -> dict[str, Any] | None:
    """Read what `write_record` wrote, or return None where there is no such file or it is not that.

    What is derived is never needed to answer: without it, searches are exact.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
        return None
    return record
