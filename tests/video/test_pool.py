"""Decoding in processes: the clips of `load_video`, and a file that goes wrong touches no other."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.video.process import hooked
from tests.video.test_decord import needs_decord
from tests.video.test_reading import numbers
from tests.video.test_segments import equal
from tests.zoo import RECIPES, Recipe, Zoo, encode
from vidembed.video import (
    BackendUnavailable,
    Clip,
    CorruptVideo,
    DecodePool,
    DecoderCrashed,
    DecodeTimeout,
    InvalidVideoInput,
    Reading,
    Sampling,
    Scenes,
    VideoError,
    VideoSegment,
    VideoTooLarge,
    VideoTruncated,
    Windows,
    load_video,
)
from vidembed.video.process import worker as worker_module
from vidembed.video.process.worker import Worker

pytestmark = pytest.mark.timeout(120)

MADE = ["live.mkv", "cut.mp4", "joined.ts", "resized.ts", "two_streams.mkv"]
NAMES = [*(name for name in RECIPES if name != "raw.h264"), *MADE]
SAMPLING = Sampling()


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool(workers=2) as pool:
        yield pool


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of new pools do what the names of files say."""
    monkeypatch.setattr(worker_module, "SCRIPT", Path(hooked.__file__))


@pytest.fixture
def named(zoo: Zoo, tmp_path: Path) -> Callable[[str], Path]:
    """Copies a short good video to a name, once: a process may be reading it."""

    def copy(name: str) -> Path:
        path = tmp_path / name
        return path if path.exists() else Path(shutil.copy(zoo.path("h264.mp4"), path))

    return copy


def processes(pool: DecodePool) -> list[Worker]:
    with pool._desk.lock:
        return [lane.worker for lane in pool._desk._lanes if lane.worker is not None]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition: Callable[[], bool]) -> None:
    """Wait for what must come; the limit on time of the test is the limit on this."""
    while not condition():
        time.sleep(0.01)


def check(reading: Reading, path: Path, segments: list[tuple[float, float | None]] | None = None) -> None:
    """Every clip or error of a reading is that of `load_video`."""
    found = list(reading)
    layout = reading.layout()
    assert len(found) == len(layout.segments)
    sources: list[Any] = [path] if segments is None else [VideoSegment(path, a, b) for a, b in segments]
    for entry, source in zip(found, sources, strict=True):
        expected = load(source)
        assert type(entry) is type(expected), (entry, expected)
        assert entry.item == expected.item
        if isinstance(entry, VideoError) or isinstance(expected, VideoError):
            assert entry.args == expected.args  # type: ignore[union-attr]  # of one type
        else:
            equal(entry, expected)
            assert entry.sampling == expected.sampling == SAMPLING
            assert entry.frames.flags.writeable


def load(source: Any) -> Clip | VideoError:
    try:
        return load_video(source)
    except VideoError as error:
        return error


@pytest.mark.filterwarnings("ignore::vidembed.video.VideoTruncated")
@pytest.mark.parametrize("name", NAMES)
def test_equals_load_video(zoo: Zoo, pool: DecodePool, name: str) -> None:
    path = zoo.path(name)
    whole, windows = pool.submit(path, SAMPLING), pool.submit(str(path), SAMPLING, cut=Windows(1.5, 0.5))
    check(whole, path)
    assert whole.layout().duration == pytest.approx(zoo[name].duration, abs=0.05)
    layout = windows.layout()
    if not name.startswith("gap"):  # segments without a new frame are one there
        assert layout.segments == Windows(1.5, 0.5).split(layout.duration)
    check(windows, path, list(layout.segments))
    assert list(whole) == list(windows) == []  # each is given once


