"""One pass over the frames of a video, each with the time at which it comes on show, and the clips made of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from typing import BinaryIO, Final, TypeAlias, TypeVar, cast

import av.error
import numpy as np
from av import Packet, VideoFrame, VideoStream
from av.stream import Stream
from numpy.typing import NDArray

from vidembed.errors import CorruptVideo, InvalidVideoInput, VideoTooLarge
from vidembed.video import clip, container, dropping, picture
from vidembed.video.clip import Clip, Deadline, DecodeLimits, GridPicker, Sampling
from vidembed.video.container import DEFAULT_THREADS, MAX_FRAMES, MAX_TIME, SEEKABLE_FORMATS, open_container
from vidembed.video.fetch import UrlAccess
from vidembed.video.picture import TimedFrame, Undecoded

BACKENDS: Final = ("pyav", "decord")  # names of the decoding backends; the first is the default
CLOCK_RESET_S = 0.5  # seconds. A time that falls by more starts a new clock (joined files), where the last one ended
# So does a time that rises by more, in containers whose clock may jump: FFmpeg's `dts_delta_threshold`
# (https://ffmpeg.org/ffmpeg.html). A fall that FFmpeg takes for one of a 33-bit clock past its end comes as a rise.
CLOCK_JUMP_S = 10.0  # seconds
MIN_JUMP_S = 2.0  # seconds. Shorter distances are decoded through: a seek costs about that much (our choice)
MAX_LOST_SHARE = 0.10  # share of frames that may be lost to errors before the video counts as corrupt (our choice)
_MAX_READ_ERRORS = 16  # failed reads in a row after which a file has ended
_MAX_HEAD = 4096  # packets before the first frame


def from_player(start: float, end: float | None, first: float, item: str) -> tuple[float, float | None]:
    """Return a stretch in seconds from the first frame, which comes at `first` on the clock of a player."""
    if end is not None and end <= first:
        found = f"the segment ends at {end:g} s, and the first frame of the video comes at {first:g} s"
        raise InvalidVideoInput(item, found)
    return max(0.0, start - first), None if end is None else end - first


def check_options(backend: str, threads: int) -> None:
    """Raise ValueError for a backend that there is not, or threads below 1."""
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: expected one of {', '.join(map(repr, BACKENDS))}")
    if threads < 1:
        raise ValueError(f"threads={threads!r}: expected a whole number of at least 1")


class _Watched:
    """A handle that gives no more bytes when time is up: FFmpeg can look for a packet through a whole file."""

    def __init__(self, handle: BinaryIO, deadline: Deadline) -> None:
        self._deadline, self._read, self._over = deadline, handle.read, False
        self.seek, self.tell = handle.seek, handle.tell

    def read(self, size: int = -1) -> bytes:
        """Read, or raise :class:`DecodeTimeout`, which comes back out of FFmpeg; after that, the file has ended."""
        if self._over:
            return b""
        self._over = True
        self._deadline.remaining()
        self._over = False
        return self._read(size)


Stamp: TypeAlias = tuple[int | None, int | None, int]  # pts, dts and duration of a packet, in ticks of its stream


def _stamp(packet: Packet[VideoStream]) -> Stamp | None:
    is_shown = packet.size > 0 and not packet.is_discard
    return (packet.pts, packet.dts, packet.duration or 0) if is_shown else None


def _seconds(ticks: int, base: Fraction, origin: Fraction = Fraction(0)) -> float:
    """Return ``float(ticks * base - origin)`` at a tenth of its cost, which every frame has."""
    above = ticks * base.numerator * origin.denominator - origin.numerator * base.denominator
    return above / (base.denominator * origin.denominator)


class _OvershootError(Exception):
    """Seeking landed after the time asked for."""


_Stream = TypeVar("_Stream", bound="Stream")


def demux(
    start: Callable[[], Iterator[Packet[_Stream]]],
    deadline: Deadline,
    failed: Callable[[av.error.FFmpegError], None] | None = None,
) -> Iterator[Packet[_Stream]]:
    """Yield packets; a file that cannot be read on ends there. `start` starts or goes on."""
    failures = 0
    while failures < _MAX_READ_ERRORS:
        try:
            for packet in start():
                deadline.remaining()
                failures = 0
                yield packet
        except IndexError:  # a packet of a stream that begins later, which PyAV does not know: another one's
            deadline.remaining()
        except av.error.FFmpegError as error:
            if failed is not None:
                failed(error)
            failures += 1
        else:
            return


class FrameReader(ExitStack, Iterator[TimedFrame]):
    """Decodes the video stream of a handle, that of an index or the best, in order of presentation."""

    def __init__(
        self,
        handle: BinaryIO,
        item: str,
        deadline: Deadline,
        *,
        threads: int = DEFAULT_THREADS,
        index: int | None = None,
    ) -> None:
        self._handle = cast("BinaryIO", _Watched(handle, deadline))
        self._item, self._deadline, self._threads, self._index = item, deadline, threads, index
        super().__init__()
        self.seeked = False  # whether ordinals are no longer those of the stream
        self.sought = -1.0  # the last time sought, in seconds
        self.windows: Sequence[Window] = ()  # what frames are for, by start; if none, all are decoded
        self._attempt = self._packets_read = 0
        self._planned: tuple[object, picture.Geometry] | None = None
        self._open()

    def _open(self) -> None:
        self.container = self.enter_context(open_container(self._handle, self._item))
        try:
            self.stream = container.video_stream(self.container, self._handle, self._item, self._threads, self._index)
        except BaseException:
            self.close()
            raise
        self.start = 0.0  # when the first frame comes on show, seconds on the clock of a player; known with that
        self.duration = container.declared_duration(self.container, self.stream)  # a hint, final with the first frame
        self.rate = container.declared_rate(self.stream)
        self._is_gif = self.container.format.name == "gif"
        if self._is_gif and (times := container.gif_times(self._handle)) is not None:
            self.duration, self.rate = times
        self.can_seek = self.container.format.name in SEEKABLE_FORMATS and self.rate is not None
        self.errors = 0  # packets that did not decode, frames flagged corrupt or without a time
        self.discontinuities = 0  # jumps of the clock
        self.gop_s: float | None = None  # longest distance of key frames seen so far, seconds
        self._may_jump = container.has_discontinuities(self.container)
        self._head: list[Stamp | None] = []  # of the packets up to the first frame
        self._errors_at_key = self._ordinal = self._frames_read = self._gif_clock = 0
        self._key_pts: int | None = None
        self._origin: Fraction | None = None
        self._offset = self._last = self._last_end = 0.0
        self._aspect = self.stream.sample_aspect_ratio
        self._previous: TimedFrame | None = None
        self._frames: Generator[TimedFrame, None, None] = self._decode()
        self.callback(self._end)

    def _end(self) -> None:
        self._frames.close()
        self.windows = ()  # they hold this reader

    def __next__(self) -> TimedFrame:
        """Return the next frame."""
        try:
            return next(self._frames)
        except _OvershootError:
            self._restart()
            return next(self._frames)

    def first(self) -> TimedFrame:
        """Return the next frame, which is the first; raise :class:`CorruptVideo` if there is none."""
        if (found := next(self, None)) is None:
            raise self.no_frame()
        return found

    def no_frame(self) -> CorruptVideo:
        """Return the error of a video without a frame."""
        return CorruptVideo(self._item, f"no frame could be decoded ({self.errors} errors)")

    @property
    def is_complete(self) -> bool:
        """Whether as many packets were read as the header counts, so that no tail is missing whatever it declares."""
        return 0 < self.stream.frames <= self._frames_read

    def jumps(self, change: float, gap: float | None = None) -> bool:
        """Whether seconds from one frame to the next, or from the end of the one, are a discontinuity of the clock."""
        rise = change if gap is None else gap
        return change < -CLOCK_RESET_S or (self._may_jump and not self.seeked and rise > CLOCK_JUMP_S)

    @property
    def origin(self) -> Fraction:
        """When the first frame comes on show, seconds on the container's clock; RuntimeError before it was read."""
        if self._origin is None:
            raise RuntimeError("the first frame is not read yet")
        return self._origin

    def stamps(self) -> Iterator[Stamp]:
        """Read the other packets, and yield the stamps of all that are shown, those up to the first frame included."""
        return filter(None, chain(self._head, map(_stamp, self._packets())))

    @property
    def has_all_stamps(self) -> bool:
        """Whether none was forgotten because the first frame comes after very many packets."""
        return len(self._head) <= _MAX_HEAD

    def settle(self, end: float, last: float) -> float:
        """Return where a video ends whose last frame is on show from `last` to `end`: as declared if within a frame."""
        least = last + 2 * clip.TIME_EPSILON
        if self.duration is not None and self.rate and abs(self.duration - end) <= 1 / self.rate:
            return max(self.duration, least)
        return max(end, least)

    def geometry(self, timed: TimedFrame, max_pixels: int | None) -> picture.Geometry:
        """Decide the size and orientation of a frame."""
        frame = timed.frame
        matrix = picture.display_matrix(frame)
        shape = frame.width, frame.height, timed.aspect, matrix, max_pixels
        if self._planned is None or self._planned[0] != shape:
            turns, mirrored = picture.orientation(matrix, self._item)
            size = picture.fit_shown(frame.width, frame.height, timed.aspect, max_pixels, self._item)
            self._planned = shape, picture.Geometry(*size, turns, mirrored)
        return self._planned[1]

    def seek(self, seconds: float) -> None:
        """Continue with the key frame at or before ``seconds``, or where seeking fails, with the first frame."""
        if self.stream.time_base is None:
            raise RuntimeError("seek in a stream without a clock")
        self.seeked, self.sought = True, seconds
        self._frames.close()
        if self._previous is not None and self._previous.is_interlaced and self.rate:
            seconds -= 2 / float(self.rate)  # so that what is sought has a frame before it, as it has without seeking
        self._key_pts = self._previous = None
        self._last = self._last_end = -MAX_TIME
        target = int((Fraction(seconds + clip.TIME_EPSILON) + self.origin) / self.stream.time_base)
        try:
            self.container.seek(target, stream=self.stream, backward=True)
        except av.error.FFmpegError:
            self._restart()
        else:
            self._frames = self._land(seconds)

    def _land(self, seconds: float) -> Generator[TimedFrame, None, None]:
        landed = False
        for timed in self._decode(landing=True):
            if not landed and timed.time > seconds + clip.TIME_EPSILON:
                raise _OvershootError
            landed = True
            yield timed
        if not landed:
            raise _OvershootError

    def _restart(self) -> None:
        self.close()
        self._attempt += 1
        self._open()
        self.can_seek = False

    def _packets(self) -> Iterator[Packet[VideoStream]]:
        for packet in demux(lambda: self.container.demux(self.stream), self._deadline, self._failed):
            self._packets_read += 1
            self._frames_read += packet.size > 0
            if self._packets_read > MAX_FRAMES:
                raise VideoTooLarge(self._item, f"it has over {MAX_FRAMES} frames; cut it into shorter files first")
            if self._is_gif and packet.size:
                packet.pts = packet.dts = self._gif_clock
                packet.duration = container.gif_delay(packet.duration or 0)
                self._gif_clock += packet.duration
            yield packet

    def _failed(self, error: av.error.FFmpegError) -> None:
        picture.check_memory(error)
        self.errors += 1

    def _decode(self, *, landing: bool = False) -> Generator[TimedFrame, None, None]:
        floor: int | None = None  # after a seek: pictures shown before the key frame lack their references
        packets = self._packets()
        for packet in packets:
            if landing and floor is None and packet.pts is not None:
                floor = packet.pts
            frames: Iterator[VideoFrame | Undecoded]
            self._note_key(packet)
            if packet.is_keyframe and self._previous is not None and self._worth_dropping(self._previous):
                frames = self._dropper(self._previous.frame).frames(chain([packet], packets))
            else:
                frames = iter(self._decoded(packet))
            shown = (frame for frame in frames if floor is None or frame.pts is None or frame.pts >= floor)
            for timed in filter(None, map(self._place, shown)):
                previous, self._previous = self._previous, timed
                if previous is not None:  # deinterlacing needs the neighbours of a frame
                    previous.after = timed.frame if previous.is_interlaced else None
                    timed.before = previous.frame if timed.is_interlaced else None
                yield timed

    def _note_key(self, packet: Packet[VideoStream]) -> None:
        if packet.is_keyframe and packet.pts is not None and packet.time_base is not None:
            if self._key_pts is not None:
                self.gop_s = max(float((packet.pts - self._key_pts) * packet.time_base), self.gop_s or 0.0)
            self._key_pts = packet.pts

    def _decoded(self, packet: Packet[VideoStream]) -> list[VideoFrame]:
        if self._origin is None and len(self._head) <= _MAX_HEAD:
            self._head.append(_stamp(packet))
        try:
            return packet.decode()
        except av.error.EOFError:
            pass
        except av.error.FFmpegError as error:
            self._failed(error)
        return []

    def _worth_dropping(self, previous: TimedFrame) -> bool:
        """Whether to look which packets the chosen frames need, from here on. Not where seeking does better."""
        step = self.windows[0].step if self.windows else 0.0
        if step < dropping.MIN_STEP_S or (self.can_seek and self.is_far(step)):
            return False
        is_plain = not (self.seeked or self.errors or self.discontinuities or previous.is_interlaced)
        return is_plain and self.stream.codec_context.name in dropping.CODECS

    def is_far(self, gap: float) -> bool:
        """Whether so many seconds are left out by a seek with less work than by reading on, as far as is known."""
        return self.gop_s is not None and gap > max(MIN_JUMP_S, 2 * self.gop_s)

    def _dropper(self, previous: VideoFrame) -> dropping.Dropper:
        base, origin, context = self.stream.time_base, self.origin, self.stream.codec_context
        if base is None or previous.pts is None:
            raise RuntimeError("dropping in a stream without a clock")
        decoder = dropping.Decoder(
            decode=self._decoded,
            note_key=self._note_key,
            errors=lambda: self.errors,
            time=lambda pts: _seconds(pts, base, origin),
            jumps=self.jumps,
            looking=self.windows,
            lag=self._frames_read - 1 - self._ordinal,
            last=(previous.pts, self._last),
        )
        return dropping.Dropper(decoder, context.name, context.extradata)

    def _place(self, frame: VideoFrame | Undecoded) -> TimedFrame | None:
        """Give a frame its time, or ``None`` if it is damaged or has no time."""
        ordinal = None if self.seeked else self._ordinal
        self._ordinal += 1
        if frame.key_frame:
            self._errors_at_key = self.errors
            self._aspect = container.sample_aspect(self.container, self.stream)
        base = frame.time_base
        if frame.pts is None or base is None:
            self.errors += 1
            return None
        if self._origin is None:
            self._origin = frame.pts * base
            self.start = container.start_on_player(self.container, self.stream, self._origin)
            if not self._is_gif:
                self.duration = container.declared_duration(self.container, self.stream, self._origin)
        seconds = _seconds(frame.pts, base, self._origin) + self._offset
        if self.jumps(seconds - self._last, seconds - self._last_end):
            self._offset += self._last_end - seconds
            seconds = self._last_end
            self.can_seek = False
            self.discontinuities += 1
        seconds = max(seconds, self._last)
        if not -MAX_TIME <= seconds <= MAX_TIME:
            found = f"a frame has a time {seconds:.0f} s after the first: a broken clock"
            raise CorruptVideo(self._item, f"{found}, as over {MAX_TIME:.0f} s are not read")
        duration = min(max(_seconds(frame.duration or 0, base), 0.0), MAX_TIME)
        self._last = seconds
        self._last_end = seconds + (duration or (float(1 / self.rate) if self.rate else 0.0))
        if frame.is_corrupt:
            self.errors += 1
            return None
        errors = self.errors, self._errors_at_key
        return TimedFrame(frame, seconds, self._last_end - seconds, ordinal, *errors, self._attempt, self._aspect)


# start and end in seconds on the clock of a player (None: the end of the video), and its name in messages
Segment: TypeAlias = tuple[float, float | None, str]


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
        """Yield when frames are looked for between two times (see :meth:`GridPicker.looks`)."""
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
    with container.open_source(source, item, allow_url=allow_url, limits=limits) as handle:
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
