"""Every returned frame is the one on show at its time, as the number drawn on it shows."""

from __future__ import annotations

import io
import warnings
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest

from tests.video.containers import Altered, seeking_late
from tests.zoo import RECIPES, Made, Zoo, draw, read
from vidembed.video import Clip, NotAVideo, Sampling, VideoSegment, VideoTruncated, load_video, probe
from vidembed.video.fetch import Deadline
from vidembed.video.reader import FrameReader

pytestmark = pytest.mark.timeout(30)

WHOLE = [name for name in RECIPES if name != "raw.h264"]
MADE = ["live.mkv", "cut.mp4", "joined.ts", "resized.ts", "two_streams.mkv"]


def numbers(clip: Clip) -> list[int | None]:
    return [read(frame) for frame in clip.frames]


def check_times(clip: Clip, made: Made, *, tick: float = 0.002) -> None:
    """The timestamps are those of the frames whose numbers are seen."""
    places = [int(np.searchsorted(made.times, t + tick, side="right")) - 1 for t in clip.timestamps]
    assert [int(made.numbers[i]) for i in places] == numbers(clip)
    assert np.allclose(made.times[places], clip.timestamps, atol=tick)


@pytest.mark.parametrize("name", WHOLE + MADE)
@pytest.mark.parametrize("fps", [2.0, 7.0])
def test_the_frame_on_show_is_returned(zoo: Zoo, name: str, fps: float) -> None:
    made = zoo[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = load_video(made.path, Sampling(fps=fps, max_frames=1000))
    expected = [k / fps for k in range(int(np.ceil(made.duration * fps - 1e-3)))]
    assert numbers(clip) == made.shown_at(expected)
    check_times(clip, made)
    places = np.searchsorted(made.times, clip.timestamps + 0.002, side="right") - 1
    assert clip.frames_indices.tolist() == places.tolist()
    assert clip.total_num_frames == len(made.times)
    assert clip.duration == pytest.approx(made.duration, abs=0.002)
    assert clip.fps == pytest.approx(len(made.times) / made.duration, rel=0.02)
    assert not clip.damaged
    assert not clip.truncated
    assert clip.item == str(made.path)
    assert clip.frames.dtype == np.uint8
    assert clip.timestamps.dtype == np.float64
    assert clip.frames_indices.dtype == np.int64


@pytest.mark.parametrize("name", ["seek.mp4", "seek.mkv", "seek_open.mp4", "long_gop.mp4", "gap.mkv", "vfr.mp4"])
@pytest.mark.parametrize("max_frames", [1, 3, 5, 8])
def test_few_frames_of_a_long_video(zoo: Zoo, name: str, max_frames: int) -> None:
    made = zoo[name]
    clip = load_video(made.path, Sampling(max_frames=max_frames))
    assert numbers(clip) == made.shown_at(np.arange(max_frames) * clip.duration / max_frames)
    check_times(clip, made)
    assert int(clip.frames_indices[-1]) < clip.total_num_frames == len(made.times)


@pytest.mark.parametrize(("name", "seeks"), [("seek.mp4", True), ("seek.mkv", True), ("long_gop.mp4", False)])
def test_seeks_only_over_several_key_frames(zoo: Zoo, name: str, seeks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sought: list[float] = []
    seek = FrameReader.seek
    monkeypatch.setattr(FrameReader, "seek", lambda self, seconds: (sought.append(seconds), seek(self, seconds))[1])
    load_video(zoo.path(name), Sampling(max_frames=4))
    assert bool(sought) is seeks
    sought.clear()
    load_video(zoo.path(name))
    assert not sought


@pytest.mark.parametrize(
    ("name", "start", "late"),
    [
        ("seek.mp4", 12.0, 3.0),
        ("seek_open.mp4", 7.9, 0.15),  # lands on a key frame that frames without their references precede
    ],
)
def test_a_seek_that_lands_late_is_made_good(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, name: str, start: float, late: float
) -> None:
    """An index that points past the target sends the reader back to the first frame."""
    made = zoo[name]
    altered = seeking_late(monkeypatch, late)
    clip = load_video(VideoSegment(made.path, start, start + 1), Sampling(fps=10))
    assert altered.opened == 2
    assert numbers(clip) == made.shown_at(start + np.arange(10) / 10)


@pytest.mark.parametrize("name", ["live.mkv", "h264.ts", "joined.ts"])
@pytest.mark.parametrize("max_frames", [1, 2, 4, 7, 9])
def test_unknown_duration_is_thinned(zoo: Zoo, name: str, max_frames: int) -> None:
    made = zoo[name]
    clip = load_video(made.path, Sampling(max_frames=max_frames))
    assert max_frames / 2 <= len(clip.frames) <= max_frames
    check_times(clip, made)
    assert clip.timestamps[0] == 0
    assert clip.duration - clip.timestamps[-1] <= 3 * made.duration / max_frames


def test_a_longer_audio_stream_does_not_stretch_the_grid(zoo: Zoo) -> None:
    clip = load_video(zoo.path("long_audio.mp4"), Sampling(max_frames=3))
    assert numbers(clip) == [0, 30, 60]


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("rotated90.mp4", (160, 96)),
        ("rotated180.mp4", (96, 160)),
        ("rotated270.mp4", (160, 96)),
        ("wide_pixels.mp4", (96, 284)),
        ("narrow_pixels.mkv", (96, 120)),
        ("odd_size.mkv", (97, 161)),
        ("resized.ts", (96, 160)),
    ],
)
def test_frames_are_upright_with_square_pixels(zoo: Zoo, name: str, shape: tuple[int, int]) -> None:
    clip = load_video(zoo.path(name))
    assert clip.frames.shape[1:] == (*shape, 3)
    info = probe(zoo.path(name))
    assert (info.height, info.width) == shape


