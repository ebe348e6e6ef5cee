"""The packets of a stream that a part of it needs, by their times alone, and the times at which they are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Stamp:
    """The times of a packet, in ticks of its stream."""

    pts: int  # when its frame comes on show
    dts: int | None  # when it is to be decoded, or None where the container does not say
    duration: int  # how long its frame is on show, or 0 where the container does not say
    key: bool  # whether decoding can start with it


@dataclass(slots=True)
class Stretch:
    """The packets from the last key frame at or before `start` to the last frame before `end`, in decoding order."""

    start: int  # ticks
    end: int | None  # ticks (exclusive), or None for the end of the stream
    base: Fraction = Fraction(1)  # seconds of a tick
    kept: list[Stamp] = field(default_factory=list)  # in decoding order; empty until there is a key frame
    done: bool = False  # whether no later packet can belong to it
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
            return  # leading pictures of an open group of pictures, which lack their references
        elif self.end is None or stamp.pts < self.end or stamp.pts <= self._last:  # without a hole: B-frames need those
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

    @property
    def begins_s(self) -> Fraction:
        """When the first kept packet comes on show, seconds on the clock of the source."""
        return self.kept[0].pts * self.base

    @property
    def ends_s(self) -> Fraction:
        """When the last one ends, seconds likewise."""
        last = self.last
        before = max((stamp.pts for stamp in self.kept if stamp.pts < last.pts), default=last.pts)
        return (last.pts + (last.duration or last.pts - before)) * self.base


def decoding_times(shown: Sequence[int]) -> list[int]:
    """Return times to decode at, which rise and come no later than those on show (in decoding order). All are ticks."""
    rising = sorted(shown)
    if any(before == after for before, after in pairwise(rising)):
        raise ValueError("two frames come on show at the same time")
    place = {time: number for number, time in enumerate(rising)}
    delay = max((number - place[time] for number, time in enumerate(shown)), default=0)
    step = min((after - before for before, after in pairwise(rising)), default=1)
    early = [rising[0] - (delay - number) * step for number in range(delay)]
    return [*early, *rising][: len(shown)]
