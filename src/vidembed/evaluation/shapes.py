"""The embedded world as a benchmark: held-out clips drawn from a seed, for an evaluation without any data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Final

from vidembed import __version__
from vidembed.evaluation.benchmark import Benchmark
from vidembed.progress import progress_bar
from vidembed.shapes.clips import ClipRecord, iterate_clips, write_clip
from vidembed.shapes.language import SUMMARY_ATTRIBUTES
from vidembed.text import replacing

CLIPS: Final = 200  # clips by default (ours)
MOST_CLIPS: Final = 2000  # most clips: with their validation clips, fewer than there are distinct captions (ours)
_FITTED_ON: Final = (0, 200)  # the seed whose first so many clips share none with those of the reranker's calibration
WORLDS: Final = ("shapes", "shapes-short")  # names of the embedded benchmarks: dense captions, and short summaries
_PROTOCOLS: Final = {
    "shapes": "A dense caption of each clip tells every attribute, and no two clips have the same: one is right.",
    "shapes-short": (
        "A short summary of each clip tells shape, colour, direction and event, and every clip that has them is right; "
        "for a clip, every summary that is true of it. Equal summaries are one."
    ),
}

Clips = list[tuple[Path, ClipRecord]]


def draw_world(
    name: str, folder: Path, *, clips: int = CLIPS, seed: int = 0, show_progress_bar: bool = False
) -> tuple[Benchmark, Benchmark]:
    """Make a benchmark of held-out clips, and its validation set of others, none of which equals one of them.

    `name` is one of `WORLDS`. The clips, from 4 to `MOST_CLIPS`, are drawn by `seed` and written into `folder`, made
    where missing; half as many, drawn with the next seed, are for validation. A ValueError if one is out of range.
    """
    if name not in WORLDS:
        raise ValueError(f"name={name!r}: expected one of {', '.join(WORLDS)}")
    if not 4 <= clips <= MOST_CLIPS:
        raise ValueError(f"clips={clips}: expected from 4 to {MOST_CLIPS}")
    if seed < 0:
        raise ValueError(f"seed={seed}: expected a whole number of at least 0")
    test, others = draw_clips(folder, clips, clips // 2, seed, show_progress_bar=show_progress_bar)
    notes: tuple[str, ...] = ("Synthetic clips of moving shapes: figures say nothing about other videos.",)
    if seed != _FITTED_ON[0] or clips > _FITTED_ON[1]:
        notes += ("Some clips may be among those that the bundled reranker's calibration was fitted on.",)
    validation = _benchmark(name, f"seed {seed + 1}, for validation", others, notes)
    return _benchmark(name, f"seed {seed}", test, notes), validation


def draw_clips(
    folder: Path, clips: int, others: int, seed: int, *, show_progress_bar: bool = False
) -> tuple[Clips, Clips]:
    """Write held-out clips, and others of the next seed that equal none of them; files of an earlier call are kept."""
    test, rest = draw_sets(folder, [(seed, clips), (seed + 1, others)], show_progress_bar=show_progress_bar)
    return test, rest


def draw_sets(folder: Path, sets: Sequence[tuple[int, int]], *, show_progress_bar: bool = False) -> list[Clips]:
    """Write sets of held-out clips, each a seed and a size, no two of which share a clip; earlier files are kept."""
    taken: set[tuple[str, ...]] = set()
    drawn: list[list[ClipRecord]] = []
    for seed, size in sets:
        fresh = (record for record in iterate_clips("test", seed) if tuple(record.attributes.values()) not in taken)
        drawn.append(list(islice(fresh, size)))
        taken |= {tuple(record.attributes.values()) for record in drawn[-1]}
    folder.mkdir(parents=True, exist_ok=True)
    bar = progress_bar("Writing clips", "clips", total=sum(map(len, drawn)), shown=show_progress_bar)
    written: list[Clips] = []
    with bar:
        for records in drawn:
            written.append([])
            for record in records:
                content = json.dumps([record.attributes, record.scene.seed, __version__])
                path = folder / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.mp4"
                if not path.exists():
                    with replacing(path) as draft:
                        write_clip(record.scene, draft)
                written[-1].append((path, record))
                bar.update()
    return written


def _benchmark(name: str, split: str, clips: Clips, notes: tuple[str, ...]) -> Benchmark:
    records = [record for _, record in clips]
    names = tuple(records[0].attributes) if name == "shapes" else SUMMARY_ATTRIBUTES
    shown = [tuple(record.attributes[one] for one in names) for record in records]
    owners = {}
    for record, attributes in zip(records, shown, strict=True):
        text = record.caption if name == "shapes" else record.summary
        owners[text] = tuple(place for place, other in enumerate(shown) if other == attributes)
    return Benchmark(
        name=name,
        title="moving shapes, dense captions" if name == "shapes" else "moving shapes, short summaries",
        split=f"{len(records)} held-out clips, {split}",
        protocol=_PROTOCOLS[name],
        source="drawn by vidembed.shapes",
        video_ids=tuple(record.name for record in records),
        videos=tuple(path for path, _ in clips),
        texts=tuple(owners),
        owners=tuple(owners.values()),
        notes=notes,
    )
