"""What a decoder broken by its input could say is checked before it is believed."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidembed.video import Clip, DecodeTimeout, Layout, Sampling
from vidembed.video.process import wire

SAMPLING = Sampling(max_frames=4, max_pixels=100)


def keep(text: str) -> str:
    return text


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


def line_of(found: Clip, /, **changes: Any) -> dict[str, Any]:
    line = json.loads(json.dumps(wire.clip_fields(found)))
    for name, value in changes.items():
        (line if name in line else line["clip"])[name] = value
    return line  # type: ignore[no-any-return]


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_clip_comes_as_it_was_sent(count: int) -> None:
    clip, stream = made(count), io.BytesIO()
    wire.send(stream, {**wire.clip_fields(clip), "notes": []}, wire.clip_bytes(clip))
    stream.seek(0)
    coming = wire.announced(wire.receive(stream), SAMPLING, keep)
    found = coming.read(stream, SAMPLING)
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
        {"damaged": 1},
        {"item": None},
    ],
)
def test_malformed_clips(changes: dict[str, Any]) -> None:
    with pytest.raises(wire.MalformedError):
        wire.announced(line_of(made(), **changes), SAMPLING, keep)


def test_a_shape_without_a_bound_of_its_own() -> None:
    free = Sampling(max_pixels=None)
    assert wire.announced(line_of(made(), shape=[180, 4096, 4096, 3]), free, keep).shape == (180, 4096, 4096, 3)
    for shape in ([1, 16385, 1, 3], [1, 16384, 16384, 3], [181, 1, 1, 3]):
        with pytest.raises(wire.MalformedError):
            wire.announced(line_of(made(), shape=shape), free, keep)


@pytest.mark.parametrize(
    ("times", "indices"),
    [([0, 2, 1], [0, 1, 2]), ([math.nan] * 3, [0, 1, 2]), ([-1, 0, 1], [0, 1, 2]), ([0, 1, 2], [-1, 0, 1])],
)
def test_malformed_arrays(times: list[float], indices: list[int]) -> None:
    clip = made()
    body = np.array(times, "<f8").tobytes() + np.array(indices, "<i8").tobytes() + clip.frames.tobytes()
    with pytest.raises(wire.MalformedError):
        wire.announced(line_of(clip), SAMPLING, keep).read(io.BytesIO(body), SAMPLING)


@given(st.integers(0, 3 * (8 + 8 + 105) - 1))
def test_arrays_that_break_off(length: int) -> None:
    clip = made()
    body = b"".join(wire.clip_bytes(clip))[:length]
    with pytest.raises(EOFError):
        wire.announced(line_of(clip), SAMPLING, keep).read(io.BytesIO(body), SAMPLING)


@pytest.mark.parametrize("layout", [[10.0, [[0.0, 5.0], [5, 10.0]]], [0, []]])
def test_layouts(layout: Any) -> None:
    pairs = [(float(start), float(end)) for start, end in layout[1]]
    assert wire.layout_of({"layout": layout}) == Layout(float(layout[0]), pairs)


@pytest.mark.parametrize(
    "layout",
    [
        *(None, 3, [1.0], [1.0, [[0.0]]], [1.0, [0.0]], [1.0, [[0.0, -1.0]]], [1.0, [[0.0, None]]], [-1.0, []]),
        *(["1", []], [math.inf, []], [True, []], [1.0, [[0.0, 1.0]] * 100_002]),
    ],
)
def test_malformed_layouts(layout: Any) -> None:
    with pytest.raises(wire.MalformedError):
        wire.layout_of({"layout": layout})


def test_errors() -> None:
    found = wire.error_of({"error": ["DecodeTimeout", "a.mp4", "late"]}, lambda text: text.replace("a.mp4", "b"))
    assert type(found) is DecodeTimeout
    assert found.args == ("b", "late")


@pytest.mark.parametrize(
    "error", [None, ["KeyError", "a", "b"], ["VideoTruncated", "a", "b"], ["VideoError", "a"], "x"]
)
def test_malformed_errors(error: Any) -> None:
    with pytest.raises(wire.MalformedError):
        wire.error_of({"error": error}, keep)


@pytest.mark.parametrize(
    "notes", [3, [3], [["a", 30]], [["a", "30", "b"]], [["a", 99, "b"]], [["a" * 101, 30, "b"]], [["a", 30, "b"]] * 102]
)
def test_malformed_notes(notes: Any) -> None:
    with pytest.raises(wire.MalformedError):
        wire.notes_of({"notes": notes}, keep)


@pytest.mark.parametrize("line", [b"hello\n", b"\xff\n", b"[1]\n", b"[" * 100_000 + b"\n", b"1" * 5000 + b"\n", b"\n"])
def test_lines_that_are_no_objects(line: bytes) -> None:
    with pytest.raises(wire.MalformedError):
        wire.receive(io.BytesIO(line))


def test_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_LINE", 100)
    assert wire.receive(io.BytesIO(b'{"a": "' + b"x" * 90 + b'"}\n')) == {"a": "x" * 90}
    with pytest.raises(wire.MalformedError, match="100 bytes"):
        wire.receive(io.BytesIO(b"x" * 200))
    for ending in (b"", b'{"a"'):
        with pytest.raises(EOFError):
            wire.receive(io.BytesIO(ending))


KEYS = st.sampled_from(["clip", "shape", "fps", "layout", "error", "notes"])
ANSWERS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner),
)


@given(ANSWERS)
def test_any_answer_is_refused_or_right(value: Any) -> None:
    line = value if isinstance(value, dict) else {"layout": value, "error": value, "notes": value, "clip": value}
    for read in (
        wire.layout_of,
        lambda line: wire.error_of({"error": None, **line}, keep),
        lambda line: wire.notes_of(line, keep),
        lambda line: wire.announced(line, SAMPLING, keep),
    ):
        try:
            read(line)
        except wire.MalformedError:
            continue
