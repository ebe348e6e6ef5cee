"""A video source becomes clips: the entry points of reading, and the pass that collects frames for them."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidembed.errors import CorruptVideo, InvalidVideoInput, VideoError
from vidembed.video import clip, dropping
from vidembed.video.clip import Clip, Deadline, DecodeLimits, Sampling, Segment, VideoFrames, VideoSegment, VideoSource
from vidembed.video.container import DEFAULT_THREADS, open_source
from vidembed.video.decord import require_decord
from vidembed.video.fetch import UrlAccess
from vidembed.video.picture import TimedFrame, check_size, fit, shrink
from vidembed.video.pool import DecodePool
from vidembed.video.reader import MIN_JUMP_S, FrameReader, GridPicker, check_options, check_sampling, from_player

DEFAULT_SAMPLING: Final = Sampling()
_RATE_MARGIN = 1.001  # 2.0 fps cut from 29.97 is a little under or over 2.0
MAX_LOST_SHARE = 0.10  # share of frames that may be lost to errors before the video counts as corrupt (our choice)


def load_video(
    source: VideoSource,
    sampling: Sampling = DEFAULT_SAMPLING,
    *,
    backend: str = "pyav",
    allow_url: UrlAccess = False,
    limits: DecodeLimits = clip.DEFAULT_LIMITS,
    threads: int = DEFAULT_THREADS,
    stream: int | None = None,
) -> Clip:
    """Read the frames of a video that a model is to see.

    Frames are chosen by presentation time: for each time of ``sampling``'s grid, the frame on show then. Frames given
    as arrays are sampled on the same grid by their own times. A `Clip` of this sampling is returned as it is.

    Args:
        source: What to read (see `vidembed.video.VideoSource`).
        sampling: How frames are chosen and how large they may be.
        backend: ``"pyav"`` (default) or ``"decord"`` (extra ``decord``; local mp4, mov, mkv, webm files).
        allow_url: Whether http and https addresses may be fetched (see `vidembed.video.fetch.UrlAccess`).
        limits: On time, a download included, and on its bytes (``vidembed.DecodeLimits``). Default: 600 s and 2 GiB.
        threads: Decoding threads of PyAV, at least 1. Default 4; 1 does the least work, for a caller that reads several
            videos at once. Frames are the same.
        stream: Index of a video stream in its container (``VideoInfo.streams`` of `vidembed.video.info`).
            Default ``None``: the one that ffmpeg would choose. For files read with PyAV.

    Returns:
        The clip. Its times count from the start of a segment (see `vidembed.video.Clip`).

    Raises:
        VideoError: If it cannot be read; the subclass says why (`InvalidVideoInput`: it is malformed, or a `Clip` that
            was sampled otherwise), and the message names the item.
        ValueError: If ``backend`` or ``threads`` is none of those allowed.
        TypeError: If ``sampling`` is no `Sampling`.

    Warns:
        VideoTruncated: If the video ends over one second before the duration it declares.
    """
    item = _check(source, sampling, backend, threads, stream)
    if isinstance(source, Clip):
        if source.sampling != sampling:
            known = "does not say how it was sampled" if source.sampling is None else f"was read with {source.sampling}"
            reason = f"the clip {known}, but {sampling} is needed; read it with this sampling, or give the video itself"
            raise InvalidVideoInput(item, reason)
        return source
    inner, start, end = source, 0.0, None
    if isinstance(source, VideoSegment):
        inner, start, end = source.path, source.start, source.end
    if isinstance(inner, (VideoFrames, Mapping)):
        return sample_frames(inner, sampling, item=item, start=start, end=end)
    if backend == "decord":
        require_decord(item)
        if not isinstance(inner, (str, os.PathLike)) or clip.is_url(inner):
            raise InvalidVideoInput(item, "backend='decord' reads local files by their path; use backend='pyav'")
        # in a process that can be killed: decord may loop or crash in native code
        with DecodePool(workers=1, limits=replace(limits, max_memory_bytes=None), backend="decord") as pool:
            (found,) = pool.submit(source if isinstance(source, VideoSegment) else inner, sampling)
        if isinstance(found, VideoError):
            raise found
        return found
    windows = [(start, end, item)]
    (read,) = read_windows(
        inner, windows, sampling, item=item, allow_url=allow_url, limits=limits, threads=threads, stream=stream
    )
    return read


def _as_array(value: object, item: str) -> NDArray[np.uint8]:
    """Return frames of any array type, or a list of pictures, as ``(T, H, W, 3)`` uint8."""
    try:
        array = np.stack([np.asarray(x) for x in value]) if isinstance(value, (list, tuple)) else np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidVideoInput(item, f"'array' is not one stack of frames of one size ({error})") from error
    if array.ndim == 4 and array.shape[-1] != 3 and array.shape[1] == 3:
        array = np.moveaxis(array, 1, -1)  # (T, C, H, W) -> (T, H, W, C)
    if not clip.is_rgb(array):
        found = f"'array' has shape {array.shape} and dtype {array.dtype}"
        raise InvalidVideoInput(item, f"{found}; expected (T, H, W, 3) or (T, 3, H, W), uint8, values 0 to 255")
    return array


def as_frames(source: VideoFrames | Mapping[str, object], item: str) -> tuple[VideoFrames, float]:
    """Return frames, and the duration in seconds that they come with, or 0."""
    if isinstance(source, VideoFrames):
        return source, 0.0
    if "array" not in source:
        raise InvalidVideoInput(item, f"keys {sorted(map(str, source))}; expected 'array' and 'video_metadata'")
    metadata = source.get("video_metadata") or {}
    if not isinstance(metadata, Mapping):
        raise InvalidVideoInput(item, "'video_metadata' is not a mapping; expected {'fps': ...}")
    if metadata.get("fps") is None:
        raise InvalidVideoInput(item, "'video_metadata' has no 'fps'; give it: a frame rate is never guessed")
    duration = metadata.get("duration")
    frames = VideoFrames(_as_array(source["array"], item), metadata["fps"])
    if (indices := metadata.get("frames_indices")) is not None:
        ordinals, count = np.asarray(indices), len(frames.array)  # (T,)
        if ordinals.shape != (count,) or ordinals.dtype.kind not in "iu" or (np.diff(ordinals) < 0).any():
            raise InvalidVideoInput(item, f"'frames_indices' is not {count} whole numbers in ascending order")
        frames = VideoFrames(frames.array, frames.fps, timestamps=ordinals / frames.fps)
    return frames, duration if clip.is_finite_number(duration) and duration > 0 else 0.0


def sample_frames(
    source: VideoFrames | Mapping[str, object], sampling: Sampling, *, item: str, start: float, end: float | None
) -> Clip:
    """Choose from given frames as from a file's, by their own times, in seconds from the first."""
    given, declared = as_frames(source, item)
    count, height, width = given.array.shape[:3]
    check_size(width, height, item)
    times = np.arange(count) / given.fps if given.timestamps is None else given.timestamps - given.timestamps[0]  # (T,)
    spacing = times[-1] / (count - 1) if count > 1 and times[-1] > 0 else 1.0 / given.fps
    video_end = max(float(times[-1] + spacing), declared)
    if start + clip.TIME_EPSILON >= video_end:
        reason = f"the segment starts at {start:g} s, and the frames last {video_end:.3f} s"
        raise InvalidVideoInput(item, reason)
    stop = video_end if end is None else min(end, video_end)
    before = max(stop - clip.TIME_EPSILON, start + clip.TIME_EPSILON)  # a segment may be shorter
    behind = np.append(times[1:], video_end)  # (T,) when each is no longer on show
    picked = np.flatnonzero((times < before) & (behind > start + clip.TIME_EPSILON)).tolist()
    # else all are kept: a grid finer than the frames could only repeat some and miss others
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
    known = frames, shown, given.fps, duration, indices, max(total, int(indices[-1]) + 1)
    return Clip(*known, False, False, item, start, "frames", sampling)


