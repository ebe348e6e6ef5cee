"""Clips as records with captions, and as real H.264 files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from numpy.typing import NDArray

from vidembed.progress import progress_bar
from vidembed.shapes import language
from vidembed.shapes.world import DURATION, FRAME_SIZE, Scene, Split, render, sample_scene, sample_times

FILE_FPS: Final = 8  # of the files: 32 frames, of which sampling at 2 a second takes every fourth
FILE_SIDE: Final = 2 * FRAME_SIZE  # pixels: twice what the model sees, so that halved chroma (yuv420p) costs it little
_CRF: Final = "18"  # x264's constant quality: small files, hardly visible loss


@dataclass(frozen=True, slots=True)
class ClipRecord:
    """A clip and its sentences."""

    name: str  # unique in its set, for example "test-0007"
    scene: Scene
    caption: str  # dense: every attribute
    summary: str  # short: colour, shape, direction, event
    tags: str  # every attribute as words in a fixed order
    questions: tuple[tuple[str, str], ...]  # each with its answer
    right: str  # a sentence that matches the clip
    wrong: str  # one that differs from the clip in exactly one attribute

    @property
    def attributes(self) -> dict[str, str]:
        """The described attributes by name."""
        return self.scene.attributes

    def frames(self, side: int = FRAME_SIZE) -> NDArray[np.uint8]:
        """The frames that the model sees, at 2 a second: (8, side, side, 3) uint8 RGB."""
        return render(self.scene, sample_times(), side)

    def as_dict(self) -> dict[str, object]:
        """The record as JSON values; the scene as its attributes and seed."""
        texts = ("name", "caption", "summary", "tags", "questions", "right", "wrong")
        return {name: getattr(self, name) for name in texts} | {"attributes": self.attributes, "seed": self.scene.seed}


def iterate_clips(split: Split = "test", seed: int = 0) -> Iterator[ClipRecord]:
    """Draw records without end, no two of which describe the same attributes.

    Args:
        split: ``"test"`` for (shape, colour, direction) triples held out of training, ``"train"`` for the others.
        seed: Decides everything; the first records do not depend on how many are taken.
    """
    rng = np.random.default_rng((seed, 977))
    seen: set[tuple[str, ...]] = set()
    while True:
        scene = sample_scene(rng, split)
        key = tuple(scene.attributes.values())
        if key in seen:
            continue
        yield ClipRecord(
            name=f"{split}-{len(seen):04d}",
            scene=scene,
            caption=language.caption(scene, rng),
            summary=language.summary(scene, rng),
            tags=language.tags(scene),
            questions=tuple(language.question(scene, rng) for _ in range(3)),
            right=language.statement(scene, rng, true=True),
            wrong=language.statement(scene, rng, true=False),
        )
        seen.add(key)


def sample_clips(n: int, split: Split = "test", seed: int = 0) -> list[ClipRecord]:
    """Return the first `n` records of `iterate_clips`; raises ValueError unless `n` is from 1 to 5,000."""
    if not 1 <= n <= 5000:
        raise ValueError(f"n must be from 1 to 5000 (there are only so many distinct captions), got {n}")
    return [record for record, _ in zip(iterate_clips(split, seed), range(n), strict=False)]


def write_clip(scene: Scene, path: str | Path, *, side: int = FILE_SIDE, fps: int = FILE_FPS) -> Path:
    """Write a scene as an H.264 file (yuv420p) of 4 seconds, and return its path, whose suffix decides the container.

    Raises:
        ValueError: `side`, the height and width in pixels, is odd or not positive, or `fps` not positive.
    """
    if side < 2 or side % 2:
        raise ValueError(f"side must be an even number of pixels, got {side}")
    if fps < 1:
        raise ValueError(f"fps must be at least 1, got {fps}")
    path = Path(path)
    frames = render(scene, np.arange(round(DURATION * fps)) / fps, side)  # (T, H, W, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": _CRF})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        stream.thread_count = 1  # so that the bytes do not depend on the machine's cores
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_clips(
    folder: str | Path, n: int, split: Split = "test", seed: int = 0, *, progress: bool = False
) -> list[tuple[Path, ClipRecord]]:
    """Write `sample_clips` as ``<name>.mp4`` with ``captions.jsonl`` to `folder`; return paths with their records."""
    folder = Path(folder)
    records = sample_clips(n, split, seed)
    folder.mkdir(parents=True, exist_ok=True)
    written = [
        (write_clip(record.scene, folder / f"{record.name}.mp4"), record)
        for record in progress_bar("Writing clips", "clips", each=records, shown=progress)
    ]
    lines = [json.dumps({"file": path.name, **record.as_dict()}) for path, record in written]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return written
