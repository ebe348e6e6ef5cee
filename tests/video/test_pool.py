"""Decoding in processes: the clips of `load_video`, and a file that goes wrong touches no other."""

from __future__ import annotations

import gc
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
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.video import hooked
from tests.video.test_decord import NOTE, needs_decord, write_decord
from tests.video.test_reading import numbers
from tests.video.test_segments import equal
from tests.zoo import RECIPES, Recipe, Zoo, encode
from vidembed.video import (
    BackendUnavailable,
    Clip,
    CorruptVideo,
    DecodeLimits,
    DecodePool,
    DecoderCrashed,
    DecodeTimeout,
    InvalidVideoInput,
    Reading,
    Sampling,
    Scenes,
    VideoError,
    VideoFrames,
    VideoSegment,
    VideoTooLarge,
    VideoTruncated,
    Windows,
    load_video,
)
from vidembed.video import pool as pool_module

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
    monkeypatch.setattr(pool_module, "COMMAND", hooked.COMMAND)


@pytest.fixture
def named(zoo: Zoo, tmp_path: Path) -> Callable[[str], Path]:
    """Copies a short good video to a name, once: a process may be reading it."""

    def copy(name: str) -> Path:
        path = tmp_path / name
        return path if path.exists() else Path(shutil.copy(zoo.path("h264.mp4"), path))

    return copy


def children() -> set[int]:
    """Process numbers of the children of this process."""
    return {int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}


@pytest.fixture
def started() -> Callable[[], set[int]]:
    """Process numbers of what this test has started and still runs."""
    before = children()
    return lambda: {pid for pid in children() - before if is_running(pid)}


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


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_a_part_alone_equals_load_video(named: Callable[[str], Path], pool: DecodePool) -> None:
    path = named("a.mp4")
    for part in (VideoSegment(path, 0.5, 1.5), VideoSegment(str(path), 1.0), VideoSegment(path, 9.0)):
        reading = pool.submit(part, SAMPLING)
        expected = load(part)
        if isinstance(expected, VideoError):
            with pytest.raises(type(expected)) as found:
                reading.layout()
            assert found.value.args == expected.args
            continue
        equal(_one(reading), expected)
        assert reading.layout().segments == [(part.start, pytest.approx(part.start + expected.duration))]
    assert _one(pool.submit(VideoSegment(path, 1.0), SAMPLING, item="s3://b/a.mp4")).item == "s3://b/a.mp4#t=1"


@pytest.mark.usefixtures("misbehaving")
def test_a_part_that_crashes_is_named(named: Callable[[str], Path]) -> None:
    part = VideoSegment(named("segv.mp4"), 0.5, 1.5)
    with DecodePool(workers=1) as pool, pytest.raises(DecoderCrashed, match=r"^a name#t=0\.5,1\.5: .*SIGSEGV"):
        _one(pool.submit(part, SAMPLING, item="a name"))


def test_a_limit_beyond_what_a_timer_takes(zoo: Zoo) -> None:
    with DecodePool(workers=1, limits=DecodeLimits(timeout_s=1e300)) as pool:
        assert len(_one(pool.submit(zoo.path("h264.mp4"), SAMPLING)).frames) == 6


def test_windows_of_whole_numbers(zoo: Zoo, pool: DecodePool) -> None:
    layout = pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(4, 2)).layout()
    assert layout.segments[:2] == [(0.0, 4.0), (2.0, 6.0)]
    assert {type(time) for segment in layout.segments for time in segment} == {float}


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
    with pytest.raises(VideoError, match=r"^s3://b/a\.mp4: not a video"):
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
def test_a_process_that_failed_is_replaced_and_one_that_refused_a_file_is_not(
    named: Callable[[str], Path], started: Callable[[], set[int]]
) -> None:
    with DecodePool(workers=1) as pool:
        for name, content, is_replaced in (("a.mp4", b"text", False), ("bug.mp4", None, True)):
            path = named(name)
            _one(pool.submit(named("good.mp4"), SAMPLING))
            before = started()
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(VideoError):
                _one(pool.submit(path, SAMPLING))
            _one(pool.submit(named("good.mp4"), SAMPLING))
            assert len(before) == len(started()) == 1
            assert (started() != before) is is_replaced


