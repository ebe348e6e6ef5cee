"""The segments of a video: windows of equal length, or scenes, laid out by the frames that are there."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vidembed.errors import BackendUnavailable, MissingExtraError, VideoTooLarge, VideoTruncated, warn
from vidembed.text import require
from vidembed.video import clip
from vidembed.video.clip import Deadline, DecodeLimits, VideoSource
from vidembed.video.container import DEFAULT_THREADS, MAX_TIME, has_discontinuities, open_source
from vidembed.video.fetch import UrlAccess
from vidembed.video.reader import FrameReader

MAX_WINDOWS = 100_000  # of one file: a damaged header can claim a duration of years


def _check_duration(duration: float, parts: str) -> None:
    if not (math.isfinite(duration) and duration > 0):
        raise ValueError(f"duration: got {duration}; a positive number of seconds is needed to cut {parts}")


@dataclass(frozen=True, slots=True)
class Windows:
    """How a video is cut into segments of equal length.

    Window `k` starts at `k * (length - overlap)`. The last one ends with the video and is as long as the others: it is
    moved back over what came before rather than left short. A video no longer than `length` is one window.

    Attributes:
        length: Length of a window, seconds, at least 0.001.
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
            found = f"overlap: got {self.overlap} with segment {self.length}"
            raise ValueError(f"{found}; at least 0 and less than segment is needed")

    def split(self, duration: float) -> list[tuple[float, float]]:
        """Return the `(start, end)` of each window of a video of `duration`, in order; seconds, to the microsecond.

        Raises ValueError unless `duration` is a positive number, and there are at most `MAX_WINDOWS` windows.
        """
        _check_duration(duration, "segments")
        if duration <= self.length:
            return [(0.0, round(duration, 6))]
        step = self.length - self.overlap
        whole = math.floor((duration - self.length) / step + 1e-9)  # windows after the first that fit
        if whole >= MAX_WINDOWS:
            raise ValueError(
                f"duration: {duration} s in steps of {step} s makes over {MAX_WINDOWS} segments, the most per file; "
                f"cut longer segments"
            )
        starts = [k * step for k in range(whole + 1)]
        if duration - (starts[-1] + self.length) > 0.001:  # a millisecond is less than any frame lasts
            starts.append(duration - self.length)
        return [(round(start, 6), round(min(start + self.length, duration), 6)) for start in starts]


LOOK_PIXELS: Final = 256 * 144  # of a frame looked at for cuts: `scenedetect.scene_manager.DEFAULT_MIN_WIDTH` is 256
MIN_CONTENT: Final = 15.0  # least change of a cut, in steps of 255: ``AdaptiveDetector(min_content_val)``'s default
NEIGHBOURS: Final = 2  # frames on either side whose change is compared: ``AdaptiveDetector(window_width)``'s default
STILL_S: Final = 2.0  # seconds. A frame on show as long is a still, as a slide (ours: `Scenes.min_length_s`'s default)