@pytest.mark.parametrize("name", ["seek.mp4", "vfr.mkv", "live.mkv", "h264.ts"])
def test_scenes_equal_load_video(zoo: Zoo, pool: DecodePool, name: str) -> None:
    pytest.importorskip("scenedetect")
    reading = pool.submit(zoo.path(name), SAMPLING, cut=Scenes(min_length_s=0.5, max_length_s=3))
    layout = reading.layout()
    assert len(layout.segments) >= 2
    assert layout.segments[-1][1] == pytest.approx(zoo[name].duration, abs=0.01)
    check(reading, zoo.path(name), list(layout.segments))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_segments_equal_load_video(zoo: Zoo, pool: DecodePool, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["seek.mp4", "seek_open.mp4", "gap.mp4", "h264.ts"]))
    window = st.tuples(st.floats(0, zoo[name].duration + 1), st.one_of(st.none(), st.floats(0.05, 8)))
    drawn = sorted(data.draw(st.lists(window, max_size=6)), key=lambda w: w[0])
    segments = [(start, None if length is None else start + length) for start, length in drawn]
    reading = pool.submit(zoo.path(name), SAMPLING, cut=segments)
    check(reading, zoo.path(name), segments)
    layout = reading.layout()
    for (start, end), (a, b) in zip(segments, layout.segments, strict=True):
        assert (a, b) == (start, max(start, layout.duration) if end is None else end)


@needs_decord
def test_decord(zoo: Zoo, tmp_path: Path) -> None:
    path = zoo.path("seek.mp4")
    with DecodePool(workers=1, backend="decord") as pool:
        (clip,) = pool.submit(path, SAMPLING)
        assert isinstance(clip, Clip)
        equal(clip, load_video(path, backend="decord"))
        windows = pool.submit(path, SAMPLING, cut=Windows(11.0))
        for (start, end), clip in zip(windows.layout().segments, windows, strict=True):
            assert isinstance(clip, Clip)
            equal(clip, load_video(VideoSegment(path, start, end), backend="decord"))
        assert clip.video_backend == "decord"
        with pytest.raises(BackendUnavailable, match="mpegts"):
            _one(pool.submit(zoo.path("h264.ts"), SAMPLING))


def _one(reading: Reading) -> Clip:
    (found,) = reading
    if isinstance(found, VideoError):
        raise found
    return found


# -- files that cannot be read -----------------------------------------------------------------------------------------


def bad_files(zoo: Zoo, folder: Path) -> Iterator[Path | str]:
    yield folder / "missing.mp4"
    (folder / "link.mp4").symlink_to(folder / "gone.mp4")
    yield folder / "link.mp4"
    (folder / "folder.mp4").mkdir()
    yield folder / "folder.mp4"
    os.mkfifo(folder / "fifo.mp4")
    yield folder / "fifo.mp4"
    yield from ("", "rtsp://x/y", "pipe:0", "http://x/y.mp4", "nul\0.mp4")
    contents = {
        "empty.mp4": b"",
        "text.mp4": b"text" * 100,
        "list.mp4": b"ffconcat version 1.0\nfile 'a.mp4'\n",
        "picture.mp4": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "noise.mp4": np.random.default_rng(0).bytes(10_000),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
        yield folder / name
    yield from (zoo.path(name) for name in ("audio.m4a", "cover.mp3", "cover.mp4", "raw.h264"))
    yield zoo.patched("h264.mp4", b"avc1\x00\x00\x00\x00", b"zzzz\x00\x00\x00\x00")
    yield zoo.cut("h264.mp4", 0.8)
    yield zoo.zeroed("faststart.mp4", 0.3, 0.8)
    data = zoo.path("faststart.mp4").read_bytes()
    yield zoo.zeroed("faststart.mp4", (data.index(b"mdat") + 9) / len(data), 1.0)
    wide = folder / "wide.mkv"
    write_picture(wide, 20000, 16)
    yield wide


def write_picture(path: Path, width: int, height: int, count: int = 1) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=1)
        stream.width, stream.height, stream.pix_fmt = width, height, "gray"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.zeros((height, width), dtype=np.uint8), format="gray")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_bad_files_have_the_errors_of_load_video(zoo: Zoo, tmp_path: Path, pool: DecodePool) -> None:
    for path in bad_files(zoo, tmp_path):
        with pytest.raises(VideoError) as expected:
            load_video(path)
        with pytest.raises(VideoError) as found:
            _one(pool.submit(path, SAMPLING))
        assert type(found.value) is type(expected.value)
        assert (found.value.item, found.value.reason) == (expected.value.item, expected.value.reason)


