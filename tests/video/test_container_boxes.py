"""Small files that would take gigabytes or hours: refused by a limit that the message names, before they do."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.video.bombs import box, compressed_header, fragment, full, gif, jpeg, metadata, movie, png, track
from tests.zoo import Zoo
from vidembed.video import (
    CorruptVideo,
    DecodeLimits,
    DecodeTimeout,
    NotAVideo,
    VideoError,
    VideoTooLarge,
    VideoTruncated,
    load_video,
    probe,
)
from vidembed.video.container import MAX_ENTRIES, MAX_FRAMES, MAX_HEADER_BYTES, MAX_STREAMS, MAX_TIME, check_boxes
from vidembed.video.picture import MAX_AREA, MAX_SIDE

pytestmark = pytest.mark.timeout(60)

MORE = MAX_FRAMES + 1
FRAGMENTED = box(b"mvex", full(b"trex", struct.pack(">IIIII", 1, 1, 1, 1, 0)))


def many_streams() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        streams: list[Any] = [container.add_stream("mpeg4", rate=1) for _ in range(MAX_STREAMS + 1)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        frame = av.VideoFrame(16, 16, "yuv420p")
        frame.pts = 0
        container.mux(streams[0].encode(frame))
        container.mux(streams[0].encode())
    return out.getvalue()


def in_mov(picture: bytes, size: tuple[int, int]) -> bytes:
    return movie(track(size=size, codec=b"png ", sizes=[len(picture)]), data=picture)


BOMBS: dict[str, tuple[Callable[[], bytes], type[VideoError], str]] = {
    "samples of one size": (lambda: movie(track(count=MORE, sample_size=1)), VideoTooLarge, str(MAX_FRAMES)),
    "two tracks": (
        lambda: movie(*[track(count=MAX_FRAMES // 2 + 1, sample_size=1)] * 2),
        VideoTooLarge,
        str(MAX_FRAMES),
    ),
    "a table of samples": (lambda: movie(track(count=MORE)), VideoTooLarge, str(MAX_FRAMES)),
    "sound that is not there": (
        lambda: movie(track(), track(codec=b"sowt", sound=True, count=MORE, sample_size=2)),
        VideoTooLarge,
        str(MAX_FRAMES),
    ),
    "a fragment": (
        lambda: movie(track(count=0), FRAGMENTED, after=fragment(MORE)),
        VideoTooLarge,
        str(MAX_FRAMES),
    ),
    "metadata keys": (lambda: movie(track(), metadata(b"keys", 2 * 10**8)), VideoTooLarge, str(MAX_ENTRIES)),
    "items": (lambda: movie(track(), after=metadata(b"iinf", 2 * 10**8)), VideoTooLarge, str(MAX_ENTRIES)),
    "a compressed header": (lambda: compressed_header(200 * 2**20), VideoTooLarge, str(MAX_HEADER_BYTES)),
    "in a compressed header": (
        lambda: compressed_header(len(nested := box(b"moov", track(count=MORE, sample_size=1))), nested),
        VideoTooLarge,
        str(MAX_FRAMES),
    ),
    "tracks": (lambda: movie(*[track()] * (MAX_STREAMS + 1)), VideoTooLarge, f"over {MAX_STREAMS} streams"),
    "streams": (many_streams, VideoTooLarge, f"over {MAX_STREAMS} streams"),
    "a canvas of 65535": (lambda: gif(65535, 65535), VideoTooLarge, f"65535x65535 .*{MAX_SIDE} per side"),
    "a canvas of 16000": (lambda: gif(16000, 16000), VideoTooLarge, f"16000x16000 .*{MAX_AREA} per frame"),
    "a picture": (lambda: in_mov(png(12000, 12000), (12000, 12000)), VideoTooLarge, f"12000x12000 .*{MAX_AREA}"),
    "a picture that lies": (lambda: in_mov(png(12000, 12000), (64, 64)), CorruptVideo, "no frame"),
    "a picture alone": (lambda: png(12000, 12000), NotAVideo, "picture"),
}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all of them, named by their numbers."""
    folder = tmp_path_factory.mktemp("bombs")
    for number, (make, _, _) in enumerate(BOMBS.values()):
        (folder / f"{number}.mp4").write_bytes(make())
        assert (folder / f"{number}.mp4").stat().st_size < 2**20
    return folder


@pytest.mark.parametrize("name", BOMBS)
def test_refused_by_a_limit_that_is_named(bombs: Path, name: str) -> None:
    _, kind, match = BOMBS[name]
    for call in (load_video, probe):
        with pytest.raises(VideoError, match=match) as info:
            call(bombs / f"{list(BOMBS).index(name)}.mp4")
        assert type(info.value) is kind


