"""What a decoding process answers, and that what a broken one could send is checked before it is believed."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zoo import Zoo
from vidembed.video import Clip, DecodeTimeout, InvalidVideoInput, Layout, Sampling, VideoError, load, worker
from vidembed.video.worker import Message, clip_message, read_clip, read_error, read_file, read_layout, read_notes

SAMPLING = Sampling(max_frames=4, max_pixels=100)


def made(count: int = 3, height: int = 5, width: int = 7) -> Clip:
    random = np.random.default_rng(count)
    return Clip(
        frames=random.integers(0, 256, (count, height, width, 3), dtype=np.uint8),
        timestamps=np.sort(random.random(count)),
        fps=29.97,
        duration=1.1,
        frames_indices=np.arange(count) * 7,
        total_num_frames=100,
        damaged=True,
        truncated=False,
        item="ü.mp4",
        start_s=0.1,
        video_backend="pyav",
        sampling=SAMPLING,
    )


def sent(clip: Clip, /, **changes: Any) -> tuple[Message, bytes]:
    """A clip as it is received, with changes to its message."""
    message, arrays = clip_message(clip)
    message = json.loads(json.dumps(message))
    for name, value in changes.items():
        (message if name in message else message["clip"])[name] = value
    return message, b"".join(arrays)


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_clip_comes_as_it_was_sent(count: int) -> None:
    clip, stream = made(count), io.BytesIO()
    worker.send(stream, *clip_message(clip))
    stream.seek(0)
    found = read_clip(worker.receive(stream), stream, SAMPLING)
    assert stream.read() == b""
    for name, value in vars(clip).items():
        assert np.array_equal(getattr(found, name), value), name
    assert (found.timestamps.dtype, found.frames_indices.dtype) == (np.float64, np.int64)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [5, 5, 7, 3]},  # above max_frames
        {"shape": [3, 10, 11, 3]},  # above max_pixels
        {"shape": [0, 5, 7, 3]},
        {"shape": [3, 0, 7, 3]},
        {"shape": [3, 5, 7, 4]},
        {"shape": [3, 5, 7]},
        {"shape": [3, -5, -7, 3]},
        {"shape": None},
        {"shape": [3, 5.0, 7, 3]},
        {"clip": []},
        {"fps": 0.0},
        {"fps": math.nan},
        {"fps": math.inf},
        {"fps": 10**400},
        {"duration": -1.0},
        {"duration": "1"},
        {"duration": 10**400},
        {"start_s": math.nan},
        {"total_num_frames": 0},
        {"total_num_frames": 1.5},
        {"total_num_frames": 10**400},
        {"damaged": 1},
        {"item": None},
        {"hidden": 1},
    ],
)
def test_malformed_clips(changes: dict[str, Any]) -> None:
    message, arrays = sent(made(), **changes)
    with pytest.raises(ValueError, match="malformed"):
        read_clip(message, io.BytesIO(arrays), SAMPLING)


@pytest.mark.parametrize("shape", [[1, 16385, 1, 3], [1, 16384, 16384, 3], [181, 1, 1, 3]])
def test_a_shape_without_a_bound_of_its_own(shape: list[int]) -> None:
    message, _ = sent(made(), shape=shape)
    with pytest.raises(ValueError, match="shape"):
        read_clip(message, io.BytesIO(), Sampling(max_pixels=None))
    message["shape"] = [1, 16384, 4096, 3]
    with pytest.raises(EOFError):  # it may be so large
        read_clip(message, io.BytesIO(), Sampling(max_pixels=None))


@pytest.mark.parametrize(
    ("times", "indices"),
    [([0, 2, 1], [0, 1, 2]), ([math.nan] * 3, [0, 1, 2]), ([-1, 0, 1], [0, 1, 2]), ([0, 1, 2], [-1, 0, 1])],
)
def test_malformed_arrays(times: list[float], indices: list[int]) -> None:
    clip = made()
    body = np.array(times, np.float64).tobytes() + np.array(indices, np.int64).tobytes() + clip.frames.tobytes()
    with pytest.raises(ValueError, match="malformed"):
        read_clip(sent(clip)[0], io.BytesIO(body), SAMPLING)


@given(st.integers(0, 3 * (8 + 8 + 105) - 1))
def test_arrays_that_break_off(length: int) -> None:
    message, arrays = sent(made())
    with pytest.raises(EOFError):
        read_clip(message, io.BytesIO(arrays[:length]), SAMPLING)


@pytest.mark.parametrize("layout", [[10.0, [[0.0, 5.0], [5, 10.0]]], [0, []]])
def test_layouts(layout: Any) -> None:
    found = read_layout({"layout": layout})
    assert found == Layout(layout[0], [(start, end) for start, end in layout[1]])
    assert {type(time) for time in (found.duration, *sum(found.segments, ()))} == {float}


@pytest.mark.parametrize(
    "layout",
    [
        *(None, 3, [1.0], [1.0, [[0.0]]], [1.0, [0.0]], [1.0, [[0.0, -1.0]]], [1.0, [[0.0, None]]], [-1.0, []]),
        *(["1", []], [math.inf, []], [True, []], [1.0, [[0.0, 1.0]] * 100_002], [1.0, [[0.0, 1.0, 2.0], [0.0]]]),
    ],
)
def test_malformed_layouts(layout: Any) -> None:
    with pytest.raises(ValueError, match="malformed"):
        read_layout({"layout": layout})


def test_errors() -> None:
    found = read_error({"error": ["DecodeTimeout", "a.mp4", "late"]}, lambda text: text.replace("a.mp4", "b"))
    assert type(found) is DecodeTimeout
    assert found.args == ("b", "late")


@pytest.mark.parametrize(
    "error", [None, ["KeyError", "a", "b"], ["VideoTruncated", "a", "b"], ["VideoError", "a"], "x"]
)
def test_malformed_errors(error: Any) -> None:
    with pytest.raises(ValueError, match="malformed"):
        read_error({"error": error}, str)


@pytest.mark.parametrize("notes", [3, [3], [["a", 30]], [["a", "30", "b"]], [["a", True, "b"]], [["a", 30, "b"]] * 102])
def test_malformed_notes(notes: Any) -> None:
    with pytest.raises(ValueError, match="malformed"):
        read_notes({"notes": notes}, str)


def test_notes_are_bounded() -> None:
    notes = read_notes({"notes": [["a" * 101, 99, "b" * 2001], ["a", -5, "b"]]}, str.upper)
    assert notes == [("a" * 100, 50, "B" * 2000), ("a", 0, "B")]


@pytest.mark.parametrize("line", [b"hello\n", b"\xff\n", b"[1]\n", b"[" * 100_000 + b"\n", b"1" * 5000 + b"\n", b"\n"])
def test_lines_that_are_no_objects(line: bytes) -> None:
    with pytest.raises(ValueError, match="no JSON"):
        worker.receive(io.BytesIO(line))


def test_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MAX_LINE", 100)
    assert worker.receive(io.BytesIO(b'{"a": "' + b"x" * 89 + b'"}\n')) == {"a": "x" * 89}
    with pytest.raises(ValueError, match="100 bytes"):
        worker.receive(io.BytesIO(b"x" * 200))
    for ending in (b"", b'{"a"'):
        with pytest.raises(EOFError):
            worker.receive(io.BytesIO(ending))


KEYS = st.sampled_from(["clip", "shape", "fps", "layout", "error", "notes"])
ANSWERS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
)


@given(ANSWERS)
def test_any_answer_is_refused_or_right(value: Any) -> None:
    message = value if isinstance(value, dict) else {"layout": value, "error": value, "notes": value, "clip": value}
    for read in (
        read_layout,
        lambda message: read_error(message, str),
        lambda message: read_notes(message, str),
        lambda message: read_clip(message, io.BytesIO(), SAMPLING),
    ):
        try:
            read(message)
        except ValueError:
            continue


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many segments each decoding pass was to read."""
    read, seen = load.read_windows, []

    def counted(handle: Any, windows: list[Any], *args: Any, **kwargs: Any) -> Iterator[Clip]:
        seen.append(len(windows))
        return read(handle, windows, *args, **kwargs)

    monkeypatch.setattr(load, "read_windows", counted)
    return seen


