"""Which of several video streams is read, and which pictures are no videos."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from tests.clips import moving_square, write_video
from tests.pictures import write_plain
from tests.zoo import Zoo, draw, read
from vidembed.video import (
    InvalidVideoInput,
    NotAVideo,
    NoVideoStream,
    Sampling,
    VideoFrames,
    VideoSegment,
    load_segments,
    load_video,
    probe,
)
from vidembed.video.trim import cut_clip

SVT = {"preset": "10", "svtav1-params": "lp=1", "crf": "8"}
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}  # of MP4; Matroska has no such option


def write(path: Path, *tracks: dict[str, Any], muxer: dict[str, str] | None = None) -> Path:
    """Write tracks of stamped pictures, 10 a second; track ``k`` is numbered from ``1000 * k``."""
    with av.open(str(path), "w", options=muxer or {}) as container:
        streams: list[Any] = []
        for track in tracks:
            stream: Any = container.add_stream(track.get("codec", "libx264"), rate=10)
            stream.width, stream.height = track.get("size", (160, 96))
            stream.pix_fmt = track.get("pix_fmt", "yuv420p")
            if "disposition" in track:
                stream.disposition = track["disposition"]
            streams.append(stream)
        for tick in range(20):
            for number, (stream, track) in enumerate(zip(streams, tracks, strict=True)):
                if track.get("first", 0) <= tick < track.get("first", 0) + track.get("frames", 20):
                    picture = draw(1000 * number + tick, stream.width, stream.height)
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    frame.pts, frame.time_base = tick, Fraction(1, 10)
                    container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode())
    return path


def track_of(path: Path) -> int:
    """Which track is read, by the number on its first frame."""
    clip = load_video(path)
    number = read(clip.frames[0])
    assert number is not None
    assert np.array_equal(load_video(path, stream=probe(path).stream).frames, clip.frames)
    return number // 1000


DEFAULT, NONE = Disposition.default, Disposition(0)
STILL = {"codec": "mjpeg", "pix_fmt": "yuvj420p", "frames": 1, "size": (320, 192)}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
class TestChoice:
    def test_the_default(self, tmp_path: Path, suffix: str) -> None:
        """In MP4 a track that is not default is disabled."""
        tracks = [{"disposition": NONE, "size": (320, 192)}, {"disposition": DEFAULT}]
        assert track_of(write(tmp_path / f"a{suffix}", *tracks)) == 1

    def test_the_largest(self, tmp_path: Path, suffix: str) -> None:
        tracks = [{"disposition": DEFAULT}, {"disposition": DEFAULT, "size": (320, 192)}, {"disposition": DEFAULT}]
        assert track_of(write(tmp_path / f"a{suffix}", *tracks)) == 1

    def test_the_first_of_equals(self, tmp_path: Path, suffix: str) -> None:
        assert track_of(write(tmp_path / f"a{suffix}", *2 * [{"disposition": DEFAULT}])) == 0

    @pytest.mark.parametrize("disposition", [DEFAULT, Disposition.attached_pic])
    def test_no_still(self, tmp_path: Path, suffix: str, disposition: Disposition) -> None:
        assert track_of(write(tmp_path / f"a{suffix}", STILL | {"disposition": disposition}, {})) == 1

    def test_a_track_without_packets(self, tmp_path: Path, suffix: str) -> None:
        tracks = [{"frames": 0, "size": (320, 192)}, {"first": 5}]
        path = write(tmp_path / f"a{suffix}", *tracks, muxer=FRAGMENTED)  # a plain MP4 would not have the first at all
        assert track_of(path) == probe(path).stream == 1

    def test_another_on_demand(self, tmp_path: Path, suffix: str) -> None:
        path = write(tmp_path / f"a{suffix}", {"disposition": DEFAULT}, {"disposition": NONE})
        assert probe(path).streams == (0, 1)
        for index in (0, 1):
            assert probe(path, stream=index).stream == index
            clip = load_video(path, stream=index)
            assert [read(frame) for frame in clip.frames] == [1000 * index + n for n in (0, 5, 10, 15)]
            part = load_video(VideoSegment(path, 1.0, 1.5), stream=index)
            assert [read(frame) for frame in part.frames] == [1000 * index + 10]
            (same,) = load_segments(path, [(1.0, 1.5)], stream=index)
            assert np.array_equal(same.frames, part.frames)
        with pytest.raises(InvalidVideoInput, match=r"stream=2: its video streams are \[0, 1\]"):
            load_video(path, stream=2)


def test_an_unknown_codec_hides_no_other(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", {"codec": "mpeg4", "size": (320, 192)}, {})
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/ASP", b"V_MPEG4/ISO/XXX"))
    assert track_of(path) == 1


def test_fragments_say_no_number_of_frames(tmp_path: Path) -> None:
    assert track_of(write(tmp_path / "a.mp4", STILL, {}, muxer=FRAGMENTED)) == 1


def test_only_stills(tmp_path: Path) -> None:
    with pytest.raises(NoVideoStream, match="cover art but no moving pictures"):
        load_video(write(tmp_path / "a.mp4", STILL | {"disposition": Disposition.attached_pic}))


def test_what_is_copied_is_what_is_embedded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", STILL, {})
    excerpt = cut_clip(path, tmp_path / "b.mkv", 0.0, 2.0)
    assert read(load_video(excerpt.path).frames[0]) == 1000


@pytest.mark.parametrize("stream", [True, 1.0, "1"])
def test_a_malformed_choice(zoo: Zoo, stream: Any) -> None:
    with pytest.raises(InvalidVideoInput, match="expected the index of a video stream"):
        load_video(zoo.path("h264.mp4"), stream=stream)


def test_no_choice_among_arrays(zoo: Zoo) -> None:
    frames = VideoFrames(np.zeros((2, 8, 8, 3), np.uint8), fps=2)
    with pytest.raises(InvalidVideoInput, match="only with a file and backend='pyav'"):
        load_video(frames, stream=0)
    with pytest.raises(InvalidVideoInput, match="only with a file and backend='pyav'"):
        load_video(zoo.path("h264.mp4"), backend="decord", stream=0)


class TestPictures:
    def numbers(self, path: Path) -> list[int | None]:
        return [read(frame) for frame in load_video(path, Sampling(fps=10)).frames]

    def test_an_animated_avif(self, tmp_path: Path) -> None:
        path = write_plain(
            tmp_path / "a.avif", np.stack([draw(n) for n in range(8)]), 10, codec="libsvtav1", options=SVT
        )
        assert self.numbers(path)[:7] == list(range(7))  # the encoder garbles the last

    def test_a_still_avif(self, tmp_path: Path) -> None:
        path = write_plain(tmp_path / "a.avif", draw(0)[None], 10, codec="libsvtav1", options=SVT)
        with pytest.raises(NotAVideo, match="a single picture; give it as an image"):
            load_video(path)

    def test_an_animated_png(self, tmp_path: Path) -> None:
        path = write_plain(
            tmp_path / "a.apng", np.stack([draw(n) for n in range(8)]), 10, codec="apng", pix_fmt="rgb24"
        )
        assert self.numbers(path) == list(range(8))

    def test_a_still_png(self, tmp_path: Path) -> None:
        Image.fromarray(draw(0)).save(tmp_path / "a.png")
        with pytest.raises(NotAVideo, match="a single picture; give it as an image"):
            load_video(tmp_path / "a.png")

    def test_webp(self, tmp_path: Path) -> None:
        first, *others = [Image.fromarray(draw(n)) for n in range(4)]
        first.save(tmp_path / "moving.webp", save_all=True, append_images=others, duration=100)
        first.save(tmp_path / "still.webp")
        with pytest.raises(NotAVideo, match="an animated WebP picture, which FFmpeg does not decode"):
            load_video(tmp_path / "moving.webp")
        with pytest.raises(NotAVideo, match="a single picture; give it as an image"):
            load_video(tmp_path / "still.webp")

    def test_a_gif_of_long_and_short_delays(self, tmp_path: Path) -> None:
        first, *others = [Image.fromarray(draw(n)) for n in range(6)]
        delays = [10, 200, 10, 0, 50, 300]  # ms
        first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=delays)
        clip = load_video(tmp_path / "a.gif", Sampling(fps=100))
        assert np.allclose(np.unique(clip.timestamps), [0, 0.1, 0.3, 0.4, 0.5, 0.55])
        assert clip.duration == pytest.approx(0.85) == probe(tmp_path / "a.gif").duration
        assert [read(frame) for frame in load_video(VideoSegment(tmp_path / "a.gif", 0.35, 0.45)).frames] == [2]

    @pytest.mark.parametrize(("delay", "shown"), [(0, 0.1), (1, 0.1), (2, 0.02), (5, 0.05)])
    def test_delays_of_gif(self, tmp_path: Path, delay: int, shown: float) -> None:
        """In 1/100 s. Browsers show those of 0.01 s and less for 0.1 s."""
        first, *others = [Image.fromarray(draw(n)) for n in range(10)]
        first.save(tmp_path / "a.gif", save_all=True, append_images=others, duration=10 * delay)
        clip = load_video(tmp_path / "a.gif", Sampling(fps=100))
        assert np.allclose(np.unique(clip.timestamps), np.arange(10) * shown)


def with_late_sound(flv: bytes) -> bytes:
    """An FLV with some packets of sound, of which its head says nothing, before its last five tags."""
    places, place = [], 13  # after the head and the size of no tag
    while place < len(flv):
        places.append(place)
        place += 11 + int.from_bytes(flv[place + 1 : place + 4], "big") + 4
    at = places[-5]
    samples = b"\x3e" + bytes(400)  # linear PCM, 44 kHz, 16 bits, mono
    tag = b"\x08" + len(samples).to_bytes(3, "big") + flv[at + 4 : at + 8] + bytes(3) + samples
    return flv[:at] + 20 * (tag + len(tag).to_bytes(4, "big")) + flv[at:]


def test_sound_that_begins_late_leaves_the_pictures_as_they_are(tmp_path: Path) -> None:
    silent, loud = tmp_path / "silent.flv", tmp_path / "loud.flv"
    write_video(silent, moving_square(300, height=48, width=64))
    loud.write_bytes(with_late_sound(silent.read_bytes()))
    with av.open(str(loud)) as container, pytest.raises(IndexError):  # else PyAV knows such streams, and no code need
        list(container.demux(video=0))
    expected, found = load_video(silent), load_video(loud)
    assert np.array_equal(found.frames, expected.frames)
    assert np.array_equal(found.timestamps, expected.timestamps)
    assert not found.damaged