@pytest.mark.usefixtures("misbehaving")
def test_a_process_that_loops_is_killed(named: Callable[[str], Path]) -> None:
    with DecodePool(workers=2, limits=DecodeLimits(timeout_s=3.0)) as pool:
        names = ["hang.mp4", "good.mp4", "sleep.mp4", "good.mp4", "good.mp4"]
        readings = [(name, pool.submit(named(name), SAMPLING, cut=Windows(1.0))) for name in names]
        for name, reading in readings:
            entries = list(reading)
            assert len(entries) == 3
            for entry in entries:
                assert isinstance(entry, Clip if name == "good.mp4" else DecodeTimeout)
                if isinstance(entry, VideoError):
                    assert str(entry).endswith(
                        f"{name}: not read within timeout_s=3.0; raise the limit or cut the video"
                    )


def test_a_stopped_process_is_killed(zoo: Zoo, started: Callable[[], set[int]]) -> None:
    with DecodePool(workers=1, limits=DecodeLimits(timeout_s=3.0)) as pool:
        reading = pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(1.0))
        entries = iter(reading)
        assert isinstance(next(entries), Clip)
        (process,) = started()
        os.kill(process, signal.SIGSTOP)
        rest = list(entries)
        assert len(rest) == 29
        assert isinstance(rest[-1], DecodeTimeout)
        assert not is_running(process)
        assert len(_one(pool.submit(zoo.path("h264.mp4"), SAMPLING)).frames) == 6


def test_a_killed_process(zoo: Zoo, started: Callable[[], set[int]]) -> None:
    with DecodePool(workers=1) as pool:
        entries = iter(pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(1.0)))
        assert isinstance(next(entries), Clip)
        (process,) = started()
        os.kill(process, signal.SIGKILL)
        *some, last = entries
        assert isinstance(last, DecoderCrashed)
        assert "SIGKILL" in last.reason
        assert "memory" in last.reason
        assert len(some) == 28
        assert len(_one(pool.submit(zoo.path("h264.mp4"), SAMPLING)).frames) == 6
        (process,) = started()
        os.kill(process, signal.SIGKILL)  # idle: no file is to blame
        until(lambda: not is_running(process))
        assert len(_one(pool.submit(zoo.path("h264.mp4"), SAMPLING)).frames) == 6


def test_an_idle_process_that_died_is_no_fault_of_the_next_file(
    zoo: Zoo, started: Callable[[], set[int]], caplog: pytest.LogCaptureFixture
) -> None:
    """Not even where it has been given the file."""
    with DecodePool(workers=1) as pool:
        _one(pool.submit(zoo.path("h264.mp4"), SAMPLING))
        (process,) = started()
        os.kill(process, signal.SIGSTOP)
        reading = pool.submit(zoo.path("h264.mp4"), SAMPLING)
        time.sleep(0.2)
        os.kill(process, signal.SIGKILL)
        assert len(_one(reading).frames) == 6
        assert started() != {process}
    assert "an idle decoding process ended with signal SIGKILL" in caplog.text


def test_want_of_memory(zoo: Zoo, tmp_path: Path) -> None:
    write_picture(tmp_path / "large.mkv", 4000, 4000, 12)
    with DecodePool(workers=1, limits=DecodeLimits(max_memory_bytes=2**30)) as pool:
        with pytest.raises(VideoTooLarge, match=r"large\.mkv: .*max_memory_bytes=1073741824"):
            _one(pool.submit(tmp_path / "large.mkv", Sampling(fps=1, max_pixels=None)))
        assert len(_one(pool.submit(zoo.path("h264.mp4"), SAMPLING)).frames) == 6


def test_want_of_memory_in_the_decoder_is_no_damage(tmp_path: Path) -> None:
    write_picture(tmp_path / "large.mkv", 8000, 8000)
    limits = DecodeLimits(max_memory_bytes=2**29)
    with DecodePool(workers=1, limits=limits) as pool, pytest.raises(VideoTooLarge, match="max_memory_bytes"):
        _one(pool.submit(tmp_path / "large.mkv", Sampling(max_pixels=None)))


