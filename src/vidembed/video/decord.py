"""The optional decord backend (extra ``decord``): mp4, mov, mkv and webm files, decoded in a killable process."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from av.stream import Disposition

from vidembed.errors import BackendUnavailable, CorruptVideo, InvalidVideoInput
from vidembed.video.clip import Clip, assemble
from vidembed.video.container import DEFAULT_THREADS, SEEKABLE_FORMATS, open_source
from vidembed.video.fetch import Deadline
from vidembed.video.picture import Geometry, describe, display_matrix, shrink
from vidembed.video.reader import FrameReader, from_player
from vidembed.video.source import local_path

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

    from vidembed.video.sampling import Sampling

_ROW = 64  # pixels: of rotated videos decord 3.4 returns only frames whose width is a multiple of this
_WORKER = Path(__file__).with_name("_decord_worker.py")


def require_decord(item: str) -> None:
    """Raise :class:`BackendUnavailable` unless decord2, and no other package of the same import name, is installed."""
    for other in ("decord", "eva-decord"):
        try:
            importlib.metadata.distribution(other)
        except importlib.metadata.PackageNotFoundError:
            continue
        raise BackendUnavailable(
            item,
            f"the package {other!r} is installed, which is unmaintained and shares its import name with decord2; "
            f'run: pip uninstall {other} && pip install --force-reinstall "vidembed[decord]"',
        )
    try:
        importlib.metadata.distribution("decord2")
    except importlib.metadata.PackageNotFoundError as error:
        raise BackendUnavailable(
            item, "backend='decord' is not installed; run: pip install \"vidembed[decord]\", or use backend='pyav'"
        ) from error


def _path(source: object, item: str) -> str:
    path = local_path(source)
    if path is None:
        raise InvalidVideoInput(item, "backend='decord' reads local files by their path; use backend='pyav'")
    absolute = str(Path(path).absolute())  # "a:b.mp4" would be taken for a protocol
    try:
        absolute.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidVideoInput(
            item, "backend='decord' cannot open a name that is no valid UTF-8; rename it or use backend='pyav'"
        ) from error
    return absolute


def read(
    source: object, sampling: Sampling, *, item: str, start: float, end: float | None, timeout_s: float | None
) -> Clip:
    """Read a local file with decord2, frames chosen by the times it reports.

    The container is checked, and the size, orientation and duration found, with PyAV first. decord does not
    report damage: ``Clip.damaged`` is always False.

    Args:
        source: A path.
        sampling: How frames are chosen.
        item: Name for messages.
        start: Seconds on the clock of a player.
        end: Likewise (exclusive), or ``None``.
        timeout_s: Limit in seconds, after which the process is killed.

    Raises:
        BackendUnavailable: If decord2 is not installed, or the file is none that it reads right.
        DecodeTimeout: If time is up.
        VideoError: As with PyAV.
    """
    require_decord(item)
    deadline = Deadline(timeout_s, item)
    with open_source(source, item) as handle, FrameReader(handle, item, deadline) as reader:
        path = _path(source, item)
        _check_container(reader, item)
        first = next(reader, None)
        if first is None:
            raise CorruptVideo(item, f"no frame could be decoded ({reader.errors} errors)")
        geometry = reader.geometry(first, sampling.max_pixels)
        _check_picture(first.frame, geometry, item)
        declared, rate, starts_at = reader.duration, reader.rate, reader.start
    start_s = max(start, starts_at)
    start, end = from_player(start, end, starts_at, item)
    if declared is None:
        raise BackendUnavailable(
            item, "the file declares no duration, which backend='decord' needs; use backend='pyav'"
        )
    stop = declared if end is None else min(end, declared)
    grid = start + sampling.grid(max(stop - start, 0.0))
    height, width, _ = geometry.shape
    padded = math.ceil(width / _ROW) * _ROW if geometry.turns else width
    request = {"path": path, "width": padded, "height": height, "threads": DEFAULT_THREADS, "grid": grid.tolist()}
    header, frames = _run(request, item, deadline)
    video_end = float(header["end"])
    if rate and abs(video_end - declared) <= 1 / rate:
        video_end = declared
    if not header["indices"]:
        raise InvalidVideoInput(
            item, f"the segment starts at {start_s:g} s, and the video ends at {starts_at + video_end:.3f} s"
        )
    indices = np.array(header["indices"], dtype=np.int64)
    _, order = np.unique(indices, return_inverse=True)
    return assemble(
        [shrink(frames[i], width, height) for i in order],
        np.array(header["times"], dtype=np.float64),
        ordinals=indices,
        count=int(header["count"]),
        declared_fps=None if rate is None else float(rate),
        start=start,
        end=end,
        video_end=video_end,
        declared_duration=declared,
        start_s=start_s,
        damaged=False,
        item=item,
        backend="decord",
    )


def _check_container(reader: FrameReader, item: str) -> None:
    name = reader.container.format.name
    if name not in SEEKABLE_FORMATS:
        raise BackendUnavailable(
            item,
            f"backend='decord' returns wrong frames for some containers, so it reads only mp4, mov, mkv and webm; "
            f"this is {name}. Use backend='pyav'",
        )
    first, *others = reader.container.streams.video
    if reader.stream.index != first.index or any(not s.disposition & Disposition.attached_pic for s in others):
        raise BackendUnavailable(
            item, "backend='decord' would decode another of its video streams, or cover art; use backend='pyav'"
        )


def _check_picture(frame: VideoFrame, geometry: Geometry, item: str) -> None:
    """Raise :class:`BackendUnavailable` for pictures that decord would not show as they are to be seen."""
    matrix = display_matrix(frame)
    wrong = {
        "mirrored": geometry.mirrored,
        "with a display matrix that is no rotation": matrix is not None
        and 0 in (matrix[0] or matrix[1], matrix[3] or matrix[2]),
        "interlaced": frame.interlaced_frame,
        f"to be converted ({describe(frame).conversion})": describe(frame).conversion != "none",
    }
    if found := [name for name, is_so in wrong.items() if is_so]:
        raise BackendUnavailable(
            item, f"its pictures are {' and '.join(found)}, which backend='decord' does not do; use backend='pyav'"
        )


def _run(
    request: dict[str, Any], item: str, deadline: Deadline
) -> tuple[dict[str, Any], np.ndarray[Any, np.dtype[np.uint8]]]:
    """Run the worker; return its header and frames ``(U, H, W, 3)``."""
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter, a script of this package, no shell
            [sys.executable, "-P", os.fspath(_WORKER)],
            input=json.dumps(request).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=deadline.remaining(),
            check=False,
        )
    except subprocess.TimeoutExpired as error:  # run() has killed it
        raise deadline.error() from error
    line, _, body = done.stdout.partition(b"\n")
    if done.returncode != 0 or not line:
        raise CorruptVideo(item, f"decord ended with status {done.returncode} on it; try backend='pyav'")
    header: dict[str, Any] = json.loads(line)
    if "error" in header:
        raise CorruptVideo(item, f"decord cannot read it ({header['error']}); try backend='pyav'")
    shape = (int(header["unique"]), request["height"], request["width"], 3)
    if len(body) != np.prod(shape, dtype=np.int64):
        raise CorruptVideo(item, "decord returned fewer frames than it announced; try backend='pyav'")
    return header, np.frombuffer(body, dtype=np.uint8).reshape(shape)
