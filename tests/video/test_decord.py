"""The decord backend: the frames of PyAV where it may read, and an error where it may not."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.video.test_reading import numbers
from tests.zoo import Zoo
from vidembed.video import (
    BackendUnavailable,
    CorruptVideo,
    DecodeLimits,
    DecoderCrashed,
    DecodeTimeout,
    InvalidVideoInput,
    NotAVideo,
    Sampling,
    VideoError,
    VideoNotFound,
    VideoSegment,
    VideoTooLarge,
    VideoTruncated,
    load_video,
)

pytestmark = pytest.mark.timeout(60)

try:
    importlib.metadata.distribution("decord2")
    installed = True
except importlib.metadata.PackageNotFoundError:
    installed = False
needs_decord = pytest.mark.skipif(not installed, reason="decord2 is not installed (extra: decord)")

NOTE = """
import os, pathlib
new = pathlib.Path(os.environ["VIDEMBED_TEST_NOTE"] + ".new")
new.write_text(str(os.getpid()))
new.rename(os.environ["VIDEMBED_TEST_NOTE"])
"""

NAMES = [
    "h264.mp4",
    "h264.mkv",
    "vfr.mp4",
    "gap.mp4",
    "vp9.webm",
    "hevc_closed.mp4",
    "av1.mp4",
    "long_gop.mp4",
    "start5.mkv",
    "rotated90.mp4",
    "rotated180.mp4",
    "rotated270.mp4",
    "wide_pixels.mp4",
    "one.mp4",
]


@needs_decord
@pytest.mark.parametrize("name", NAMES)
def test_equals_pyav(zoo: Zoo, name: str) -> None:
    made = zoo[name]
    clip = load_video(made.path, backend="decord")
    other = load_video(made.path)
    assert numbers(clip) == numbers(other)
    assert None not in numbers(clip)
    assert clip.frames.shape == other.frames.shape
    assert np.abs(clip.frames.astype(int) - other.frames).mean() < 8
    assert np.allclose(clip.timestamps, other.timestamps, atol=1e-3)
    assert clip.frames_indices.tolist() == other.frames_indices.tolist()
    assert clip.duration == pytest.approx(other.duration, abs=1e-3)
    assert (clip.total_num_frames, clip.item) == (other.total_num_frames, other.item)
    assert clip.fps == pytest.approx(other.fps, rel=1e-3)
    assert clip.video_backend == "decord"


@needs_decord
@pytest.mark.parametrize(("start", "end"), [(0.5, 1.7), (12.0, 14.0), (28.5, None)])
def test_segments_equal_pyav(zoo: Zoo, start: float, end: float | None) -> None:
    segment = VideoSegment(zoo.path("seek.mp4"), start, end)
    sampling = Sampling(fps=4, max_pixels=5000)
    clip, other = load_video(segment, sampling, backend="decord"), load_video(segment, sampling)
    assert numbers(clip) == numbers(other)
    assert clip.frames.shape == other.frames.shape
    assert np.allclose(clip.timestamps, other.timestamps, atol=1e-3)
    assert clip.frames_indices.tolist() == other.frames_indices.tolist()
    assert clip.total_num_frames == other.total_num_frames
    assert (clip.start_s, clip.duration) == (other.start_s, pytest.approx(other.duration))
    with pytest.raises(InvalidVideoInput, match="starts at"):
        load_video(VideoSegment(zoo.path("seek.mp4"), 30.5), backend="decord")


@needs_decord
@pytest.mark.parametrize("name", ["mpeg4_b.avi", "h264.ts", "mpeg2.mpg", "wmv2.wmv", "loop.gif", "h264.flv"])
def test_containers_it_reads_wrong_are_refused(zoo: Zoo, name: str) -> None:
    with pytest.raises(BackendUnavailable, match=r"[uU]se backend='pyav'"):
        load_video(zoo.path(name), backend="decord")


@needs_decord
def test_other_refusals(zoo: Zoo, tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="duration"):
        load_video(zoo.path("live.mkv"), backend="decord")
    with pytest.raises(InvalidVideoInput, match="by their path"):
        load_video(zoo.path("h264.mp4").read_bytes(), backend="decord")
    with pytest.raises(VideoNotFound):
        load_video(tmp_path / "none.mp4", backend="decord")
    (tmp_path / "text.mp4").write_bytes(b"text")
    with pytest.raises(NotAVideo):
        load_video(tmp_path / "text.mp4", backend="decord")
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    Path(name).write_bytes(zoo.path("h264.mp4").read_bytes())
    with pytest.raises(InvalidVideoInput, match="UTF-8"):
        load_video(name, backend="decord")


@needs_decord
def test_warnings_come_up_at_the_line_of_the_caller(zoo: Zoo) -> None:
    for source in (zoo.cut("h264.mkv", 0.6), VideoSegment(zoo.cut("h264.mkv", 0.6), 0.5)):
        with pytest.warns(VideoTruncated, match="it ends at") as caught:
            assert load_video(source, backend="decord").truncated
        assert [Path(each.filename).name for each in caught] == ["test_decord.py"]


@needs_decord
def test_a_relative_name_like_a_protocol(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a:b.mp4").write_bytes(zoo.path("h264.mp4").read_bytes())
    assert len(load_video("a:b.mp4", backend="decord").frames) == 6


def write_decord(folder: Path, script: str) -> None:
    """Write a module and a distribution that stand in for decord2."""
    (folder / "decord2-1.0.dist-info").mkdir(parents=True)
    (folder / "decord2-1.0.dist-info" / "METADATA").write_text("Name: decord2\nVersion: 1.0\n")
    (folder / "decord.py").write_text(script)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has new processes import a script in place of decord."""

    def install(script: str) -> None:
        write_decord(tmp_path / "fake", script)
        monkeypatch.syspath_prepend(tmp_path / "fake")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"), prepend=os.pathsep)

    return install


