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

from vidembed.errors import EmptyFile, InvalidVideoInput, NotAFile, VideoNotFound, VideoPermission
from vidembed.video.clip import Clip
from vidembed.video.picture import check_size, fit, shrink
from vidembed.video.sampling import TIME_EPSILON, GridPicker, Sampling

if TYPE_CHECKING:
    from collections.abc import Mapping

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


_RATE_MARGIN = 1.001  # 2.0 fps cut from 29.97 is a little under or over 2.0


def _as_array(value: Any, item: str) -> NDArray[np.uint8]:
    """Return frames of any array type, or a list of pictures, as ``(T, H, W, 3)`` uint8."""
    try:
        array = np.stack([np.asarray(x) for x in value]) if isinstance(value, (list, tuple)) else np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidVideoInput(item, f"'array' is not one stack of frames of one size ({error})") from error
    if array.ndim == 4 and array.shape[-1] != 3 and array.shape[1] == 3:
        array = np.moveaxis(array, 1, -1)  # (T, C, H, W) -> (T, H, W, C)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise InvalidVideoInput(
            item,
            f"'array' has shape {array.shape} and dtype {array.dtype}; "
            "expected (T, H, W, 3) or (T, 3, H, W), uint8, values 0 to 255",
        )
    return array


def from_mapping(value: Mapping[str, Any], item: str) -> tuple[VideoFrames, dict[str, Any]]:
    """Read the dictionary form ``{"array": ..., "video_metadata": {"fps": ..., ...}}``.

    Of the metadata, ``fps`` is required; ``frames_indices`` (ordinals of the frames in the video they come
    from, so their times are ``index / fps``), ``duration`` and ``total_num_frames`` are used where given.

    Raises:
        InvalidVideoInput: If a key is missing or its value is not of the stated form.
    """
    if "array" not in value:
        raise InvalidVideoInput(item, f"keys {sorted(map(str, value))}; expected 'array' and 'video_metadata'")
    metadata = value.get("video_metadata")
    try:
        metadata = dict(metadata or {})
    except (TypeError, ValueError) as error:
        raise InvalidVideoInput(item, "'video_metadata' is no mapping; expected {'fps': ...}") from error
    if metadata.get("fps") is None:
        raise InvalidVideoInput(item, "'video_metadata' has no 'fps'; give it: a frame rate is never guessed")
    array = _as_array(value["array"], item)
    plain = VideoFrames(array, metadata["fps"])
    indices = metadata.get("frames_indices")
    if indices is None:
        return plain, metadata
    ordinals = np.asarray(indices)
    if (
        ordinals.shape != (len(array),)
        or not np.issubdtype(ordinals.dtype, np.integer)
        or (np.diff(ordinals) < 0).any()
    ):
        raise InvalidVideoInput(item, f"'frames_indices' is not {len(array)} whole numbers that never fall")
    return VideoFrames(array, plain.fps, timestamps=ordinals / plain.fps), metadata


def _number(metadata: Mapping[str, Any], key: str) -> float | None:
    value = metadata.get(key)
    valid = isinstance(value, (int, float, np.number)) and math.isfinite(value) and value > 0
    return float(value) if valid and value is not None else None


def sample_frames(
    source: VideoFrames,
    sampling: Sampling,
    *,
    item: str,
    metadata: Mapping[str, Any] | None = None,
    start: float = 0.0,
    end: float | None = None,
) -> Clip:
    """Choose from given frames as from a file's, by their own times.

    Frames that already come no more often than ``sampling.fps`` and are no more than ``max_frames`` are all
    kept: a grid finer than the frames could only repeat some and miss others.

    Args:
        source: The frames.
        sampling: How to choose; ``max_pixels`` applies too.
        item: Name for messages.
        metadata: The dictionary form's metadata, if that is how they came.
        start: Start of the segment wanted, in seconds from the first frame.
        end: Its end (exclusive), or ``None``.

    Raises:
        InvalidVideoInput: If the segment lies outside.
    """
    metadata = metadata or {}
    count, height, width = source.array.shape[:3]
    check_size(width, height, item)
    times = np.arange(count) / source.fps if source.timestamps is None else source.timestamps - source.timestamps[0]
    spacing = times[-1] / (count - 1) if count > 1 and times[-1] > 0 else 1.0 / source.fps
    video_end = max(float(times[-1] + spacing), _number(metadata, "duration") or 0.0)
    if start + TIME_EPSILON >= video_end:
        raise InvalidVideoInput(item, f"the segment starts at {start:g} s, and the frames last {video_end:.3f} s")
    stop = video_end if end is None else min(end, video_end)
    before = max(stop - TIME_EPSILON, start + TIME_EPSILON)  # a segment may be shorter
    inside = np.flatnonzero((times < before) & (np.append(times[1:], video_end) > start + TIME_EPSILON))
    sparse = len(inside) <= sampling.max_frames and 1.0 / spacing <= sampling.fps * _RATE_MARGIN
    if sparse:
        picked = inside.tolist()
    else:
        picker: GridPicker[int] = GridPicker(sampling, start=start, end=stop, duration=video_end)
        for i in inside.tolist():
            picker.keep(i, float(times[i + 1]) if i + 1 < count else video_end)
        picked = picker.finish()
    new_width, new_height = fit(width, height, sampling.max_pixels)
    frames = np.stack([shrink(source.array[i], new_width, new_height) for i in picked])  # (T, H, W, 3)
    shown = np.maximum(times[picked] - start, 0.0).astype(np.float64)
    duration = stop - start
    whole = start == 0 and end is None
    if whole and source.timestamps is None:
        indices, total = np.array(picked, dtype=np.int64), count
    else:
        indices, total = np.rint(shown * source.fps).astype(np.int64), round(duration * source.fps)
    return Clip(
        frames=frames,
        timestamps=shown,
        fps=source.fps,
        duration=duration,
        frames_indices=indices,
        total_num_frames=max(total, int(indices[-1]) + 1, 1),
        damaged=False,
        truncated=False,
        item=item,
        start_s=start,
        video_backend="frames",
    )
