"""Leaves packets undecoded that no chosen frame needs, where the chosen frames are bit-equal without them.

Packets are read ahead up to the next key frame from which decoding begins anew, so that it is known before decoding in
which order frames come on show and which of them are chosen. What no other packet refers to, and what follows the last
chosen frame up to such a key frame, is then not decoded: it is `vidembed.video.picture.Undecoded`, with the
time and the place in the stream that it has. That is done only for codecs whose references can be read off packets,
after frames were seen to come as their packets say. On any sign of damage all of it is decoded
(`DecodeAllError`).
"""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

from av import Packet, VideoCodecContext, VideoFrame, VideoStream

from vidembed.video.picture import Undecoded

if TYPE_CHECKING:
    from vidembed.video.reader import FrameReader

CODECS: Final = ("h264", "hevc")
MIN_STEP_S: Final = 1.0  # seconds. Grids with shorter steps are decoded through: all damage is seen (our choice)
PROOF_FRAMES: Final = 32  # that must come as their packets say before the first is left out (our choice)
MAX_AHEAD: Final = 1024  # packets read ahead: a key frame in 17 s at 60 frames a second (our choice)
MAX_AHEAD_BYTES: Final = 2**26  # 64 MiB, 10 s of 50 Mbit/s (our choice)

# Bytes that a NAL unit cannot hold (ITU-T H.264 and H.265, sections 7.4.1 and 7.4.2.1): in a hole of zeros there are
# some. In a byte stream, zeros may precede a start code.
_BROKEN_UNIT: Final = re.compile(rb"\x00\x00[\x00-\x02]")
_BROKEN_STREAM: Final = re.compile(rb"\x00\x00(?:\x02|\x00+[^\x00\x01])")
_START_CODE: Final = re.compile(rb"\x00\x00\x01")

_Packet: TypeAlias = "Packet[VideoStream]"
_ShownT = TypeVar("_ShownT", VideoFrame, Undecoded)


class DecodeAllError(Exception):
    """The file is to be read again, and all of it decoded: it is damaged, or is not what its packets seemed to say."""


class Looking(Protocol):
    """What chooses frames by time. All times are seconds from the first frame of the video."""

    start: float
    end: float | None  # None for the end of the video

    @property
    def step(self) -> float:
        """Seconds between two looks."""

    def looks(self, first: float, until: float) -> Iterator[float]:
        """Yield the times between two that frames are looked for at."""


def chosen(all_looking: Iterable[Looking], times: Sequence[float], until: float) -> set[int]:
    """Return the places of the frames that are to be decoded, by their times; the one after them comes at `until`.

    They are those on show at the times looked at, or all if something looks more often than every `MIN_STEP_S`. What
    looks is in order of starts.
    """
    found: set[int] = set()
    for looking in all_looking:
        if looking.start >= until:
            break
        if looking.step < MIN_STEP_S and (looking.end is None or looking.end > times[0]):
            return set(range(len(times)))
        found.update(bisect_right(times, moment) - 1 for moment in looking.looks(times[0], until))
    return found


class _UnclearError(Exception):
    """What a packet holds is not known well enough to leave it or another out."""


@dataclass(slots=True)
class _Seen:
    """A packet, and what its NAL units say."""

    packet: _Packet
    pts: int
    number: int  # among the packets seen
    begins: bool  # decoding begins anew: nothing after it refers to anything before
    is_reference: bool  # pictures of its own temporal layer may refer to it
    layer: int  # temporal
    depth: int = 0  # how many packets before it come on show after it
    is_decoded: bool = True