def test_a_hanging_decoder_is_killed(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Callable[[str], None]
) -> None:
    monkeypatch.setenv("VIDEMBED_TEST_NOTE", str(tmp_path / "pid"))
    install(f"import time\n{NOTE}\ntime.sleep(600)\n")
    with pytest.raises(DecodeTimeout, match=r"h264\.mp4#t=0.5,1: .*timeout_s=2"):
        load_video(VideoSegment(zoo.path("h264.mp4"), 0.5, 1.0), backend="decord", limits=DecodeLimits(timeout_s=2))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


FAKE = """
class VideoReader:
    def __init__(self, *args, **options): print("noise on standard output")
    def __len__(self): return 2
    def get_frame_timestamp(self, indices): nan = float("nan"); return [[t, t + 1.0] for t in {times}]
    def get_batch(self, indices): raise {error}
def cpu(number): return None
"""


@pytest.mark.parametrize(
    ("script", "kind", "match"),
    [
        ("import os\nos.abort()\n", DecoderCrashed, "signal SIGABRT"),
        ("import os\nos._exit(0)\n", DecoderCrashed, "status 0"),
        ("raise OSError('no library')\n", BackendUnavailable, r"no library.*use backend='pyav'"),
        (FAKE.format(times="[0.0, 1.0]", error="KeyError('a\\nb')"), CorruptVideo, r"KeyError.*try backend='pyav'"),
        (FAKE.format(times="[0.0, 1.0]", error="MemoryError"), VideoTooLarge, "more memory than there is"),
        (FAKE.format(times="[0.0, nan]", error="KeyError"), CorruptVideo, "missing, fall or are absurd"),
        (FAKE.format(times="[0.0, 2e16]", error="KeyError"), CorruptVideo, "missing, fall or are absurd"),
        (FAKE.format(times="[5.0, 1.0]", error="KeyError"), CorruptVideo, "missing, fall or are absurd"),
    ],
)
def test_a_failing_decoder(
    zoo: Zoo, install: Callable[[str], None], script: str, kind: type[VideoError], match: str
) -> None:
    """In a process of its own: this one is not ended by it."""
    install(script)
    with pytest.raises(kind, match=rf"h264\.mp4: .*{match}"):
        load_video(zoo.path("h264.mp4"), backend="decord")


def test_a_frame_of_the_wrong_shape_is_refused(zoo: Zoo, install: Callable[[str], None]) -> None:
    batch = "import numpy, types\n" + FAKE.format(times="[0.0, 1.0]", error="KeyError").replace(
        "raise KeyError", "return types.SimpleNamespace(asnumpy=lambda: numpy.zeros((1, 2, 2, 3), 'u1'))"
    )
    install(batch)
    with pytest.raises(CorruptVideo, match="decord returned frames of shape"):
        load_video(zoo.path("h264.mp4"), backend="decord")


def distributions(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def find(name: str) -> object:
        if name not in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return object()

    monkeypatch.setattr(importlib.metadata, "distribution", find)


def test_not_installed(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    distributions(monkeypatch)
    with pytest.raises(BackendUnavailable, match=r'h264\.mp4.*pip install "vidembed\[decord\]"'):
        load_video(zoo.path("h264.mp4"), backend="decord")


@pytest.mark.parametrize("name", ["decord", "eva-decord"])
def test_the_unmaintained_packages_are_refused(zoo: Zoo, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for found in ([name], [name, "decord2"]):
        distributions(monkeypatch, *found)
        with pytest.raises(BackendUnavailable, match=f"'{name}' is installed.*pip uninstall {name}"):
            load_video(zoo.path("h264.mp4"), backend="decord")
