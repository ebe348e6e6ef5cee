"""Captions of drawn videos, written as a model would: one record a segment of 4 seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vidembed.captions import CaptionRecord
from vidembed.uri import content_fingerprint

from tests.conftest import RECORDS

SCENES = {"a.mp4": (0, 1, 2), "b.MP4": (3, 4), "c.mp4": (5,)}
"""Scenes of the files of the fixture `drawn`."""


def segment_captions(folder: Path, **fields: Any) -> list[CaptionRecord]:
    """Say of each segment what is drawn."""
    return [
        CaptionRecord(
            name,
            content_fingerprint(folder / name),
            {"dense": RECORDS[scene].caption, "short": RECORDS[scene].summary},
            start_s=4.0 * at,
            end_s=4.0 * at + 4,
            **fields,
        )
        for name, scenes in SCENES.items()
        for at, scene in enumerate(scenes)
    ]


def write_captions(file: Path, records: Iterable[CaptionRecord]) -> Path:
    """Write records as ``vidembed caption`` does."""
    file.write_text("".join(record.to_json() + "\n" for record in records), encoding="utf-8")
    return file
