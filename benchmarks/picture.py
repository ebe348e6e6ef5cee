"""Pictures that must be converted to be seen as they are meant, each against its original.

    python -m benchmarks.picture [--clips 100]

Clips of the bundled world are written plainly and as copies that are mirrored by their display matrix, HDR (HLG, PQ),
SDR of BT.2020, or interlaced. Of each copy: the mean difference of its frames from what was drawn, in steps of 255,
and R@1 of the clips' captions by the bundled model; both as `load_video` reads it, and as its decoded frames are
stored, converted by their matrix alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from tests.pictures import BT709, HLG, MATRICES, PQ, write_bt2020, write_interlaced, write_plain, write_turned

from benchmarks.common import environment, keep
from vidembed import VideoEncoder
from vidembed.shapes import ClipRecord, sample_clips
from vidembed.shapes.clips import FILE_FPS, FILE_SIDE
from vidembed.shapes.world import DURATION, render
from vidembed.video import Sampling, VideoFrames, load_video

FLIP = next(matrix for matrix in MATRICES if matrix[0] < 0 < matrix[3])
KINDS: dict[str, tuple[str, Callable[[Path, NDArray[np.uint8]], Path]]] = {
    "original": (".mp4", lambda path, frames: write_plain(path, frames[::2], FILE_FPS)),
    "mirrored": (".mp4", lambda path, frames: write_turned(path, frames[::2], FILE_FPS, FLIP)),
    "HLG": (".mkv", lambda path, frames: write_bt2020(path, frames[::2], FILE_FPS, HLG)),
    "PQ": (".mkv", lambda path, frames: write_bt2020(path, frames[::2], FILE_FPS, PQ)),
    "SDR BT.2020": (".mkv", lambda path, frames: write_bt2020(path, frames[::2], FILE_FPS, BT709)),
    "interlaced": (".mp4", lambda path, frames: write_interlaced(path, frames, FILE_FPS)),
}
"""By kind: the suffix, and what writes twice as many frames as the file has."""


def as_stored(path: Path) -> VideoFrames:
    """Decode a file as if its pictures said nothing but their matrix."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return VideoFrames(np.stack(frames), fps=FILE_FPS)


def difference(video: Path | VideoFrames, drawn: NDArray[np.uint8]) -> float:
    """The mean difference of every frame from what was drawn for it, in steps of 255."""
    frames = load_video(video, Sampling(fps=FILE_FPS, max_pixels=None)).frames
    return float(np.abs(frames.astype(np.float32) - drawn).mean())


def measure(kind: str, clips: list[ClipRecord], encoder: VideoEncoder, texts: NDArray[np.float32], folder: Path) -> Any:
    """Write all clips as copies of a kind, and read them back."""
    suffix, write = KINDS[kind]
    times = np.arange(0, DURATION, 1 / (2 * FILE_FPS))
    read: list[Path | VideoFrames] = []
    stored: list[Path | VideoFrames] = []
    differences = []
    for clip in clips:
        drawn = render(clip.scene, times, FILE_SIDE)  # (T, H, W, 3)
        path = write(folder / f"{clip.name}{suffix}", drawn)
        read.append(path)
        stored.append(as_stored(path))
        differences.append([difference(video, drawn[::2]) for video in (read[-1], stored[-1])])
    row = dict(zip(("difference", "difference_as_stored"), np.mean(differences, axis=0).round(2).tolist(), strict=True))
    for name, videos in (("r_at_1", read), ("r_at_1_as_stored", stored)):
        vectors = np.asarray(encoder.encode(videos, show_progress_bar=False))  # (N, D)
        row[name] = float(np.mean((texts @ vectors.T).argmax(axis=1) == np.arange(len(clips))))
    return row


def main() -> None:
    """Measure each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100, help="how many clips (100)")
    args = parser.parse_args()
    clips = sample_clips(args.clips)
    encoder = VideoEncoder("vidembed/shapes")
    texts = np.asarray(encoder.encode_query([clip.caption for clip in clips], show_progress_bar=False))  # (N, D)
    rows = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as name:
            rows[kind] = measure(kind, clips, encoder, texts, Path(name))
    keep(__file__, {"clips": args.clips, "kinds": rows, **environment()})


if __name__ == "__main__":
    main()