class _Syntax:
    """Reads the NAL units of H.264 or HEVC packets."""

    def __init__(self, context: VideoCodecContext) -> None:
        self._is_h264 = context.name == "h264"
        head = context.extradata or b""
        place = 4 if self._is_h264 else 21  # of avcC (ISO/IEC 14496-15, 5.3.3) and hvcC (8.3.3)
        self._length = (head[place] & 3) + 1 if len(head) > place and head[0] == 1 else 0  # bytes; 0: start codes
        self._parameters: set[bytes] = set()
        self._is_settled = False  # whether parameters that were not seen before are a change

    def units(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Yield where each NAL unit begins and ends."""
        if not self._length:
            starts = [match.end() for match in _START_CODE.finditer(data)]
            yield from zip(starts, [start - 3 for start in starts[1:]] + [len(data)], strict=True)
            return
        place = 0
        while place < len(data):
            begin = place + self._length
            place = begin + int.from_bytes(data[place:begin], "big")
            if not begin < place <= len(data):
                raise _UnclearError
            yield begin, place

    def see(self, packet: _Packet, number: int) -> _Seen:
        """Read a packet; raise `_UnclearError` for one that is not like those of plain streams."""
        if packet.pts is None or packet.is_discard or packet.is_corrupt or packet.has_sidedata("new_extradata"):
            raise _UnclearError
        data = bytes(packet)
        kinds = [self._kind(data, *unit) for unit in self.units(data)]
        pictures = [kind for kind in kinds if kind is not None]
        if len(set(pictures)) != 1:
            raise _UnclearError
        self._is_settled = True
        begins, is_reference, layer = pictures[0]
        return _Seen(packet, packet.pts, number, begins and packet.is_keyframe, is_reference, layer)

    def _kind(self, data: bytes, begin: int, end: int) -> tuple[bool, bool, int] | None:
        """Return of a slice: whether decoding begins with it, whether it is referred to, and its temporal layer."""
        if end - begin < 2 or data[begin] & 0x80:
            raise _UnclearError
        first, second = data[begin], data[begin + 1]
        if self._is_h264:  # ITU-T H.264, table 7-1
            kind = first & 31
            if kind in {1, 5}:
                return kind == 5, bool(first & 0x60), 0
            is_plain, is_parameter = kind in {6, 9, 12}, kind in {7, 8}
        else:  # ITU-T H.265, table 7-1
            kind, layer = first >> 1 & 63, (second & 7) - 1
            if (first & 1) << 5 | second >> 3 or layer < 0:  # another view, or an alpha channel
                raise _UnclearError
            if kind < 10 or 16 <= kind <= 21:
                return kind in {19, 20}, kind >= 16 or bool(kind & 1), layer
            is_plain, is_parameter = kind in {35, 38, 39, 40, 62, 63}, kind in {32, 33, 34}
        if is_parameter:
            unit = data[begin:end].rstrip(b"\0")
            if self._is_settled and unit not in self._parameters:
                raise _UnclearError
            self._parameters.add(unit)
        elif not is_plain:
            raise _UnclearError
        return None

    def is_broken(self, packet: _Packet) -> bool:
        """Whether a packet holds bytes that no encoder writes."""
        data = bytes(packet)
        if not self._length:
            return _BROKEN_STREAM.search(data) is not None
        return any(_BROKEN_UNIT.search(data, begin, end) for begin, end in self.units(data))


@dataclass(slots=True)
class _Group:
    """Packets whose frames come on show before those of all packets after them."""

    packets: list[_Seen]
    shown: list[_Seen] = field(init=False)  # in order of presentation
    follower: int | None  # pts before which no later frame comes on show; None at the end of the stream
    is_closed: bool  # no later packet refers to any of these
    times: list[float] = field(default_factory=list)  # of those shown, and of the follower; seconds from the first
    has_hole: bool = False  # a frame comes later than the one before it ends

    def __post_init__(self) -> None:
        """Put them in order of presentation."""
        self.shown = sorted(self.packets, key=lambda seen: seen.pts)
        places = array("q")
        for seen in self.packets:
            place = bisect_left(places, seen.pts)
            seen.depth = len(places) - place
            places.insert(place, seen.pts)


class Dropper:
    """Decodes the rest of a stream, from a key frame on, as far as the chosen frames need it."""

    def __init__(self, reader: FrameReader, *, lag: int, last: tuple[int, float]) -> None:
        self._reader = reader
        self._lag = lag  # packets that have gone in and whose frames have not come out
        self._syntax = _Syntax(reader.stream.codec_context)
        self._ahead: list[_Seen] = []
        self._source: Iterator[_Packet] = iter(())
        self._stopped = False  # what is left is decoded through
        self._dropped = False
        self._awaited: deque[_Seen] = deque()  # in order of presentation, from the first that has not come out on
        self._keys: deque[_Seen] = deque()  # that were not noted yet
        self._number = 0  # of packets seen
        self._emitted = -lag
        self._has_holes = False  # whether it is usual that a frame comes later than the one before it ends
        self._matched = self._depth = 0  # frames that came as they should, and the depth of the deepest of them
        self._layers = 0  # temporal, of the groups so far
        self._last_pts, self._last_time = last  # of the frame that came out last, then of the groups so far
        self._last_end = math.inf  # when the frame after it is late, in ticks
        self._last_dts: int | None = None

    def frames(self, packets: Iterator[_Packet]) -> Iterator[VideoFrame | Undecoded]:
        """Yield what comes on show, in order. The first packet is a key frame, and noted as that.

        Raises:
            DecodeAllError: The file is to be read again from its beginning, and all of it decoded.
        """
        self._source = packets
        while (group := self._next_group()) is not None:
            yield from self._decode(group)
        for seen in self._ahead:
            yield from self._put(seen.packet)
        for packet in self._source:
            if packet.is_keyframe:
                self._note_keys()
                self._reader.note_key(packet)
            yield from self._put(packet)
        if self._dropped:
            yield from self._release()
            if self._awaited:  # a frame never came out
                raise DecodeAllError

    # -- which packets belong together ---------------------------------------------------------------------------------

    def _next_group(self) -> _Group | None:
        """Return the next packets that can be planned for, or ``None`` where the rest is to be decoded through."""
        size = sum(seen.packet.size for seen in self._ahead)
        while not self._stopped:
            packet = next(self._source, None)
            self._check_errors()
            if packet is None or not packet.size:
                return self._last_group([] if packet is None else [packet])
            try:
                seen = self._see(packet)
            except _UnclearError:
                self._stop([packet])
                return None
            if seen.begins and self._ahead:
                packets, self._ahead = self._ahead, [seen]
                return self._checked(_Group(packets, follower=seen.pts, is_closed=True))
            self._ahead.append(seen)
            size += packet.size
            if len(self._ahead) >= MAX_AHEAD or size >= MAX_AHEAD_BYTES:
                return self._checked(self._cut())
        return None

    def _last_group(self, flush: list[_Packet]) -> _Group | None:
        """Return the packets at the end of the stream. What comes after empty packets is decoded through."""
        more = next(self._source, None)
        is_end = more is None
        self._source = iter(flush) if more is None else chain([*flush, more], self._source)
        if not is_end or not self._ahead:
            self._stop([])
            return None
        packets, self._ahead = self._ahead, []
        return self._checked(_Group(packets, follower=None, is_closed=True))

    def _see(self, packet: _Packet) -> _Seen:
        seen = self._syntax.see(packet, self._number)
        dts = packet.dts
        if dts is not None:
            if dts > seen.pts or (self._last_dts is not None and dts < self._last_dts):
                raise _UnclearError
            self._last_dts = dts
        self._number += 1
        if packet.is_keyframe and seen.number:
            self._keys.append(seen)
        return seen

    def _cut(self) -> _Group | None:
        """Return as many of the packets read as come on show before all others; decoding does not begin anew there."""
        ahead = self._ahead
        highest = list(accumulate((seen.pts for seen in ahead), max))
        lowest = list(accumulate((seen.pts for seen in reversed(ahead)), min))[::-1]
        due = ahead[-1].packet.dts  # no packet after these comes on show before that
        for place in range(len(ahead) - 1, 0, -1):
            if due is not None and highest[place - 1] < min(lowest[place], due):
                self._ahead = ahead[place:]
                return _Group(ahead[:place], follower=lowest[place], is_closed=False)
        return None

    def _checked(self, group: _Group | None) -> _Group | None:
        """Return a group, or decode it and the rest through if the order of its frames is not certain."""
        if group is None:
            self._stop([])
            return None
        pts = [seen.pts for seen in group.shown] + ([] if group.follower is None else [group.follower])
        group.times = [self._reader.time_of(each) for each in pts]
        jumps = any(self._reader.jumps(b - a) for a, b in pairwise([self._last_time, *group.times]))
        if jumps or any(a >= b for a, b in pairwise([self._last_pts, *pts])):
            self._ahead = group.packets + self._ahead
            self._stop([])
            return None
        ends = [self._last_end, *(seen.pts + 1.5 * (seen.packet.duration or math.inf) for seen in group.shown)]
        group.has_hole = any(start > end for start, end in zip(pts, ends, strict=False))
        last, self._last_end = group.shown[-1], ends[-1]
        self._last_pts, self._last_time = last.pts, group.times[len(group.shown) - 1]
        return group

    def _stop(self, packets: list[_Packet]) -> None:
        """Decode the rest through. A packet that is flagged as damaged may be followed by others that are not."""
        if self._dropped and any(packet.is_corrupt for packet in packets):
            raise DecodeAllError
        self._stopped = True
        self._source = chain(packets, self._source)

    # -- what is decoded of them ---------------------------------------------------------------------------------------

    def _decode(self, group: _Group) -> Iterator[VideoFrame | Undecoded]:
        needed = self._needed(group)
        depth, layers = max(seen.depth for seen in group.packets), max(seen.layer for seen in group.packets) + 1
        if layers > self._layers:
            if self._dropped:  # as if there were no such layer
                raise DecodeAllError
            self._layers = layers
        is_suspect = group.has_hole and not self._has_holes  # packets may have been lost
        self._has_holes |= group.has_hole
        self._awaited += group.shown
        for seen in group.packets:
            is_proven = self._matched >= PROOF_FRAMES and depth <= self._depth
            if seen.number in needed or is_suspect or not is_proven or self._stopped:
                yield from self._put(seen.packet)
            else:
                if self._syntax.is_broken(seen.packet):
                    raise DecodeAllError
                self._dropped, seen.is_decoded = True, False
            yield from self._release()

    def _needed(self, group: _Group) -> set[int]:
        """Return the numbers of the packets that the chosen frames need."""
        shown, times = group.shown, group.times
        needed = {shown[place].number for place in chosen(self._reader.windows, times[: len(shown)], times[-1])}
        if group.follower is None:  # the last frame: it says where the video ends
            needed.add(shown[-1].number)
        top = -1 if group.is_closed else self._layers - 1  # layer of what is needed after the packet
        for seen in reversed(group.packets):
            # A picture may refer to any of a lower layer before it, and to those of its own that are references.
            if seen.number not in needed and (seen.layer < top or (seen.layer == top and seen.is_reference)):
                needed.add(seen.number)
            if seen.number in needed:
                top = max(top, seen.layer)
        return needed

    def _put(self, packet: _Packet) -> Iterator[VideoFrame | Undecoded]:
        frames = self._reader.decode(packet)
        self._check_errors()
        for frame in frames:
            yield from self._take(frame)

    def _check_errors(self) -> None:
        if self._reader.errors and (self._dropped or not self._stopped):
            raise DecodeAllError

    def _take(self, frame: VideoFrame) -> Iterator[VideoFrame | Undecoded]:
        """Yield a frame and what comes on show before it, if it is the one that must come now."""
        yield from self._release()
        if self._awaited and (frame.pts is None or frame.pts >= self._awaited[0].pts):
            seen = self._awaited.popleft()
            expected = seen.pts, seen.packet.duration or 0
            if (frame.pts, frame.duration or 0) != expected or frame.is_corrupt or frame.interlaced_frame:
                if self._dropped:
                    raise DecodeAllError
                self._awaited.clear()
                self._stopped = True
            else:
                self._matched += 1
                self._depth = max(self._depth, seen.depth)
        elif self._dropped and (self._awaited or not self._stopped):  # it comes late, or twice
            raise DecodeAllError
        yield from self._emit(frame)

    def _release(self) -> Iterator[Undecoded]:
        """Yield the frames that are not decoded and come next."""
        while self._awaited and not self._awaited[0].is_decoded:
            packet = (seen := self._awaited.popleft()).packet
            yield from self._emit(Undecoded(seen.pts, packet.time_base, packet.duration or 0))

    def _emit(self, frame: _ShownT) -> Iterator[_ShownT]:
        """Yield a frame when the key frames are noted that decoding through would have come to by now."""
        self._note_keys(self._emitted + self._lag)
        self._emitted += 1
        yield frame

    def _note_keys(self, last: float = math.inf) -> None:
        while self._keys and self._keys[0].number <= last:
            self._reader.note_key(self._keys.popleft().packet)
