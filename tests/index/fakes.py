"""A model that is quick and exact: the vector of a video is a function of its mean colours. Everything else is real."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np

from vidembed.video import Clip, Sampling

DIMENSION = 8
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


def write_video(
    path: Path, colours: list[tuple[int, int, int]], *, seconds_each: float = 1.0, fps: int = 4, starts_s: int = 0
) -> Path:
    """Write an mp4 of plain colours, one after the other, the first `starts_s` after a sound that begins the file."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        if starts_s:
            sound = container.add_stream("mp2", rate=48000, layout="mono")
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1152), dtype=np.int16), format="s16", layout="mono")
            silence.sample_rate, silence.pts = 48000, 0
            container.mux([*sound.encode(silence), *sound.encode()])
        shown = [colour for colour in colours for _ in range(round(seconds_each * fps))]
        for number, colour in enumerate(shown, starts_s * fps):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), colour, dtype=np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_videos(folder: Path, count: int) -> list[Path]:
    """Write videos of different colours, `000.mp4` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_video(folder / f"{i:03}.mp4", [(10 + 9 * i % 240, 240 - 7 * i % 240, 40 * (i % 6))]) for i in range(count)
    ]


@dataclass
class FakeEncoder:
    """Has what the index needs of a VideoEncoder.

    Attributes:
        name: Makes the fingerprint.
        delay: Seconds that a batch takes.
        seen: Names of the videos that were embedded, in order.
        spoil: What to do to the vector of a video, by file name: `nan`, `zero` or `short`.
        before: Called with each path before its clip is looked at.
    """

    name: str = "fake"
    delay: float = 0.0
    sampling: Sampling = field(default_factory=lambda: Sampling(fps=2.0, max_frames=8))
    seen: list[str] = field(default_factory=list)
    spoil: dict[str, str] = field(default_factory=dict)
    before: Any = None
    video_backend: str = "pyav"
    decode_workers: int = 2

    def fingerprint_fields(self) -> dict[str, Any]:
        return {"name": self.name, "sampling": self.sampling.as_dict()}

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr(self.fingerprint_fields()).encode()).hexdigest()

    def get_embedding_dimension(self) -> int:
        return DIMENSION

    def encode_query(self, inputs: dict[str, str] | list[dict[str, str]]) -> np.ndarray:
        if isinstance(inputs, list):
            return np.stack([self.encode_query(each) for each in inputs])
        assert set(inputs) == {"text"}
        return self.vector(np.array(COLOURS.get(inputs["text"], (90, 90, 90)), dtype=np.float64))

    def encode_stream(
        self, inputs: Iterable[Any], *, batch_size: int, on_error: str, show_progress_bar: bool | None
    ) -> Iterator[SimpleNamespace]:
        assert on_error == "skip"
        batch: list[tuple[int, Any]] = []
        for index, item in enumerate(inputs):  # read ahead of the model, as the real one does
            batch.append((index, item))
            if len(batch) == batch_size:
                yield from self._batch(batch)
                batch = []
        yield from self._batch(batch)

    def _batch(self, batch: list[tuple[int, Any]]) -> Iterator[SimpleNamespace]:
        for index, item in batch:
            time.sleep(self.delay)
            assert isinstance(item, Clip)
            path = Path(item.item.partition("#")[0])
            if self.before:
                self.before(path)
            self.seen.append(path.name)
            vector = self.vector(item.frames.mean(axis=(0, 1, 2)))
            match self.spoil.get(path.name):
                case "nan":
                    vector[3] = np.nan
                case "zero":
                    vector[:] = 0
                case "short":
                    vector = vector[:5]
            yield SimpleNamespace(index=index, embedding=vector, error=None)

    @staticmethod
    def vector(colour: np.ndarray) -> np.ndarray:
        red, green, blue = colour - colour.mean() + 1e-3
        vector = np.array([red, green, blue, 1, red - green, green - blue, blue - red, 0.5], dtype=np.float64)
        return (vector / np.linalg.norm(vector)).astype(np.float32)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Everything that an index holds, in a fixed order."""
    import lancedb

    table = lancedb.connect(folder).open_table("segments").search().to_arrow().to_pylist()
    return sorted(table, key=lambda row: (row["uri"], row["start_s"]))
