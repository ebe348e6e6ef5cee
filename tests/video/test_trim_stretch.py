from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidembed.video.stretch import Stamp, Stretch, decoding_times

Stream = tuple[list[Stamp], list[set[int]]]


@st.composite
def streams(draw: st.DrawFn) -> list[Stamp]:
    """Packets as encoders make them: key frames, and after each P-frames that B-frames before them refer to.

    In an open group the first B-frames come on show before its key frame.
    """
    gaps = draw(st.lists(st.integers(1, 5), min_size=80, max_size=80))
    times = [sum(gaps[:number]) for number in range(len(gaps))]
    order: list[tuple[int, bool]] = []  # number on show, key
    shown = 0
    for group in range(draw(st.integers(1, 4))):
        for run in range(draw(st.integers(1, 4))):
            before = draw(st.integers(0, 3)) if run or (group and draw(st.booleans())) else 0
            if shown + before >= len(times):
                break
            order.append((shown + before, run == 0))
            order += [(shown + number, False) for number in draw(st.permutations(range(before)))]
            shown += before + 1
    dts = decoding_times([times[number] for number, _ in order])
    return [Stamp(times[number], when, 1, key) for (number, key), when in zip(order, dts, strict=True)]


def stretch_of(packets: list[Stamp], start: int, end: int | None) -> Stretch:
    stretch = Stretch(start, end)
    for stamp in packets:
        stretch.add(stamp)
    return stretch


@given(streams(), st.integers(0, 200), st.none() | st.integers(1, 60))
def test_the_stretch(packets: list[Stamp], start: int, length: int | None) -> None:
    end = None if length is None else start + length
    stretch = stretch_of(packets, start, end)
    keys = [stamp for stamp in packets if stamp.key and stamp.pts <= start]
    first, kept = keys[-1], stretch.kept
    assert kept[0] == first
    assert [stamp for stamp in packets if stamp in kept] == kept  # in decoding order
    shown = sorted(stamp.pts for stamp in packets)
    # every frame from the key frame to the end, and behind it none but up to the last that is needed
    wanted = {time for time in shown if time >= first.pts and (end is None or time < end)}
    got = {stamp.pts for stamp in kept}
    assert wanted <= got
    assert got == {time for time in shown if first.pts <= time <= max(got)}
    # what is decoded before a kept packet is kept, but for frames that are shown before the first
    last = packets.index(kept[-1])
    assert all(stamp in kept or stamp.pts < first.pts for stamp in packets[packets.index(first) : last + 1])
    assert stretch.last.pts == max(got)


@given(streams(), st.integers(0, 200), st.integers(1, 60))
def test_it_is_done_as_soon_as_no_later_packet_can_belong(packets: list[Stamp], start: int, length: int) -> None:
    stretch = Stretch(start, start + length)
    for number, stamp in enumerate(packets):
        stretch.add(stamp)
        if stretch.done:
            kept = list(stretch.kept)
            assert all(later.pts > max(each.pts for each in kept) for later in packets[number:])
            for later in packets[number + 1 :]:
                stretch.add(later)
            assert stretch.kept == kept
            return


def test_it_reads_no_further_than_it_must() -> None:
    order = [0, 3, 1, 2, 6, 4, 5, 9, 7, 8, 12]  # on show, each third needed by the two before
    packets = [Stamp(time, dts, 1, time == 0) for time, dts in zip(order, range(-1, 10), strict=True)]
    read = []
    stretch = Stretch(2, 5)
    for stamp in packets:
        read.append(stamp.pts)
        stretch.add(stamp)
        if stretch.done:
            break
    assert [stamp.pts for stamp in stretch.kept] == [0, 3, 1, 2, 6, 4, 5]
    assert read == [0, 3, 1, 2, 6, 4, 5, 9]


def test_a_frame_that_is_needed_is_not_missed_behind_one_that_is_not() -> None:
    shown = [0, 5, 1, 7, 3, 2, 4, 6]
    packets = [Stamp(time, dts, 1, time == 0) for time, dts in zip(shown, [-1, 0, 1, 2, 3, 3, 4, 6], strict=True)]
    stretch = stretch_of(packets, 0, 2)
    assert [stamp.pts for stamp in stretch.kept] == [0, 5, 1, 7, 3, 2, 4, 6]  # 5 is needed, so 3 is; 7 may be
    assert [stamp.pts for stamp in stretch_of(packets[:4], 0, 2).kept] == [0, 5, 1]


def test_without_times_to_decode_it_reads_to_the_end() -> None:
    packets = [Stamp(number, None, 1, number % 4 == 0) for number in range(20)]
    stretch = stretch_of(packets, 9, 11)
    assert [stamp.pts for stamp in stretch.kept] == [8, 9, 10]
    assert not stretch.done


def test_a_stream_that_begins_late_and_one_that_begins_after_the_end() -> None:
    packets = [Stamp(number, number, 1, number in {3, 6}) for number in range(2, 9)]
    assert [stamp.pts for stamp in stretch_of(packets, 0, 5).kept] == [3, 4]
    nothing = stretch_of(packets, 0, 3)
    assert (nothing.kept, nothing.done) == ([], True)


@given(streams())
def test_times_to_decode(packets: list[Stamp]) -> None:
    shown = [stamp.pts for stamp in packets]
    dts = decoding_times(shown)
    assert all(before < after for before, after in pairwise(dts))
    assert all(when <= time for when, time in zip(dts, shown, strict=True))
    rising = sorted(shown)
    delay = sum(when < rising[0] for when in dts)
    if delay:  # with a frame less one would be decoded after it is shown
        assert any(rising[number - delay + 1] > time for number, time in enumerate(shown) if number >= delay - 1)


@pytest.mark.parametrize(
    ("shown", "dts"),
    [
        ([], []),
        ([7], [7]),
        ([0, 3, 1, 2], [-1, 0, 1, 2]),
        ([0, 4, 2, 1, 3], [-2, -1, 0, 1, 2]),
        ([10, 40, 20, 30, 50], [0, 10, 20, 30, 40]),
    ],
)
def test_times_to_decode_are_those_of_encoders(shown: list[int], dts: list[int]) -> None:
    assert decoding_times(shown) == dts


def test_two_frames_at_one_time_are_refused() -> None:
    with pytest.raises(ValueError, match="same time"):
        decoding_times([1, 2, 1])
