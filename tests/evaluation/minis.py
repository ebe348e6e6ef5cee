"""Miniature annotation files in the published forms, and the (empty) video files that they name."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vidembed.evaluation import Benchmark, read_benchmark

MSRVTT_ROWS = [
    ("ret0", "msr9770", "video9770", "a person is connecting something to system"),
    ("ret1", "msr9771", "video9771", "a little girl, does gymnastics"),
    ("ret2", "msr7020", "video7020", "a woman creating a fondant baby and flower"),
]


def touch(folder: Path, *names: str) -> Path:
    """Empty files below a folder: readers do not open videos."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def msrvtt(folder: Path, rows: Sequence[Sequence[str]] = MSRVTT_ROWS) -> Path:
    return write_csv(folder / "MSRVTT_JSFUSION_test.csv", ("key", "vid_key", "video_id", "sentence"), rows)


def small(name: str, annotations: Path, videos: Path, **options: Any) -> Benchmark:
    """Read a miniature, whose counts are not the published ones."""
    return read_benchmark(name, annotations=annotations, videos=videos, **{"check_counts": False, **options})


def owned(benchmark: Benchmark) -> list[tuple[str, str]]:
    """Each text with the id of the video it is true of."""
    return [
        (text, benchmark.video_ids[place])
        for text, places in zip(benchmark.texts, benchmark.owners, strict=True)
        for place in places
    ]
