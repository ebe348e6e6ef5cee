"""What reading a video takes and gives: sources, sampling and limits go in, a clip comes out."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias, TypedDict, TypeGuard
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from vidembed import errors
from vidembed.text import printable

MAX_NAME_LENGTH = 200  # characters of a source's name shown in a message; the middle of a longer one is left out
TIME_EPSILON = 1e-6  # seconds. Times closer than this are equal: below any container's clock tick, above float rounding
TRUNCATED_S = 1.0  # seconds. A stream that ends this much before its declared duration is truncated
METADATA_TOLERANCE_S = 0.01  # that a whole frame index may be off: a tenth of the last digit of times in prompts


def is_finite_number(value: object) -> TypeGuard[float]:
    """Whether a value is a number, a bool not being one, that is finite."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Sampling:
    """How a video becomes frames: a regular grid in presentation time. Every field changes the vectors.

    Args:
        fps: Frames looked at per second of video. Default 2 (VidVec, arXiv 2602.08099, section 4).
        max_frames: Upper bound on the number of frames; a longer video is looked at less often, evenly over its whole
            length. Default 180 (VidVec, section 4).
        max_pixels: Upper bound on the area (height x width) of a frame, in pixels. Larger frames are scaled down with
            their aspect kept; none is ever scaled up. ``None`` sets no bound. Default 640 x 360 (our choice).

    Raises:
        ValueError: If a field is not a finite number above zero, or a count is not whole.
    """

    fps: float = 2.0
    max_frames: int = 180
    _: KW_ONLY
    max_pixels: int | None = 640 * 360

    def __post_init__(self) -> None:
        """Check the fields and give them one type each, so that ``as_dict`` is stable."""
        for name, kind, allowed in (
            ("fps", float, "a finite number of frames per second above 0, such as 2.0"),
            ("max_frames", int, "a whole number of at least 1"),
            ("max_pixels", int, "a whole number of at least 1 or None"),
        ):
            value = getattr(self, name)
            if value is None and name == "max_pixels":
                continue
            is_kind = kind is float or isinstance(value, (int, np.integer))
            if not (is_kind and is_finite_number(value) and value > 0):
                raise ValueError(f"Sampling({name}={value!r}): expected {allowed}")
            object.__setattr__(self, name, kind(value))

    def as_dict(self) -> dict[str, float | int | None]:
        """Return every field that changes vectors, as JSON values, in a fixed order."""
        return asdict(self)

    def step(self, duration: float | None) -> float:
        """Return the seconds between two sampled frames of a video of ``duration`` seconds (``None``: not known)."""
        return 1.0 / self.fps if duration is None else max(1.0 / self.fps, duration / self.max_frames)

    def grid(self, duration: float) -> NDArray[np.float64]:
        """Return the sampled times of a video of known duration, ``(T,)`` in seconds.

        They are ``k * step`` for ``k = 0, 1, ...`` below ``duration``, with ``step = max(1 / fps, duration /
        max_frames)``. ``1 <= T <= max_frames``; the first is 0. Raises ValueError for no finite duration of at least 0.
        """
        if not (math.isfinite(duration) and duration >= 0):
            raise ValueError(f"grid(duration={duration!r}): expected a finite number of seconds, at least 0")
        step = self.step(duration)
        count = math.ceil((duration - TIME_EPSILON) / step)
        return np.arange(min(max(count, 1), self.max_frames), dtype=np.float64) * step


DEFAULT_TIMEOUT_S: Final = 600.0  # seconds. Default limit of reading one video (our choice)
DEFAULT_MEMORY_BYTES: Final = 8 * 2**30  # of one decoding process. 180 pictures of 4K as RGB take 4.5 GB (our choice)
MIN_MEMORY_BYTES: Final = 2**29  # interpreter, numpy and FFmpeg alone have 220 MB, and each thread reserves some more


