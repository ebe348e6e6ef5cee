"""Timed segments: one by one, and several in one pass."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.video.containers import seeking_late
from tests.video.test_reading import numbers
from tests.zoo import Zoo, native_threads, open_files
from vidembed.video import (
    Clip,
    CorruptVideo,
    DecodeLimits,
    DecodeTimeout,
    InvalidVideoInput,
    NotAVideo,
    Sampling,
    VideoFrames,
    VideoSegment,
    VideoTruncated,
    load_segments,
    load_video,
    probe,
)
from vidembed.video.reader import FrameReader, TimedFrame

pytestmark = pytest.mark.timeout(30)

NAMES = [
    "seek.mp4",
    "seek.mkv",
    "seek_open.mp4",
    "long_gop.mp4",
    "vfr.mkv",
    "gap.mp4",
    "h264.ts",
    "joined.ts",
    "live.mkv",
]


def check_segment(zoo: Zoo, name: str, start: float, end: float | None, clip: Clip) -> None:
    made = zoo[name]
    stop = made.duration if end is None else min(end, made.duration)
    assert clip.start_s == start
    assert clip.duration == pytest.approx(stop - start, abs=0.003)
    expected = start + np.arange(math.ceil((stop - start) * 2 - 1e-3)) / 2
    assert numbers(clip) == made.shown_at(expected)
    assert clip.timestamps[0] >= 0
    assert (clip.timestamps < stop - start).all()
    assert np.array_equal(clip.frames_indices, np.rint(clip.timestamps * clip.fps))
    assert clip.frames_indices[-1] < clip.total_num_frames


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.5, 1.7), (1.0, None), (2.25, 4.0), (4.9, 5.9), (2.0, 99.0)])
def test_a_segment(zoo: Zoo, name: str, start: float, end: float | None) -> None:
    if zoo[name].duration <= start:
        pytest.skip("the segment lies behind this video")
    clip = load_video(VideoSegment(zoo.path(name), start, end))
    check_segment(zoo, name, start, end, clip)
    suffix = "" if end is None else f",{end:g}"
    assert clip.item == f"{zoo.path(name)}#t={start:g}{suffix}"


@pytest.mark.parametrize(("start", "end"), [(12.0, 14.0), (28.5, None), (29.0, 30.0), (20.0, 25.0)])
@pytest.mark.parametrize("name", ["seek.mp4", "seek.mkv"])
def test_a_late_segment_is_sought(
    zoo: Zoo, name: str, start: float, end: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[float] = []
    step = FrameReader.__next__

    def count(self: FrameReader) -> TimedFrame:
        timed = step(self)
        decoded.append(timed.time)
        return timed

    monkeypatch.setattr(FrameReader, "__next__", count)
    clip = load_video(VideoSegment(zoo.path(name), start, end))
    check_segment(zoo, name, start, end, clip)
    assert len(decoded) < 900 / 2
    assert min(decoded[1:]) >= start - 1.0 or decoded[1] < 1.0


def test_content_decides_not_its_place(zoo: Zoo) -> None:
    """The same second, cut from a file and from a copy that starts there, has the same times and indices."""
    part = load_video(VideoSegment(zoo.path("long_gop.mp4"), 3.3, 5.3))
    copy = load_video(VideoSegment(zoo.path("cut.mp4"), 0.0, 2.0))
    assert np.array_equal(part.frames, copy.frames)
    assert np.allclose(part.timestamps, copy.timestamps)
    assert part.metadata() == {**copy.metadata(), "duration": pytest.approx(2.0)}


def equal(a: Clip, b: Clip) -> None:
    assert np.array_equal(a.frames, b.frames)
    assert np.array_equal(a.timestamps, b.timestamps)
    assert np.array_equal(a.frames_indices, b.frames_indices)
    for name in ("fps", "duration", "total_num_frames", "damaged", "truncated", "item", "start_s", "video_backend"):
        assert getattr(a, name) == getattr(b, name), name


@pytest.mark.parametrize("name", NAMES)
def test_one_pass_equals_one_by_one(zoo: Zoo, name: str) -> None:
    path, duration = zoo.path(name), zoo[name].duration
    segments: list[tuple[float, float | None]] = [(0.0, None), (0.0, 1.0), (0.4, 2.4), (0.5, 1.0), (1.0, None)]
    segments += [(t, t + 2.0) for t in np.arange(1.0, duration - 0.1, 1.0).tolist()]
    clips = list(load_segments(path, segments))
    assert len(clips) == len(segments)
    for (start, end), clip in zip(segments, clips, strict=True):
        equal(clip, load_video(VideoSegment(path, start, end)))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_windows_equal_one_by_one(zoo: Zoo, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["seek.mp4", "seek_open.mp4", "gap.mp4", "h264.ts"]))
    duration = zoo[name].duration
    sampling = Sampling(data.draw(st.sampled_from([0.5, 2.0, 5.0])), data.draw(st.sampled_from([1, 3, 180])))
    window = st.tuples(st.floats(0, duration - 0.2), st.one_of(st.none(), st.floats(0.05, 8)))
    drawn = sorted(data.draw(st.lists(window, min_size=1, max_size=5)), key=lambda w: w[0])
    segments = [(start, None if length is None else start + length) for start, length in drawn]
    for (start, end), clip in zip(segments, load_segments(zoo.path(name), segments, sampling), strict=True):
        equal(clip, load_video(VideoSegment(zoo.path(name), start, end), sampling))
        assert len(clip.frames) <= sampling.max_frames


def test_memory_is_bounded_by_the_active_windows(zoo: Zoo) -> None:
    """Each clip comes when its end is reached, not when the file's is."""
    seen: list[int] = []
    step = FrameReader.__next__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameReader, "__next__", lambda self: (seen.append(1), step(self))[1])
        clips = load_segments(zoo.path("seek.mp4"), [(float(t), float(t + 1)) for t in range(30)])
        next(clips)
        assert len(seen) < 120
        assert sum(1 for _ in clips) == 29


