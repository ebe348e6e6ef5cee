"""Which packets of a video stream hold a stretch of it, and in what order and at what times a copy decodes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise


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