def read(path: Path, **cut: Any) -> tuple[Layout, list[Any]]:
    request = {"path": str(path), "is_path": False, "item": str(path), "sampling": Sampling().as_dict(), **cut}
    layout, *entries = read_file(request, load.read_windows, backend="pyav", threads=1)
    assert isinstance(layout, Layout)
    return layout, entries


def test_one_pass_for_good_segments(zoo: Zoo, passes: list[int]) -> None:
    _, found = read(zoo.path("seek.mp4"), segments=[(float(start), start + 2.0) for start in range(28)])
    assert all(isinstance(entry, Clip) for entry in found)
    assert passes == [28]


def test_a_bounded_number_of_passes_for_bad_ones(zoo: Zoo, passes: list[int]) -> None:
    _, found = read(zoo.path("seek.mp4"), segments=[(0.0, 1.0), *((100.0 + k, None) for k in range(50))])
    assert [type(entry) for entry in found] == [Clip, *50 * [InvalidVideoInput]]
    assert passes == [51 - failed - (failed > 0) for failed in range(worker.MAX_FAILURES)]


def test_one_pass_for_a_file_that_turns_bad(zoo: Zoo, tmp_path: Path, passes: list[int]) -> None:
    path = tmp_path / "text.mp4"
    path.write_bytes(zoo.path("h264.mp4").read_bytes())
    request = {"path": str(path), "is_path": False, "item": str(path), "sampling": Sampling().as_dict()}
    answers = read_file(
        {**request, "segments": [(0.0, 1.0), (1.0, 2.0), (2.0, None)]}, load.read_windows, backend="pyav", threads=1
    )
    next(answers)
    path.write_bytes(b"text")
    found = [entry.item for entry in answers if isinstance(entry, VideoError)]
    assert found == [str(path), f"{path}#t=1,2", f"{path}#t=2"]
    assert passes == [3]