def runs(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Have new pools run a script as their process."""
    monkeypatch.setattr(pool_module, "COMMAND", (sys.executable, "-c", script))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import sys; sys.exit(2)", "status 2"),
        ("print('hello', flush=True)", "no JSON"),
        (pool_module.COMMAND[3].replace("vidembed", "nothing"), "ModuleNotFoundError: No module named 'nothing'"),
    ],
)
def test_a_process_that_does_not_start(zoo: Zoo, monkeypatch: pytest.MonkeyPatch, script: str, reason: str) -> None:
    """It is no fault of the file, and is not reported as one."""
    monkeypatch.setattr(pool_module, "COMMAND", (sys.executable, "-c", script, ""))
    with DecodePool(workers=1) as pool, pytest.raises(BackendUnavailable, match=f"did not start .*{reason}"):
        pool.submit(zoo.path("h264.mp4"), SAMPLING).layout()


def test_no_such_interpreter(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "COMMAND", ("/no/python",))
    with (
        DecodePool(workers=1) as pool,
        pytest.raises(BackendUnavailable, match=r"h264\.mp4.*did not start .*/no/python"),
    ):
        pool.submit(zoo.path("h264.mp4"), SAMPLING).layout()


def test_a_process_that_hangs_at_its_start(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "COMMAND", (sys.executable, "-c", "import time; time.sleep(600)"))
    monkeypatch.setattr(pool_module, "START_TIMEOUT_S", 0.2)
    with DecodePool(workers=1) as pool, pytest.raises(BackendUnavailable, match=r"did not start .*no answer in time"):
        pool.submit(zoo.path("h264.mp4"), SAMPLING).layout()


def test_a_limit_that_cannot_be_set_is_logged(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unlimited = "import sys; sys.modules['resource'] = None\n" + pool_module.COMMAND[3]
    monkeypatch.setattr(pool_module, "COMMAND", (sys.executable, "-P", "-c", unlimited, pool_module.COMMAND[4]))
    with DecodePool(workers=1) as pool:
        for _ in range(2):
            assert len(_one(pool.submit(zoo.path("h264.mp4"), SAMPLING)).frames) == 6
    assert [record.getMessage() for record in caplog.records] == [
        "max_memory_bytes=8589934592 cannot be set on this system: decoding is not limited"
    ]


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize("kind", hooked.MALFORMED)
def test_a_malformed_answer_is_the_error_of_its_file(named: Callable[[str], Path], kind: str) -> None:
    with (
        DecodePool(workers=1) as pool,
        pytest.raises(DecoderCrashed, match=rf"malformed-{kind}\.mp4: the decoder sent .*(malformed|line)"),
    ):
        _one(pool.submit(named(f"malformed-{kind}.mp4"), SAMPLING))


@pytest.mark.usefixtures("misbehaving")
def test_a_process_that_closes_its_output_and_does_not_end(
    named: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "END_TIMEOUT_S", 0.2)
    with DecodePool(workers=1) as pool:
        with pytest.raises(
            DecoderCrashed, match=r"closes\.mp4: the decoder ended with nothing more to say, and no end"
        ):
            _one(pool.submit(named("closes.mp4"), SAMPLING))
        assert len(_one(pool.submit(named("good.mp4"), SAMPLING)).frames) == 6


# -- order, bounds, and who waits for whom -----------------------------------------------------------------------------


def test_order_with_many_files_and_processes(zoo: Zoo, started: Callable[[], set[int]]) -> None:
    names = ["seek.mp4", "one.mp4", "vfr.mp4", "h264.ts", "long_gop.mp4"] * 4
    expected = {name: numbers(load_video(zoo.path(name))) for name in set(names)}
    with DecodePool(workers=3) as pool:
        readings = [pool.submit(zoo.path(name), SAMPLING) for name in names]
        assert [numbers(_one(reading)) for reading in readings] == [expected[name] for name in names]
        assert len(started()) == 3


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


def held() -> int:
    """How many clips there are in this process that have just been read."""
    return sum(type(each) is Clip for each in gc.get_objects())


def test_what_nobody_takes_is_bounded_and_costs_no_time(zoo: Zoo) -> None:
    """Two clips of a process wait, of one file or of several, while its clock stands."""
    gc.collect()
    before = held()
    with DecodePool(workers=1, limits=DecodeLimits(timeout_s=2.0)) as pool:
        windows = pool.submit(zoo.path("h264.mp4"), SAMPLING, cut=Windows(0.25))
        assert len(windows.layout().segments) == 12
        for _ in range(3):
            until(lambda: held() == before + 2)
            time.sleep(0.8)
            assert held() == before + 2
            assert isinstance(next(iter(windows)), Clip)
        assert all(isinstance(entry, Clip) for entry in windows)
        wholes = [pool.submit(zoo.path("h264.mp4"), SAMPLING) for _ in range(5)]
        wholes[2].layout()
        time.sleep(0.1)
        assert held() == before + 2
        assert all(len(_one(reading).frames) == 6 for reading in wholes)
    assert held() == before


def test_a_later_file_can_be_taken_first(zoo: Zoo) -> None:
    with DecodePool(workers=1) as pool:
        first = pool.submit(zoo.path("h264.mp4"), SAMPLING, cut=Windows(1.5))
        second = pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(3.0))
        assert len(list(second)) == 10
        assert len(list(first)) == 2


def waiting(threads: ThreadPoolExecutor, wait: Callable[[], Any]) -> Future[Any]:
    """Begin to wait for something in a thread, and return when that has had the time to."""
    begun = threading.Event()
    future = threads.submit(lambda: (begun.set(), wait())[1])
    begun.wait()
    time.sleep(0.05)
    return future


@pytest.mark.usefixtures("misbehaving")
@pytest.mark.parametrize("wait", ["layout", "clip"])
def test_cancelled_at_work(named: Callable[[str], Path], started: Callable[[], set[int]], wait: str) -> None:
    """While somebody waits for its layout, which a whole file has once it is decoded, or for a clip."""
    with DecodePool(workers=1) as pool, ThreadPoolExecutor(1) as threads:
        reading = pool.submit(named("hang.mp4"), SAMPLING, cut=Windows(60.0) if wait == "clip" else None)
        queued = pool.submit(named("sleep.mp4"), SAMPLING)
        if wait == "clip":
            reading.layout()
        found = waiting(threads, reading.layout if wait == "layout" else lambda: list(reading))
        until(lambda: len(started()) == 1)
        (process,) = started()
        assert not found.done()
        queued.cancel()
        reading.cancel()
        with pytest.raises(CancelledError, match=r"hang\.mp4"):
            found.result()
        with pytest.raises(CancelledError, match=r"sleep\.mp4"):
            queued.layout()
        assert len(_one(pool.submit(named("good.mp4"), SAMPLING)).frames) == 6
        assert not is_running(process)


def test_cancelled_before_its_process_has_started(zoo: Zoo) -> None:
    with DecodePool(workers=1) as pool:
        for delay in (0.0, 0.01, 0.1):
            reading = pool.submit(zoo.path("h264.mp4"), SAMPLING)
            time.sleep(delay)
            reading.cancel()
            with pytest.raises(CancelledError, match=r"h264\.mp4"):
                reading.layout()
        assert len(_one(pool.submit(zoo.path("h264.mp4"), SAMPLING)).frames) == 6


def test_cancelled_when_all_was_taken(zoo: Zoo, started: Callable[[], set[int]]) -> None:
    """It has no effect, on the process neither."""
    with DecodePool(workers=1) as pool:
        reading = pool.submit(zoo.path("h264.mp4"), SAMPLING)
        _one(reading)
        before = started()
        reading.cancel()
        assert (list(reading), len(reading.layout().segments)) == ([], 1)
        _one(pool.submit(zoo.path("h264.mp4"), SAMPLING))
        assert started() == before


def test_cancelled_with_clips_that_wait(zoo: Zoo) -> None:
    with DecodePool(workers=1) as pool:
        reading = pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(1.0))
        assert isinstance(next(iter(reading)), Clip)
        reading.cancel()
        assert len(reading.layout().segments) == 30
        with pytest.raises(CancelledError, match=r"seek\.mp4"):
            next(iter(reading))
        assert len(_one(pool.submit(zoo.path("h264.mp4"), SAMPLING)).frames) == 6


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
def test_closed_in_the_middle(named: Callable[[str], Path], zoo: Zoo, started: Callable[[], set[int]]) -> None:
    before = {thread for thread in threading.enumerate() if thread.name == "vidembed-pool"}
    pool = DecodePool(workers=2)
    readings = [pool.submit(named(name), SAMPLING, cut=Windows(60.0)) for name in ("hang.mp4", "sleep.mp4", "good.mp4")]
    readings.append(pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(1.0)))
    readings[0].layout()
    readings[1].layout()
    assert len(started()) == 2
    with ThreadPoolExecutor(4) as threads:
        found = [waiting(threads, lambda reading=reading: list(reading)) for reading in readings]  # type: ignore[misc]
        pool.close()
        for each in found:
            with pytest.raises(CancelledError):
                each.result()
    pool.close()
    assert not started()
    assert {thread for thread in threading.enumerate() if thread.name == "vidembed-pool"} == before
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(named("good.mp4"), SAMPLING)


def test_closed_while_clips_wait(zoo: Zoo, started: Callable[[], set[int]]) -> None:
    with DecodePool(workers=1) as pool:
        reading = pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(1.0))
        assert isinstance(next(iter(reading)), Clip)
        assert len(started()) == 1
    assert not started()
    with pytest.raises(CancelledError, match="closed"):
        list(reading)


def test_a_pool_that_is_let_go_ends_its_processes(zoo: Zoo, started: Callable[[], set[int]]) -> None:
    before = threading.active_count()
    pool = DecodePool(workers=1)
    reading = pool.submit(zoo.path("seek.mp4"), SAMPLING, cut=Windows(3.0))
    reading.layout()
    del pool
    assert len(list(reading)) == 10
    until(lambda: not started() and threading.active_count() == before)


CHILD = """
import sys, time
from pathlib import Path
from vidembed.video import DecodeLimits, DecodePool, Sampling, pool
hooked, note, path, backend, end = sys.argv[1:]
if backend == "pyav":
    pool.COMMAND = (sys.executable, "-P", hooked)
pool = DecodePool(workers=1, limits=DecodeLimits(timeout_s=None), backend=backend)
reading = pool.submit(path, Sampling())
while not Path(note).exists():
    time.sleep(0.01)
print("ready", flush=True)
if end == "waits":
    time.sleep(600)
"""


@pytest.mark.parametrize("end", ["waits", "returns"])
@pytest.mark.parametrize(("name", "backend"), [("hang.mp4", "pyav"), ("sleep.mp4", "pyav"), ("a.mp4", "decord")])
def test_processes_end_with_their_parent(
    named: Callable[[str], Path], tmp_path: Path, name: str, backend: str, end: str
) -> None:
    """Killed, or at its end with a pool that was not closed."""
    write_decord(tmp_path / "fake", f"import ctypes\n{NOTE}\nctypes.PyDLL(None).pause()\n")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "fake"), os.environ.get("PYTHONPATH", "")]),
        "VIDEMBED_TEST_NOTE": str(tmp_path / "note"),
    }
    command = [sys.executable, "-c", CHILD, hooked.__file__, str(tmp_path / "note"), str(named(name)), backend, end]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        process = int((tmp_path / "note").read_text())
        if end == "waits":
            assert is_running(process)
            parent.kill()
    until(lambda: not is_running(process))


@pytest.mark.usefixtures("misbehaving")
def test_ctrl_c_leaves_it_to_the_parent(named: Callable[[str], Path], started: Callable[[], set[int]]) -> None:
    with DecodePool(workers=1) as pool:
        _one(pool.submit(named("good.mp4"), SAMPLING))
        (process,) = started()
        assert os.getpgid(process) != os.getpgrp()
        os.kill(process, signal.SIGINT)
        _one(pool.submit(named("good.mp4"), SAMPLING))
        assert started() == {process}


def test_a_process_imports_nothing_heavy() -> None:
    script = (
        "import sys, vidembed.video.worker\n"
        "print([name for name in ('torch', 'transformers', 'cv2', 'scenedetect', 'decord') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": 0},
        {"backend": "opencv"},
        {"threads": 0},
    ],
)
def test_wrong_arguments(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DecodePool(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [{"timeout_s": 0}, {"timeout_s": float("nan")}, {"timeout_s": float("inf")}, {"max_memory_bytes": 1000}],
)
def test_rejects_limits_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DecodeLimits(**wrong)


def test_wrong_requests(zoo: Zoo, pool: DecodePool) -> None:
    path = zoo.path("h264.mp4")
    with pytest.raises(TypeError, match="bytes"):
        pool.submit(b"data", SAMPLING)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="VideoSegment"):
        pool.submit(VideoSegment(path, 1.0), SAMPLING, cut=Windows(1.0))
    with pytest.raises(TypeError, match="VideoFrames"):
        pool.submit(VideoSegment(VideoFrames(np.zeros((1, 8, 8, 3), np.uint8), 1.0)), SAMPLING)
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