def _check(source: VideoSource, sampling: object, backend: str, threads: int, stream: object) -> str:
    check_options(backend, threads)
    check_sampling(sampling)
    item = clip.item_name(source)
    if stream is None:
        return item
    if isinstance(stream, bool) or not isinstance(stream, int):
        raise InvalidVideoInput(item, f"stream={stream!r}: expected the index of a video stream, or None")
    inner = source.path if isinstance(source, VideoSegment) else source
    if backend != "pyav" or isinstance(inner, (Clip, VideoFrames, Mapping)):
        reason = f"stream={stream}: a stream can be chosen only with a file and backend='pyav'"
        raise InvalidVideoInput(item, reason)
    return item


def load_segments(
    path: VideoSource,
    segments: Sequence[tuple[float, float | None]],
    sampling: Sampling = DEFAULT_SAMPLING,
    *,
    backend: str = "pyav",
    allow_url: UrlAccess = False,
    limits: DecodeLimits = clip.DEFAULT_LIMITS,
    threads: int = DEFAULT_THREADS,
    stream: int | None = None,
) -> Iterator[Clip]:
    """Read several segments of one video in one decoding pass.

    Each clip equals ``load_video(VideoSegment(path, start, end), sampling)``, and what is not named here is as there.
    ``"decord"`` opens and decodes the file anew for each. The video is any single source that is no segment; segments
    are in order of their starts, and may overlap. The limit of time is that of the whole pass, what the caller does
    between clips included; with ``"decord"``, that of each segment.

    Yields:
        One clip a segment, in the order given. Only the segments being read at one moment are held in memory.

    Raises:
        InvalidVideoInput: If a segment is malformed, lies outside the video, or they are not ordered by start.
        VideoError: As in `load_video`; it ends the pass.
    """
    item = _check(path, sampling, backend, threads, stream)
    if isinstance(path, (VideoSegment, Clip)):
        raise InvalidVideoInput(item, "load_segments needs the whole video; give the times in `segments`")
    parts = clip.ordered_segments(path, segments)
    if not parts or backend == "decord" or isinstance(path, (VideoFrames, Mapping)):
        return (load_video(part, sampling, backend=backend, limits=limits) for part in parts)
    windows = [(part.start, part.end, clip.item_name(part)) for part in parts]
    return read_windows(
        path, windows, sampling, item=item, allow_url=allow_url, limits=limits, threads=threads, stream=stream
    )


