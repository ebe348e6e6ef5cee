"""Scenes: cuts at the true times of their frames, and segments that cover the video."""

from __future__ import annotations

import importlib.util
import math
import tracemalloc
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.zoo import Zoo
from vidembed.video import BackendUnavailable, CorruptVideo, DecodePool, NotAVideo, Sampling, Scenes, VideoTruncated
from vidembed.video.segments import MAX_WINDOWS, CutFinder, lay_out, survey

pytestmark = pytest.mark.timeout(60)

needs_scenedetect = pytest.mark.skipif(
    importlib.util.find_spec("scenedetect") is None, reason="PySceneDetect is not installed (extra: scenes)"
)


def picture(scene: int, step: int) -> NDArray[np.uint8]:
    """A picture of a scene (72, 96, 3): a colour of its own, and a bright square that moves to and fro."""
    frame = np.empty((72, 96, 3), dtype=np.uint8)
    frame[:] = [(200, 40, 40), (30, 30, 160), (40, 180, 60), (220, 200, 40), (90, 20, 120)][scene % 5]
    left = abs(2 * step % 144 - 72)
    frame[24:48, left : left + 24] = 245
    return frame


def write(path: Path, ticks: Sequence[int], scene_at: Sequence[int], *, rate: int = 30) -> Path:
    """Write frames at `ticks / rate` seconds; a new scene begins with each tick of `scene_at`."""
    with av.open(str(path), "w") as container:
        options = {"threads": "1", "preset": "ultrafast", "crf": "20", "sc_threshold": "0"}
        stream: Any = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        stream.codec_context.max_b_frames = 0
        for step, tick in enumerate(ticks):
            scene = sum(tick >= first for first in scene_at)
            frame = av.VideoFrame.from_ndarray(picture(scene, step), format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def cuts(path: Path, scenes: Scenes) -> list[float]:
    _, found = survey(path, scenes, item="x")
    return found


CONSTANT = list(range(300))
DENSE_THEN_SPARSE = [n for n in range(600) if n < 150 or n % 10 == 0]
BURSTS = [n for n in range(600) if (n // 40) % 3 == 0 or n % 20 == 0]


@needs_scenedetect
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("ticks", "scene_at"),
    [
        (CONSTANT, [70, 151, 200]),
        (CONSTANT, []),
        (DENSE_THEN_SPARSE, [75, 240, 400, 520]),
        (BURSTS, [60, 130, 300, 580]),
        ([0, 60, 150, 225, 290], [60, 150, 225, 290]),  # slides, each of one frame
        ([0, 30, 60, 90, 120, 150, 180, 210], [30, 120, 210]),  # one frame a second, cuts by the ends
    ],
    ids=["constant", "none", "sparse", "bursts", "slides", "slow"],
)
def test_cuts_are_at_the_times_of_their_frames(
    tmp_path: Path, ticks: list[int], scene_at: list[int], suffix: str
) -> None:
    path = write(tmp_path / f"clip.{suffix}", ticks, scene_at)
    found = cuts(path, Scenes(min_length_s=0.5))
    assert found == pytest.approx([tick / 30 for tick in scene_at], abs=0.0011)  # mkv counts in milliseconds


@needs_scenedetect
def test_the_pool_cuts_at_them(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", BURSTS, [60, 130, 300])
    with DecodePool(workers=1) as pool:
        reading = pool.submit(path, Sampling(), cut=Scenes(min_length_s=0.5, max_length_s=9))
        layout = reading.layout()
        last = layout.duration
        expected = [0.0, 2.0, 130 / 30, 10.0, (10.0 + last) / 2, last]
        assert layout.duration == pytest.approx(20.0, abs=0.7)
        assert [time for time, _ in layout.segments] + [layout.segments[-1][1]] == pytest.approx(expected, abs=1e-6)
        for scene, clip in zip([0, 1, 2, 3, 3], reading, strict=True):
            corner = clip.frames[:, 4, 4].astype(int)  # type: ignore[union-attr]  # (T, 3)
            assert np.abs(corner - picture(scene, 0)[4, 4]).max() < 40


@needs_scenedetect
def test_motion_is_no_cut(tmp_path: Path) -> None:
    assert cuts(write(tmp_path / "one.mp4", range(0, 300, 3), []), Scenes(min_length_s=0.1)) == []


@needs_scenedetect
@pytest.mark.parametrize("name", ["h264.ts", "live.mkv", "joined.ts", "rotated90.mp4", "odd_size.mkv", "one.mp4"])
def test_the_duration_is_that_of_the_file(zoo: Zoo, name: str) -> None:
    extent, _ = survey(zoo.path(name), Scenes(), item="x")
    assert extent.end == pytest.approx(zoo[name].duration, abs=0.04)


@needs_scenedetect
def test_files_that_cannot_be_read(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_bytes(b"text")
    with pytest.raises(NotAVideo, match=r"^a name: "):
        survey(tmp_path / "text.mp4", Scenes(), item="a name")
    data = zoo.path("faststart.mp4").read_bytes()
    nothing = zoo.zeroed("faststart.mp4", (data.index(b"mdat") + 9) / len(data), 1.0)
    with pytest.raises(CorruptVideo, match="no frame"):
        survey(nothing, Scenes(), item="x")


@needs_scenedetect
def test_a_truncated_file_is_cut_as_far_as_it_goes(zoo: Zoo) -> None:
    with pytest.warns(VideoTruncated, match=r"faststart.mp4: it ends at .* before the 10\.00 s"):
        layout = lay_out(zoo.cut("faststart.mp4", 0.6), Scenes())
    assert 4 < layout.duration < 7


@needs_scenedetect
def test_no_more_cuts_are_held_than_there_can_be_scenes(tmp_path: Path) -> None:
    path = write(tmp_path / "flicker.mp4", CONSTANT, list(range(6, 300, 6)))
    assert len(cuts(path, Scenes(min_length_s=0.1))) >= 40
    found = cuts(path, Scenes(min_length_s=0.75))
    assert 10 <= len(found) <= 13
    assert min(np.diff([0.0, *found])) >= 0.75


@needs_scenedetect
def test_pictures_are_handed_on_in_the_order_of_colours_that_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    process = "scenedetect.detectors.AdaptiveDetector.process_frame"
    monkeypatch.setattr(process, lambda self, code, frame: seen.append(frame) or [])
    finder = CutFinder(Scenes())
    finder.feed(0.0, picture(0, 0))
    assert np.array_equal(seen[-1], picture(0, 0)[:, :, ::-1])  # (H, W, 3) BGR
    assert seen[-1].flags.c_contiguous


@needs_scenedetect
def test_memory_is_constant() -> None:
    finder = CutFinder(Scenes())
    tracemalloc.start()
    try:
        for number in range(100):
            finder.feed(number / 10, picture(0, number))
        before, _ = tracemalloc.get_traced_memory()
        for number in range(100, 400):
            finder.feed(number / 10, picture(0, number))
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < picture(0, 0).nbytes


def test_a_missing_extra_is_named(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scenedetect" else find_spec(name))
    with pytest.raises(BackendUnavailable, match=r'x: .*pip install "vidembed\[scenes\]"'):
        survey(zoo.path("h264.mp4"), Scenes(), item="x")
    with DecodePool(workers=1) as pool, pytest.raises(BackendUnavailable, match=r"vidembed\[scenes\]"):
        pool.submit(zoo.path("h264.mp4"), Sampling(), cut=Scenes())


# -- from cuts to scenes -----------------------------------------------------------------------------------------------

LENGTHS = st.floats(0.001, 50)


@given(
    st.lists(st.floats(-1, 2000), max_size=30).map(sorted),
    st.floats(0.01, 1500),
    LENGTHS,
    st.floats(2.0, 100.0),
)
def test_scenes_cover_the_video(found: list[float], duration: float, shortest: float, ratio: float) -> None:
    scenes = Scenes(min_length_s=shortest, max_length_s=ratio * shortest)
    if duration / scenes.max_length_s > 50_000:
        return
    segments = scenes.split(found, duration)
    assert segments[0][0] == 0
    assert segments[-1][1] == round(duration, 6)
    for (_, end), (start, _) in pairwise(segments):
        assert end == start
    for start, end in segments:
        assert end - start <= scenes.max_length_s + 3e-6
        assert end - start >= min(shortest, duration) - 3e-6
    kept = {start for start, _ in segments}
    for place, cut in enumerate(found):
        before, after = max([0.0, *found[:place]]), min([duration, *found[place + 1 :]])
        assert min(cut - before, after - cut) < shortest or round(cut, 6) in kept


def test_short_scenes_join_and_long_ones_are_split() -> None:
    scenes = Scenes(min_length_s=2, max_length_s=6)
    assert scenes.split([], 5.0) == [(0.0, 5.0)]
    assert scenes.split([], 1.0) == [(0.0, 1.0)]
    assert scenes.split([3.0, 4.0, 8.5], 10.0) == [(0.0, 3.0), (3.0, 6.5), (6.5, 10.0)]
    assert scenes.split([1.0, 2.5], 5.0) == [(0.0, 2.5), (2.5, 5.0)]
    assert scenes.split([6.0], 18.0) == [(0.0, 6.0), (6.0, 12.0), (12.0, 18.0)]


def test_the_number_of_scenes_is_bounded() -> None:
    scenes = Scenes(min_length_s=0.001, max_length_s=0.002)
    assert len(scenes.split([], 100.0)) == 50_000
    with pytest.raises(ValueError, match=str(MAX_WINDOWS)):
        scenes.split([], 1000.0)


@pytest.mark.parametrize("duration", [0.0, -1.0, math.nan, math.inf])
def test_wrong_durations(duration: float) -> None:
    with pytest.raises(ValueError, match="duration"):
        Scenes().split([], duration)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"threshold": 0.5}, "threshold=0.5"),
        ({"threshold": math.nan}, "threshold"),
        ({"threshold": "3"}, "threshold"),
        ({"min_length_s": 0.0}, "min_length_s"),
        ({"min_length_s": True}, "min_length_s"),
        ({"max_length_s": math.inf}, "max_length_s"),
        ({"min_length_s": 10, "max_length_s": 19}, "at least twice"),
    ],
)
def test_wrong_fields(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Scenes(**wrong)