MEASURE = """
import json, sys
from vidembed.video import VideoError, load_video

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

before, found = peak(), {}
for path in sys.argv[1:]:
    try:
        load_video(path)
    except VideoError:
        pass
    found[path] = peak() - before
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks of memory are read from /proc")
def test_none_takes_memory(bombs: Path) -> None:
    """In one process, which no other test shares; each would take from 140 MiB to 2 GiB where its limit is not kept."""
    paths = sorted(map(str, bombs.iterdir()))
    command = [sys.executable, "-c", MEASURE, *paths]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    grown = json.loads(done.stdout)
    assert list(grown) == paths
    assert max(grown.values()) < 100  # MiB
    assert done.stderr == ""


# -- what is within the limits is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mov", "fragmented.mp4", "with_audio.mp4"])
def test_samples_are_counted_as_they_are(zoo: Zoo, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data = zoo.path(name).read_bytes()
    with av.open(io.BytesIO(data)) as container:
        count = sum(1 for packet in container.demux() if packet.size)
    monkeypatch.setattr("vidembed.video.container.MAX_FRAMES", count)
    check_boxes(io.BytesIO(data), name)
    monkeypatch.setattr("vidembed.video.container.MAX_FRAMES", count - 1)
    with pytest.raises(VideoTooLarge, match=f"{name}: it declares {count} frames .* at most {count - 1}"):
        check_boxes(io.BytesIO(data), name)


def test_at_the_limits() -> None:
    for data in (
        movie(track(count=MAX_FRAMES, sample_size=1)),
        movie(track(count=0), FRAGMENTED, after=fragment(MAX_FRAMES // 2) + fragment(MAX_FRAMES // 2)),
        movie(track(), metadata(b"keys", MAX_ENTRIES)),
        compressed_header(MAX_HEADER_BYTES),
    ):
        handle = io.BytesIO(data)
        check_boxes(handle, "item")
        assert handle.tell() == 0


def test_sound_of_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """PCM has tens of thousands of samples a second, and FFmpeg no entry for each."""
    monkeypatch.setattr("vidembed.video.container.MAX_FRAMES", 100)
    sound = {"codec": b"sowt", "sound": True, "count": 5000, "sample_size": 2}
    picture = bytes(64 * 64 * 3)
    data = movie(track(sample_size=len(picture)), track(**sound), data=picture)
    assert load_video(data).frames.shape == (1, 64, 64, 3)
    with pytest.raises(VideoTooLarge, match="declares 5001 frames or samples"):
        load_video(movie(track(sample_size=len(picture)), track(**sound, tick=2), data=picture))


@settings(max_examples=300)
@given(
    st.recursive(
        st.binary(max_size=24),
        lambda inner: st.builds(
            lambda kind, parts: box(kind, *parts),
            st.sampled_from([b"moov", b"trak", b"meta", b"cmov", b"moof", b"stsz", b"trun", b"hdlr", b"stts", b"free"]),
            st.lists(inner, max_size=4),
        ),
        max_leaves=12,
    )
)
def test_the_walk_ends_whatever_the_boxes(data: bytes) -> None:
    handle = io.BytesIO(data)
    try:
        check_boxes(handle, "item")
    except VideoTooLarge:
        return
    assert handle.tell() == 0


def test_boxes_within_boxes_without_end() -> None:
    data = b""
    for _ in range(5000):
        data = box(b"moov", data)
    check_boxes(io.BytesIO(data), "item")


# -- streams -----------------------------------------------------------------------------------------------------------


def test_more_frames_than_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.gif"
    path.write_bytes(gif(2, 2, frames=50))
    monkeypatch.setattr("vidembed.video.reader.MAX_FRAMES", 51)  # the last packet is empty
    assert load_video(path).total_num_frames == 50
    monkeypatch.setattr("vidembed.video.reader.MAX_FRAMES", 49)
    with pytest.raises(VideoTooLarge, match=r"long\.gif: it has over 49 frames"):
        load_video(path)


def test_no_more_frames_are_kept_than_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "long.gif"
    path.write_bytes(gif(16, 16, frames=20_000))
    clip = load_video(path)
    assert clip.total_num_frames == 20_000
    assert clip.frames.shape == (180, 16, 16, 3)


class Endless(io.RawIOBase):
    """A terabyte that begins as some file and goes on with zeros."""

    def __init__(self, head: bytes) -> None:
        self.head, self.place = head, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = 0) -> int:
        self.place = offset + {0: 0, 1: self.place, 2: 2**40}[whence]
        return self.place

    def read(self, size: int = -1) -> bytes:
        size = min(2**18 if size < 0 else size, 2**40 - self.place)
        data = self.head[self.place : self.place + size].ljust(size, b"\0")
        self.place += size
        return data


@pytest.mark.parametrize("head", [b"\x1a\x45\xdf\xa3\x84\x42\x86\x81\x01", b"FLV\x01\x05\0\0\0\x09\0\0\0\0"])
def test_a_file_in_which_nothing_comes_is_left_in_time(head: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """FFmpeg looks for a packet to the end of the file, and the limit on time holds between packets."""
    for call in (load_video, probe):
        source: Any = Endless(head)
        with pytest.raises(DecodeTimeout, match=r"timeout_s=0\.3"):
            call(source, limits=DecodeLimits(timeout_s=0.3))
    assert capfd.readouterr().err == ""


def test_a_picture_that_grows_on_the_way() -> None:
    """The decoder refuses it before it allocates; what is left is as after any damage."""
    for huge, whole in ((1, True), (10, False)):
        pictures = [jpeg(100) for _ in range(20 - huge)] + [jpeg(100, (65500, 65500))] * huge
        data = movie(track(codec=b"jpeg", sizes=[*map(len, pictures)], tick=100, length=2000), data=b"".join(pictures))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VideoTruncated)
            if whole:
                clip = load_video(data)
                assert clip.damaged
                assert clip.frames.shape[1:] == (64, 64, 3)
                assert np.abs(clip.frames.astype(int) - 100).max() < 5
            else:
                with pytest.raises(CorruptVideo, match="10 of 20"):
                    load_video(data)


def test_a_duration_of_years(tmp_path: Path) -> None:
    """It is not believed: the frames decide. Frames that are years apart are refused."""
    picture = bytes(64 * 64 * 3)
    years = {"sample_size": len(picture), "timescale": 1, "length": 2**31}
    clip = load_video(movie(track(**years), data=picture))
    assert clip.duration <= MAX_TIME
    assert len(clip.frames) <= 180
    apart = track(sizes=[len(picture)] * 2, timescale=1, tick=2**30, length=2**31)
    with pytest.raises(CorruptVideo, match=r"1073741824 s after the first.*over 1000000 s are not read"):
        load_video(movie(apart, data=2 * picture))
