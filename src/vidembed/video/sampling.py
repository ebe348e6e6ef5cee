"""Which moments of a video are looked at: a regular grid in presentation time. And which file they are of."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import KW_ONLY, asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

TIME_EPSILON = 1e-6
"""Seconds. Times closer than this are equal: below any container's clock tick, above float rounding."""

Item = TypeVar("Item")


@dataclass(frozen=True)
class Sampling:
    """How a video becomes frames. Every field changes the vectors.

    Args:
        fps: Frames looked at per second of video. Default 2 (VidVec, arXiv 2602.08099, section 4).
        max_frames: Upper bound on the number of frames; a longer video is looked at less often, evenly
            over its whole length. Default 180 (VidVec, section 4).
        max_pixels: Upper bound on the area (height x width) of a frame, in pixels. Larger frames are
            scaled down with their aspect kept; none is ever scaled up. ``None`` sets no bound.
            Default 640 x 360 (our choice: the paper gives none).

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
            is_number = isinstance(value, (int, np.integer) if kind is int else (int, float, np.number))
            if not is_number or isinstance(value, bool) or not 0 < value < math.inf:
                raise ValueError(f"Sampling({name}={value!r}): expected {allowed}")
            object.__setattr__(self, name, kind(value))

    def as_dict(self) -> dict[str, float | int | None]:
        """Return every field that changes vectors, as JSON values, in a fixed order."""
        return asdict(self)

    def step(self, duration: float | None) -> float:
        """Return the seconds between two looks at a video of ``duration`` seconds (``None``: not known)."""
        if duration is None:
            return 1.0 / self.fps
        return max(1.0 / self.fps, duration / self.max_frames)

    def grid(self, duration: float) -> NDArray[np.float64]:
        """Return the times looked at in a video of known duration, in seconds.

        Returns:
            ``(T,)`` float64, seconds: ``k * step`` for ``k = 0, 1, ...`` below ``duration``, with
            ``step = max(1 / fps, duration / max_frames)``. ``1 <= T <= max_frames``; the first is 0.

        Raises:
            ValueError: If ``duration`` is negative or not finite.
        """
        if not (math.isfinite(duration) and duration >= 0):
            raise ValueError(f"grid(duration={duration!r}): expected a finite number of seconds, at least 0")
        step = self.step(duration)
        count = math.ceil((duration - TIME_EPSILON) / step)
        return np.arange(min(max(count, 1), self.max_frames), dtype=np.float64) * step


def check_sampling(sampling: object) -> None:
    """Raise TypeError for what is no `Sampling`."""
    if not isinstance(sampling, Sampling):
        raise TypeError(f"sampling is a {type(sampling).__name__}; expected a Sampling, such as Sampling(fps=2.0)")


class GridPicker(Generic[Item]):
    """Keeps, from frames offered in the order of presentation, the one on show at each time of the grid.

    Of a video of unknown (or wrongly declared) duration it keeps frames at ``fps`` and, each time
    ``2 * max_frames`` are kept, drops every second one and doubles the step. So never more than
    ``2 * max_frames`` items are held, and never more than ``max_frames`` are returned.

    Times are seconds of the video's clock. ``end`` is exclusive, and may lie past ``duration``, which is as declared.
    """

    def __init__(
        self, sampling: Sampling, *, start: float = 0.0, end: float | None = None, duration: float | None = None
    ) -> None:
        self.start = start
        self.end = math.inf if end is None else end
        self.step = sampling.step(None if duration is None else max(min(self.end, duration) - start, 0.0))
        self._max_frames = sampling.max_frames
        self._kept: list[Item] = []

    @property
    def next_time(self) -> float:
        """The next time to be looked at, in seconds of the video's clock; infinity past the end.

        The start is always looked at: a segment shorter than any frame has the one on show then.
        """
        time = self.start + len(self._kept) * self.step
        return time if not self._kept or time + TIME_EPSILON < self.end else math.inf

    def wants(self, until: float) -> bool:
        """Whether a frame on show until ``until`` (exclusive) is one to keep."""
        return self.next_time + TIME_EPSILON < until

    def keep(self, item: Item, until: float) -> None:
        """Keep ``item`` for every time of the grid that comes before ``until``."""
        while self.wants(until):
            self._kept.append(item)
            if len(self._kept) == 2 * self._max_frames:
                self._kept = self._kept[::2]
                self.step *= 2

    def finish(self) -> list[Item]:
        """Return the kept items in order: evenly thinned to ``max_frames`` if there are more."""
        count = len(self._kept)
        if count <= self._max_frames:
            return self._kept
        return [self._kept[i * count // self._max_frames] for i in range(self._max_frames)]


PICTURE_VERSION: Final = 2
"""Of how a file becomes pictures, for what is stored by file. 2 differs from 1 for files that are mirrored, HDR,
BT.2020 or interlaced, hold several video streams, or change their shape."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What `stat` says of a file: the quick sign that it was written to.

    Both are kept modulo 2**64 as signed 64-bit numbers, as the index stores them. Times from 1677 to 2262 stay what
    they are; others wrap around, so that two that differ still do.
    """

    size: int  # bytes
    mtime_ns: int  # time of the last write, nanoseconds since the epoch

    def __post_init__(self) -> None:
        """Bring both into range: file systems store times that 64 bits of nanoseconds cannot hold."""
        for name in ("size", "mtime_ns"):
            object.__setattr__(self, name, (getattr(self, name) + 2**63) % 2**64 - 2**63)

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Read the state of `path`, following links.

        Raises:
            OSError: The file cannot be reached.
        """
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)


def content_fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the whole file, in hex. All bytes are read: a sample would miss an edit in between.

    Raises:
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
