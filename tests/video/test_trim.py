"""The cut file holds the frames of the stretch, at their times, as the numbers drawn on them show."""

from __future__ import annotations

import io
import os
import signal
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.zoo import Made, Recipe, Zoo, encode, open_files, read
from vidembed.video import (
    CorruptVideo,
    DecodeLimits,
    DecodeTimeout,
    EmptyFile,
    InvalidVideoInput,
    NotAFile,
    NotAVideo,
    NoVideoStream,
    Sampling,
    VideoError,
    VideoNotFound,
    VideoTruncated,
    load_video,
    probe,
    trim,
)
from vidembed.video.trim import MUXERS, Excerpt, cut_clip

pytestmark = pytest.mark.timeout(60)

TICK = 0.0015  # times in Matroska are whole milliseconds


def frames(path: Path) -> tuple[list[int | None], np.ndarray]:
    """The numbers of all frames of a file and their times (T,)."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = load_video(path, Sampling(fps=240, max_frames=20_000, max_pixels=None))
    assert not clip.damaged
    times, places = np.unique(clip.timestamps, return_index=True)
    return [read(clip.frames[place]) for place in places], times


def check(made: Made, excerpt: Excerpt, start: float, end: float | None) -> None:
    """The file holds what it says, in time, and what was asked for."""
    got, times = frames(excerpt.path)
    held = (made.times >= excerpt.start_s - TICK) & (made.times < excerpt.end_s - TICK)
    assert got == made.numbers[held].tolist()
    assert np.allclose(times, made.times[held] - excerpt.start_s, atol=TICK)
    assert excerpt.start_s <= start + TICK
    stop = made.duration if end is None else min(end, made.duration)
    wanted = (made.times >= start) & (made.times < stop - TICK)
    assert not (wanted & ~held).any()


def keys(path: Path) -> list[float]:
    """The times of key frames."""
    with av.open(str(path)) as source:
        packets = [packet for packet in source.demux(video=0) if packet.size]
    first = min(packet.pts for packet in packets)
    return [float((packet.pts - first) * packet.time_base) for packet in packets if packet.is_keyframe]


CASES = [
    ("h264.mp4", ".mp4"),
    ("h264.mp4", ".mov"),
    ("h264.mp4", ".m4v"),
    ("h264.mp4", ".ts"),
    ("h264.mkv", ".mkv"),
    ("h264.mkv", ".mp4"),
    ("h264.mov", ".mov"),
    ("h264.mov", ".mkv"),
    ("h264.flv", ".mp4"),
    ("h264.m2ts", ".m2ts"),
    ("h264.m2ts", ".mp4"),
    ("start5.ts", ".ts"),
    ("start5.ts", ".mov"),
    ("start5.mkv", ".mkv"),
    ("start5.mp4", ".mp4"),
    ("mpeg4_b.avi", ".avi"),
    ("mpeg4_b.avi", ".mkv"),
    ("mpeg4_b.avi", ".mp4"),
    ("mjpeg.avi", ".avi"),
    ("mpeg2.mpg", ".ts"),
    ("vp9.webm", ".webm"),
    ("vp9.webm", ".mkv"),
    ("vp9.webm", ".mp4"),
    ("hevc.mp4", ".mp4"),
    ("hevc.mp4", ".ts"),
    ("hevc10.mkv", ".mkv"),
    ("prores10.mov", ".mov"),
    ("vfr.mp4", ".mp4"),
    ("vfr.mp4", ".mkv"),
    ("vfr.mp4", ".ts"),
    ("vfr.mkv", ".mkv"),
    ("open_gop.mp4", ".mp4"),
    ("open_gop.mp4", ".mkv"),
    ("open_gop.mp4", ".ts"),
    ("open_gop.mkv", ".mov"),
    ("seek_open.mp4", ".mp4"),
    ("seek_open.mp4", ".ts"),
    ("seek.mkv", ".mkv"),
    ("rotated90.mp4", ".mp4"),
    ("rotated180.mp4", ".mov"),
    ("rotated270.mp4", ".mkv"),
    ("wide_pixels.mp4", ".mp4"),
    ("narrow_pixels.mkv", ".mkv"),
    ("fragmented.mp4", ".mp4"),
    ("live.mkv", ".mkv"),
    ("two_streams.mkv", ".ts"),
    ("one.mp4", ".mp4"),
    ("one_fps.mp4", ".mp4"),
    ("with_audio.mp4", ".mp4"),
]


@pytest.mark.parametrize(("name", "suffix"), CASES)
def test_the_file_holds_the_stretch(zoo: Zoo, tmp_path: Path, name: str, suffix: str) -> None:
    made = zoo[name]
    start, end = 0.5 * made.duration, 0.75 * made.duration
    excerpt = cut_clip(made.path, tmp_path / f"cut{suffix}", start, end)
    assert excerpt.path == tmp_path / f"cut{suffix}"
    check(made, excerpt, start, end)
    assert (probe(excerpt.path).width, probe(excerpt.path).height) == (probe(made.path).width, probe(made.path).height)
    assert [path.name for path in tmp_path.iterdir()] == [f"cut{suffix}"]
    assert excerpt.path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("name", "suffix"), [("h264.mp4", ".mp4"), ("h264.mp4", ".mov"), ("h264.mkv", ".mkv"), ("h264.ts", ".ts")]
)
def test_nothing_is_encoded_again(zoo: Zoo, tmp_path: Path, name: str, suffix: str) -> None:
    """The decoded frames are those of the source, bit by bit."""
    excerpt = cut_clip(zoo.path(name), tmp_path / f"cut{suffix}", 1.0, 1.5)
    with av.open(str(zoo.path(name))) as source, av.open(str(excerpt.path)) as cut:
        first = next(source.decode(video=0))
        source.seek(0)
        of_source = {
            round(float((frame.pts - first.pts) * frame.time_base), 2): frame.to_ndarray()
            for frame in source.decode(video=0)
        }
        of_cut = list(cut.decode(video=0))
        for frame in of_cut:
            time = float((frame.pts - of_cut[0].pts) * frame.time_base) + excerpt.start_s
            assert np.array_equal(frame.to_ndarray(), of_source[round(time, 2)])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["seek.mp4", "seek.mkv", "seek_open.mp4", "vfr.mp4", "start5.ts", "gap.mkv", "mpeg4_b.avi"]),
    data=st.data(),
)
def test_any_stretch(zoo: Zoo, tmp_path: Path, name: str, data: Any) -> None:
    made = zoo[name]
    start = data.draw(st.floats(0, made.duration - 0.05))
    end = data.draw(st.none() | st.floats(0.01, 5).map(lambda length: start + length))
    excerpt = cut_clip(made.path, tmp_path / ("cut" + Path(name).suffix), start, end, overwrite=True)
    check(made, excerpt, start, end)
    assert excerpt.start_s == pytest.approx(max(key for key in keys(made.path) if key <= start + 1e-6), abs=TICK)


def test_transport_streams_are_of_the_kind_that_the_suffix_says(zoo: Zoo, tmp_path: Path) -> None:
    for suffix, size, sync in ((".ts", 188, 0), (".m2ts", 192, 4), (".mts", 192, 4)):  # BDAV: a time before each packet
        data = cut_clip(zoo.path("h264.mp4"), tmp_path / f"cut{suffix}", 1.0, 2.0).path.read_bytes()
        assert len(data) % size == 0
        assert set(data[sync::size]) == {0x47}


@pytest.mark.parametrize("number", [0, 15, 30, 45])
@pytest.mark.parametrize("name", ["seek.mp4", "seek.mkv"])
def test_from_key_frame_to_key_frame_is_exact(zoo: Zoo, tmp_path: Path, name: str, number: int) -> None:
    excerpt = cut_clip(zoo.path(name), tmp_path / "cut.mkv", number / 30, (number + 15) / 30)
    assert frames(excerpt.path)[0] == list(range(number, number + 15))
    assert (excerpt.start_s, excerpt.end_s) == pytest.approx((number / 30, (number + 15) / 30), abs=TICK)


def test_the_times_of_a_cut_begin_at_zero(zoo: Zoo, tmp_path: Path) -> None:
    for suffix in (".mp4", ".mov", ".mkv"):
        excerpt = cut_clip(zoo.path("start5.mp4"), tmp_path / f"cut{suffix}", 2.0)
        with av.open(str(excerpt.path)) as cut:
            packets = [packet for packet in cut.demux(video=0) if packet.size]
        assert min(packet.pts for packet in packets) == 0
        dts = [packet.dts for packet in packets if packet.dts is not None]
        assert dts == sorted(set(dts))


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_rotation_is_kept(zoo: Zoo, tmp_path: Path, degrees: int, suffix: str) -> None:
    excerpt = cut_clip(zoo.path(f"rotated{degrees}.mp4"), tmp_path / f"cut{suffix}", 0.5, 1.0)
    assert probe(excerpt.path).rotation == probe(zoo.path(f"rotated{degrees}.mp4")).rotation == degrees


@pytest.mark.parametrize("name", ["with_audio.mp4", "long_audio.mp4", "long_audio.mkv"])
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts"])
def test_sound_goes_along_in_time(zoo: Zoo, tmp_path: Path, name: str, suffix: str) -> None:
    excerpt = cut_clip(zoo.path(name), tmp_path / f"cut{suffix}", 1.5, 2.25)
    with av.open(str(zoo.path(name))) as source:
        kept = [
            (float(packet.pts * packet.time_base), bytes(packet))
            for packet in source.demux(audio=0)
            if packet.size and excerpt.start_s <= packet.pts * packet.time_base < excerpt.end_s
        ]
    with av.open(str(excerpt.path)) as cut:
        found = [packet for packet in cut.demux() if packet.size]
        zero = min(packet.pts * packet.time_base for packet in found if packet.stream.type == "video")
        sound = [packet for packet in found if packet.stream.type == "audio"]
        assert next(cut.decode(audio=0), None) is None  # read to the end
        times = [float(packet.pts * packet.time_base - zero) for packet in sound]
        assert times == pytest.approx([time - excerpt.start_s for time, _ in kept], abs=TICK)
        if suffix != ".ts":  # there each packet has a header of its own
            assert [bytes(packet) for packet in sound] == [data for _, data in kept]
    with av.open(str(excerpt.path)) as cut:
        assert sum(frame.samples for frame in cut.decode(audio=0)) >= 1024 * (len(kept) - 2)


def test_sound_that_lies_behind_the_picture(zoo: Zoo, tmp_path: Path) -> None:
    """All packets of sound after all of the picture, as some recorders write."""
    path = tmp_path / "apart.mkv"
    with av.open(str(zoo.path("with_audio.mp4"))) as old, av.open(str(path), "w") as new:
        outs = {stream.index: new.add_stream_from_template(stream, opaque=True) for stream in old.streams}
        packets = [packet for packet in old.demux() if packet.size]
        for packet in sorted(packets, key=lambda packet: packet.stream.type, reverse=True):
            packet.stream = outs[packet.stream.index]
            new.mux(packet)
    first = 0.064  # FFmpeg starts the file with the packet of sound that comes before the first frame
    excerpt = cut_clip(path, tmp_path / "cut.mkv", first + 1.5, first + 2.25)
    with av.open(str(excerpt.path)) as cut:
        sound = [float(packet.pts * packet.time_base) for packet in cut.demux(audio=0) if packet.size]
    assert len(sound) == 21
    assert max(sound) < excerpt.end_s - excerpt.start_s


def test_every_video_stream_goes_along(zoo: Zoo, tmp_path: Path) -> None:
    excerpt = cut_clip(zoo.path("two_streams.mkv"), tmp_path / "cut.mkv", 0.75, 1.125)
    with av.open(str(excerpt.path)) as cut:
        sizes = [(stream.width, stream.height) for stream in cut.streams.video]
        found = [[read(frame.to_ndarray(format="rgb24")) for frame in cut.decode(video=0)]]
        cut.seek(0)
        found.append([read(frame.to_ndarray(format="rgb24")) for frame in cut.decode(video=1)])
    assert sizes == [(160, 96), (320, 192)]
    assert found[1] == list(range(12, 34))
    assert found[0] == [1000 + number for number in found[1]]


def subtitled(path: Path, source: Path) -> Path:
    """A copy of a video with a line of text each second, and a font."""
    with av.open(str(source)) as old, av.open(str(path), "w") as new:
        video = new.add_stream_from_template(old.streams.video[0], opaque=True)
        text = new.add_mux_stream("subrip")
        text.metadata["language"] = "fin"
        new.add_attachment("font.ttf", "font/ttf", b"no font")
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = video
                new.mux(packet)
        for second in range(3):
            packet = av.Packet(f"second {second}".encode())
            packet.pts = packet.dts = second * 1000 + 100
            packet.duration, packet.time_base, packet.stream = 500, Fraction(1, 1000), text
            new.mux(packet)
    return path


def test_subtitles_go_along_where_they_can(zoo: Zoo, tmp_path: Path) -> None:
    source = subtitled(tmp_path / "text.mkv", zoo.path("h264.mkv"))
    kept = cut_clip(source, tmp_path / "cut.mkv", 1.0, 2.0)
    with av.open(str(kept.path)) as cut:
        assert cut.streams.subtitles[0].language == "fin"
        lines = [(packet.pts, bytes(packet)) for packet in cut.demux(subtitles=0) if packet.size]
    assert lines == [(100, b"second 1")]
    assert kept.left_out == ("attachment stream 2 (unknown codec)",)
    without = cut_clip(source, tmp_path / "cut.mp4", 1.0, 2.0)
    assert without.left_out == ("subtitle stream 1 (subrip)", "attachment stream 2 (unknown codec)")
    check(zoo["h264.mkv"], without, 1.0, 2.0)


def test_a_cover_picture_is_left_out(zoo: Zoo, tmp_path: Path) -> None:
    source = tmp_path / "covered.mp4"
    with (
        av.open(str(zoo.path("h264.mp4"))) as old,
        av.open(str(zoo.path("cover.mp4"))) as cover,
        av.open(str(source), "w") as new,
    ):
        parts = [(old, old.streams[0]), (cover, cover.streams.video[0])]
        outs = [new.add_stream_from_template(stream, opaque=True) for _, stream in parts]
        outs[1].disposition = av.stream.Disposition.attached_pic
        for (container, stream), out in zip(parts, outs, strict=True):
            for packet in container.demux(stream):
                if packet.size:
                    packet.stream = out
                    new.mux(packet)
    excerpt = cut_clip(source, tmp_path / "cut.mp4", 1.0, 2.0)
    assert excerpt.left_out == ("video stream 1 (mjpeg)",)
    check(zoo["h264.mp4"], excerpt, 1.0, 2.0)


# -- times -------------------------------------------------------------------------------------------------------------


def test_a_still_that_lasts_is_the_frame_on_show(zoo: Zoo, tmp_path: Path) -> None:
    for name in ("gap.mp4", "gap.mkv"):  # nothing new from 1 to 15 s
        excerpt = cut_clip(zoo.path(name), tmp_path / ("cut" + Path(name).suffix), 8.0, 12.0)
        assert frames(excerpt.path)[0] == list(range(30))


def test_hidden_frames_are_told_of(zoo: Zoo, tmp_path: Path) -> None:
    """The video begins 3.3 s after its only key frame; what an edit list hides is in the cut, and start_s says so."""
    excerpt = cut_clip(zoo.path("cut.mp4"), tmp_path / "cut.mkv", 0.0, 1.0)
    assert (excerpt.start_s, excerpt.end_s) == pytest.approx((-3.3, 1.0), abs=0.1)
    assert frames(excerpt.path)[0][99:129] == list(range(99, 129))


@pytest.mark.parametrize("name", ["seek.mp4", "seek.mkv"])
def test_a_seek_that_lands_too_late_is_made_good(zoo: Zoo, tmp_path: Path, name: str, monkeypatch: Any) -> None:
    asked: list[int | None] = []
    honest = trim.read_packets

    def late(container: Any, main: Any, streams: Any, seek: int | None, *rest: Any) -> Any:
        asked.append(seek)
        return honest(container, main, streams, None if seek is None else seek + int(2 / main.time_base), *rest)

    monkeypatch.setattr(trim, "read_packets", late)
    excerpt = cut_clip(zoo.path(name), tmp_path / "cut.mkv", 10.0, 11.0)
    assert len(asked) == 3
    assert asked[0] is not None
    assert asked[1:] == [None, None]
    check(zoo[name], excerpt, 10.0, 11.0)


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "start5.ts"])
def test_a_start_after_the_end_is_refused(zoo: Zoo, tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidVideoInput, match="after the end of the video"):
        cut_clip(zoo.path(name), tmp_path / "cut.mkv", 3.5, 4.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("start", "end"), [(-1.0, None), (2.0, 1.0), (1.0, 1.0), (float("nan"), None), (0.0, "2")])
def test_bad_times_are_refused(zoo: Zoo, tmp_path: Path, start: Any, end: Any) -> None:
    with pytest.raises(InvalidVideoInput):
        cut_clip(zoo.path("h264.mp4"), tmp_path / "cut.mp4", start, end)


def test_joined_recordings_are_refused_where_the_clock_starts_again(zoo: Zoo, tmp_path: Path) -> None:
    check(zoo["joined.ts"], cut_clip(zoo.path("joined.ts"), tmp_path / "first.ts", 0.5, 1.5), 0.5, 1.5)
    with pytest.raises(CorruptVideo, match="clock starts again"):
        cut_clip(zoo.path("joined.ts"), tmp_path / "cut.ts", 2.5, 4.0)


def test_a_file_that_is_cut_short(zoo: Zoo, tmp_path: Path) -> None:
    source = zoo.cut("faststart.mp4", 0.5)
    with pytest.warns(VideoTruncated, match="what can be read ends at") as caught:
        excerpt = cut_clip(source, tmp_path / "cut.mp4", 1.0)
    assert [entry.filename for entry in caught] == [__file__]
    assert excerpt.end_s < 8
    got, _ = frames(excerpt.path)
    assert len(got) > 60
    assert got == list(range(30, 30 + len(got)))


def test_the_time_limit(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(DecodeTimeout):
        cut_clip(zoo.path("seek.mp4"), tmp_path / "cut.mp4", 1.0, limits=DecodeLimits(timeout_s=1e-9))
    assert list(tmp_path.iterdir()) == []


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("h264.mp4", "cut.webm", r"h264 cannot be written to a .webm file here; use .mp4 or .mov or .mkv or .ts"),
        ("with_audio.mp4", "cut.webm", r"aac, h264 cannot be written to a .webm"),
        ("vp9.webm", "cut.mov", r"vp9 cannot be written to a .mov file here; use .mp4 or .mkv or .webm"),
        ("vp9.webm", "cut.ts", r"vp9 cannot be written to a .ts file"),
        ("prores10.mov", "cut.mp4", r"prores cannot be written to a .mp4 file here; use .mov or .mkv"),
        ("wmv2.wmv", "cut.mkv", r"wmv2 cannot be written to a .mkv file here; use .wmv"),
        ("h264.mp4", "cut.avi", r"AVI does not store times"),
        ("rotated90.mp4", "cut.ts", r"cannot store the rotation"),
        ("h264.mp4", "cut.exe", r"ends in '.exe'; it must end in one of .mp4"),
        ("h264.mp4", "nowhere/cut.mp4", r"or its folder does not exist"),
        ("h264.mp4", ".", r"is a folder"),
    ],
)
def test_what_cannot_be_written(zoo: Zoo, tmp_path: Path, name: str, target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cut_clip(zoo.path(name), tmp_path / target, 0.5, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_the_suffix_of_the_source_is_the_default(zoo: Zoo, tmp_path: Path) -> None:
    assert cut_clip(zoo.path("h264.mov"), tmp_path / "a", 1.0, 2.0).path == tmp_path / "a.mov"
    assert cut_clip(zoo.path("h264.flv"), tmp_path / "b", 1.0, 2.0).path == tmp_path / "b.flv"
    assert cut_clip(zoo.path("vp9.webm").read_bytes(), tmp_path / "c", 1.0, 2.0).path == tmp_path / "c.mkv"
    with pytest.raises(FileExistsError):
        cut_clip(zoo.path("h264.mov"), tmp_path / "a", 1.0, 2.0)
    assert {MUXERS[path.suffix] for path in tmp_path.iterdir()} == {"mov", "flv", "matroska"}


def test_nothing_is_overwritten_unasked(zoo: Zoo, tmp_path: Path) -> None:
    target = tmp_path / "cut.mp4"
    target.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="exists"):
        cut_clip(zoo.path("h264.mp4"), target, 1.0, 2.0)
    with pytest.raises(ValueError, match="cannot be written"):
        cut_clip(zoo.path("wmv2.wmv"), tmp_path / "cut.mp4", 1.0, 2.0, overwrite=True)
    assert target.read_bytes() == b"mine"
    cut_clip(zoo.path("h264.mp4"), target, 1.0, 2.0, overwrite=True)
    assert probe(target).codec == "h264"


def test_the_source_is_never_the_target(zoo: Zoo, tmp_path: Path) -> None:
    source = tmp_path / "a.mp4"
    source.write_bytes(zoo.path("h264.mp4").read_bytes())
    (tmp_path / "link.mp4").symlink_to(source)
    os.link(source, tmp_path / "hard.mp4")
    for target in (source, tmp_path / "link.mp4", tmp_path / "hard.mp4", tmp_path / "a"):
        with pytest.raises((ValueError, FileExistsError), match="the source itself"):
            cut_clip(source, target, 1.0, 2.0, overwrite=True)
    with source.open("rb") as handle, pytest.raises(ValueError, match="the source itself"):
        cut_clip(handle, source, 1.0, 2.0, overwrite=True)
    assert source.read_bytes() == zoo.path("h264.mp4").read_bytes()


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="the system has no limit on the size of files")
def test_a_target_that_cannot_be_written_is_left_as_it_was(zoo: Zoo, tmp_path: Path) -> None:
    import resource

    target = tmp_path / "cut.mp4"
    target.write_bytes(b"mine")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as on a full disk, a write fails half-way
    try:
        with pytest.raises(OSError, match="File too large"):
            cut_clip(zoo.path("h264.mp4"), target, 1.0, 2.0, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert target.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["cut.mp4"]


# -- sources -----------------------------------------------------------------------------------------------------------


def test_bytes_and_file_objects(zoo: Zoo, tmp_path: Path) -> None:
    data = zoo.path("h264.mp4").read_bytes()
    check(zoo["h264.mp4"], cut_clip(data, tmp_path / "a.mp4", 1.5, 2.0), 1.5, 2.0)
    check(zoo["h264.mp4"], cut_clip(io.BytesIO(data), tmp_path / "b.mkv", 1.5, 2.0), 1.5, 2.0)


def test_bad_sources(zoo: Zoo, tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("ffconcat version 1.0\nfile /etc/passwd\n")
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(10_000))
    sources: list[tuple[Any, type[VideoError]]] = [
        (tmp_path / "gone.mp4", VideoNotFound),
        (tmp_path, NotAFile),
        (tmp_path / "empty.mp4", EmptyFile),
        (tmp_path / "text.mp4", NotAVideo),
        (tmp_path / "noise.mp4", NotAVideo),
        (zoo.path("raw.h264"), NotAVideo),
        (zoo.path("cover.mp4"), NoVideoStream),
        (zoo.path("audio.m4a"), NoVideoStream),
        (zoo.cut("h264.mp4", 0.5), CorruptVideo),
        ("https://example.org/a.mp4", InvalidVideoInput),
        (17, InvalidVideoInput),
    ]
    for source, kind in sources:
        with pytest.raises(kind):
            cut_clip(source, tmp_path / "cut.mkv", 0.0, 1.0)
    assert not (tmp_path / "cut.mkv").exists()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["with_audio.mp4", "long_audio.mkv", "start5.ts", "mpeg4_b.avi", "vp9.webm", "hevc.mp4"]),
    suffix=st.sampled_from([".mp4", ".mkv", ".mov", ".ts"]),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=20),
    share=st.floats(0.2, 1),
)
def test_damaged_files_give_a_file_or_an_error_of_ours(
    zoo: Zoo, tmp_path: Path, name: str, suffix: str, places: list[tuple[float, int]], share: float
) -> None:
    data = bytearray(zoo.path(name).read_bytes())
    data = data[: int(share * len(data))]
    for place, value in places:
        data[int(place**3 * (len(data) - 1))] = value  # most of them in the headers
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VideoTruncated)
        try:
            limits = DecodeLimits(timeout_s=20)
            excerpt = cut_clip(bytes(data), tmp_path / f"cut{suffix}", 0.5, 1.5, overwrite=True, limits=limits)
        except (VideoError, ValueError):
            pass
        else:
            assert excerpt.end_s > excerpt.start_s
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_nothing_stays_open(zoo: Zoo, tmp_path: Path) -> None:
    cut_clip(zoo.path("with_audio.mp4"), tmp_path / "warm.mp4", 1.0, 2.0)
    before = open_files()
    for number in range(5):
        cut_clip(zoo.path("with_audio.mp4"), tmp_path / f"{number}.mp4", 1.0, 2.0)
        with pytest.raises(CorruptVideo):
            cut_clip(zoo.cut("h264.mp4", 0.5), tmp_path / "bad.mp4", 1.0, 2.0)
    assert open_files() == before


def test_real_videos(real_videos: list[Path], tmp_path: Path) -> None:
    for path in real_videos:
        if path.suffix == ".gif":
            continue
        end = (probe(path).duration or 4.0) / 2
        excerpt = cut_clip(path, tmp_path / f"{path.stem}-cut{path.suffix}", end / 2, end)
        info = probe(excerpt.path)
        assert (info.rotation, info.has_audio, info.codec) == (
            probe(path).rotation, probe(path).has_audio, probe(path).codec,
        )  # fmt: skip
        assert excerpt.start_s <= end / 2 + TICK
        assert excerpt.end_s >= end - 0.1
        clip = load_video(excerpt.path, Sampling(fps=2))
        assert clip.duration == pytest.approx(excerpt.end_s - excerpt.start_s, abs=0.05)


# -- what a copy must not lose -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "suffix", "muxer"),
    [
        ("wmv2", ".wmv", "asf"),
        ("msmpeg4v3", ".asf", "asf"),
        ("flv", ".flv", "flv"),
        ("h263", ".3gp", "3gp"),
        ("h263", ".mov", "mov"),
        ("mpeg4", ".3g2", "3g2"),
    ],
)
def test_old_codecs_are_copied_to_their_own_containers(tmp_path: Path, codec: str, suffix: str, muxer: str) -> None:
    source = tmp_path / f"source{suffix}"
    encode(source, Recipe(codec=codec, frames=40, gop=10, b_frames=0, format=muxer, size=(352, 288)))
    excerpt = cut_clip(source, tmp_path / f"cut{suffix}", 0.5, 1.0)
    (copied, times), (whole, all_times) = frames(excerpt.path), frames(source)
    first = int(np.searchsorted(all_times, excerpt.start_s - TICK))
    assert excerpt.start_s <= 0.5
    assert excerpt.end_s >= 1.0
    assert len(copied) >= 15
    assert copied == whole[first : first + len(copied)]
    assert np.allclose(times + excerpt.start_s, all_times[first : first + len(copied)], atol=TICK)


def test_the_sound_of_a_disc_stays_on_discs(tmp_path: Path) -> None:
    source = tmp_path / "disc.m2ts"
    with av.open(str(source), "w", format="mpegts", options={"mpegts_m2ts_mode": "1"}) as container:
        video = container.add_stream("mpeg2video", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_bluray", rate=48000)
        for number in range(10):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts = number
            container.mux(video.encode(frame))
            samples = np.zeros((1, 2 * 1920), dtype=np.int16)
            audio = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
            audio.sample_rate, audio.pts = 48000, number * 1920
            container.mux(sound.encode(audio))
        for stream in (video, sound):
            container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"pcm_bluray cannot be written to a \.ts file here; use \.m2ts$"):
        cut_clip(source, tmp_path / "cut.ts", 0.0)
    with av.open(str(cut_clip(source, tmp_path / "cut.m2ts", 0.0).path)) as copied:
        assert [stream.codec_context.name for stream in copied.streams] == ["mpeg2video", "pcm_bluray"]


def test_transparency_is_kept_or_refused(tmp_path: Path) -> None:
    source = tmp_path / "clear.webm"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuva420p"
        stream.metadata["alpha_mode"] = "1"
        for number in range(6):
            picture = np.full((48, 64, 4), 30 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format="yuva420p")))
        container.mux(stream.encode())

    def layers(path: Path) -> tuple[set[str], list[bytes]]:
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
            layers = [bytes(side) for packet in packets for side in packet.iter_sidedata()]
            return {key.lower() for key in container.streams.video[0].metadata}, layers

    whole = layers(source)[1]
    assert len(whole) == 6
    for suffix in (".webm", ".mkv"):
        tags, copied = layers(cut_clip(source, tmp_path / f"cut{suffix}", 0.0).path)
        assert "alpha_mode" in tags
        assert copied == whole
    with pytest.raises(ValueError, match=r"\.mp4 file cannot store the transparency \(alpha_mode\)"):
        cut_clip(source, tmp_path / "cut.mp4", 0.0)
    assert not (tmp_path / "cut.mp4").exists()


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".ts"])
@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_colours_are_kept_or_refused(tmp_path: Path, codec: str, suffix: str) -> None:
    source = tmp_path / "hlg.mp4"
    with av.open(str(source), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace = 9, 18, 9
        for number in range(6):
            frame = av.VideoFrame(64, 48, "yuv420p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    if (codec, suffix) == ("mpeg4", ".ts"):  # they are in the container alone, and this one has no place for them
        with pytest.raises(ValueError, match=r"cannot store the colour primaries, colour transfer, colour matrix"):
            cut_clip(source, tmp_path / "cut.ts", 0.0)
        return
    with av.open(str(cut_clip(source, tmp_path / f"cut{suffix}", 0.0).path)) as copied:
        context = copied.streams.video[0].codec_context
        assert (context.color_primaries, context.color_trc, context.colorspace) == (9, 18, 9)


def test_a_rotated_webm(tmp_path: Path) -> None:
    speed = {"deadline": "realtime", "cpu-used": "8"}
    encode(tmp_path / "a.webm", Recipe("libvpx-vp9", frames=40, options=speed, rotation=90))
    for suffix in (".webm", ".mp4"):
        excerpt = cut_clip(tmp_path / "a.webm", tmp_path / f"cut{suffix}", 1.0)
        assert frames(excerpt.path)[0] == list(range(30, 40))