@dataclass(frozen=True, slots=True)
class Scenes:
    """How a video is cut into scenes. They cover all of it, without gap or overlap.

    A cut is a frame that differs from the one before it by much more than its neighbours do (``AdaptiveDetector`` of
    PySceneDetect). Cuts less than `min_length_s` after the last are left out, which joins a short scene to the next
    one, and at the end to the one before. What is longer than `max_length_s` is split into equal parts.

    Attributes:
        threshold: How many times the mean change of its two neighbours on either side a change must be, over 1.
            Default 3 (``AdaptiveDetector(adaptive_threshold)``'s default). Lower finds more cuts.
        min_length_s: No scene is shorter, seconds, at least 0.001; but a video that is shorter is one scene.
            Default 2 (ours: four frames at 2 frames a second).
        max_length_s: No scene is longer, seconds, at least twice `min_length_s`. Default 90 (ours: the longest that
            is looked at twice a second with 180 frames).

    Raises:
        ValueError: A field is out of range.
    """

    threshold: float = 3.0
    min_length_s: float = 2.0
    max_length_s: float = 90.0

    def __post_init__(self) -> None:
        """Check the fields."""
        for name, least in (("threshold", 1.0), ("min_length_s", 0.001), ("max_length_s", 0.002)):
            value: object = getattr(self, name)
            if not (clip.is_finite_number(value) and value >= least):
                raise ValueError(f"Scenes({name}={value!r}): expected a finite number of at least {least:g}")
            object.__setattr__(self, name, float(value))
        if self.max_length_s < 2 * self.min_length_s:
            needed = f"at least twice min_length_s={self.min_length_s:g}, or parts of a long scene could be too short"
            raise ValueError(f"Scenes(max_length_s={self.max_length_s:g}): expected {needed}")

    def split(self, cuts: Iterable[float], duration: float) -> list[tuple[float, float]]:
        """Return the `(start, end)` of each scene of a video of `duration`, in order; seconds, to the microsecond.

        `cuts` are the times where the content changes, ascending. Those outside the video do not count. Raises
        ValueError as `Windows.split`.
        """
        _check_duration(duration, "scenes")
        bounds = [0.0]
        for cut in cuts:
            if self.min_length_s <= cut - bounds[-1] and self.min_length_s <= duration - cut:
                bounds.append(cut)
        bounds.append(duration)
        counts = [max(1, math.ceil((end - start) / self.max_length_s - 1e-9)) for start, end in pairwise(bounds)]
        if sum(counts) > MAX_WINDOWS:
            raise ValueError(
                f"duration: {duration} s would be {sum(counts)} scenes; at most {MAX_WINDOWS} per file are allowed"
            )
        edges = [
            start + (end - start) * part / count
            for (start, end), count in zip(pairwise(bounds), counts, strict=True)
            for part in range(count)
        ]
        return list(pairwise(round(edge, 6) for edge in [*edges, duration]))


def require_scenedetect(item: str) -> None:
    """Raise :class:`BackendUnavailable` unless PySceneDetect is installed."""
    try:
        require("scenes", "scenedetect", purpose="cutting by scenes")
    except MissingExtraError as error:
        raise BackendUnavailable(item, f"{error}, or cut segments of equal length") from error


