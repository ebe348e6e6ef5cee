"""The grid of times, and the picking of frames on it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidembed.video import Sampling
from vidembed.video.reader import GridPicker

rates = st.floats(0.05, 60)
counts = st.integers(1, 200)
durations = st.floats(0.01, 2e4)


@given(rates, counts, durations)
def test_grid(fps: float, max_frames: int, duration: float) -> None:
    grid = Sampling(fps, max_frames).grid(duration)
    step = max(1 / fps, duration / max_frames)
    assert grid[0] == 0
    assert 1 <= len(grid) <= max_frames
    assert np.allclose(np.diff(grid), step, rtol=1e-9)
    assert grid[-1] < duration
    assert duration - grid[-1] <= step * (1 + 1e-9) + 2e-6


def test_grid_of_the_paper() -> None:
    assert Sampling().grid(10.0).tolist() == [k / 2 for k in range(20)]
    assert len(Sampling().grid(90.0)) == len(Sampling().grid(1e5)) == 180
    assert Sampling().grid(0.0).tolist() == [0.0]


def shown(times: list[float], end: float, picker: GridPicker[int]) -> list[int]:
    for i, _ in enumerate(times):
        until = times[i + 1] if i + 1 < len(times) else end
        if picker.wants(until):
            picker.keep(i, until)
    return picker.finish()


@st.composite
def videos(draw: st.DrawFn) -> tuple[list[float], float]:
    gaps = draw(st.lists(st.floats(0.001, 30), min_size=0, max_size=60))
    times = [0.0, *np.cumsum(gaps).tolist()]
    return times, times[-1] + draw(st.floats(0.001, 5))


@given(rates, counts, videos())
def test_picker_of_known_duration_follows_the_grid(
    fps: float, max_frames: int, video: tuple[list[float], float]
) -> None:
    times, end = video
    sampling = Sampling(fps, max_frames)
    expected = [max(i for i, start in enumerate(times) if start <= t + 1e-6) for t in sampling.grid(end)]
    assert shown(times, end, GridPicker(sampling, duration=end)) == expected


@given(rates, counts, videos())
def test_picker_of_unknown_duration_thins(fps: float, max_frames: int, video: tuple[list[float], float]) -> None:
    times, end = video
    sampling = Sampling(fps, max_frames)
    picked = shown(times, end, GridPicker(sampling))
    known = sampling.grid(end)
    assert len(picked) <= max_frames
    assert len(picked) >= min(len(known), math.ceil(max_frames / 2)) - 1
    assert picked[0] == 0
    assert picked == sorted(picked)
    if end * fps < max_frames:
        assert picked == shown(times, end, GridPicker(sampling, duration=end))


@given(rates, counts, videos(), st.floats(0, 50), st.floats(0.01, 50))
def test_picker_of_a_segment_stays_inside(
    fps: float, max_frames: int, video: tuple[list[float], float], start: float, length: float
) -> None:
    times, end = video
    picked = shown(times, end, GridPicker(Sampling(fps, max_frames), start=start, end=start + length, duration=end))
    assert len(picked) <= max_frames
    for i in picked:
        until = times[i + 1] if i + 1 < len(times) else end
        assert times[i] < start + length
        assert until > start
    assert bool(picked) is (start + 1e-6 < end)


def test_a_wrong_declared_duration_costs_no_frames() -> None:
    """Ten times as long as declared: still at most the maximum, over the whole."""
    picker: GridPicker[int] = GridPicker(Sampling(2, 20), duration=10.0)
    picked = shown([k / 10 for k in range(1000)], 100.0, picker)
    assert 10 <= len(picked) <= 20
    assert picked[-1] >= 850


def test_one_huge_gap_is_not_walked_through() -> None:
    picker: GridPicker[int] = GridPicker(Sampling(60, 180))
    assert len(shown([0.0, 9e5], 1e6, picker)) <= 180


@pytest.mark.parametrize(
    "fields",
    [
        {"fps": 0},
        {"fps": -1.0},
        {"fps": math.inf},
        {"fps": math.nan},
        {"fps": "2"},
        {"fps": True},
        {"max_frames": 0},
        {"max_frames": 2.5},
        {"max_frames": None},
        {"max_pixels": 0},
        {"max_pixels": -5},
        {"max_pixels": 1.5},
        {"max_pixels": True},
    ],
)
def test_invalid_fields_are_named(fields: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(fields))}="):
        Sampling(**fields)  # type: ignore[arg-type]


def test_invalid_durations() -> None:
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="duration"):
            Sampling().grid(wrong)


def test_as_dict_is_stable_json() -> None:
    assert json.dumps(Sampling().as_dict()) == '{"fps": 2.0, "max_frames": 180, "max_pixels": 230400}'
    assert json.dumps(Sampling(2, np.int64(180)).as_dict()) == json.dumps(Sampling().as_dict())
    assert Sampling(**Sampling(1, 8, max_pixels=None).as_dict()) == Sampling(1, 8, max_pixels=None)
    assert hash(Sampling()) == hash(Sampling(2))
    with pytest.raises(TypeError):
        Sampling(2, 180, 100)  # type: ignore[misc]
