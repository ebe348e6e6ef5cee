"""Indexes with captions, and a model whose vectors are those of words."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.index.made import MODEL, file_rows, made_vectors
from vidembed.captions import CaptionRecord
from vidembed.index import IndexMeta, VideoIndex, add_captions

DIMENSION = 16
WORDS = ("red", "blue", "square", "circle", "left", "tall", "runs", "café")


@dataclass
class Words:
    """A model whose vector of a text is the sum of those of its words."""

    fingerprint: str = MODEL
    asked: list[str] = field(default_factory=list)
    before: Callable[[list[str]], None] = lambda _: None

    def fingerprint_fields(self) -> dict[str, Any]:
        return {}

    def encode_query(self, inputs: list[dict[str, str]]) -> np.ndarray:
        texts = [each["text"] for each in inputs]
        self.before(texts)
        self.asked += texts
        return np.stack([sum(map(self.word, text.split()), np.full(DIMENSION, 0.1)) for text in texts])

    @staticmethod
    def word(word: str) -> np.ndarray:
        return np.random.default_rng(zlib.crc32(word.encode())).normal(size=DIMENSION)


def made(folder: Path, files: int = 8, *, per_file: int = 3) -> VideoIndex:
    """An index of files `/v/0.mp4` and so on, of contents `c0` and so on, in segments of a second."""
    meta = IndexMeta("made", None, {}, MODEL, {}, DIMENSION, 1.0, 0.0, "2026-01-01T00:00:00+00:00")
    index = VideoIndex.create(folder, meta)
    vectors = made_vectors(files * per_file, DIMENSION).reshape(files, per_file, DIMENSION)
    index.put([file_rows(f"file:///v/{n}.mp4", each, content=f"c{n}") for n, each in enumerate(vectors)], replace=False)
    return index


def record(content: str, start: float, text: str, **more: Any) -> CaptionRecord:
    given = {"start_s": start, "end_s": start + 1, "texts": {"dense": text}, "model": "mllm", "fingerprint": "p" * 64}
    return CaptionRecord("v.mp4", content, **{**given, **more})


def records(files: int = 8, *, per_file: int = 3, seed: int = 0) -> list[CaptionRecord]:
    rng = np.random.default_rng(seed)
    return [
        record(f"c{n}", float(start), " ".join(rng.choice(WORDS, 4)), match={"dense": 0.9})
        for n in range(files)
        for start in range(per_file)
    ]


def add(index: VideoIndex, given: list[CaptionRecord], encoder: Words | None = None, **options: Any) -> Any:
    return add_captions(index.folder, encoder or Words(), iter(given), progress=False, **options)


def content_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
