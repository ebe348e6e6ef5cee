"""What is copied: the packets of a stretch, found by their times alone, in a pass that decodes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

import av.error
import av.stream

from vidembed.errors import CorruptVideo, InvalidVideoInput, UnsupportedCodec
from vidembed.video import container as box
from vidembed.video.reader import CLOCK_JUMP_S, CLOCK_RESET_S, Deadline
from vidembed.video.sampling import TIME_EPSILON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream


@dataclass(frozen=True, slots=True)
class Stamp:
    """The times of a packet, in ticks of its stream.

    Attributes:
        pts: When its frame comes on show.
        dts: When it is to be decoded, or None where the container does not say.
        duration: How long its frame is on show, or 0 where the container does not say.
        key: Whether decoding can start with it.
    """

    pts: int
    dts: int | None
    duration: int
    key: bool


@dataclass(slots=True)
class Stretch:
    """The packets from the last key frame at or before `start` to the last frame before `end`, in decoding order.

    Frames that follow the key frame in decoding order and precede it on show (the leading pictures of an open group of
    pictures) lack their references, and are left out. What is kept has no hole: where a frame before `end` needs one
    after it (as a B-frame does), that one is kept, and all frames before it.

    Attributes:
        start: Ticks.
        end: Ticks (exclusive), or None for the end of the stream.
        kept: What was found, in decoding order. Empty until there is a key frame.
        done: Whether no later packet can belong to it.
    """

    start: int
    end: int | None
    kept: list[Stamp] = field(default_factory=list)
    done: bool = False
    _pending: list[Stamp] = field(default_factory=list)
    _last: int = 0  # latest on show of what is kept

    def add(self, stamp: Stamp) -> None:
        """Take the next packet in decoding order into account."""
        if self.done:
            return
        if stamp.key and (stamp.pts <= self.start or not self.kept):  # a stream may begin late
            if self.end is not None and stamp.pts >= self.end:
                self.done = True
                return
            self.kept, self._pending, self._last = [stamp], [], stamp.pts
        elif not self.kept or stamp.pts < self.kept[0].pts:
            return
        elif self.end is None or stamp.pts < self.end or stamp.pts <= self._last:
            self.kept += [*self._pending, stamp]
            self._last = max(self._last, stamp.pts, *(each.pts for each in self._pending))
            self._pending = []
        else:
            self._pending.append(stamp)
            # No later packet is decoded before this one, and none comes on show before it is decoded.
            self.done = stamp.dts is not None and stamp.dts >= max(self.end, self._last)

    @property
    def last(self) -> Stamp:
        """The kept packet that comes on show last."""
        return max(self.kept, key=lambda stamp: stamp.pts)


def decoding_times(shown: Sequence[int]) -> list[int]:
    """Return times to decode at that fit the order of packets: strictly rising, none after its frame comes on show.

    They are the times on show in rising order, moved back by the least number of frames that will do, as encoders have
    them. Containers such as Matroska do not store any.

    Args:
        shown: When each frame comes on show, in ticks, in decoding order. All different.

    Raises:
        ValueError: Two are equal.
    """
    rising = sorted(shown)
    if any(before == after for before, after in pairwise(rising)):
        raise ValueError("two frames come on show at the same time")
    place = {time: number for number, time in enumerate(rising)}
    delay = max((number - place[time] for number, time in enumerate(shown)), default=0)
    step = min((after - before for before, after in pairwise(rising)), default=1)
    early = [rising[0] - (delay - number) * step for number in range(delay)]
    return [*early, *rising][: len(shown)]


INTERLEAVE_S = 10.0
"""Seconds that one stream may lie behind another in a file: FFmpeg's `max_interleave_delta`
(https://ffmpeg.org/ffmpeg-formats.html)."""
SLACK = Fraction(TIME_EPSILON)
_MAX_READ_ERRORS = 16  # in a row, after which a file has ended


@dataclass(frozen=True, slots=True)
class Plan:
    """What is copied.

    Attributes:
        videos: The stretch of each video stream that has one, by its index.
        dts: When the packets of each are decoded, in ticks, likewise.
        bases: Seconds of a tick of each video stream.
        main: Index of the stream that the times are of: the one that is embedded.
        seek: Ticks of it to seek to, or None to read from the beginning.
    """

    videos: dict[int, Stretch]
    dts: dict[int, list[int]]
    bases: dict[int, Fraction]
    main: int
    seek: int | None

    @property
    def kept(self) -> bool:
        """Whether there is anything of the main stream."""
        return bool(self.videos[self.main].kept)

    @property
    def start(self) -> Fraction:
        """Where the main stream begins, seconds on the clock of the source."""
        return self.videos[self.main].kept[0].pts * self.bases[self.main]

    @property
    def stop(self) -> Fraction:
        """Where its last frame ends, seconds on the clock of the source."""
        stretch = self.videos[self.main]
        last = stretch.last
        before = max((stamp.pts for stamp in stretch.kept if stamp.pts < last.pts), default=last.pts)
        return (last.pts + (last.duration or last.pts - before)) * self.bases[self.main]

    @property
    def zero(self) -> Fraction:
        """What becomes time 0, seconds on the clock of the source: the first frame of any stream."""
        return min(stretch.kept[0].pts * self.bases[index] for index, stretch in self.videos.items())


def make_plan(handle: BinaryIO, start: Fraction, end: Fraction | None, item: str, deadline: Deadline) -> Plan:
    """Find the packets of a stretch.

    Args:
        handle: The source.
        start: Seconds on its clock.
        end: Seconds on its clock (exclusive), or None for the end.
        item: Its name, for messages.
        deadline: Limit on time.

    Raises:
        InvalidVideoInput: The video ends before `start`.
        CorruptVideo: Its clock starts again, or frames come on show at the same time.
        UnsupportedCodec: A packet has no time.
    """
    found = _read(handle, (start, end), item, deadline, seek=True)
    if found.seek is not None and (not found.kept or found.start > start + SLACK):  # it did not lead where it should
        found = _read(handle, (start, end), item, deadline, seek=False)
    if not found.kept:
        raise InvalidVideoInput(item, "no key frame before the end of the stretch, so nothing can be cut from it")
    try:
        for index, stretch in list(found.videos.items()):
            if stretch.kept:
                found.dts[index] = decoding_times([stamp.pts for stamp in stretch.kept])
            else:
                del found.videos[index]
    except ValueError as error:
        raise CorruptVideo(item, f"{error}, so they cannot be copied in order; convert it first") from error
    if not found.videos[found.main].done and found.stop <= start + SLACK:
        raise InvalidVideoInput(
            item, f"the stretch starts {float(start - found.stop):.3f} s after the end of the video"
        )
    return found


def can_be_copied(stream: Stream) -> bool:
    """Whether a stream is of moving pictures, sound or subtitles."""
    moving = stream.type == "video" and not stream.disposition & av.stream.Disposition.attached_pic
    return stream.codec_context is not None and (moving or stream.type in {"audio", "subtitle"})


def base_of(stream: Stream, item: str) -> Fraction:
    """Return the seconds of a tick of a stream."""
    if not stream.time_base:
        raise CorruptVideo(item, f"stream {stream.index} has no unit of time")
    return stream.time_base


def read_packets(
    container: InputContainer, main: Stream, streams: list[Stream], seek: int | None, item: str, deadline: Deadline
) -> Iterator[Packet[Any]]:
    """Yield packets of these streams, from ticks of the main one on; a file that cannot be read on ends there."""
    if seek is not None:
        try:
            container.seek(seek, stream=main, backward=True)
        except av.error.FFmpegError:
            return  # as where it lands too late
    failures = 0
    while True:
        try:
            for packet in container.demux(streams):
                deadline.remaining()
                failures = 0
                if packet.size:
                    yield packet
        except av.error.FFmpegError:
            failures += 1
            if failures < _MAX_READ_ERRORS:
                continue
        except OSError as error:
            raise CorruptVideo(item, f"reading failed ({error}); check the disk or connection it comes from") from error
        return


def _read(
    handle: BinaryIO, bounds: tuple[Fraction, Fraction | None], item: str, deadline: Deadline, *, seek: bool
) -> Plan:
    """Return the stretch of each video stream, empty where there is none, without times to decode at."""
    with box.open_container(handle, item) as container:
        main = box.video_stream(container, handle, item, 1)
        may_jump = box.has_discontinuities(container)
        streams = [stream for stream in container.streams if stream.type == "video" and can_be_copied(stream)]
        bases = {stream.index: base_of(stream, item) for stream in streams}
        found = {index: _empty(bounds, base) for index, base in bases.items()}
        seek = seek and container.format.name in box.SEEKABLE_FORMATS
        plan = Plan(found, {}, bases, main.index, found[main.index].start if seek else None)
        last: dict[int, int] = {}
        for packet in read_packets(container, main, streams, plan.seek, item, deadline):
            index, stamp = packet.stream.index, _stamp(packet, item)
            now = stamp.pts if stamp.dts is None else stamp.dts
            change = (now - last.get(index, now)) * bases[index]
            if change < -CLOCK_RESET_S or (may_jump and change > CLOCK_JUMP_S):
                raise CorruptVideo(
                    item,
                    "its clock starts again or jumps before the end of the stretch (joined recordings), so packets "
                    "cannot be copied in order; give the recordings one by one",
                )
            last[index] = now
            found[index].add(stamp)
            late = bounds[1] is not None and now * bases[index] > bounds[1] + Fraction(INTERLEAVE_S)
            if found[plan.main].done and (late or all(each.done for each in found.values())):
                break
    return plan


def _empty(bounds: tuple[Fraction, Fraction | None], base: Fraction) -> Stretch:
    """Return a stretch without packets; times within `TIME_EPSILON` are equal."""
    start, end = bounds
    return Stretch(int((start + SLACK) // base), None if end is None else int(-((SLACK - end) // base)))


def _stamp(packet: Packet[Any], item: str) -> Stamp:
    if packet.pts is None:
        raise UnsupportedCodec(
            item, "a packet of its video has no time (such as the second field of a picture); convert it first"
        )
    return Stamp(packet.pts, packet.dts, max(packet.duration or 0, 0), packet.is_keyframe)
