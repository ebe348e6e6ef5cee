"""The embedded world as a benchmark: held-out clips drawn from a seed, for a whole report without any data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Final

from tqdm.auto import tqdm

from vidembed import __version__
from vidembed.evaluation.benchmark import Benchmark
from vidembed.shapes.clips import ClipRecord, iterate_clips, write_clip
from vidembed.shapes.language import SUMMARY_ATTRIBUTES
from vidembed.text import replacing

CLIPS: Final = 200
"""Clips by default (ours)."""
MOST_CLIPS: Final = 2000
"""Most clips: with their validation clips, fewer than there are distinct captions (ours)."""
FITTED_ON: Final = (0, 200)
"""The seed whose first so many clips share none with those that the bundled reranker's calibration was fitted on."""

_SAY: Final[dict[str, Callable[[ClipRecord], str]]] = {
    "shapes": lambda record: record.caption,
    "shapes-short": lambda record: record.summary,
}
WORLDS: Final = tuple(_SAY)
"""Names of the embedded benchmarks: dense captions, and short summaries."""
_PROTOCOLS: Final = {
    "shapes": "A dense caption of each clip tells every attribute, and no two clips have the same: one is right.",
    "shapes-short": (
        "A short summary of each clip tells shape, colour, direction and event, and every clip that has them is right; "
        "for a clip, every summary that is true of it. Equal summaries are one."
    ),
}


def draw_world(
    name: str, folder: Path, *, clips: int = CLIPS, seed: int = 0, show_progress_bar: bool = False
) -> tuple[Benchmark, Benchmark]:
    """Write held-out clips and others for validation, none of which equals one of them, and say what is right.

    Files that an earlier call wrote are kept as they are, so that what was made of them stays in the cache.

    Args:
        name: One of `WORLDS`.
        folder: Of the clips; made where missing.
        clips: How many, from 4 to `MOST_CLIPS`; half as many are for validation.
        seed: Of the clips; those for validation are drawn with the next one.
        show_progress_bar: Whether to show a bar.

    Returns:
        The benchmark and its validation set.

    Raises:
        ValueError: An argument is out of range.
    """
    if name not in WORLDS:
        raise ValueError(f"name={name!r}: expected one of {', '.join(WORLDS)}")
    if not 4 <= clips <= MOST_CLIPS:
        raise ValueError(f"clips={clips}: expected from 4 to {MOST_CLIPS}")
    if seed < 0:
        raise ValueError(f"seed={seed}: expected a whole number of at least 0")
    test = list(islice(iterate_clips("test", seed), clips))
    taken = {tuple(record.attributes.values()) for record in test}
    fresh = (record for record in iterate_clips("test", seed + 1) if tuple(record.attributes.values()) not in taken)
    others = list(islice(fresh, clips // 2))
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(test) + len(others), desc="Writing clips", unit="clip", disable=not show_progress_bar) as bar:
        files = [_write(record, folder, bar) for record in (*test, *others)]
    notes: tuple[str, ...] = ("Synthetic clips of moving shapes: figures say nothing about other videos.",)
    if seed != FITTED_ON[0] or clips > FITTED_ON[1]:
        notes += ("Some clips may be among those that the bundled reranker's calibration was fitted on.",)
    return (
        _benchmark(name, f"seed {seed}", test, files[: len(test)], notes),
        _benchmark(name, f"seed {seed + 1}, for validation", others, files[len(test) :], notes),
    )


def _write(record: ClipRecord, folder: Path, bar: Any) -> Path:
    """Write a clip, unless it is there, under a name that tells its content."""
    told = json.dumps([record.attributes, record.scene.seed, __version__])
    path = folder / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.mp4"
    if not path.exists():
        with replacing(path) as draft:
            write_clip(record.scene, draft)
    bar.update()
    return path


def _benchmark(
    name: str, split: str, records: list[ClipRecord], files: Iterable[Path], notes: tuple[str, ...]
) -> Benchmark:
    names = tuple(records[0].attributes) if name == "shapes" else SUMMARY_ATTRIBUTES
    shown = [tuple(record.attributes[one] for one in names) for record in records]
    owners = {
        _SAY[name](record): tuple(place for place, other in enumerate(shown) if other == shown[at])
        for at, record in enumerate(records)
    }
    return Benchmark(
        name=name,
        title="moving shapes, dense captions" if name == "shapes" else "moving shapes, short summaries",
        split=f"{len(records)} held-out clips, {split}",
        protocol=_PROTOCOLS[name],
        source="drawn by vidembed.shapes",
        video_ids=tuple(record.name for record in records),
        videos=tuple(files),
        texts=tuple(owners),
        owners=tuple(owners.values()),
        notes=notes,
    )
