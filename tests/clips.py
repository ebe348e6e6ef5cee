"""Small real video files for tests that are not about decoding."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def moving_square(frames: int, *, height: int = 72, width: int = 96, seed: int = 0) -> np.ndarray:
    """A square that moves over noise-free ground (T, H, W, 3), different for each seed."""
    rng = np.random.default_rng(seed)
    ground, colour = rng.integers(0, 255, (2, 3), dtype=np.uint8)
    video = np.tile(ground, (frames, height, width, 1)).astype(np.uint8)  # (T, H, W, C)
    top = int(rng.integers(0, height - 24))
    for index, frame in enumerate(video):
        left = (7 * seed + 5 * index) % (width - 24)
        frame[top : top + 24, left : left + 24] = colour
    return video


def write_video(path: Path, frames: np.ndarray, *, fps: int = 10) -> Path:
    """Write frames (T, H, W, 3) as H.264."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.time_base = Fraction(1, fps)
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_folder(folder: Path, count: int, *, longest: int = 30) -> list[Path]:
    """Write `count` clips of unequal length."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_video(folder / f"clip{index:02d}.mp4", moving_square(10 + (7 * index) % longest, seed=index))
        for index in range(count)
    ]
