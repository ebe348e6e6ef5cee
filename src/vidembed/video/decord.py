"""The optional decord backend (extra ``decord``): mp4, mov, mkv and webm files, for a process that can be killed."""

from __future__ import annotations

import importlib
import importlib.metadata
import math
import os
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np
from av import VideoFrame
from av.stream import Disposition
from numpy.typing import NDArray

from vidembed.errors import BackendUnavailable, CorruptVideo, InvalidVideoInput
from vidembed.video.clip import Clip, Deadline, Sampling, assemble
from vidembed.video.container import DEFAULT_THREADS, MAX_TIME, SEEKABLE_FORMATS, open_source
from vidembed.video.picture import Geometry, describe, display_matrix, shrink
from vidembed.video.reader import FrameReader, from_player

_ROW: Final = 64  # pixels: of rotated videos decord 3.4 returns only frames whose width is a multiple of this


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def require_decord(item: str) -> None:
    """Raise :class:`BackendUnavailable` unless decord2, and no other package of the same import name, is installed."""
    for other in filter(_is_installed, ("decord", "eva-decord")):
        found = f"the package {other!r} is installed, which is unmaintained and shares its import name with decord2"
        remedy = f'run: pip uninstall {other} && pip install --force-reinstall "vidembed[decord]"'
        raise BackendUnavailable(item, f"{found}; {remedy}")
    if not _is_installed("decord2"):
        reason = "backend='decord' is not installed; run: pip install \"vidembed[decord]\", or use backend='pyav'"
        raise BackendUnavailable(item, reason)


def read(
    source: str | os.PathLike[str], sampling: Sampling, *, item: str, start: float = 0.0, end: float | None = None
) -> Clip:
    """Read a local file with decord2, frames chosen by the times it reports. Damage is not reported."""
    require_decord(item)
    with open_source(source, item) as handle, FrameReader(handle, item, Deadline(None, item)) as reader:
        _check_container(reader, item)
        first = reader.first()
        geometry = reader.geometry(first, sampling.max_pixels)
        _check_picture(first.frame, geometry, item)
        declared, rate, starts_at = reader.duration, reader.rate, reader.start
    start_s = max(start, starts_at)
    start, end = from_player(start, end, starts_at, item)
    if declared is None:
        reason = "the file has no declared duration, which backend='decord' needs; use backend='pyav'"
        raise BackendUnavailable(item, reason)
    path = str(Path(source).absolute())  # "a:b.mp4" would be taken for a protocol
    try:
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        reason = "backend='decord' cannot open a name that is not valid UTF-8; rename it or use backend='pyav'"
        raise InvalidVideoInput(item, reason) from error
    stop = declared if end is None else min(end, declared)
    grid = start + sampling.grid(max(stop - start, 0.0))  # (K,)
    height, width, _ = geometry.shape
    padded = math.ceil(width / _ROW) * _ROW if geometry.turns else width
    try:
        decord = importlib.import_module("decord")  # optional; it prints, and may fail to load
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailable(item, f"decord2 does not load ({error}); use backend='pyav'") from error
    try:
        count, video_end, times, indices, frames = _decode(decord, path, padded, height, grid)
    except MemoryError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        reason = f"decord cannot read it ({type(error).__name__}: {text}); try backend='pyav'"
        raise CorruptVideo(item, reason) from error
    if rate and abs(video_end - declared) <= 1 / rate:
        video_end = declared
    if not indices.size:
        reason = f"the segment starts at {start_s:g} s, and the video ends at {starts_at + video_end:.3f} s"
        raise InvalidVideoInput(item, reason)
    return assemble(
        [shrink(frames[place], width, height) for place in np.unique(indices, return_inverse=True)[1]],
        times,
        ordinals=indices,
        count=count,
        declared_fps=None if rate is None else float(rate),
        start=start,
        end=end,
        video_end=video_end,
        declared_duration=declared,
        start_s=start_s,
        damaged=False,
        item=item,
        backend="decord",
        sampling=sampling,
    )


def _check_container(reader: FrameReader, item: str) -> None:
    name = reader.container.format.name
    if name not in SEEKABLE_FORMATS:
        found = "backend='decord' returns wrong frames for some containers, so it reads only mp4, mov, mkv and webm"
        raise BackendUnavailable(item, f"{found}; this is {name}. Use backend='pyav'")
    first, *others = reader.container.streams.video
    if reader.stream.index != first.index or any(not s.disposition & Disposition.attached_pic for s in others):
        reason = "backend='decord' would decode another video stream, or cover art; use backend='pyav'"
        raise BackendUnavailable(item, reason)


def _check_picture(frame: VideoFrame, geometry: Geometry, item: str) -> None:
    """Raise :class:`BackendUnavailable` for pictures that decord would not show as they are to be seen."""
    matrix = display_matrix(frame)
    is_skewed = matrix is not None and 0 in (matrix[0] or matrix[1], matrix[3] or matrix[2])
    wrong = {
        "mirrored": geometry.mirrored,
        "with a display matrix that is no rotation": is_skewed,
        "interlaced": frame.interlaced_frame,
        f"to be converted ({describe(frame).conversion})": describe(frame).conversion != "none",
    }
    if found := [name for name, is_so in wrong.items() if is_so]:
        reason = f"its pictures are {' and '.join(found)}, which backend='decord' does not support; use backend='pyav'"
        raise BackendUnavailable(item, reason)


def _decode(
    decord: ModuleType, path: str, width: int, height: int, grid: NDArray[np.float64]
) -> tuple[int, float, NDArray[np.float64], NDArray[np.int64], NDArray[np.uint8]]:
    """Return the number of frames and the end; for the grid ``(K,)`` before it, times, indices and unique frames."""
    reader = decord.VideoReader(path, ctx=decord.cpu(0), width=width, height=height, num_threads=DEFAULT_THREADS)
    count = len(reader)
    stamps = np.asarray(reader.get_frame_timestamp(range(count)), dtype=np.float64)  # (N, 2): begin, end
    begins = stamps[:, 0]
    # it reads a missing time as about 1e16
    if not np.isfinite(stamps).all() or (np.diff(begins) < 0).any() or np.abs(stamps).max() > MAX_TIME:
        raise ValueError("decord reports times that are missing, fall or are absurd")
    begins, end = begins - begins[0], float(stamps[-1, 1] - begins[0])
    grid = grid[grid < end]
    margin = 1e-6 + 2.4e-7 * grid  # its times are float32
    indices = np.searchsorted(begins, grid + margin, side="right") - 1  # (K,)
    unique = np.unique(indices)
    if not unique.size:
        return count, end, begins[indices], indices, np.empty((0, height, width, 3), dtype=np.uint8)
    frames = reader.get_batch(unique.tolist()).asnumpy()  # (U, H, W, 3)
    if frames.shape != (len(unique), height, width, 3) or frames.dtype != np.uint8:
        raise ValueError(f"decord returned frames of shape {frames.shape} and dtype {frames.dtype}")
    return count, end, begins[indices], indices, frames
