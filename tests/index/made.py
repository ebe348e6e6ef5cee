"""Indexes of made vectors, with no video behind them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vidembed.index import IndexMeta, VideoIndex
from vidembed.index.schema import FileRows, Segment
from vidembed.video.clip import FileState

MODEL = "f" * 64


def made_vectors(count: int, dimension: int = 16, *, seed: int = 0) -> np.ndarray:
    """Vectors with a common direction and some clusters, as embeddings have; shape (N, D), of any length."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(8, dimension))
    rows = 1 + centres[rng.integers(0, 8, count)] + 0.5 * rng.normal(size=(count, dimension))
    return (rows * rng.uniform(0.5, 2, size=(count, 1))).astype(np.float32)


def file_rows(uri: str, vectors: np.ndarray, *, content: str = "c") -> FileRows:
    """A file with a segment of a second for each vector."""
    segments = [Segment(float(i), i + 1.0, np.asarray(vector, dtype=np.float32)) for i, vector in enumerate(vectors)]
    return FileRows(uri, segments, float(len(segments)), content, FileState(len(segments), 1))


def made_index(folder: Path, vectors: np.ndarray, *, per_file: int = 5, model: str = MODEL) -> VideoIndex:
    """An index of files `/v/000.mp4` and so on, with `per_file` segments each, in several commits."""
    meta = IndexMeta("made", None, {}, model, {}, vectors.shape[1], 1.0, 0.0, "2026-01-01T00:00:00+00:00")
    index = VideoIndex.create(folder, meta)
    files = [
        file_rows(f"file:///v/{first // per_file:03}.mp4", vectors[first : first + per_file])
        for first in range(0, len(vectors), per_file)
    ]
    half = len(files) // 2
    index.put(files[:half], replace=False)
    index.put(files[half:], replace=False)
    return index


def queries(count: int, dimension: int = 16, *, seed: int = 1) -> np.ndarray:
    """Vectors to ask for, shape (Q, D), float64."""
    return made_vectors(count, dimension, seed=seed).astype(np.float64)