@pytest.mark.parametrize("name", ["h264.mp4", "rotated90.mp4", "wide_pixels.mp4", "narrow_pixels.mkv"])
@pytest.mark.parametrize("max_pixels", [160 * 96, 5000, 2000])
def test_area_is_bounded_and_aspect_kept(zoo: Zoo, name: str, max_pixels: int) -> None:
    made = zoo[name]
    whole = load_video(made.path, Sampling(max_pixels=None)).frames
    clip = load_video(made.path, Sampling(max_pixels=max_pixels))
    _, height, width, _ = clip.frames.shape
    assert height * width <= max_pixels
    if whole[0].size // 3 <= max_pixels:
        assert clip.frames.shape == whole.shape
    else:
        assert height * width > 0.9 * max_pixels
    assert width / height == pytest.approx(whole.shape[2] / whole.shape[1], rel=0.06)
    assert numbers(clip) == made.shown_at([k / 2 for k in range(len(clip.frames))])


def test_sources_of_one_content_give_one_clip(zoo: Zoo) -> None:
    path = zoo.path("h264.mp4")
    expected = load_video(path).frames
    data = path.read_bytes()
    assert np.array_equal(load_video(str(path)).frames, expected)
    assert np.array_equal(load_video(data).frames, expected)
    with path.open("rb") as handle:
        handle.seek(100)
        assert np.array_equal(load_video(handle).frames, expected)
        assert not handle.closed
        assert np.array_equal(load_video(handle).frames, expected)
    assert np.array_equal(load_video(io.BytesIO(data)).frames, expected)


def test_a_raw_stream_has_no_times(zoo: Zoo) -> None:
    with pytest.raises(NotAVideo, match=r"no times.*VideoFrames"):
        load_video(zoo.path("raw.h264"))


@pytest.mark.parametrize("name", ["h264.mp4", "vfr.mp4", "gap.mkv"])
def test_metadata_gives_transformers_the_right_times(zoo: Zoo, name: str) -> None:
    clip = load_video(zoo.path(name), Sampling(fps=1.0))
    data = clip.metadata()
    times = np.array(data["frames_indices"]) / data["fps"]
    assert np.abs(times - clip.timestamps).max() <= 0.01 + 1e-9
    assert max(data["frames_indices"]) < data["total_num_frames"]
    assert (data["height"], data["width"]) == clip.frames.shape[1:3]
    assert data["duration"] == clip.duration
    assert set(data) == {
        "fps",
        "duration",
        "total_num_frames",
        "frames_indices",
        "width",
        "height",
        "video_backend",
    }