@dataclass(frozen=True)
class DecodeLimits:
    """Limits on what reading one video may take: time, bytes, memory.

    Args:
        timeout_s: Seconds, a download included, above 0; ``None`` for no limit. Default 600. Of a process of a
            `DecodePool`, those that it works on the file: waiting for clips to be taken does not count.
        max_bytes: Bytes of a download. Default 2 GiB (our choice).
        max_memory_bytes: Address space of a process of a `DecodePool`, at least 512 MiB; ``None`` for no limit.
            Default 8 GiB. Not every system can set it (Linux can); where it cannot, a warning is logged.

    Raises:
        ValueError: A limit is out of range.
    """

    timeout_s: float | None = DEFAULT_TIMEOUT_S
    max_bytes: int = 2 * 2**30
    max_memory_bytes: int | None = DEFAULT_MEMORY_BYTES

    def __post_init__(self) -> None:
        """Check the limits."""
        if self.timeout_s is not None and not 0 < self.timeout_s < math.inf:
            raise ValueError(f"timeout_s={self.timeout_s!r}: expected seconds above 0, or None for no limit")
        if (memory := self.max_memory_bytes) is not None and memory < MIN_MEMORY_BYTES:
            raise ValueError(f"max_memory_bytes={memory!r}: expected at least {MIN_MEMORY_BYTES}, or None")


DEFAULT_LIMITS: Final = DecodeLimits()
CPU_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")  # microseconds, or "max", and of how many
ANY_TIME: Final = DecodeLimits(timeout_s=None)


def core_count() -> int:
    """Cores that this process may use, by its affinity and by the quota of its container (Linux)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # none, or "max"
        return cores


class Deadline:
    """A limit of so many seconds from now, or none, checked between packets and whenever bytes are read."""

    def __init__(self, timeout_s: float | None, item: str, done: str = "read", remedy: str = "cut the video") -> None:
        self._item = item
        self._reason = f"not {done} within timeout_s={timeout_s}; raise the limit or {remedy}"
        self._end = math.inf if timeout_s is None else time.monotonic() + timeout_s

    def error(self) -> errors.DecodeTimeout:
        """Return the error to raise when time is up."""
        return errors.DecodeTimeout(self._item, self._reason)

    def remaining(self, most: float = math.inf) -> float:
        """Return the seconds left, at most so many; raise `DecodeTimeout` when none are."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise self.error()
        return min(left, most)


# start and end in seconds on the clock of a player (None: the end of the video), and its name in messages
Segment: TypeAlias = tuple[float, float | None, str]


@dataclass(frozen=True)
class VideoSegment:
    """A part of a video: what is shown in ``[start, end)``, in seconds.

    Args:
        path: The video: any single source but another segment.
        start: Seconds on the clock of a player, which shows the start of the file's earliest stream as 0; of given
            frames, from the first. Default 0. What lies before the first frame is left out.
        end: Seconds likewise, or ``None`` for the end of the video. A time past the end of the video means its end, as
            in a Python slice.

    Raises:
        InvalidVideoInput: If a time is not finite or negative, ``end`` not above ``start``, or ``path`` a segment.
    """

    path: SingleSource
    start: float = 0.0
    end: float | None = None

    def __post_init__(self) -> None:
        """Check the times."""
        item = item_name(self.path)
        if isinstance(self.path, VideoSegment):
            raise errors.InvalidVideoInput(item, "a segment of a segment; give a path, and the times in the file")
        for name, value in (("start", self.start), ("end", self.end)):
            if value is None and name == "end":
                continue
            if value is None or not (is_finite_number(value) and value >= 0):
                raise errors.InvalidVideoInput(item, f"segment {name}={value!r}; expected finite seconds, at least 0")
            object.__setattr__(self, name, float(value))
        if self.end is not None and self.end <= self.start:
            reason = f"segment end={self.end} is not above start={self.start} (both in seconds)"
            raise errors.InvalidVideoInput(item, reason)


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
            raise errors.InvalidVideoInput("<frames>", f"array is a {type(array).__name__}; expected a numpy array")
        item = item_name(self)
        if not is_rgb(array):
            found = f"array has shape {array.shape} and dtype {array.dtype}"
            raise errors.InvalidVideoInput(item, f"{found}; expected (T, H, W, 3) uint8 RGB")
        if not (is_finite_number(self.fps) and self.fps > 0):
            found = f"fps={self.fps!r}; expected a finite number above 0, since a rate is never guessed"
            raise errors.InvalidVideoInput(item, found)
        object.__setattr__(self, "fps", float(self.fps))
        if self.timestamps is not None:
            times = np.asarray(self.timestamps, dtype=np.float64)  # (T,)
            if times.shape != (len(array),) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
                allowed = f"expected ({len(array)},) finite seconds in ascending order"
                raise errors.InvalidVideoInput(item, f"timestamps of shape {times.shape}; {allowed}")
            object.__setattr__(self, "timestamps", times)


def is_rgb(array: NDArray[np.generic]) -> bool:
    """Whether an array has the shape and dtype of frames: ``(T, H, W, 3)`` uint8, none of them 0."""
    return array.ndim == 4 and array.shape[-1] == 3 and array.dtype == np.uint8 and 0 not in array.shape


