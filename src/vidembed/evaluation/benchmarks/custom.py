"""Videos and captions of the user's own."""

from __future__ import annotations

import os
from pathlib import Path

from vidembed.annotations import AnnotationError, read_pairs
from vidembed.evaluation.benchmark import Benchmark

PROTOCOL = (
    "Every different text searches once, and every video that it is said of is right; for a video, any of its texts."
)


def read_custom(annotations: Path, videos: Path | None = None) -> Benchmark:
    """Read a JSONL or CSV file of captioned videos, as `vidembed.annotations.read_pairs` describes it.

    Equal texts are one, true of all their videos. A video's id is its path below the folder of the videos.

    Args:
        annotations: The file.
        videos: Folder that relative paths are taken from. Default: the folder of the file.

    Raises:
        AnnotationError: As `read_pairs`, or rows have labels.
    """
    pairs = read_pairs(annotations, videos=videos)
    if any(pair.label is not None for pair in pairs):
        raise AnnotationError(
            f"{annotations}: rows have a label; retrieval takes every row for true, so leave out the rows that are "
            "false, and the column"
        )
    base = (annotations.parent if videos is None else videos).expanduser()
    first: dict[Path, Path] = {}  # by which of its spellings a file is known
    for pair in pairs:
        first.setdefault(_same(pair.video), pair.video)
    places = {video: place for place, video in enumerate(first)}
    owners: dict[str, dict[int, None]] = {}
    for pair in pairs:
        owners.setdefault(pair.text, {})[places[_same(pair.video)]] = None
    merged = len(pairs) - len(owners)
    return Benchmark(
        name="custom",
        title=annotations.stem,
        split="all rows",
        protocol=PROTOCOL,
        source=str(annotations),
        video_ids=tuple((v.relative_to(base) if v.is_relative_to(base) else v).as_posix() for v in first.values()),
        videos=tuple(first.values()),
        texts=tuple(owners),
        owners=tuple(tuple(sorted(one)) for one in owners.values()),
        notes=(f"{len(pairs)} rows have {len(owners)} different texts; equal ones are merged.",) if merged else (),
    )


def _same(video: Path) -> Path:
    """The path in one spelling; a link keeps its own name, as two names may be two videos with one content."""
    return Path(os.path.realpath(video.parent), video.name)
