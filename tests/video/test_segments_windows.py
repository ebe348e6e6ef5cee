from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidembed.video.segments import MAX_WINDOWS, Windows


@st.composite
def cases(draw: st.DrawFn) -> tuple[Windows, float]:
    length = draw(st.floats(0.01, 1000))
    overlap = draw(st.floats(0, 0.95)) * length
    if length - overlap < 0.001:
        overlap = 0.0
    duration = draw(st.floats(0.01, 2000 * (length - overlap) + length))
    return Windows(length, overlap), duration


@given(cases())
def test_windows_cover_the_video_and_keep_length_and_overlap(case: tuple[Windows, float]) -> None:
    windows, duration = case
    found = windows.split(duration)
    tiny = 2e-6  # rounding to microseconds, at both ends
    assert found[0][0] == 0
    assert found[-1][1] == pytest.approx(duration, abs=0.001 + tiny)
    for start, end in found:
        assert end - start == pytest.approx(min(windows.length, duration), abs=tiny)
    for (start, end), (next_start, next_end) in itertools.pairwise(found):
        assert start < next_start
        assert end < next_end
        assert end - next_start >= windows.overlap - tiny
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (3.0, [(0, 3)]),
        (10.0, [(0, 10)]),
        (20.0, [(0, 10), (10, 20)]),
        (25.0, [(0, 10), (10, 20), (15, 25)]),
        (20.0005, [(0, 10), (10, 20)]),
    ],
)
def test_the_last_window_ends_with_the_video(duration: float, expected: list[tuple[float, float]]) -> None:
    assert Windows(10).split(duration) == expected


def test_overlap() -> None:
    assert Windows(4, 1).split(11) == [(0, 4), (3, 7), (6, 10), (7, 11)]
    assert Windows(0.3, 0.2).split(0.5) == [(0, 0.3), (0.1, 0.4), (0.2, 0.5)]


@pytest.mark.parametrize(
    ("length", "overlap"), [(0, 0), (-1, 0), (math.nan, 0), (math.inf, 0), (1, 1), (1, -0.1), (1, 2)]
)
def test_bad_windows_are_refused(length: float, overlap: float) -> None:
    with pytest.raises(ValueError, match="segment"):
        Windows(length, overlap)


@pytest.mark.parametrize("duration", [0, -1, math.nan, math.inf, 10.0 * MAX_WINDOWS + 11])
def test_bad_durations_are_refused(duration: float) -> None:
    with pytest.raises(ValueError, match="duration"):
        Windows(10).split(duration)