SingleSource: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | VideoFrames | Mapping[str, object]"
VideoSource: TypeAlias = "SingleSource | VideoSegment | Clip"
"""A path, a URL (opt-in), the bytes of a file, a seekable binary file object, `VideoFrames`, the dictionary form
``{"array": ..., "video_metadata": {"fps": ...}}``, a `VideoSegment` of one of these, or a `Clip` that was
read before with the same sampling."""


def is_url(source: object) -> TypeGuard[str]:
    """Whether a source is an http or https address."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def item_name(source: object) -> str:
    """Name any source for messages, short and printable: ``clip.mp4#t=1,3``, ``<bytes, 1234 bytes>``."""
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
        path = os.fsdecode(os.fspath(source))
        name = _address_name(path) if is_url(path) else path or "<empty path>"
    elif hasattr(source, "read"):
        file_name = getattr(source, "name", None)
        name = f"<file {file_name}>" if isinstance(file_name, str) else "<file object>"
    shown, half = name if name.isprintable() else printable(name), (MAX_NAME_LENGTH - 3) // 2
    return shown if len(shown) <= MAX_NAME_LENGTH else f"{shown[:half]}...{shown[-half:]}"


def _address_name(url: str) -> str:
    """Name an address without its credentials and signatures."""
    try:
        parts = urlsplit(url)
    except ValueError:  # such as "http://["
        return f"{url.partition(':')[0]}://..."
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}{'?...' if parts.query else ''}"


def check_regular(path: str, item: str) -> None:
    """Raise unless ``path`` is a regular file with bytes in it. Opens nothing, so it cannot hang on a FIFO."""
    try:
        status = os.stat(path)  # noqa: PTH116 - Path cannot hold every name a string can
    except PermissionError as error:
        raise errors.VideoPermission(item, "permission denied; check the access rights of its folders") from error
    except ValueError as error:
        raise errors.InvalidVideoInput(item, f"no valid path ({error})") from error
    except OSError as error:
        reason = "no such file"
        if os.path.islink(path):  # noqa: PTH114
            reason = "a link whose target does not exist"
        elif error.errno not in (errno.ENOENT, errno.ENOTDIR):
            reason = error.strerror or str(error)
        raise errors.VideoNotFound(item, f"{reason}; check the path") from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a FIFO, socket or device"
        raise errors.NotAFile(item, f"{kind}; expected a regular file")
    if status.st_size == 0:
        raise errors.EmptyFile(item, "empty (0 bytes)")


def ordered_segments(path: SingleSource, times: Sequence[tuple[float, float | None]]) -> list[VideoSegment]:
    """Return the segments of a video at ``(start, end)`` times. Raises InvalidVideoInput if they are not in order."""
    segments = [VideoSegment(path, start, end) for start, end in times]
    if any(after.start < before.start for before, after in pairwise(segments)):
        raise errors.InvalidVideoInput(item_name(path), "segments are not ordered by their start; sort them")
    return segments


