"""The benchmark of converted pictures: that each copy is read as its original, and is not one as it is stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks import picture as bench

from vidembed.shapes import sample_clips
from vidembed.shapes.clips import FILE_FPS, FILE_SIDE
from vidembed.shapes.world import render


@pytest.mark.parametrize("kind", bench.KINDS)
def test_a_copy_is_read_as_its_original(tmp_path: Path, kind: str) -> None:
    suffix, write = bench.KINDS[kind]
    times = np.arange(0, 1, 1 / (2 * FILE_FPS))
    drawn = render(sample_clips(1)[0].scene, times, FILE_SIDE)  # (T, H, W, 3)
    path = write(tmp_path / f"a{suffix}", drawn)
    read, stored = bench.difference(path, drawn[::2]), bench.difference(bench.as_stored(path), drawn[::2])
    assert read < 2
    assert stored == read if kind == "original" else stored > read
