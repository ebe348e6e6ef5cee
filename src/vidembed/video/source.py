"""What can be given as a video, and how it is named in messages."""

from __future__ import annotations

import errno
import math
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias
from urllib.parse import urlsplit

import numpy as np

from vidembed.video.clip import Clip
from vidembed.video.errors import (
    EmptyFile,
    InvalidVideoInput,
    NotAFile,
    VideoNotFound,
    VideoPermission,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_NAME_LENGTH = 200
"""Characters of a source's name shown in a message; the middle of a longer one is left out."""

VIDEO_SUFFIXES = frozenset(
    [
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".flv",
        ".gif",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogv",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
    ]
)
"""Lower-case file name suffixes by which a folder's videos are found. Reading goes by content, not by name."""


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
        if isinstance(self.path, VideoSegment):
            raise InvalidVideoInput(item_name(self.path), "a segment of a segment; give the times in the file instead")
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is None and name == "end":
                continue
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and value >= 0):
                raise InvalidVideoInput(
                    item_name(self.path), f"segment {name}={value!r}; expected finite seconds, at least 0"
                )
            object.__setattr__(self, name, float(value))
        if self.end is not None and self.end <= self.start:
            raise InvalidVideoInput(
                item_name(self.path), f"segment end={self.end} is not above start={self.start} (both in seconds)"
            )


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
    timestamps: NDArray[np.float64] | None = field(default=None)

    def __post_init__(self) -> None:
        """Check the frames, their rate and their times."""
        array = self.array
        if not isinstance(array, np.ndarray):
            raise InvalidVideoInput("<frames>", f"array is a {type(array).__name__}; expected a numpy array")
        name = item_name(self)
        if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
            raise InvalidVideoInput(
                name, f"array has shape {array.shape} and dtype {array.dtype}; expected (T, H, W, 3) uint8 RGB"
            )
        fps: Any = self.fps
        number = isinstance(fps, (int, float, np.number)) and not isinstance(fps, bool)
        if not (number and math.isfinite(fps) and fps > 0):
            raise InvalidVideoInput(name, f"fps={fps!r}; expected a finite number above 0: a rate is never guessed")
        object.__setattr__(self, "fps", float(fps))
        if self.timestamps is not None:
            times = np.asarray(self.timestamps, dtype=np.float64)
            if times.shape != (len(array),) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
                raise InvalidVideoInput(
                    name, f"timestamps of shape {times.shape}; expected ({len(array)},) finite seconds that never fall"
                )
            object.__setattr__(self, "timestamps", times)


SingleSource: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | VideoFrames | Mapping[str, Any]"
VideoSource: TypeAlias = "SingleSource | VideoSegment | Clip"
"""A path, a URL (opt-in), the bytes of a file, a seekable binary file object, :class:`VideoFrames`, the dictionary form
``{"array": ..., "video_metadata": {"fps": ...}}``, a :class:`VideoSegment` of one of these, or a :class:`Clip` that was
read before with the same sampling."""


def _printable(name: str) -> str:
    """Return ``name`` on one line, of bounded length, with what cannot be printed escaped."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in name)
    if len(shown) > MAX_NAME_LENGTH:
        half = (MAX_NAME_LENGTH - 3) // 2
        shown = f"{shown[:half]}...{shown[-half:]}"
    return shown


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
    name = f"<{type(source).__name__}>"
    if isinstance(source, VideoSegment):
        end = "" if source.end is None else f",{source.end:g}"
        return f"{item_name(source.path)}#t={source.start:g}{end}"
    if isinstance(source, Clip):
        return source.item
    if isinstance(source, VideoFrames):
        name = f"<frames, {'x'.join(map(str, source.array.shape[:3]))}>"
    elif isinstance(source, Mapping):
        array: Any = source.get("array", ())
        shape = getattr(array, "shape", None) or (len(array) if hasattr(array, "__len__") else "?",)
        name = f"<frames dictionary, {'x'.join(map(str, shape[:3]))}>"
    elif isinstance(source, bytes):
        name = f"<bytes, {len(source)} bytes>"
    elif isinstance(source, (str, os.PathLike)):
        name = _path_name(os.fsdecode(os.fspath(source))) or "<empty path>"
    elif hasattr(source, "read"):
        file_name = getattr(source, "name", None)
        name = f"<file {file_name}>" if isinstance(file_name, str) else "<file object>"
    return _printable(name)


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


def local_path(source: object) -> str | None:
    """Return the path of a source that is a local file by name, else ``None``."""
    if isinstance(source, (str, os.PathLike)) and not is_url(source):
        return os.fsdecode(os.fspath(source))
    return None