class CutFinder:
    """Finds cuts in frames that come one by one. A still counts as its own neighbours: else no slide would be a cut."""

    def __init__(self, scenes: Scenes) -> None:
        from scenedetect.detectors import AdaptiveDetector  # noqa: PLC0415 - an extra, and it loads OpenCV

        self._detector = AdaptiveDetector(
            adaptive_threshold=scenes.threshold, min_scene_len=0, window_width=NEIGHBOURS, min_content_val=MIN_CONTENT
        )
        self.cuts: list[float] = []  # times, seconds, ascending; without those that `scenes` leaves out anyway
        self._min_length_s = scenes.min_length_s
        self._number = 0
        self._times: deque[tuple[int, float]] = deque(maxlen=2 * NEIGHBOURS + 2)
        self._last: tuple[float, NDArray[np.uint8]] | None = None

    def feed(self, time: float, picture: NDArray[np.uint8]) -> None:
        """Look at the next frame, which comes on show at `time` seconds: ``(H, W, 3)`` uint8 RGB, all of one size."""
        if self._last is None:
            self._look(time, picture, NEIGHBOURS)  # what comes first has a still for its neighbours
        elif time - self._last[0] >= STILL_S:
            self._look(*self._last, NEIGHBOURS)
        self._last = time, picture
        self._look(time, picture)

    def finish(self) -> None:
        """Find the cuts among the last frames."""
        if self._last is not None:
            self._look(*self._last, NEIGHBOURS)

    def _look(self, time: float, picture: NDArray[np.uint8], often: int = 1) -> None:
        from scenedetect import FrameTimecode  # noqa: PLC0415

        for _ in range(often):
            self._times.append((self._number, time))
            # Frames are only numbered for it: the rate of 1 stands in no time of ours.
            code = FrameTimecode(self._number, fps=1.0)
            self._number += 1
            times = dict(self._times)
            for found in self._detector.process_frame(code, np.ascontiguousarray(picture[:, :, ::-1])):  # (H, W, 3) BGR
                cut = times[found.frame_num]
                if cut - (self.cuts[-1] if self.cuts else 0.0) >= self._min_length_s:
                    self.cuts.append(cut)


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the frames of a video lie in time."""

    start: float  # when the first comes on show, seconds on the clock of a player
    times: NDArray[np.float64]  # (N,) ascending: when each comes on show, seconds from the first
    end: float  # where the last one ends, seconds from the first
    declared: float | None  # the duration that the video declares, seconds
    is_truncated: bool  # whether it ends over a second before that and its tail may be missing


def packet_extent(reader: FrameReader) -> Extent | None:
    """Read the packets after the first frame: where frames lie, or ``None`` where only decoding them shows that."""
    base = reader.stream.time_base
    if base is None:
        return None
    shown, last = array("q"), (-(2**63), 0)  # time and duration of the packet that comes on show last
    before: int | None = None
    is_timed = reader.has_all_stamps
    for pts, dts, duration in reader.stamps():
        now = pts if dts is None else dts
        if now is None:
            is_timed = False
            continue
        if before is not None and reader.jumps(float((now - before) * base)):
            reader.discontinuities += 1
        before = now
        shown.append(now if pts is None else pts)
        last = max(last, (shown[-1], duration))
    if reader.discontinuities or not is_timed or not shown:
        return None
    ticks = np.sort(np.frombuffer(shown, dtype=np.int64))  # (N,)
    times = ticks.astype(np.float64) * float(base) - float(reader.origin)  # (N,)
    if times[-1] > MAX_TIME:
        return None
    span = float(last[1] * base) or (float(1 / reader.rate) if reader.rate else 0.0)
    return _extent(reader, times[times >= 0], float(times[-1]) + span)


def _extent(reader: FrameReader, times: NDArray[np.float64], end: float) -> Extent:
    """Return where frames lie that were read to the end of the file: `times` ``(N,)`` and the end of the last."""
    end = reader.settle(end, float(times[-1]))
    declared = reader.duration
    short = declared is not None and declared - end > clip.TRUNCATED_S and not reader.is_complete
    return Extent(reader.start, times, end, declared, short)


def survey(
    source: object,
    cut: Cut | None,
    *,
    item: str,
    allow_url: UrlAccess = False,
    limits: DecodeLimits = clip.ANY_TIME,
    threads: int = DEFAULT_THREADS,
) -> tuple[Extent, list[float]]:
    """Return where the frames of a video lie and, for scenes, the times of its cuts, seconds from the first frame."""
    finder = None
    if isinstance(cut, Scenes):
        require_scenedetect(item)
        finder = CutFinder(cut)
    extent, deadline = None, Deadline(limits.timeout_s, item)
    with open_source(source, item, allow_url=allow_url, limits=limits) as handle:
        if finder is None:
            with FrameReader(handle, item, deadline, threads=threads) as reader:
                reader.first()
                extent = None if has_discontinuities(reader.container) else packet_extent(reader)
        if extent is None:
            with FrameReader(handle, item, deadline, threads=threads) as reader:
                extent = _decode(reader, item, finder)
    return extent, finder.cuts if finder else []


def _decode(reader: FrameReader, item: str, finder: CutFinder | None) -> Extent:
    """Decode a video to its end, and find where its frames lie."""
    times, last = array("d"), None
    shape: tuple[int, int, int] | None = None  # (H, W, 3)
    for last in reader:
        times.append(last.time)
        if finder is not None:
            geometry = reader.geometry(last, LOOK_PIXELS)
            shape = shape or geometry.shape
            finder.feed(last.time, last.array(geometry, shape, item))
    if last is None:
        raise reader.no_frame()
    if finder is not None:
        finder.finish()
    return _extent(reader, np.frombuffer(times), last.time + last.duration)


Cut: TypeAlias = Windows | Scenes
_KINDS: Final[dict[str, type[Windows] | type[Scenes]]] = {"windows": Windows, "scenes": Scenes}


@dataclass(frozen=True, slots=True)
class Layout:
    """The segments of a video, in seconds on the clock of a player, which shows the earliest stream's start as 0."""

    duration: float  # where the video ends
    segments: list[tuple[float, float]]  # start and end of each, in order; the first starts with the first frame


