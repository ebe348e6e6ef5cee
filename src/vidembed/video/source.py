"""What can be given as a video, how it is named in messages, and frames that were decoded elsewhere."""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, BinaryIO, TypeAlias, TypeGuard
from urllib.parse import urlsplit

import numpy as np

from vidembed.errors import EmptyFile, InvalidVideoInput, NotAFile, VideoNotFound, VideoPermission
from vidembed.text import printable
from vidembed.video.clip import Clip
from vidembed.video.picture import check_size, fit, shrink
from vidembed.video.sampling import TIME_EPSILON, GridPicker, Sampling

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_NAME_LENGTH = 200
"""Characters of a source's name shown in a message; the middle of a longer one is left out."""
VIDEO_SUFFIXES = frozenset(
    [
        *(".3g2", ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
        *(".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
    ]
)
"""Lower-case file name suffixes by which a folder's videos are found. Reading goes by content, not by name."""


def is_finite_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number, a bool not being one, that is finite."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class VideoSegment:
    """A timed part of a video: what is on show in ``[start, end)``.

    Args:
        path: The video: any single source but another segment.
        start: Seconds on the clock of a player, which shows the start of the file's earliest stream as 0; of given
            frames, from the first. Default 0. What lies before the first frame is left out.
        end: Seconds likewise, or ``None`` for the end of the video. A time past the end of the video means its end, as
            in a Python slice.

    Raises:
        InvalidVideoInput: If a time is not a finite number, ``start`` is negative, ``end`` is not above
            ``start``, or ``path`` is itself a segment.
    """

    path: SingleSource
    start: float = 0.0
    end: float | None = None

    def __post_init__(self) -> None:
        """Check the times."""
        item = item_name(self.path)
        if isinstance(self.path, VideoSegment):
            raise InvalidVideoInput(item, "a segment of a segment; give the times in the file instead")
        for name, value in (("start", self.start), ("end", self.end)):
            if value is None and name == "end":
                continue
            if value is None or not (is_finite_number(value) and value >= 0):
                raise InvalidVideoInput(item, f"segment {name}={value!r}; expected finite seconds, at least 0")
            object.__setattr__(self, name, float(value))
        if self.end is not None and self.end <= self.start:
            raise InvalidVideoInput(item, f"segment end={self.end} is not above start={self.start} (both in seconds)")


@dataclass(frozen=True, eq=False)
class VideoFrames:
    """Frames decoded elsewhere.

    Args:
        array: ``(T, H, W, 3)`` uint8 RGB, T >= 1.
        fps: Frames per second of the video they come from. It is never guessed.
        timestamps: ``(T,)`` presentation times in seconds that do not fall, where ``k / fps`` is not right.

    Raises:
        InvalidVideoInput: If the shape, dtype, fps or timestamps are not as stated.
    """

    array: NDArray[np.uint8]
    fps: float
    timestamps: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        """Check the frames, their rate and their times."""
        array: object = self.array
        if not isinstance(array, np.ndarray):
            raise InvalidVideoInput("<frames>", f"array is a {type(array).__name__}; expected a numpy array")
        item = item_name(self)
        if not _is_rgb(array):
            raise InvalidVideoInput(
                item, f"array has shape {array.shape} and dtype {array.dtype}; expected (T, H, W, 3) uint8 RGB"
            )
        if not (is_finite_number(self.fps) and self.fps > 0):
            raise InvalidVideoInput(
                item, f"fps={self.fps!r}; expected a finite number above 0: a rate is never guessed"
            )
        object.__setattr__(self, "fps", float(self.fps))
        if self.timestamps is not None:
            times = np.asarray(self.timestamps, dtype=np.float64)  # (T,)
            if times.shape != (len(array),) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
                raise InvalidVideoInput(
                    item, f"timestamps of shape {times.shape}; expected ({len(array)},) finite seconds that never fall"
                )
            object.__setattr__(self, "timestamps", times)


SingleSource: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | VideoFrames | Mapping[str, object]"
VideoSource: TypeAlias = "SingleSource | VideoSegment | Clip"
"""A path, a URL (opt-in), the bytes of a file, a seekable binary file object, :class:`VideoFrames`, the dictionary form
``{"array": ..., "video_metadata": {"fps": ...}}``, a :class:`VideoSegment` of one of these, or a :class:`Clip` that was
read before with the same sampling."""


def is_url(source: object) -> bool:
    """Whether a source is an http or https address."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def _path_name(path: str) -> str:
    if not is_url(path):
        return path
    try:
        parts = urlsplit(path)  # credentials and signatures stay out of messages
    except ValueError:  # such as "http://["
        return f"{path.partition(':')[0]}://..."
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{'?...' if parts.query else ''}"


def item_name(source: object) -> str:
    """Name any source for messages: short, on one line, printable.

    Examples: ``clip.mp4``, ``clip.mp4#t=1,3``, ``<bytes, 1234 bytes>``, ``<frames, 8x96x160>``.
    """
    if isinstance(source, VideoSegment):
        end = "" if source.end is None else f",{source.end:g}"
        return f"{item_name(source.path)}#t={source.start:g}{end}"
    if isinstance(source, Clip):
        return source.item
    name = f"<{type(source).__name__}>"
    if isinstance(source, VideoFrames):
        name = f"<frames, {'x'.join(map(str, source.array.shape[:3]))}>"
    elif isinstance(source, Mapping):
        array = source.get("array", ())
        shape = getattr(array, "shape", None) or (len(array) if hasattr(array, "__len__") else "?",)
        name = f"<frames dictionary, {'x'.join(map(str, shape[:3]))}>"
    elif isinstance(source, bytes):
        name = f"<bytes, {len(source)} bytes>"
    elif isinstance(source, (str, os.PathLike)):
        name = _path_name(os.fsdecode(os.fspath(source))) or "<empty path>"
    elif hasattr(source, "read"):
        file_name = getattr(source, "name", None)
        name = f"<file {file_name}>" if isinstance(file_name, str) else "<file object>"
    shown, half = printable(name), (MAX_NAME_LENGTH - 3) // 2
    return shown if len(shown) <= MAX_NAME_LENGTH else f"{shown[:half]}...{shown[-half:]}"


def check_regular(path: str, item: str) -> None:
    """Raise unless ``path`` is a regular file with bytes in it. Opens nothing, so it cannot hang on a FIFO."""
    try:
        status = os.stat(path)  # noqa: PTH116 - Path cannot hold every name a string can
    except PermissionError as error:
        raise VideoPermission(item, "permission denied to look it up; check the rights of its folders") from error
    except ValueError as error:
        raise InvalidVideoInput(item, f"no valid path ({error})") from error
    except OSError as error:
        reason = "no such file"
        if os.path.islink(path):  # noqa: PTH114
            reason = "a link whose target does not exist"
        elif error.errno not in (errno.ENOENT, errno.ENOTDIR):
            reason = error.strerror or str(error)
        raise VideoNotFound(item, f"{reason}; check the path") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a FIFO, socket or device"
        raise NotAFile(item, f"{kind}; expected a regular file")
    if status.st_size == 0:
        raise EmptyFile(item, "empty (0 bytes)")


def ordered_segments(path: SingleSource, times: Sequence[tuple[float, float | None]]) -> list[VideoSegment]:
    """Return the segments of a video at ``(start, end)`` times. Raises InvalidVideoInput if they are not in order."""
    segments = [VideoSegment(path, start, end) for start, end in times]
    if any(after.start < before.start for before, after in pairwise(segments)):
        raise InvalidVideoInput(item_name(path), "segments are not ordered by their start; sort them")
    return segments


def local_path(source: object) -> str | None:
    """Return the path of a source that is a local file by name, else ``None``."""
    if isinstance(source, (str, os.PathLike)) and not is_url(source):
        return os.fsdecode(os.fspath(source))
    return None


_RATE_MARGIN = 1.001  # 2.0 fps cut from 29.97 is a little under or over 2.0


def _is_rgb(array: NDArray[np.generic]) -> bool:
    return array.ndim == 4 and array.shape[-1] == 3 and array.dtype == np.uint8 and 0 not in array.shape


def _as_array(value: object, item: str) -> NDArray[np.uint8]:
    """Return frames of any array type, or a list of pictures, as ``(T, H, W, 3)`` uint8."""
    try:
        array = np.stack([np.asarray(x) for x in value]) if isinstance(value, (list, tuple)) else np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidVideoInput(item, f"'array' is not one stack of frames of one size ({error})") from error
    if array.ndim == 4 and array.shape[-1] != 3 and array.shape[1] == 3:
        array = np.moveaxis(array, 1, -1)  # (T, C, H, W) -> (T, H, W, C)
    if not _is_rgb(array):
        found = f"'array' has shape {array.shape} and dtype {array.dtype}"
        raise InvalidVideoInput(item, f"{found}; expected (T, H, W, 3) or (T, 3, H, W), uint8, values 0 to 255")
    return array


def as_frames(source: VideoFrames | Mapping[str, object], item: str) -> tuple[VideoFrames, float]:
    """Return frames, and the duration in seconds that they come with, or 0.

    In the dictionary form ``{"array": ..., "video_metadata": {"fps": ..., ...}}``, ``fps`` is required;
    ``frames_indices`` (ordinals of the frames in the video they come from, so their times are ``index / fps``) and
    ``duration`` are used where given.

    Raises:
        InvalidVideoInput: If a key is missing or its value is not of the stated form.
    """
    if isinstance(source, VideoFrames):
        return source, 0.0
    if "array" not in source:
        raise InvalidVideoInput(item, f"keys {sorted(map(str, source))}; expected 'array' and 'video_metadata'")
    metadata = source.get("video_metadata") or {}
    if not isinstance(metadata, Mapping):
        raise InvalidVideoInput(item, "'video_metadata' is no mapping; expected {'fps': ...}")
    if metadata.get("fps") is None:
        raise InvalidVideoInput(item, "'video_metadata' has no 'fps'; give it: a frame rate is never guessed")
    duration = metadata.get("duration")
    frames = VideoFrames(_as_array(source["array"], item), metadata["fps"])
    if (indices := metadata.get("frames_indices")) is not None:
        ordinals, count = np.asarray(indices), len(frames.array)  # (T,)
        if ordinals.shape != (count,) or ordinals.dtype.kind not in "iu" or (np.diff(ordinals) < 0).any():
            raise InvalidVideoInput(item, f"'frames_indices' is not {count} whole numbers that never fall")
        frames = VideoFrames(frames.array, frames.fps, timestamps=ordinals / frames.fps)
    return frames, duration if is_finite_number(duration) and duration > 0 else 0.0


def sample_frames(
    source: VideoFrames | Mapping[str, object],
    sampling: Sampling,
    *,
    item: str,
    start: float = 0.0,
    end: float | None = None,
) -> Clip:
    """Choose from given frames as from a file's, by their own times, in seconds from the first.

    Frames that already come no more often than ``sampling.fps`` and are no more than ``max_frames`` are all
    kept: a grid finer than the frames could only repeat some and miss others.

    Raises:
        InvalidVideoInput: If the frames are malformed, or the segment lies outside.
    """
    given, declared = as_frames(source, item)
    count, height, width = given.array.shape[:3]
    check_size(width, height, item)
    times = np.arange(count) / given.fps if given.timestamps is None else given.timestamps - given.timestamps[0]  # (T,)
    spacing = times[-1] / (count - 1) if count > 1 and times[-1] > 0 else 1.0 / given.fps
    video_end = max(float(times[-1] + spacing), declared)
    if start + TIME_EPSILON >= video_end:
        raise InvalidVideoInput(item, f"the segment starts at {start:g} s, and the frames last {video_end:.3f} s")
    stop = video_end if end is None else min(end, video_end)
    before = max(stop - TIME_EPSILON, start + TIME_EPSILON)  # a segment may be shorter
    behind = np.append(times[1:], video_end)  # (T,) when each is no longer on show
    picked = np.flatnonzero((times < before) & (behind > start + TIME_EPSILON)).tolist()
    if len(picked) > sampling.max_frames or 1.0 / spacing > sampling.fps * _RATE_MARGIN:
        picker: GridPicker[int] = GridPicker(sampling, start=start, end=stop, duration=video_end)
        for i in picked:
            picker.keep(i, float(behind[i]))
        picked = picker.finish()
    new_width, new_height = fit(width, height, sampling.max_pixels)
    shown = np.maximum(times[picked] - start, 0.0).astype(np.float64)  # (T,)
    duration = stop - start
    if start == 0 and end is None and given.timestamps is None:
        indices, total = np.array(picked, dtype=np.int64), count
    else:
        indices, total = np.rint(shown * given.fps).astype(np.int64), round(duration * given.fps)
    frames = np.stack([shrink(given.array[i], new_width, new_height) for i in picked])  # (T, H, W, 3)
    total = max(total, int(indices[-1]) + 1, 1)
    known = frames, shown, given.fps, duration, indices, total
    return Clip(
        *known, damaged=False, truncated=False, item=item, start_s=start, video_backend="frames", sampling=sampling
    )