@pytest.mark.parametrize(
    "name", ["h264.mp4", "seek_open.mp4", "rotated90.mp4", "long_audio.mkv", "live.mkv", "h264.ts"]
)
def test_probe(zoo: Zoo, name: str) -> None:
    made, info = zoo[name], probe(zoo.path(name))
    assert info.item == str(made.path)
    assert info.fps == 30
    assert info.codec == "h264"
    assert info.has_audio is (name == "long_audio.mkv")
    assert info.rotation == (90 if name == "rotated90.mp4" else 0)
    if name in {"live.mkv", "h264.ts"}:
        assert info.duration is None
        assert info.num_frames_estimate is None
    else:
        assert info.duration == pytest.approx(made.duration, abs=0.01)
        assert info.num_frames_estimate == pytest.approx(len(made.times), abs=1)


def test_real_videos_decode(real_videos: list) -> None:
    assert real_videos
    for path in real_videos:
        with warnings.catch_warnings():
            warnings.simplefilter("error", VideoTruncated)
            clip = load_video(path, Sampling(max_pixels=64 * 64))
        info = probe(path)
        assert len(clip.frames) >= 1
        assert clip.frames.std() > 5
        assert not clip.damaged
        assert clip.duration == pytest.approx(info.duration, abs=0.1)
        assert (np.diff(clip.timestamps) >= 0).all()
        assert np.allclose(clip.timestamps, np.arange(len(clip.frames)) / 2, atol=1.1 / clip.fps)


def test_several_threads_read_as_one(zoo: Zoo) -> None:
    names = ["mpeg4_b.avi", "h264.mp4", "open_gop.mkv", "h264.ts"] * 3
    with ThreadPoolExecutor(4) as pool:
        clips = list(pool.map(lambda name: load_video(zoo.path(name)), names))
    for name, clip in zip(names, clips, strict=True):
        made = zoo[name]
        assert numbers(clip) == made.shown_at(np.arange(len(clip.frames)) / 2)
        check_times(clip, made)


def test_the_duration_of_a_container_counts_only_for_its_one_stream(zoo: Zoo) -> None:
    """Matroska without the tag with the duration of each stream."""
    assert probe(zoo.patched("h264.mkv", b"DURATION", b"ANYTHING")).duration == pytest.approx(3.0)
    both = zoo.patched("long_audio.mkv", b"DURATION", b"ANYTHING")
    assert probe(both).duration is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = load_video(both, Sampling(max_frames=4))
    assert numbers(clip) in ([0, 30, 60], [0, 15, 45, 60])


def test_pictures_before_the_key_frame_landed_on_are_left_out(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a decoder return those that follow it in the file and precede it in time: they lack their references."""
    frames = []
    for pts in (8, 9, 10, 11):
        frame = av.VideoFrame.from_ndarray(draw(pts), format="rgb24")
        frame.pts, frame.time_base = pts, Fraction(1, 10)
        frames.append(frame)
    times = {"pts": 10, "dts": 10, "duration": 1, "time_base": Fraction(1, 10)}
    packet = SimpleNamespace(size=1, is_keyframe=True, decode=lambda: frames, **times)
    altered = Altered(monkeypatch)
    path = zoo.path("seek.mp4")
    with path.open("rb") as handle, FrameReader(handle, "seek.mp4", Deadline(None, "seek.mp4")) as reader:
        first = next(reader)
        assert first.time == 0
        altered.methods["demux"] = lambda *_, **__: iter([packet])
        reader.seek(1.05)
        assert [timed.time for timed in reader] == [1.0, 1.1]


def test_flagged_and_timeless_frames_are_dropped_and_counted(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    def frame(pts: int | None, *, corrupt: bool = False) -> SimpleNamespace:
        flags = {"key_frame": pts == 0, "is_corrupt": corrupt, "interlaced_frame": False}
        return SimpleNamespace(pts=pts, time_base=Fraction(1, 10), duration=1, **flags)

    frames = [frame(0), frame(1, corrupt=True), frame(2), frame(None), frame(4)]
    packet = SimpleNamespace(
        pts=0, dts=0, duration=1, size=1, time_base=Fraction(1, 10), is_keyframe=True, is_discard=False
    )
    packet.decode = lambda: frames
    Altered(monkeypatch, demux=lambda *_, **__: iter([packet]))
    with zoo.path("h264.mp4").open("rb") as handle, FrameReader(handle, "x", Deadline(None, "x")) as reader:
        seen = [(timed.time, timed.ordinal, timed.errors) for timed in reader]
    assert seen == [(0.0, 0, 0), (0.2, 2, 1), (0.4, 4, 2)]
