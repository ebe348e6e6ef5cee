"""One pass over the frames of a video, each with the time at which it comes on show, and the choice by a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from fractions import Fraction
from itertools import chain
from typing import BinaryIO, Final, Generic, TypeAlias, TypeVar, cast

import av.error
from av import Packet, VideoFrame, VideoStream
from av.stream import Stream

from vidembed.errors import CorruptVideo, InvalidVideoInput, VideoTooLarge
from vidembed.video import container, dropping, picture
from vidembed.video.clip import TIME_EPSILON, Deadline, Sampling
from vidembed.video.container import DEFAULT_THREADS, MAX_FRAMES, MAX_TIME, SEEKABLE_FORMATS, open_container
from vidembed.video.picture import TimedFrame, Undecoded

BACKENDS: Final = ("pyav", "decord")  # names of the decoding backends; the first is the default
CLOCK_RESET_S = 0.5  # seconds. A time that falls by more starts a new clock (joined files), where the last one ended
# So does a time that rises by more, in containers whose clock may jump: FFmpeg's `dts_delta_threshold`
# (https://ffmpeg.org/ffmpeg.html). A fall that FFmpeg takes for one of a 33-bit clock past its end comes as a rise.
CLOCK_JUMP_S = 10.0  # seconds
MIN_JUMP_S = 2.0  # seconds. Shorter distances are decoded through: a seek costs about that much (our choice)
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


def check_sampling(sampling: object) -> None:
    """Raise TypeError for what is no `Sampling`."""
    if not isinstance(sampling, Sampling):
        raise TypeError(f"sampling is a {type(sampling).__name__}; expected a Sampling, such as Sampling(fps=2.0)")


class _Watched:
    """A handle that gives no more bytes when time is up: FFmpeg can look for a packet through a whole file."""

    def __init__(self, handle: BinaryIO, deadline: Deadline) -> None:
        self._deadline, self._read, self._over = deadline, handle.read, False
        self.seek, self.tell = handle.seek, handle.tell

    def read(self, size: int = -1) -> bytes:
        """Read, or raise `DecodeTimeout`, which comes back out of FFmpeg; after that, the file has ended."""
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
Item = TypeVar("Item")


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


class GridPicker(Generic[Item]):
    """Keeps, from frames offered in the order of presentation, the one on show at each time of the grid."""

    def __init__(
        self, sampling: Sampling, *, start: float = 0.0, end: float | None = None, duration: float | None = None
    ) -> None:
        self.start, self.end = start, math.inf if end is None else end
        self.step = sampling.step(None if duration is None else max(min(self.end, duration) - start, 0.0))
        self._max_frames = sampling.max_frames
        self._kept: list[Item] = []

    @property
    def next_time(self) -> float:
        """The next time to be looked at; infinity past the end. The start is always, by a segment of any length."""
        moment = self.start + len(self._kept) * self.step
        return moment if not self._kept or moment + TIME_EPSILON < self.end else math.inf

    def looks(self, first: float, until: float) -> Iterator[float]:
        """Yield when frames are looked for between two times, as `wants` compares; maybe more often than is."""
        place = max(0, math.floor((first - self.start) / self.step) - 1)
        while (moment := self.start + place * self.step + TIME_EPSILON) < until:
            if place and moment >= self.end:
                return
            if moment >= first:
                yield moment
            place += 1

    def wants(self, until: float) -> bool:
        """Whether a frame on show until ``until`` (exclusive) is one to keep."""
        return self.next_time + TIME_EPSILON < until

    def keep(self, item: Item, until: float) -> None:
        """Keep ``item`` for every time of the grid that comes before ``until``."""
        while self.wants(until):
            self._kept.append(item)
            if len(self._kept) == 2 * self._max_frames:
                self._kept = self._kept[::2]  # the video is longer than was known: look half as often
                self.step *= 2

    def finish(self) -> list[Item]:
        """Return the kept items in order: evenly thinned to ``max_frames`` if there are more."""
        most = min(len(self._kept), self._max_frames)
        return [self._kept[i * len(self._kept) // most] for i in range(most)]


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
        self.windows: Sequence[dropping.Looking] = ()  # what frames are for, by start; if none, all are decoded
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
        """Return the next frame, which is the first; raise `CorruptVideo` if there is none."""
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

    def time_of(self, pts: int) -> float:
        """Return when the frame of a `pts` comes on show, seconds from the first frame."""
        return _seconds(pts, cast("Fraction", self.stream.time_base), self.origin)

    def stamps(self) -> Iterator[Stamp]:
        """Read the other packets, and yield the stamps of all that are shown, those up to the first frame included."""
        return filter(None, chain(self._head, map(_stamp, self._packets())))

    @property
    def has_all_stamps(self) -> bool:
        """Whether none was forgotten because the first frame comes after very many packets."""
        return len(self._head) <= _MAX_HEAD

    def settle(self, end: float, last: float) -> float:
        """Return where a video ends whose last frame is on show from `last` to `end`: as declared if within a frame."""
        least = last + 2 * TIME_EPSILON
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
        self.seeked, self.sought = True, seconds
        self._frames.close()
        if self._previous is not None and self._previous.is_interlaced and self.rate:
            seconds -= 2 / float(self.rate)  # so that what is sought has a frame before it, as it has without seeking
        self._key_pts = self._previous = None
        self._last = self._last_end = -MAX_TIME
        target = int((Fraction(seconds + TIME_EPSILON) + self.origin) / cast("Fraction", self.stream.time_base))
        try:
            self.container.seek(target, stream=self.stream, backward=True)
        except av.error.FFmpegError:
            self._restart()
        else:
            self._frames = self._land(seconds)

    def _land(self, seconds: float) -> Generator[TimedFrame, None, None]:
        landed = False
        for timed in self._decode(landing=True):
            if not landed and timed.time > seconds + TIME_EPSILON:
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
            self.note_key(packet)
            if packet.is_keyframe and self._previous is not None and self._worth_dropping(self._previous):
                last, lag = (self._previous.shown.pts or 0, self._last), self._frames_read - 1 - self._ordinal
                frames = dropping.Dropper(self, lag=lag, last=last).frames(chain([packet], packets))
            else:
                frames = iter(self.decode(packet))
            shown = (frame for frame in frames if floor is None or frame.pts is None or frame.pts >= floor)
            for timed in filter(None, map(self._place, shown)):
                previous, self._previous = self._previous, timed
                if previous is not None:  # deinterlacing needs the neighbours of a frame
                    previous.after = timed.frame if previous.is_interlaced else None
                    timed.before = previous.frame if timed.is_interlaced else None
                yield timed

    def note_key(self, packet: Packet[VideoStream]) -> None:
        """Take in a key frame: how far it is from the last one."""
        if packet.is_keyframe and packet.pts is not None and packet.time_base is not None:
            if self._key_pts is not None:
                self.gop_s = max(float((packet.pts - self._key_pts) * packet.time_base), self.gop_s or 0.0)
            self._key_pts = packet.pts

    def decode(self, packet: Packet[VideoStream]) -> list[VideoFrame]:
        """Return the frames that come out when a packet goes in, and count errors."""
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
