"""A model that is quick and exact, for the forward stage; and a stage that has it, for workers."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from vidembed.ray import EmbedVideos
from vidembed.video import Clip, InvalidVideoInput, Sampling

DIMENSION = 8
SAMPLING = Sampling(fps=2.0, max_frames=8, max_pixels=64 * 64)


@dataclass
class ClipEncoder:
    """The vector of a clip is a function of its mean colours.

    Attributes:
        name: Makes the fingerprint.
        spoil: What becomes of a clip, by the last part of its name: `nan`, `zero`, `short`, `error`, or an exception
            that breaks its whole batch.
        device: As a SentenceTransformer has it.
    """

    name: str = "fake"
    spoil: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    sampling: Sampling = SAMPLING
    decode_workers: int = 1
    video_backend: str = "pyav"

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
        return self.vector(np.array([len(inputs["text"]), 90.0, 30.0]))

    def encode_stream(
        self, inputs: Iterable[Any], *, batch_size: int, on_error: str, show_progress_bar: bool | None
    ) -> Iterator[SimpleNamespace]:
        assert on_error == "skip"
        batch: list[tuple[int, Clip]] = []
        for index, clip in enumerate(inputs):
            assert isinstance(clip, Clip)
            batch.append((index, clip))
            if len(batch) == batch_size:
                yield from self._batch(batch)
                batch = []
        yield from self._batch(batch)

    def _batch(self, batch: list[tuple[int, Clip]]) -> Iterator[SimpleNamespace]:
        fates = [self.spoil.get(clip.item.partition("#")[0].rpartition("/")[2]) for _, clip in batch]
        for fate in fates:
            if isinstance(fate, Exception):
                raise fate
        for (index, clip), fate in zip(batch, fates, strict=True):
            vector = self.vector(clip.frames.mean(axis=(0, 1, 2)))
            match fate:
                case "nan":
                    vector[3] = np.nan
                case "zero":
                    vector[:] = 0
                case "short":
                    vector = vector[:5]
                case "error":
                    error = InvalidVideoInput(clip.item, "spoiled")
                    yield SimpleNamespace(index=index, embedding=None, error=error)
                    continue
            yield SimpleNamespace(index=index, embedding=vector, error=None)

    @staticmethod
    def vector(colour: np.ndarray) -> np.ndarray:
        red, green, blue = colour - colour.mean() + 1e-3
        vector = np.array([red, green, blue, 1, red - green, green - blue, blue - red, 0.5])
        return (vector / np.linalg.norm(vector)).astype(np.float32)


class FakeEmbed(EmbedVideos):
    """The forward stage with `ClipEncoder`. If `NOTES` names a folder, it notes each call there, by process id.

    `model` is the fake's name; one of the form `slow:0.1` takes that many seconds for a segment, `none` cannot be
    loaded, and `broken` fails at work.
    """

    def load(self) -> Any:
        if self.model == "none":
            raise ValueError("model: 'none' is no folder here")
        return ClipEncoder(self.model)

    def __call__(self, batch: Any) -> Any:
        if self.model.startswith("slow:"):
            time.sleep(float(self.model.removeprefix("slow:")) * len(batch))
        if self.model == "broken":
            raise RuntimeError("CUDA error: unspecified launch failure")
        made = super().__call__(batch)
        if notes := os.environ.get("NOTES"):
            with (Path(notes) / str(os.getpid())).open("a") as file:
                file.write("".join(f"{uri}\n" for uri in made.column("uri").to_pylist()))
        return made