def test_an_abandoned_pass_closes_the_file(zoo: Zoo) -> None:
    list(load_segments(zoo.path("seek.mp4"), [(0.0, 1.0)]))
    before = open_files()
    threads = native_threads()
    for _ in range(5):
        clips = load_segments(zoo.path("seek.mp4"), [(0.0, 1.0), (2.0, 3.0)])
        next(clips)
        assert open_files() == before + 1
        del clips
    assert open_files() == before
    assert native_threads() <= threads + 1


def test_no_segments(zoo: Zoo) -> None:
    assert list(load_segments(zoo.path("h264.mp4"), [])) == []


def test_segments_of_other_sources(zoo: Zoo) -> None:
    path = zoo.path("seek.mp4")
    expected = load_video(VideoSegment(path, 3.0, 5.0))
    assert np.array_equal(load_video(VideoSegment(path.read_bytes(), 3.0, 5.0)).frames, expected.frames)
    with path.open("rb") as handle:
        assert np.array_equal(load_video(VideoSegment(handle, 3.0, 5.0)).frames, expected.frames)
    frames = VideoFrames(load_video(path, Sampling(fps=10, max_frames=400)).frames, fps=10)
    clip = load_video(VideoSegment(frames, 3.0, 5.0))
    assert numbers(clip) == numbers(expected)
    equal(clip, next(iter(load_segments(frames, [(3.0, 5.0)]))))


@pytest.mark.parametrize("name", ["seek.mp4", "h264.ts", "live.mkv", "vfr.mkv"])
def test_outside_the_video(zoo: Zoo, name: str) -> None:
    duration = zoo[name].duration
    for start in (duration, duration + 0.5, duration + 100):
        with pytest.raises(InvalidVideoInput, match=rf"{name}#t={start:g}.*starts at"):
            load_video(VideoSegment(zoo.path(name), start))
    clips = load_segments(zoo.path(name), [(0.0, 1.0), (duration + 100, None)])
    assert numbers(next(clips))[0] == 0
    with pytest.raises(InvalidVideoInput, match="starts at"):
        next(clips)


