"""The default backend: PyAV, frames chosen by presentation time."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np

from vidembed.errors import CorruptVideo, InvalidVideoInput
from vidembed.video.clip import TRUNCATED_S, Clip, assemble
from vidembed.video.container import DEFAULT_THREADS
from vidembed.video.reader import FrameReader, TimedFrame, from_player
from vidembed.video.sampling import TIME_EPSILON, GridPicker, Sampling

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from vidembed.video.fetch import Deadline

MIN_JUMP_S = 2.0
"""Seconds. Shorter distances are decoded through: a seek costs about that much (our choice)."""
MAX_LOST_SHARE = 0.10
"""Share of frames that may be lost to errors before the video counts as corrupt (our choice)."""

Segment: TypeAlias = tuple[float, float | None, str]
"""Start and end in seconds on the clock of a player (``None``: the end of the video), and its name in messages."""


class Window:
    """Collects the frames of one clip: a whole video, or one segment of it.

    `reader` is the pass that will feed it, after its first frame; `duration` the length of the video in seconds, if it
    was found by reading. `start` and `end` are seconds from the first frame.

    Raises:
        InvalidVideoInput: It ends before the first frame.
    """

    def __init__(
        self, asked: Segment, reader: FrameReader, sampling: Sampling, *, duration: float | None = None
    ) -> None:
        self.asked = asked
        start, end, self.item = asked
        self.start, self.end = from_player(start, end, reader.start, self.item)
        self.done = False
        self._start_s = max(start, reader.start)
        self._sampling = sampling
        self._reader = reader
        self._shape: tuple[int, int, int] | None = None  # (H, W, 3) of the first frame, and so of all
        self._declared = reader.duration
        self._is_settled = duration is not None
        length = self._declared if duration is None else duration
        self._picker: GridPicker[tuple[NDArray[np.uint8], float, int | None]] = GridPicker(
            sampling, start=self.start, end=self.end, duration=None if length is None else max(length, self.start)
        )
        self._step = self._picker.step
        self._seen = self._errors = self._attempt = 0
        self._errors_before: int | None = None

    @property
    def next_time(self) -> float:
        """The next time of interest; infinity once the window is complete."""
        return math.inf if self.done else self._picker.next_time

    def feed(self, timed: TimedFrame, until: float) -> None:
        """Look at a frame on show in ``[timed.time, until)``. One fed again, after a restart, does no harm."""
        if self.done or until <= self.start + TIME_EPSILON:
            return
        if self._errors_before is None or timed.attempt != self._attempt:
            self._errors_before, self._attempt, self._seen = timed.errors_at_key, timed.attempt, 0
        self._errors = timed.errors - self._errors_before
        self._seen += 1
        if self._picker.wants(until):
            geometry = self._reader.geometry(timed, self._sampling.max_pixels)
            self._shape = self._shape or geometry.shape
            self._picker.keep((timed.array(geometry, self._shape, self.item), timed.time, timed.ordinal), until)
        self.done = self.end is not None and until + TIME_EPSILON >= self.end

    def is_mistaken(self, video_end: float) -> bool:
        """Whether it was read by a declared duration that is far from the real one, and is another without that."""
        if self._declared is None or self._is_settled or abs(self._declared - video_end) <= TRUNCATED_S:
            return False
        span = video_end - self.start if self.end is None else min(self.end, video_end) - self.start
        if span <= TIME_EPSILON:  # whether a tail is missing shows when no packet is jumped over
            return self._reader.seeked
        return abs(self._sampling.step(span) - self._step) > TIME_EPSILON

    def clip(self, video_end: float) -> Clip:
        """Return what was collected, where the last frame that was read ends `video_end` seconds from the first.

        Raises:
            InvalidVideoInput: Nothing lies in the window.
            CorruptVideo: Too much of it was lost.
        """
        reader = self._reader
        if not self.done:
            self._errors = reader.errors - (self._errors_before or 0)
        self._check(video_end)
        kept = self._picker.finish()
        ordinals = [ordinal for *_, ordinal in kept if ordinal is not None]
        clip = assemble(
            [array for array, *_ in kept],
            np.array([time for _, time, _ in kept], dtype=np.float64),  # (T,)
            ordinals=None if reader.seeked else np.array(ordinals, dtype=np.int64),  # (T,)
            count=self._seen,
            declared_fps=None if reader.rate is None else float(reader.rate),
            start=self.start,
            end=self.end,
            video_end=video_end,
            declared_duration=None if reader.is_complete else self._declared,
            start_s=self._start_s,
            damaged=self._errors > 0,
            item=self.item,
            backend="pyav",
        )
        return replace(clip, sampling=self._sampling)

    def _check(self, video_end: float) -> None:
        reader, declared = self._reader, self._declared
        if self.start + TIME_EPSILON >= video_end:
            ends_at = f"the video ends at {reader.start + video_end:.3f} s"
            if declared is None or self.start >= declared - TRUNCATED_S:
                raise InvalidVideoInput(self.item, f"the segment starts at {self.asked[0]:g} s, and {ends_at}")
            found = f"{ends_at}, before this segment and the {reader.start + declared:.3f} s that it declares"
            if self._errors or (reader.stream.frames and not reader.is_complete):
                raise CorruptVideo(self.item, f"{found}; get an intact copy")
            raise InvalidVideoInput(self.item, f"{found}; it was cut off, or its header is wrong")
        if self._errors > MAX_LOST_SHARE * (self._errors + self._seen):
            found = f"{self._errors} of {self._errors + self._seen} packets or frames could not be decoded"
            allowed = f"at most {MAX_LOST_SHARE:.0%} may be lost. Get an intact copy, or repair it with ffmpeg"
            raise CorruptVideo(self.item, f"{found}; {allowed}")


def read_windows(
    handle: BinaryIO,
    segments: Sequence[Segment],
    sampling: Sampling,
    *,
    item: str,
    deadline: Deadline,
    threads: int = DEFAULT_THREADS,
    stream: int | None = None,
) -> Iterator[Clip]:
    """Decode windows of one video, ordered by start, in one pass, and yield a clip for each, in order.

    A window whose frames were chosen by a declared duration that turns out to be wrong by over a second is read again
    with the real one. `stream` is the index of the video stream, or ``None`` for the best.
    """

    def read(segments: Sequence[Segment], *, may_seek: bool = True, duration: float | None = None) -> Iterator[Clip]:
        with FrameReader(handle, item, deadline, threads=threads, stream=stream) as reader:
            reader.can_seek = reader.can_seek and may_seek
            first = reader.first()
            windows = deque(Window(segment, reader, sampling, duration=duration) for segment in segments)
            shown: TimedFrame | None = None  # the frame on show, until the next one comes
            for timed in chain([first], reader):
                if shown is not None:
                    _feed(windows, shown, timed.time)
                    while windows and windows[0].done:
                        yield windows.popleft().clip(timed.time)
                shown = timed
                target = min((window.next_time for window in windows), default=math.inf)
                if _worth_seeking(reader, windows, timed.time, target):
                    reader.seek(target)
                    shown = None
                if not windows:
                    return
            if shown is None:
                raise reader.no_frame()
            end = reader.settle(shown.time + shown.duration, shown.time)
            _feed(windows, shown, end)
            for window in windows:
                if window.is_mistaken(end):
                    may_seek_again = may_seek and window.start < end - TIME_EPSILON
                    yield from read([window.asked], may_seek=may_seek_again, duration=end)
                else:
                    yield window.clip(end)

    return read(segments)


def _feed(windows: deque[Window], shown: TimedFrame, until: float) -> None:
    for window in windows:
        if window.start >= until:
            break
        window.feed(shown, until)


def _worth_seeking(reader: FrameReader, windows: deque[Window], now: float, target: float) -> bool:
    if not reader.can_seek or not reader.sought < target < math.inf:
        return False
    if reader.gop_s is None:  # key frame distance not seen yet: worth one try if nothing before is wanted
        return reader.sought < 0 and target - now > MIN_JUMP_S and all(window.start > now for window in windows)
    return target - now > max(MIN_JUMP_S, 2 * reader.gop_s)
