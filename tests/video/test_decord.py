"""The decord backend: the frames of PyAV where it may read, and an error where it may not."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.video.test_reading import numbers
from tests.zoo import Zoo
from vidembed.video import (
    BackendUnavailable,
    CorruptVideo,
    DecodeTimeout,
    InvalidVideoInput,
    NotAVideo,
    Sampling,
    VideoNotFound,
    VideoSegment,
    decord,
    load_video,
)

pytestmark = pytest.mark.timeout(60)

try:
    importlib.metadata.distribution("decord2")
    installed = True
except importlib.metadata.PackageNotFoundError:
    installed = False
needs_decord = pytest.mark.skipif(not installed, reason="decord2 is not installed (extra: decord)")

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
def test_a_relative_name_like_a_protocol(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a:b.mp4").write_bytes(zoo.path("h264.mp4").read_bytes())
    assert len(load_video("a:b.mp4", backend="decord").frames) == 6


def fake_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(script)
    monkeypatch.setattr(decord, "_WORKER", worker)
    monkeypatch.setattr(decord, "require_decord", lambda item: None)


def test_a_hanging_worker_is_killed(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "pid"
    script = f"import os, pathlib, time\npathlib.Path({str(note)!r}).write_text(str(os.getpid()))\ntime.sleep(600)\n"
    fake_worker(tmp_path, monkeypatch, script)
    with pytest.raises(DecodeTimeout, match="timeout_s=3"):
        load_video(zoo.path("h264.mp4"), backend="decord", timeout_s=3)
    pid = int(note.read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("script", "match"),
    [
        ("import os\nos.abort()\n", "status -6"),
        ("pass\n", "status 0"),
        ("""print('{"error": "DECORDError: bad"}')\n""", "DECORDError: bad"),
        ("""print('{"count": 9, "end": 3.0, "indices": [0], "times": [0.0], "unique": 1}')\n""", "fewer frames"),
    ],
)
def test_a_failing_worker(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, match: str) -> None:
    fake_worker(tmp_path, monkeypatch, script)
    with pytest.raises(CorruptVideo, match=rf"h264\.mp4.*{match}"):
        load_video(zoo.path("h264.mp4"), backend="decord")


@pytest.mark.parametrize("times", [[0.0, float("nan")], [0.0, 2e16], [5.0, 1.0]])
def test_absurd_times_are_refused(tmp_path: Path, times: list[float]) -> None:
    """The real worker against a decord that reports such times."""
    (tmp_path / "decord.py").write_text(
        "class VideoReader:\n"
        "    def __init__(self, *a, **k): print('noise on standard output')\n"
        f"    def __len__(self): return {len(times)}\n"
        f"    def get_frame_timestamp(self, i): nan = float('nan'); return [[t, t] for t in {times}]\n"
        "def cpu(i): return None\n"
    )
    request = {"path": "x", "width": 4, "height": 4, "threads": 1, "grid": [0.0]}
    done = subprocess.run(
        [sys.executable, "-P", str(decord._WORKER)],
        input=json.dumps(request).encode(),
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert "missing, fall or are absurd" in json.loads(done.stdout)["error"]


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