@pytest.mark.parametrize("segment", [{}, {"segment": [0.5, 1.5]}])
def test_one_segment_is_read_once(zoo: Zoo, passes: list[int], segment: dict[str, Any]) -> None:
    """It gives its length with its frames, whether the file declares one or not."""
    for name in ("live.mkv", "h264.mp4"):
        layout, (clip,) = read(zoo.path(name), **segment)
        start, end = segment.get("segment", (0.0, zoo[name].duration))
        assert layout.segments == [(start, pytest.approx(end, abs=0.05))]
        assert (clip.start_s, layout.duration) == (start, pytest.approx(end, abs=0.05))
    assert passes == [1, 1]


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "raised"),
    [
        (None, []),
        (2**30, ["MemoryError()", "OSError(12, 'x')", "BlockingIOError(11, 'x')"]),
        (2**40, []),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_want_of_memory_is_told_from_damage_that_asks_for_too_much(limit: int | None, raised: list[str]) -> None:
    script = f"""
import errno, resource
from vidembed.video.picture import check_memory
if {limit}:
    resource.setrlimit(resource.RLIMIT_AS, ({limit}, resource.RLIM_INFINITY))
want = MemoryError(), OSError(errno.ENOMEM, "x"), BlockingIOError(errno.EAGAIN, "x")
for error in (*want, ValueError("x"), OSError(errno.EINVAL, "x")):
    try:
        check_memory(error)
    except MemoryError as found:
        assert found.__cause__ is error and "limit" in str(found)
        print(repr(error))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == raised