@pytest.mark.filterwarnings("ignore::vidembed.video.VideoTruncated")
def test_a_bad_segment_leaves_the_others(zoo: Zoo, pool: DecodePool) -> None:
    damaged, short = zoo.zeroed("faststart.mp4", 0.3, 0.45), zoo.cut("faststart.mp4", 0.6)
    for path, kinds in ((damaged, {Clip, CorruptVideo}), (short, {Clip})):  # what is gone has no segments
        reading = pool.submit(path, SAMPLING, cut=Windows(1.0))
        entries = list(reading)
        assert {type(entry) for entry in entries} == kinds
        check(pool.submit(path, SAMPLING, cut=Windows(1.0)), path, list(reading.layout().segments))


def test_many_bad_segments_fail_like_the_last(zoo: Zoo, pool: DecodePool) -> None:
    segments = [(0.0, 1.0), *((100.0 + k, None) for k in range(50))]
    first, *rest = pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=segments)
    assert isinstance(first, Clip)
    assert [type(error) for error in rest] == 50 * [InvalidVideoInput]
    assert isinstance(rest[-1], VideoError)
    assert rest[-1].item.endswith("seek.mp4#t=149")


def test_an_absurd_number_of_windows(pool: DecodePool, tmp_path: Path) -> None:
    encode(tmp_path / "long.mp4", Recipe(rate=1, ticks=[0, 200], b_frames=0))
    with pytest.raises(VideoTooLarge, match="100000 segments"):
        pool.submit(tmp_path / "long.mp4", SAMPLING, cut=Windows(0.001)).layout()


# -- names -------------------------------------------------------------------------------------------------------------