class Window:
    """Collects the frames of a whole video or a segment, fed after the first; `duration` is known by reading."""

    def __init__(self, asked: Segment, reader: FrameReader, sampling: Sampling, *, duration: float | None) -> None:
        self.asked = asked
        start, end, self.item = asked
        self.start, self.end = from_player(start, end, reader.start, self.item)  # seconds from the first frame
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
    def step(self) -> float:
        """Seconds between two looks."""
        return self._picker.step

    def looks(self, first: float, until: float) -> Iterator[float]:
        """Yield when frames are looked for between two times (see `GridPicker.looks`)."""
        return iter(()) if self.done else self._picker.looks(first, until)

    @property
    def next_time(self) -> float:
        """The next time of interest; infinity once the window is complete."""
        return math.inf if self.done else self._picker.next_time

    def feed(self, timed: TimedFrame, until: float) -> None:
        """Look at a frame on show in ``[timed.time, until)``. One fed again, after a restart, does no harm."""
        if self.done or until <= self.start + clip.TIME_EPSILON:
            return
        if self._errors_before is None or timed.attempt != self._attempt:
            self._errors_before, self._attempt, self._seen = timed.errors_at_key, timed.attempt, 0
        self._errors = timed.errors - self._errors_before
        self._seen += 1
        if self._picker.wants(until):
            geometry = self._reader.geometry(timed, self._sampling.max_pixels)
            self._shape = self._shape or geometry.shape
            self._picker.keep((timed.array(geometry, self._shape, self.item), timed.time, timed.ordinal), until)
        self.done = self.end is not None and until + clip.TIME_EPSILON >= self.end

    def is_mistaken(self, video_end: float) -> bool:
        """Whether it was read by a declared duration that is far from the real one, and is another without that."""
        if self._declared is None or self._is_settled or abs(self._declared - video_end) <= clip.TRUNCATED_S:
            return False
        span = video_end - self.start if self.end is None else min(self.end, video_end) - self.start
        if span <= clip.TIME_EPSILON:  # whether a tail is missing shows when no packet is jumped over
            return self._reader.seeked
        return abs(self._sampling.step(span) - self._step) > clip.TIME_EPSILON

    def clip(self, video_end: float) -> Clip:
        """Return what was collected; the last frame that was read ends `video_end` seconds from the first."""
        reader = self._reader
        if not self.done:
            self._errors = reader.errors - (self._errors_before or 0)
        self._check(video_end)
        kept = self._picker.finish()
        ordinals = [ordinal for *_, ordinal in kept if ordinal is not None]
        return clip.assemble(
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
            sampling=self._sampling,
        )

    def _check(self, video_end: float) -> None:
        reader, declared = self._reader, self._declared
        if self.start + clip.TIME_EPSILON >= video_end:
            ends_at = f"the video ends at {reader.start + video_end:.3f} s"
            if declared is None or self.start >= declared - clip.TRUNCATED_S:
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
    source: object,
    segments: Sequence[Segment],
    sampling: Sampling,
    *,
    item: str,
    allow_url: UrlAccess = False,
    limits: DecodeLimits = clip.ANY_TIME,
    threads: int = DEFAULT_THREADS,
    stream: int | None = None,
) -> Iterator[Clip]:
    """Decode windows of one file, ordered by start, in one pass, and yield a clip for each, in order."""

    def read(
        segments: Sequence[Segment], *, may_seek: bool = True, may_drop: bool = True, duration: float | None = None
    ) -> Iterator[Clip]:
        windows: deque[Window] = deque()
        try:
            with FrameReader(handle, item, deadline, threads=threads, index=stream) as reader:
                reader.can_seek = reader.can_seek and may_seek
                first = reader.first()
                windows.extend(Window(segment, reader, sampling, duration=duration) for segment in segments)
                reader.windows = windows if may_drop else ()
                if (end := (yield from _read_clips(reader, windows, first))) is None:
                    return
                for window in windows:
                    if window.is_mistaken(end):  # it is read again, with the real duration
                        again = may_seek and window.start < end - clip.TIME_EPSILON
                        yield from read([window.asked], may_seek=again, may_drop=may_drop, duration=end)
                    else:
                        yield window.clip(end)
        except dropping.DecodeAllError:
            left = [window.asked for window in windows]
            yield from read(left, may_seek=may_seek, may_drop=False, duration=duration)

    deadline = Deadline(limits.timeout_s, item)
    with open_source(source, item, allow_url=allow_url, limits=limits) as handle:
        yield from read(segments)


def _read_clips(reader: FrameReader, windows: deque[Window], first: TimedFrame) -> Generator[Clip, None, float | None]:
    """Yield the clips of windows as they end; return where the video ends if some are left that end with it."""
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
            return None
    if shown is None:
        raise reader.no_frame()
    end = reader.settle(shown.time + shown.duration, shown.time)
    _feed(windows, shown, end)
    return end


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
    return reader.is_far(target - now)