def test_behind_the_cut_of_a_truncated_video(zoo: Zoo) -> None:
    path = zoo.cut("faststart.mp4", 0.6)
    with pytest.raises(CorruptVideo, match="declares"):
        load_video(VideoSegment(path, 8.0, 9.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = load_video(VideoSegment(path, 1.0, 2.0))
    assert numbers(clip) == [30, 45]
    assert not clip.truncated
    with pytest.warns(VideoTruncated) as caught:
        assert load_video(VideoSegment(path, 4.0, 9.0)).truncated
    assert [entry.filename for entry in caught] == [__file__]  # the line of the caller, not one of ours


def test_damage_is_told_for_the_window_it_is_in(zoo: Zoo) -> None:
    path = zoo.zeroed("seek.mp4", 0.5, 0.505)
    clips = list(load_segments(path, [(float(t), float(t + 3)) for t in range(0, 30, 3)]))
    damaged = [clip.damaged for clip in clips]
    assert 1 <= sum(damaged) <= 3
    assert not any(damaged[:3])
    assert not any(damaged[-3:])


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (-1.0, None),
        (2.0, 2.0),
        (2.0, 1.0),
        (math.nan, None),
        (0.0, math.inf),
        ("1", None),
        (None, 2.0),
        (True, None),
    ],
)
def test_malformed_times(start: float, end: float | None) -> None:
    with pytest.raises(InvalidVideoInput, match=r"a\.mp4"):
        VideoSegment("a.mp4", start, end)
    with pytest.raises(InvalidVideoInput, match=r"a\.mp4"):
        load_segments("a.mp4", [(start, end)])


def test_malformed_requests(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(InvalidVideoInput, match="segment of a segment"):
        VideoSegment(VideoSegment("a.mp4", 1.0), 2.0)  # type: ignore[arg-type]
    with pytest.raises(InvalidVideoInput, match="ordered"):
        load_segments(zoo.path("h264.mp4"), [(1.0, 2.0), (0.0, 1.0)])
    with pytest.raises(InvalidVideoInput, match="whole video"):
        load_segments(VideoSegment("a.mp4", 1.0), [(1.0, 2.0)])
    text = tmp_path / "text.mp4"
    text.write_bytes(b"text")
    with pytest.raises(NotAVideo):
        next(load_segments(text, [(0.0, 1.0)]))
    with pytest.raises(DecodeTimeout):
        next(load_segments(zoo.path("h264.mp4"), [(0.0, 1.0)], limits=DecodeLimits(timeout_s=1e-9)))


def test_probe_of_a_segment_describes_the_video(zoo: Zoo) -> None:
    assert probe(VideoSegment(zoo.path("seek.mp4"), 3.0, 4.0)) == probe(zoo.path("seek.mp4"))


def test_gaps_between_segments_of_one_long_group_are_not_decoded_again(zoo: Zoo) -> None:
    """There is one key frame, so seeking could only go back to it."""
    places: list[int] = []
    step = FrameReader.__next__
    segments = [(float(t), t + 0.5) for t in range(0, 10, 3)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameReader, "__next__", lambda self: (places.append(1), step(self))[1])
        clips = list(load_segments(zoo.path("long_gop.mp4"), segments))
    assert [numbers(clip)[0] for clip in clips] == [0, 90, 180, 270]
    assert len(places) <= 300 + 20


def test_gaps_between_segments_are_jumped_over(zoo: Zoo) -> None:
    places: list[int] = []
    step = FrameReader.__next__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrameReader, "__next__", lambda self: (places.append(1), step(self))[1])
        clips = list(load_segments(zoo.path("seek.mp4"), [(1.0, 2.0), (14.0, 15.0), (28.0, 29.0)]))
    assert [numbers(clip) for clip in clips] == [[30, 45], [420, 435], [840, 855]]
    assert len(places) < 400


def test_starting_again_counts_the_damage_once(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zoo.zeroed("seek.mp4", 0.5, 0.505)
    sequential = load_video(path)

    seeking_late(monkeypatch, 1000.0)
    monkeypatch.setattr("vidembed.video.load.MAX_LOST_SHARE", 0.0)
    with pytest.raises(CorruptVideo, match=r"could not be decoded") as info:
        load_video(path, Sampling(max_frames=4))
    with pytest.raises(CorruptVideo) as other:
        load_video(path)
    assert sequential.damaged
    assert info.value.reason == other.value.reason


@pytest.mark.parametrize("length", [5e-7, 1e-6, 1e-3])
@pytest.mark.parametrize("start", [0.0, 1.0, 1.01, 2.99])
def test_a_segment_shorter_than_a_frame(zoo: Zoo, start: float, length: float) -> None:
    path = zoo.path("h264.mp4")
    clip = load_video(VideoSegment(path, start, start + length))
    assert numbers(clip) == zoo["h264.mp4"].shown_at([start])
    (same,) = load_segments(path, [(start, start + length)])
    assert np.array_equal(same.frames, clip.frames)
    array = load_video(path, Sampling(fps=30)).frames
    (given,) = load_video(VideoSegment(VideoFrames(array, fps=30), start, start + length)).frames
    assert np.array_equal(given, clip.frames[0])