def test_names(named: Callable[[str], Path], pool: DecodePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("🎬 clip.mp4", "concat:x.mp4", "%03d.mp4", "-i.mp4", "new\nline.mp4", os.fsdecode(b"caf\xe9.mp4")):
        named(name)
        for path in (name, Path(name), tmp_path / name):
            clip, expected = _one(pool.submit(path, SAMPLING)), load_video(path)
            equal(clip, expected)
            segment = _one(pool.submit(path, SAMPLING, cut=[(0.5, 1.0)]))
            equal(segment, load_video(VideoSegment(path, 0.5, 1.0)))


def test_a_name_of_its_own(named: Callable[[str], Path], pool: DecodePool, tmp_path: Path) -> None:
    path = named("a.mp4")
    assert _one(pool.submit(path, SAMPLING, item="s3://b/a.mp4")).item == "s3://b/a.mp4"
    assert _one(pool.submit(path, SAMPLING, cut=[(1.0, 2.0)], item="s3://b/a.mp4")).item == "s3://b/a.mp4#t=1,2"
    path.write_bytes(b"text")
    with pytest.raises(VideoError, match=r"^s3://b/a\.mp4: no video container"):
        pool.submit(path, SAMPLING, item="s3://b/a.mp4").layout()


def test_a_relative_path_is_that_of_the_moment(
    named: Callable[[str], Path], pool: DecodePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").mkdir()
    named("other/a.mp4")
    monkeypatch.chdir(tmp_path / "other")
    reading = pool.submit("a.mp4", SAMPLING)
    monkeypatch.chdir(tmp_path)
    assert len(_one(reading).frames) == 6
    with pytest.raises(VideoError, match="no such file"):
        pool.submit("a.mp4", SAMPLING).layout()


# -- warnings and log entries ------------------------------------------------------------------------------------------


def test_warnings_come_up_where_the_clip_is_taken(zoo: Zoo, pool: DecodePool) -> None:
    path = zoo.cut("faststart.mp4", 0.6)
    with pytest.warns(VideoTruncated, match=r"^a name: it ends at") as caught:
        clip = _one(pool.submit(path, SAMPLING, item="a name"))
    assert clip.truncated
    assert [Path(entry.filename).name for entry in caught] == ["test_pool.py"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(VideoTruncated):
            _one(pool.submit(path, SAMPLING))


def test_log_entries_come_up_here(pool: DecodePool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encode(tmp_path / "odd.mkv", Recipe(aspect=Fraction(40), frames=3))
    _one(pool.submit(tmp_path / "odd.mkv", SAMPLING))
    entries = {(entry.name, entry.levelno) for entry in caplog.records if "sample aspect ratio 40" in entry.message}
    assert entries == {("vidembed.video.picture", logging.WARNING)}


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize("name", ["talks.mp4", "talks bug.mp4"])
def test_log_entries_of_a_file_that_fails_come_up_too(
    named: Callable[[str], Path], caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with DecodePool(workers=1) as pool, pytest.raises(DecoderCrashed) if "bug" in name else nullcontext():
        (entry,) = pool.submit(named(name), SAMPLING)
        assert isinstance(entry, Clip)
    assert [record.getMessage() for record in caplog.records] == [f"{name}: said"]


@pytest.mark.usefixtures("misbehaving")
def test_a_flood_of_notes_is_bounded(named: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    with DecodePool(workers=1) as pool, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(_one(pool.submit(named("chatty.mp4"), SAMPLING)).frames) == 6
    assert [str(entry.message) for entry in caught] == [f"warning {number}" for number in range(100)]
    assert [entry.getMessage() for entry in caplog.records] == ["900 more log entries and warnings, not shown"]


# -- processes that go wrong -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize("cut", [None, Windows(1.0)])
def test_a_process_that_ends_costs_its_file_only(named: Callable[[str], Path], cut: Windows | None) -> None:
    reasons = {
        "segv.mp4": r"segv\.mp4: the decoder ended with signal SIGSEGV on it; get an intact copy",
        "exit.mp4": r"exit\.mp4: the decoder ended with status 3 on it",
        "bug.mp4": r"bug\.mp4: the decoder ended with KeyError \('a\\nbug'\)",
    }
    names = [name for bad in reasons for name in ("good.mp4", bad, "prints.mp4")]
    with DecodePool(workers=2) as pool:
        readings = [(name, pool.submit(named(name), SAMPLING, cut=cut)) for name in names]
        for name, reading in readings:
            if cut is None and name in reasons:  # a whole file has no layout before it is decoded
                with pytest.raises(DecoderCrashed, match=reasons[name]):
                    list(reading)
                continue
            entries = list(reading)
            assert len(entries) == len(reading.layout().segments)
            for entry in entries:
                assert isinstance(entry, DecoderCrashed if name in reasons else Clip), entry
            if name in reasons:
                with pytest.raises(DecoderCrashed, match=reasons[name]):
                    raise entries[-1]


@pytest.mark.usefixtures("misbehaving")
def test_a_process_that_failed_is_replaced_and_one_that_refused_a_file_is_not(named: Callable[[str], Path]) -> None:
    with DecodePool(workers=1) as pool:
        for name, content, is_replaced in (("a.mp4", b"text", False), ("bug.mp4", None, True)):
            path = named(name)
            _one(pool.submit(named("good.mp4"), SAMPLING))
            (process,) = processes(pool)
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(VideoError):
                _one(pool.submit(path, SAMPLING))
            _one(pool.submit(named("good.mp4"), SAMPLING))
            assert (processes(pool) != [process]) is is_replaced


@pytest.mark.usefixtures("misbehaving")
def test_a_process_that_loops_is_killed(named: Callable[[str], Path]) -> None:
    with DecodePool(workers=2, timeout_s=4.0) as pool:
        names = ["hang.mp4", "good.mp4", "sleep.mp4", "good.mp4", "good.mp4"]
        readings = [(name, pool.submit(named(name), SAMPLING, cut=Windows(1.0))) for name in names]
        for name, reading in readings:
            entries = list(reading)
            assert len(entries) == 3
            for entry in entries:
                assert isinstance(entry, Clip if name == "good.mp4" else DecodeTimeout)
                if isinstance(entry, VideoError):
                    assert str(entry).endswith(
                        f"{name}: not read within timeout_s=4.0; raise the limit or cut the video"
                    )


def test_a_stopped_process_is_killed(zoo: Zoo) -> None:
    with DecodePool(workers=1, timeout_s=4.0) as pool:
        reading = pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(1.0))
        entries = iter(reading)
        assert isinstance(next(entries), Clip)
        (process,) = processes(pool)
        os.kill(process.pid, signal.SIGSTOP)
        rest = list(entries)
        assert len(rest) == 29
        assert isinstance(rest[-1], DecodeTimeout)
        assert not is_running(process.pid)
        assert len(_one(pool.submit(zoo.path("h264.mp4"), SAMPLING)).frames) == 6


def test_a_killed_process(zoo: Zoo) -> None:
    with DecodePool(workers=1) as pool:
        entries = iter(pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(1.0)))
        assert isinstance(next(entries), Clip)
        (process,) = processes(pool)
        os.kill(process.pid, signal.SIGKILL)
        *some, last = entries
        assert isinstance(last, DecoderCrashed)
        assert "SIGKILL" in last.reason
        assert "memory" in last.reason
        assert len(some) == 28
        assert len(_one(pool.submit(zoo.path("h264.mp4"), SAMPLING)).frames) == 6
        (process,) = processes(pool)
        os.kill(process.pid, signal.SIGKILL)  # idle: no file is to blame
        until(lambda: not is_running(process.pid))
        assert len(_one(pool.submit(zoo.path("h264.mp4"), SAMPLING)).frames) == 6


def test_an_idle_process_that_died_is_no_fault_of_the_next_file(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even where its end was not noticed yet."""
    with DecodePool(workers=1) as pool:
        _one(pool.submit(zoo.path("h264.mp4"), SAMPLING))
        (process,) = processes(pool)
        monkeypatch.setattr(Worker, "is_usable", property(lambda worker: worker is process))
        os.kill(process.pid, signal.SIGKILL)
        assert len(_one(pool.submit(zoo.path("h264.mp4"), SAMPLING)).frames) == 6
        assert processes(pool) != [process]
    assert "an idle decoding process ended with signal SIGKILL" in caplog.text


def test_want_of_memory(zoo: Zoo, tmp_path: Path) -> None:
    write_picture(tmp_path / "large.mkv", 4000, 4000, 12)
    with DecodePool(workers=1, max_memory_bytes=2**30) as pool:
        with pytest.raises(VideoTooLarge, match=r"large\.mkv: .*max_memory_bytes=1073741824"):
            _one(pool.submit(tmp_path / "large.mkv", Sampling(fps=1, max_pixels=None)))
        assert len(_one(pool.submit(zoo.path("h264.mp4"), SAMPLING)).frames) == 6


def test_want_of_memory_in_the_decoder_is_no_damage(tmp_path: Path) -> None:
    write_picture(tmp_path / "large.mkv", 8000, 8000)
    with DecodePool(workers=1, max_memory_bytes=2**29) as pool, pytest.raises(VideoTooLarge, match="max_memory_bytes"):
        _one(pool.submit(tmp_path / "large.mkv", Sampling(max_pixels=None)))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.exit(2)", "status 2"),
        ('print(\'{"failed": "ImportError: no av"}\', flush=True)', "ImportError: no av"),
        ("print('hello', flush=True)", "no JSON"),
    ],
)
def test_a_process_that_does_not_start(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    """It is no fault of the file, and is not reported as one."""
    (tmp_path / "script.py").write_text(script)
    monkeypatch.setattr(worker_module, "SCRIPT", tmp_path / "script.py")
    with DecodePool(workers=1) as pool, pytest.raises(BackendUnavailable, match=f"did not start .*{reason}"):
        pool.submit(zoo.path("h264.mp4"), SAMPLING).layout()


def test_a_limit_that_cannot_be_set_is_said(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "script.py").write_text("print('{\"ready\": false}', flush=True)")
    monkeypatch.setattr(worker_module, "SCRIPT", tmp_path / "script.py")
    with DecodePool(workers=1) as pool, pytest.raises(BackendUnavailable, match="status 0"):
        pool.submit(zoo.path("h264.mp4"), SAMPLING).layout()
    assert "max_memory_bytes=8589934592 cannot be set" in caplog.text


@pytest.mark.parametrize(
    "answer",
    [
        "print('garbage')",
        "print('{\"layout\": 3}')",
        'print(\'{"layout": [1.0, [[0, 1]]]}\'); print(\'{"clip": {}, "shape": [1, 1, 1, 3]}\')',
        'print(\'{"error": ["SystemExit", "a", "b"]}\')',
        "sys.stdout.write('x' * 2**25)",
    ],
)
def test_a_process_that_says_what_makes_no_sense(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    script = f"""import sys, time
print('{{"ready": true}}', flush=True)
for line in sys.stdin:
    print('{{"begun": true}}')
    {answer}
    sys.stdout.flush()
    time.sleep(600)
"""
    (tmp_path / "script.py").write_text(script)
    monkeypatch.setattr(worker_module, "SCRIPT", tmp_path / "script.py")
    with DecodePool(workers=1) as pool, pytest.raises(DecoderCrashed, match=r"the decoder sent .*(malformed|line)"):
        _one(pool.submit(zoo.path("h264.mp4"), SAMPLING))


# -- order, bounds, and who waits for whom -----------------------------------------------------------------------------


def test_order_with_many_files_and_processes(zoo: Zoo) -> None:
    names = ["seek.mp4", "one.mp4", "vfr.mp4", "h264.ts", "long_gop.mp4"] * 4
    expected = {name: numbers(load_video(zoo.path(name))) for name in set(names)}
    with DecodePool(workers=3) as pool:
        readings = [pool.submit(zoo.path(name), SAMPLING) for name in names]
        assert [numbers(_one(reading)) for reading in readings] == [expected[name] for name in names]
        assert len(processes(pool)) == 3


def test_from_several_threads(zoo: Zoo, pool: DecodePool) -> None:
    def read(name: str) -> list[list[int | None]]:
        return [numbers(clip) for _ in range(3) for clip in pool.submit(zoo.path(name), SAMPLING, cut=Windows(2.0))]

    names = ["seek.mp4", "h264.ts", "vfr.mp4", "long_gop.mp4"]
    with ThreadPoolExecutor(len(names)) as threads:
        for name, found in zip(names, threads.map(read, names), strict=True):
            assert found == 3 * [
                numbers(load_video(VideoSegment(zoo.path(name), a, b))) for a, b in _windows(zoo, name)
            ]


def _windows(zoo: Zoo, name: str) -> list[tuple[float, float]]:
    return Windows(2.0).split(zoo[name].duration)


def held(pool: DecodePool) -> int:
    with pool._desk.lock:
        return sum(lane.held for lane in pool._desk._lanes)


def timers() -> int:
    return sum(isinstance(thread, threading.Timer) for thread in threading.enumerate())


def test_what_nobody_takes_is_bounded_and_costs_no_time(zoo: Zoo) -> None:
    """Two clips of a process wait, of one file or of several, while its clock stands."""
    with DecodePool(workers=1, timeout_s=60) as pool:
        windows = pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(1.0))
        assert len(windows.layout().segments) == 30
        for taken in range(3):
            until(lambda: held(pool) == 2 and timers() == 0)
            time.sleep(0.05)
            assert (held(pool), timers()) == (2, 0)
            assert isinstance(next(iter(windows)), Clip), taken
        windows.cancel()
        wholes = [pool.submit(zoo.path("h264.mp4"), SAMPLING) for _ in range(5)]
        until(lambda: held(pool) == 2 and wholes[2]._task.layout is not None and timers() == 0)
        time.sleep(0.05)
        assert [len(reading._task.entries) for reading in wholes] == [1, 1, 0, 0, 0]
        assert all(len(_one(reading).frames) == 6 for reading in wholes)


def test_a_later_file_can_be_taken_first(zoo: Zoo) -> None:
    with DecodePool(workers=1) as pool:
        first = pool.submit(zoo.path("h264.mp4"), SAMPLING, cut=Windows(1.5))
        second = pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(3.0))
        assert len(list(second)) == 10
        assert len(list(first)) == 2
        assert held(pool) == 0


@pytest.mark.usefixtures("misbehaving")
def test_cancelled_at_work(named: Callable[[str], Path]) -> None:
    with DecodePool(workers=1) as pool:
        reading = pool.submit(named("hang.mp4"), SAMPLING, cut=Windows(60.0))  # with a layout before it is decoded
        queued = pool.submit(named("sleep.mp4"), SAMPLING)
        reading.layout()
        (process,) = processes(pool)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(list, reading)
            until(lambda: reading._task.waiting == 1)
            queued.cancel()
            reading.cancel()
            with pytest.raises(CancelledError, match=r"hang\.mp4"):
                waiting.result()
        with pytest.raises(CancelledError, match=r"sleep\.mp4"):
            queued.layout()
        assert len(_one(pool.submit(named("good.mp4"), SAMPLING)).frames) == 6
        assert not is_running(process.pid)


@pytest.mark.usefixtures("misbehaving")
def test_a_file_cancelled_in_the_queue_is_not_read(named: Callable[[str], Path], zoo: Zoo) -> None:
    with DecodePool(workers=1) as pool:
        first = pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(3.0))
        queued = pool.submit(named("sleep.mp4"), SAMPLING)
        last = pool.submit(named("good.mp4"), SAMPLING)
        first.layout()
        queued.cancel()
        assert len(list(first)) == 10
        assert len(_one(last).frames) == 6


@pytest.mark.usefixtures("misbehaving")
def test_a_reading_that_is_let_go_is_cancelled(named: Callable[[str], Path]) -> None:
    with DecodePool(workers=1) as pool:
        reading = pool.submit(named("hang.mp4"), SAMPLING, cut=Windows(60.0))
        reading.layout()
        del reading
        assert len(_one(pool.submit(named("good.mp4"), SAMPLING)).frames) == 6


@pytest.mark.usefixtures("misbehaving")
def test_closed_in_the_middle(named: Callable[[str], Path], zoo: Zoo) -> None:
    before = {thread for thread in threading.enumerate() if thread.name == "vidembed-pool"}
    pool = DecodePool(workers=2)
    names = ("hang.mp4", "sleep.mp4", "good.mp4")
    readings = [pool.submit(named(name), SAMPLING, cut=Windows(60.0)) for name in names]
    readings.append(pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(1.0)))
    readings[0].layout()
    readings[1].layout()
    pids = [process.pid for process in processes(pool)]
    assert len(pids) == 2
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(list, reading) for reading in readings]
        until(lambda: readings[0]._task.waiting == readings[1]._task.waiting == 1)
        pool.close()
        for reading in waiting:
            with pytest.raises(CancelledError):
                reading.result()
    pool.close()
    assert not any(map(is_running, pids))
    assert {thread for thread in threading.enumerate() if thread.name == "vidembed-pool"} == before
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(named("good.mp4"), SAMPLING)


def test_closed_while_clips_wait(zoo: Zoo) -> None:
    with DecodePool(workers=1) as pool:
        reading = pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(1.0))
        until(lambda: held(pool) == 2)
        (process,) = processes(pool)
    assert not is_running(process.pid)
    entries = iter(reading)
    with contextlib.suppress(CancelledError):
        while True:
            assert isinstance(next(entries), Clip)


def test_a_pool_that_is_let_go_ends_its_processes(zoo: Zoo) -> None:
    pool = DecodePool(workers=1)
    desk = pool._desk
    reading = pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(3.0))
    reading.layout()
    (process,) = processes(pool)
    del pool
    assert len(list(reading)) == 10
    (thread,) = desk._threads
    thread.join()
    assert not is_running(process.pid)


CHILD = """
import os, sys, time
from pathlib import Path
from vidembed.video import DecodePool, Sampling, Windows
from vidembed.video.process import worker
worker.SCRIPT = Path(sys.argv[1])
pool = DecodePool(workers=1, timeout_s=None, backend=sys.argv[3])
reading = pool.submit(sys.argv[2], Sampling(), cut=None if sys.argv[3] == "decord" else Windows(60.0))
if sys.argv[3] == "decord":
    while not Path(os.environ["VIDEMBED_TEST_SLEEPER"]).exists():
        time.sleep(0.01)
else:
    reading.layout()
print(pool._desk._lanes[0].worker.pid, flush=True)
if sys.argv[4] == "waits":
    time.sleep(600)
"""


@pytest.mark.parametrize("end", ["waits", "returns"])
@pytest.mark.parametrize(("name", "backend"), [("hang.mp4", "pyav"), ("sleep.mp4", "pyav"), ("a.mp4", "decord")])
def test_processes_end_with_their_parent(
    named: Callable[[str], Path], tmp_path: Path, name: str, backend: str, end: str
) -> None:
    """Killed, or at its end with a pool that was not closed."""
    if backend == "decord":
        pytest.importorskip("decord")
    sleeper = tmp_path / "sleeper"
    environment = {**os.environ, "VIDEMBED_TEST_SLEEPER": str(sleeper)}
    command = [sys.executable, "-c", CHILD, hooked.__file__, str(named(name)), backend, end]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline())]
        if backend == "decord":
            until(lambda: sleeper.read_text() != "")
            pids.append(int(sleeper.read_text()))
        if end == "waits":
            assert all(map(is_running, pids))
            parent.kill()
    until(lambda: not any(map(is_running, pids)))


@pytest.mark.usefixtures("misbehaving")
def test_ctrl_c_leaves_it_to_the_parent(named: Callable[[str], Path]) -> None:
    with DecodePool(workers=1) as pool:
        _one(pool.submit(named("good.mp4"), SAMPLING))
        (process,) = processes(pool)
        assert os.getpgid(process.pid) != os.getpgrp()
        os.kill(process.pid, signal.SIGINT)
        _one(pool.submit(named("good.mp4"), SAMPLING))
        assert processes(pool) == [process]


def test_a_process_imports_nothing_heavy() -> None:
    script = (
        "import sys, vidembed.video.process.serve\n"
        "print([name for name in ('torch', 'transformers', 'cv2', 'scenedetect', 'decord') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"timeout_s": float("inf")},
        {"max_memory_bytes": 1000},
        {"backend": "opencv"},
        {"threads": 0},
    ],
)
def test_wrong_arguments(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DecodePool(**wrong)


def test_wrong_requests(zoo: Zoo, pool: DecodePool) -> None:
    path = zoo.path("h264.mp4")
    with pytest.raises(TypeError, match="bytes"):
        pool.submit(b"data", SAMPLING)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Sampling"):
        pool.submit(path, 2.0)  # type: ignore[arg-type]
    with pytest.raises(InvalidVideoInput, match="ordered"):
        pool.submit(path, SAMPLING, cut=[(1.0, 2.0), (0.0, 1.0)])
    with pytest.raises(InvalidVideoInput, match="end=1"):
        pool.submit(path, SAMPLING, cut=[(1.0, 1.0)])
    with pytest.raises(InvalidVideoInput, match="at most 100000"):
        pool.submit(path, SAMPLING, cut=[(1.0, None)] * 100_001)


def test_no_segments(zoo: Zoo, pool: DecodePool) -> None:
    reading = pool.submit(zoo.path("h264.mp4"), SAMPLING, cut=[])
    assert list(reading) == []
    assert reading.layout().segments == []
