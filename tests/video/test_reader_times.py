"""Times that containers get wrong: clocks that jump, declared durations that are not true, streams that begin late."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.zoo import Zoo, draw, read
from vidembed.video import (
    DecodePool,
    InvalidVideoInput,
    Sampling,
    VideoSegment,
    VideoTruncated,
    Windows,
    load_segments,
    load_video,
    probe,
)
from vidembed.video.segments import lay_out
from vidembed.video.trim import cut_clip

RATE, FRAMES = 10, 60
few = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


def silence(stream: Any, seconds: float) -> list[Any]:
    packets = []
    for number in range(int(seconds * 48000 / 1152)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), dtype=np.int16), format="s16p", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48000, number * 1152, Fraction(1, 48000)
        packets += stream.encode(frame)
    return [packet for packet in [*packets, *stream.encode()] if packet.size]


def make(
    path: Path,
    *,
    muxer: str | None = None,
    codec: str = "libx264",
    video_at: float = 0.0,
    sound_at: float | None = None,
    sound_s: float = 6.0,
    place: Callable[[int], float] = lambda number: number / RATE,
    tags: dict[str, str] | None = None,
) -> Path:
    """Write frames that carry their numbers, with the times that ``place`` says, and sound."""
    with av.open(str(path), "w", format=muxer) as container:
        video: Any = container.add_stream(codec, rate=RATE)
        video.width, video.height, video.pix_fmt = 160, 96, "yuv420p"
        video.options = {"preset": "ultrafast", "crf": "18"} if codec == "libx264" else {}
        video.codec_context.gop_size, video.codec_context.max_b_frames = RATE, 0
        if codec != "libx264":
            video.bit_rate = 3_000_000
        video.metadata.update(tags or {})
        sound: Any = None if sound_at is None else container.add_stream("mp2", rate=48000, layout="mono")
        packets = []
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(draw(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            packets += video.encode(frame)
        packets = [packet for packet in [*packets, *video.encode()] if packet.size]
        for number, packet in enumerate(packets):
            packet.time_base = Fraction(1, 90000)
            packet.pts = packet.dts = round((video_at + place(number)) * 90000)
            packet.duration = 90000 // RATE
        if sound is not None:
            for packet in silence(sound, sound_s):
                shift = round(sound_at / packet.time_base)
                packet.pts, packet.dts = packet.pts + shift, packet.pts + shift
                packets.append(packet)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


def numbers(clip: Any) -> list[int | None]:
    return [read(frame) for frame in clip.frames]


def with_media_duration(path: Path, seconds: float) -> Path:
    """Write another duration into the header of each track (mdhd)."""
    data = bytearray(path.read_bytes())
    place = data.find(b"mdhd")
    while place >= 0:
        (scale,) = struct.unpack_from(">I", data, place + 16)
        struct.pack_into(">I", data, place + 20, round(seconds * scale))
        place = data.find(b"mdhd", place + 4)
    path.write_bytes(data)
    return path


# -- clocks that jump --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [11.0, 3600.0, 90_000.0])
def test_a_jump_in_a_transport_stream_is_closed(tmp_path: Path, jump: float) -> None:
    path = make(tmp_path / "a.ts", place=lambda number: number / RATE + (jump if number >= 30 else 0))
    clip = load_video(path)
    assert clip.duration == pytest.approx(6.0, abs=0.01)
    assert numbers(clip) == [5 * k for k in range(12)]
    assert lay_out(path, Windows(2.0)).segments == [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0)]
    assert probe(path, scan=True).discontinuities == 1
    assert probe(path).discontinuities is None


@few
@given(second_at=st.floats(0, 26_000))
def test_any_jump_of_a_transport_stream(tmp_path: Path, second_at: float) -> None:
    """Up to ten seconds, FFmpeg takes a rise for one of time; over that, and any fall, starts a new clock."""
    first = make(tmp_path / "first.ts", video_at=200.0).read_bytes()
    second = make(tmp_path / "second.ts", video_at=second_at).read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(first + second)
    gap = second_at - 206.0
    kept = gap if 0 <= gap <= 10 else 0.0
    clip = load_video(path, Sampling(max_frames=1000))
    assert clip.duration == pytest.approx(12.0 + kept, abs=0.6)
    found = [number for number in numbers(clip) if number is not None]
    assert found[:12] == [5 * k for k in range(12)]
    if not kept and gap < -1:
        assert found[12:] == [5 * k for k in range(12)]


def test_a_fall_that_is_taken_for_a_wrap_of_33_bits(tmp_path: Path) -> None:
    first = make(tmp_path / "late.ts", video_at=100.0).read_bytes()
    second = make(tmp_path / "early.ts", video_at=10.0).read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(first + second)
    clip = load_video(path)
    assert clip.duration == pytest.approx(12.0, abs=0.05)
    assert numbers(clip) == [5 * k for k in range(12)] * 2


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_segments_without_a_new_frame_are_one(tmp_path: Path, suffix: str) -> None:
    path = make(tmp_path / f"a{suffix}", place=lambda number: number / RATE + (3600 if number >= 30 else 0))
    layout = lay_out(path, Windows(10.0))
    assert layout.segments == [(0.0, 10.0), (10.0, 3600.0), (3596.0, 3606.0)]
    clips = list(load_segments(path, layout.segments, Sampling(max_frames=4)))
    assert set(numbers(clips[1])) == {29}
    assert numbers(clips[2]) == [29, 29, 29, 35]
    with DecodePool(workers=1) as pool:
        assert pool.submit(path, Sampling(max_frames=4), cut=Windows(10.0)).layout().segments == layout.segments


# -- declared durations ------------------------------------------------------------------------------------------------


def test_sound_that_is_longer_in_asf(tmp_path: Path) -> None:
    path = make(tmp_path / "a.wmv", muxer="asf", codec="wmv2", sound_at=0.0, sound_s=400)
    assert probe(path).duration is None
    assert numbers(load_video(path)) == [5 * k for k in range(12)]
    assert lay_out(path, Windows(2.0)).segments[-1][1] == pytest.approx(6.0, abs=0.1)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts"])
def test_a_video_that_begins_long_after_the_sound(tmp_path: Path, suffix: str) -> None:
    path = make(tmp_path / f"a{suffix}", video_at=20.0, sound_at=0.0, sound_s=40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = load_video(path)
        layout = lay_out(path, Windows(2.0))
    assert numbers(clip) == [5 * k for k in range(12)]
    assert clip.start_s == pytest.approx(20.0, abs=0.05)
    assert layout.segments[0][0] == clip.start_s
    assert layout.duration == pytest.approx(26.0, abs=0.05)


def test_a_tag_that_a_trim_left_behind(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mkv", sound_at=0.0, tags={"DURATION-eng": "01:00:00.000000000"})
    with av.open(str(path)) as container:
        assert "DURATION-eng" in container.streams.video[0].metadata
    assert probe(path).duration == pytest.approx(6.0, abs=0.01)
    assert lay_out(path, Windows(2.0)).segments[-1] == (4.0, 6.0)
    assert len(load_video(path).frames) == 12


@few
@given(declared=st.floats(0.2, 2000))
def test_any_declared_duration(tmp_path: Path, declared: float) -> None:
    path = with_media_duration(make(tmp_path / "a.mp4"), declared)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no frame is missing, so nothing is truncated
        layout = lay_out(path, Windows(2.0))
        whole = load_video(path)
        clips = list(load_segments(path, layout.segments))
    assert numbers(whole) == [5 * k for k in range(12)]
    seen = {number for clip in clips for number in numbers(clip)}
    assert {5 * k for k in range(12)} <= seen
    assert layout.segments[-1][1] == pytest.approx(6.0, abs=1.01)
    with DecodePool(workers=1) as pool:
        ((start, end),) = pool.submit(path, Sampling()).layout().segments
    assert (start, end) == (0.0, pytest.approx(6.0, abs=0.11))


def test_a_joined_file_that_declares_its_first_part(tmp_path: Path) -> None:
    part = make(tmp_path / "part.mkv").read_bytes()
    path = tmp_path / "joined.mkv"
    path.write_bytes(part + part)
    layout = lay_out(path, Windows(2.0))
    assert layout.segments[-1] == pytest.approx((10.0, 12.0), abs=0.02)
    clips = load_segments(path, layout.segments)
    assert [number for clip in clips for number in numbers(clip)] == [5 * k for k in range(12)] * 2


def test_a_file_whose_tail_is_gone_keeps_its_segments(zoo: Zoo) -> None:
    path = zoo.cut("seek.mkv", 0.5)
    with pytest.warns(VideoTruncated, match=r"seek\.mkv: it ends at"):
        layout = lay_out(path, Windows(2.0))
    assert 8 < layout.duration < 22
    clips = list(load_segments(path, layout.segments))
    assert [read(clip.frames[0]) for clip in clips[:4]] == [0, 60, 120, 180]
    with pytest.raises(InvalidVideoInput, match="declares"):
        load_video(VideoSegment(path, 28.0, 29.0))


# -- streams that begin late -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize(("video_at", "sound_at", "start"), [(2.0, 0.0, 2.0), (0.0, 2.0, 0.0), (5.0, 3.0, 2.0)])
def test_times_are_those_of_a_player(
    tmp_path: Path, suffix: str, video_at: float, sound_at: float, start: float
) -> None:
    path = make(tmp_path / f"a{suffix}", video_at=video_at, sound_at=sound_at)
    first = probe(path).start_s
    assert first == pytest.approx(start, abs=0.03)
    clip = load_video(VideoSegment(path, first + 1.0, first + 3.0))
    assert numbers(clip) == [10, 15, 20, 25]
    assert clip.start_s == first + 1.0
    layout = lay_out(path, Windows(2.0))
    assert layout.segments[0] == pytest.approx((first, first + 2.0))
    assert [read(each.frames[0]) for each in load_segments(path, layout.segments)] == [0, 20, 40]
    excerpt = cut_clip(path, tmp_path / "cut.mkv", first + 2.0, first + 3.0)
    assert (excerpt.start_s, excerpt.end_s) == pytest.approx((first + 2.0, first + 3.0), abs=0.03)
    with av.open(str(excerpt.path)) as cut:
        assert read(next(cut.decode(video=0)).to_ndarray(format="rgb24")) == 20
    if first:
        assert numbers(load_video(VideoSegment(path, 0.0, first + 1.0))) == [0, 5]
        with pytest.raises(InvalidVideoInput, match="first frame of the video comes at"):
            load_video(VideoSegment(path, 0.0, first / 2))


@few
@given(video_at=st.integers(0, 40), sound_at=st.integers(0, 40), suffix=st.sampled_from([".mp4", ".mkv"]))
def test_any_start_of_picture_and_sound(tmp_path: Path, video_at: int, sound_at: int, suffix: str) -> None:
    path = make(tmp_path / f"a{suffix}", video_at=video_at / RATE, sound_at=sound_at / RATE)
    with av.open(str(path)) as container:
        zero = min(float(stream.start_time * stream.time_base) for stream in container.streams)
        times = [float(frame.pts * frame.time_base) - zero for frame in container.decode(video=0)]
    for time in (times[0] + 0.05, 0.05 + times[0] + 2.0, times[-1]):
        shown = int(np.searchsorted(times, time + 1e-3, side="right")) - 1
        assert read(load_video(VideoSegment(path, time, time + 0.01)).frames[0]) in {shown, shown - (time == times[-1])}
