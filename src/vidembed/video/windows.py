"""A duration becomes windows of equal length."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_WINDOWS = 100_000
"""Windows of one file. A damaged header can claim a duration of years; that must not become work without end."""


@dataclass(frozen=True, slots=True)
class Windows:
    """How a video is cut into segments.

    Window `k` starts at `k * (length - overlap)`. The last one ends with the video and is as long as the others: it is
    moved back over what came before rather than left short. A video no longer than `length` is one window.

    Attributes:
        length: Length of a window, seconds, over 0.
        overlap: What a window shares with the next, seconds, at least 0 and below `length` by a millisecond or more.

    Raises:
        ValueError: `length` or `overlap` is out of range.
    """

    length: float
    overlap: float = 0.0

    def __post_init__(self) -> None:
        """Check the fields."""
        if not (math.isfinite(self.length) and self.length >= 0.001):
            raise ValueError(f"segment: got {self.length}; a length in seconds of at least 0.001 is needed")
        if not (math.isfinite(self.overlap) and 0 <= self.overlap <= self.length - 0.001):
            raise ValueError(
                f"overlap: got {self.overlap} with segment {self.length}; at least 0 and less than segment is needed"
            )

    def split(self, duration: float) -> list[tuple[float, float]]:
        """Return the `(start, end)` of each window, seconds, rounded to microseconds, in order.

        Args:
            duration: Length of the video, seconds, over 0.

        Raises:
            ValueError: `duration` is not a positive number, or there would be over `MAX_WINDOWS` windows.
        """
        if not (math.isfinite(duration) and duration > 0):
            raise ValueError(f"duration: got {duration}; a positive number of seconds is needed to cut segments")
        if duration <= self.length:
            return [(0.0, round(duration, 6))]
        step = self.length - self.overlap
        whole = math.floor((duration - self.length) / step + 1e-9)  # windows after the first that fit
        if whole >= MAX_WINDOWS:
            raise ValueError(f"duration: {duration} s in steps of {step} s is over {MAX_WINDOWS} segments of one file")
        starts = [k * step for k in range(whole + 1)]
        if duration - (starts[-1] + self.length) > 0.001:  # a millisecond is less than any frame lasts
            starts.append(duration - self.length)
        return [(round(start, 6), round(min(start + self.length, duration), 6)) for start in starts]