def cut_to_dict(cut: Cut) -> dict[str, str | float]:
    """Return a cut as JSON values, such as ``{"kind": "windows", "length": 10.0, "overlap": 2.0}``."""
    return {"kind": "windows" if isinstance(cut, Windows) else "scenes", **asdict(cut)}


def cut_from_dict(value: Mapping[str, object]) -> Cut:
    """Return the cut that `cut_to_dict` wrote. Raises ValueError for what is not known, missing or out of range."""
    name = value.get("kind") if isinstance(value, Mapping) else None
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"cut: got {value!r}; a mapping whose 'kind' is one of {', '.join(_KINDS)} is needed")
    rest = {name: field for name, field in value.items() if name != "kind"}
    expected = {field.name for field in fields(kind)}
    if set(rest) != expected:
        raise ValueError(f"cut: got the fields {sorted(rest)} of {name}; {sorted(expected)} are needed")
    numbers: dict[str, float] = {}
    for name, field in rest.items():
        if isinstance(field, bool) or not isinstance(field, (int, float)):
            raise ValueError(f"cut: {name} is {field!r}; a number is needed")  # noqa: TRY004 - as for every fault
        numbers[name] = field
    return kind(**numbers)


def lay_out(
    source: VideoSource,
    cut: Cut | None,
    *,
    allow_url: UrlAccess = False,
    limits: DecodeLimits = clip.ANY_TIME,
    threads: int = 1,
) -> Layout:
    """Decide the segments of a video by the frames that are there.

    Scenes, and clocks that jump, need it decoded once; else packets are enough. A declared duration counts where the
    last frame ends within a second before it, or within a frame of it. Segments in a row without a new frame are one.

    Args:
        source: A path, bytes, a binary file object or, with `allow_url`, an http(s) address.
        cut: How; ``None`` for one segment that is all of it.
        allow_url: As in :func:`vidembed.video.load_video`.
        limits: On each time that it is read, and on the bytes of a download. Default: no limit of time, 2 GiB.
        threads: Decoding threads.

    Raises:
        VideoError: It cannot be read; `VideoTooLarge` if there would be too many segments.

    Warns:
        VideoTruncated: It ends over one second before the duration it declares.
    """
    item = clip.item_name(source)
    extent, cuts = survey(source, cut, item=item, allow_url=allow_url, limits=limits, threads=threads)
    if extent.is_truncated:
        found = f"it ends at {extent.end:.2f} s, before the {extent.declared:.2f} s it declares"
        warn(VideoTruncated(f"{item}: {found}; only the part that can be read is cut"))
    try:
        duration, segments = _cut(cut, cuts, extent)
    except ValueError as error:
        raise VideoTooLarge(item, f"{error}; cut longer segments, or cut the file") from error
    if not extent.start:
        return Layout(duration, segments)
    moved = [(round(start + extent.start, 6), round(end + extent.start, 6)) for start, end in segments]
    return Layout(duration + extent.start, moved)


def _cut(cut: Cut | None, cuts: list[float], extent: Extent) -> tuple[float, list[tuple[float, float]]]:
    """Return the duration and the segments of a video, in seconds from the first frame."""
    end, declared = extent.end, extent.declared
    if cut is None:
        return end, [(0.0, round(end, 6))]
    segments = cut.split(cuts, end) if isinstance(cut, Scenes) else cut.split(end)
    if isinstance(cut, Windows) and declared is not None and 0 < declared - end <= clip.TRUNCATED_S:
        longer = cut.split(declared)
        if longer[-1][0] + clip.TIME_EPSILON < end:
            end, segments = declared, longer
    bounds = np.asarray(segments)  # (S, 2)
    first, behind = np.searchsorted(extent.times, bounds - clip.TIME_EPSILON).T  # the frames that begin in each
    kept: list[tuple[float, float]] = []
    for place, (start, stop) in enumerate(segments):
        if place and first[place] == behind[place] and first[place - 1] == behind[place - 1]:
            kept[-1] = kept[-1][0], stop
        else:
            kept.append((start, stop))
    return end, kept