@dataclass(frozen=True, slots=True)
class FileState:
    """What `stat` says of a file: the quick sign that it was written to."""

    size: int  # bytes
    mtime_ns: int  # time of the last write, nanoseconds since the epoch

    def __post_init__(self) -> None:
        """Wrap both into signed 64 bits, as the index stores them: file systems have times beyond 1677 to 2262."""
        for name in ("size", "mtime_ns"):
            object.__setattr__(self, name, (getattr(self, name) + 2**63) % 2**64 - 2**63)

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Read the state of `path`, following links. Raises OSError if it cannot be reached."""
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)


def content_fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the whole file, in hex. All bytes are read: a sample would miss an edit in between."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class ClipMetadata(TypedDict):
    """See `Clip.metadata`."""

    fps: float
    duration: float  # seconds
    total_num_frames: int
    frames_indices: list[float]
    width: int  # pixels, of the frames in the clip
    height: int
    video_backend: str


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a video or of a segment, each the frame that is shown at its time.

    All times are in seconds. Of a whole video they count from its first frame; of a segment, **from the start of the
    segment**, so that the same content gives the same vector wherever it lies in a file.

    Attributes:
        frames: ``(T, H, W, 3)`` uint8 RGB: T >= 1 frames of one size, upright, with square pixels.
        timestamps: ``(T,)`` float64: when each frame came on show. Never falls. A still that lasts over several looks
            is there several times, with one timestamp. The frame already on show when a segment begins has time 0.
        fps: Average frame rate of the stream, in frames per second (not of the sampled frames).
        duration: Length of what was looked at: to the end of the last frame, or of the segment.
        frames_indices: ``(T,)`` int64: the ordinal of each frame in the stream, from 0. Where frames were not counted
            (a segment, or a long file that was seeked in): ``round(timestamps * fps)``.
        total_num_frames: Number of frames in the video or segment, above every ``frames_indices``; counted where frames
            were counted, else ``round(duration * fps)``.
        damaged: True if any part could not be decoded; what is left is in place by time.
        truncated: True if the stream ends over one second before the duration it declares.
        item: How the source is named in messages.
        start_s: Where the clip begins in the file, seconds on the clock of a player: the segment's start, or that of
            the first frame if that comes later.
        video_backend: What decoded it: ``"pyav"``, ``"decord"`` or ``"frames"`` (given as an array).
        sampling: How the frames were chosen, or ``None`` if that is not known. What embeds a clip asks for the same.
    """

    frames: NDArray[np.uint8]
    timestamps: NDArray[np.float64]
    fps: float
    duration: float
    frames_indices: NDArray[np.int64]
    total_num_frames: int
    damaged: bool
    truncated: bool
    item: str
    start_s: float = 0.0
    video_backend: str = "pyav"
    sampling: Sampling | None = None

    def metadata(self) -> ClipMetadata:
        """Return what ``transformers.video_utils.VideoMetadata`` takes, as plain Python values.

        Processors compute a frame's time as ``frames_indices / fps``, which an ordinal meets only where the frame rate
        is constant. So the T indices here are ``timestamps * fps``: whole numbers, equal to ``Clip.frames_indices``, at
        a constant rate, and fractions where only those are right in time.
        """
        exact = self.timestamps * self.fps  # (T,)
        whole = np.rint(exact)  # (T,)
        is_regular = bool(np.all(np.abs(whole - exact) <= METADATA_TOLERANCE_S * self.fps))
        return {
            "fps": self.fps,
            "duration": self.duration,
            "total_num_frames": max(self.total_num_frames, int(whole[-1]) + 1),
            "frames_indices": (whole.astype(np.int64) if is_regular else exact).tolist(),
            "width": int(self.frames.shape[2]),
            "height": int(self.frames.shape[1]),
            "video_backend": self.video_backend,
        }


def assemble(
    frames: Sequence[NDArray[np.uint8]],  # T pictures (H, W, 3) of one size
    times: NDArray[np.float64],  # (T,) when each comes on show
    *,
    ordinals: NDArray[np.int64] | None,  # (T,) places in the stream, or None if they were not counted
    count: int,  # frames counted in the window (if `ordinals`, in the whole video)
    declared_fps: float | None,  # the stream's average rate
    start: float,  # of the window
    end: float | None,  # of the window, or None for the end of the video
    video_end: float,  # where the video was found to end; above `end` if it was not read so far
    declared_duration: float | None,  # by the video stream
    start_s: float,  # this and what follows as in `Clip`
    damaged: bool,
    item: str,
    backend: str,
    sampling: Sampling,
) -> Clip:
    """Make the clip of a decoded window, and warn if its end is missing. Times are seconds from the first frame."""
    stop = video_end if end is None else min(end, video_end)
    due = [bound for bound in (end, declared_duration) if bound is not None]
    truncated = declared_duration is not None and min(due) - stop > TRUNCATED_S
    if truncated:
        found = f"{item}: it ends at {video_end:.2f} s, before the {declared_duration:.2f} s it declares"
        errors.warn(errors.VideoTruncated(f"{found}; only the frames that it has are used"))
    duration = stop - start
    shown = np.maximum(times - start, 0.0)  # (T,)
    counted = count / duration if duration > 0 else 1.0  # a still of no length: any rate puts it at time 0
    fps = counted if declared_fps is None else declared_fps
    if ordinals is not None and start == 0 and end is None:
        if duration > 0 and abs(fps * duration - count) > max(1.0, 0.01 * count):  # counting contradicts it by over 1 %
            fps = counted
        indices, total = ordinals, count
    else:
        indices, total = np.rint(shown * fps).astype(np.int64), round(duration * fps)
    known = np.stack(frames), shown, fps, duration, indices, max(total, int(indices[-1]) + 1)  # (T, H, W, 3) first
    return Clip(*known, damaged, truncated, item, start_s, backend, sampling)
