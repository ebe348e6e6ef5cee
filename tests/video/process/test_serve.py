"""What a decoding process answers, seen from within."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.zoo import Zoo
from vidembed.video import Clip, InvalidVideoInput, Sampling, VideoError
from vidembed.video.process import serve
from vidembed.video.process.serve import Settings, read_segments

SETTINGS = Settings("pyav", 1, None, os.getpid())


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many segments each decoding pass was to read."""
    load, seen = serve.load_segments, []  # type: ignore[attr-defined]

    def counted(source: Any, segments: list[Any], *args: Any, **kwargs: Any) -> Iterator[Clip]:
        seen.append(len(segments))
        return load(source, segments, *args, **kwargs)  # type: ignore[no-any-return]

    monkeypatch.setattr(serve, "load_segments", counted)
    return seen


def read(path: Path, segments: list[tuple[float, float | None]]) -> list[Clip | VideoError]:
    return list(read_segments(path, segments, Sampling(), backend="pyav", threads=1))


def test_one_pass_for_good_segments(zoo: Zoo, passes: list[int]) -> None:
    found = read(zoo.path("seek.mp4"), [(float(start), start + 2.0) for start in range(28)])
    assert all(isinstance(entry, Clip) for entry in found)
    assert passes == [28]


def test_a_bounded_number_of_passes_for_bad_ones(zoo: Zoo, passes: list[int]) -> None:
    found = read(zoo.path("seek.mp4"), [(0.0, 1.0), *((100.0 + k, None) for k in range(50))])
    assert [type(entry) for entry in found] == [Clip, *50 * [InvalidVideoInput]]
    assert passes == [51 - failed - (failed > 0) for failed in range(serve.MAX_FAILURES)]


def test_one_pass_for_a_bad_file(tmp_path: Path, passes: list[int]) -> None:
    (tmp_path / "text.mp4").write_bytes(b"text")
    found = read(tmp_path / "text.mp4", [(0.0, 1.0), (1.0, 2.0), (2.0, None)])
    assert [entry.item for entry in found] == [
        *(str(tmp_path / "text.mp4"), f"{tmp_path / 'text.mp4'}#t=1,2", f"{tmp_path / 'text.mp4'}#t=2")
    ]
    assert passes == [3]


def test_a_file_without_a_duration_is_read_once(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it gives its length with its frames."""
    read_video, calls = serve.load_video, []  # type: ignore[attr-defined]
    monkeypatch.setattr(serve, "load_video", lambda *args, **kwargs: (calls.append(1), read_video(*args, **kwargs))[1])
    request = {"path": str(zoo.path("live.mkv")), "is_path": False, "cwd": None, "sampling": Sampling().as_dict()}
    stream = io.BytesIO()
    serve._Answer(stream, SETTINGS).give(request)
    stream.seek(0)
    begun, layout = json.loads(stream.readline()), json.loads(stream.readline())
    assert begun == {"begun": True, "notes": []}
    assert layout["layout"][0] == pytest.approx(zoo["live.mkv"].duration, abs=0.05)
    assert json.loads(stream.readline())["shape"][0] == 20
    assert calls == [1]
