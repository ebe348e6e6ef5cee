"""What an index holds, for those who do not know yet what to ask it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vidembed.index import VideoIndex
from vidembed.index.captions import texts_of
from vidembed.index.table import PLACE, among
from vidembed.registry import NAMESPACE
from vidembed.shapes.language import summary
from vidembed.shapes.world import sample_scene

EXAMPLES = 3  # queries that are proposed
SAMPLES = 8  # videos of which one segment is shown
FRESH_S = 60.0  # after so long the index is read anew
MAX_EXAMPLE_CHARS = 120
_SENTENCE = re.compile(r".+?(?:[.!?](?=\s|$)|\u3002)|.+", re.DOTALL)


class Place(NamedTuple):
    """Where a segment lies: the columns `vidembed.index.table.PLACE`, and what is said of it, if anything is."""

    uri: str
    start_s: float
    end_s: float
    duration: float  # of the video, seconds
    caption: str | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """What an index held when it was read."""

    videos: int
    segments: int
    seconds: float  # of all videos together
    examples: tuple[str, ...]  # queries: captions of the index, or sentences of the world of a bundled model
    samples: tuple[Place, ...]  # one segment of each of some videos


@dataclass(eq=False)
class ContentsReader:
    """Reads the contents of the index in a folder, and keeps them for `FRESH_S`. `model` is the name of its model."""

    folder: Path
    model: str
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _known: tuple[float, Contents] | None = None

    def read(self) -> Contents:
        """Return the contents. Blocks while the index is read."""
        with self._lock:
            if self._known is None or time.monotonic() - self._known[0] > FRESH_S:
                self._known = time.monotonic(), self._read()
            return self._known[1]

    def _read(self) -> Contents:
        index = VideoIndex.open(self.folder)  # since another handle may be in use
        durations: dict[str, float] = {}
        segments = 0
        for batch in index.scan(["uri", "duration"]):
            segments += len(batch)
            durations.update(zip(batch.column("uri").to_pylist(), batch.column("duration").to_pylist(), strict=True))
        uris = sorted(durations)
        # spread over the whole index, since neighbours often are of one folder
        chosen = [uris[place * len(uris) // SAMPLES] for place in range(SAMPLES)] if len(uris) > SAMPLES else uris
        rows = [
            row
            for batch in (index.scan([*PLACE, "content_fingerprint"], among(chosen)) if chosen else ())
            for row in batch.to_pylist()
        ]
        captions = texts_of(index, {row["content_fingerprint"] for row in rows})
        found: dict[str, list[Place]] = {}
        for row in rows:
            caption = captions.get((row["content_fingerprint"], row["start_s"], row["end_s"]))
            found.setdefault(row["uri"], []).append(Place(**{name: row[name] for name in PLACE}, caption=caption))
        samples = tuple(sorted(of, key=lambda row: row[:3])[len(of) // 2] for _, of in sorted(found.items()))
        sentences = dict.fromkeys(_sentences(place.caption for place in samples if place.caption))
        examples = tuple(sentences)[:EXAMPLES] if sentences else self._of_bundled()
        return Contents(len(uris), segments, sum(durations.values()), examples, samples)

    def _of_bundled(self) -> tuple[str, ...]:
        """Return sentences of the world that the bundled models know; of another model nothing is known."""
        if not self.model.startswith(NAMESPACE):
            return ()
        rng = np.random.default_rng(0)
        return tuple(summary(sample_scene(rng, "test"), rng).rstrip(".") for _ in range(EXAMPLES))


def _sentences(captions: Iterator[str]) -> Iterator[str]:
    """Yield the first sentence of each caption, without its full stop, where it is short enough for a query."""
    for caption in captions:
        match = _SENTENCE.match(" ".join(caption.split()))
        if match is not None and len(match[0]) <= MAX_EXAMPLE_CHARS:
            yield match[0].rstrip(".\u3002")
