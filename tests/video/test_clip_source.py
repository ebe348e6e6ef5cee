"""How sources are distinguished and named, and the errors' own promises."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.zoo import Zoo
from vidembed import video
from vidembed.video import InvalidVideoInput, VideoError, VideoFrames, VideoSegment, item_name, load_video


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("clip.mp4", "clip.mp4"),
        (Path("a") / "clip.mp4", "a/clip.mp4"),
        (bytes(1234), "<bytes, 1234 bytes>"),
        (VideoSegment("clip.mp4", 1, 3), "clip.mp4#t=1,3"),
        (VideoSegment("clip.mp4", 1.25), "clip.mp4#t=1.25"),
        (VideoSegment(b"xy", 1, 3), "<bytes, 2 bytes>#t=1,3"),
        (io.BytesIO(b"x"), "<file object>"),
        (VideoFrames(np.zeros((2, 4, 6, 3), np.uint8), 1.0), "<frames, 2x4x6>"),
        ({"array": np.zeros((2, 4, 6, 3))}, "<frames dictionary, 2x4x6>"),
        (5, "<int>"),
        (None, "<NoneType>"),
        ("", "<empty path>"),
        ("https://user:secret@host/a.mp4?token=secret", "https://host/a.mp4?..."),
        ("two\nlines\x1b[31m.mp4", r"two\nlines\x1b[31m.mp4"),
        ("caf\udce9.mp4", r"caf\udce9.mp4"),
    ],
)
def test_names(source: Any, name: str) -> None:
    assert item_name(source) == name


def test_names_are_bounded() -> None:
    name = item_name("a" * 5000 + ".mp4")
    assert len(name) <= 200
    assert name.endswith("a.mp4")


@pytest.mark.parametrize("source", [5, None, 2.5, ["a.mp4"], object(), bytearray(b"x")])
def test_wrong_types(source: Any) -> None:
    with pytest.raises(InvalidVideoInput, match="expected a path"):
        load_video(source)


@pytest.mark.parametrize("path", ["", "nul\0byte.mp4"])
def test_wrong_paths(path: str) -> None:
    with pytest.raises(InvalidVideoInput):
        load_video(path)


def test_wrong_file_objects(zoo: Zoo) -> None:
    path = zoo.path("h264.mp4")

    class OneWay(io.BytesIO):
        def seekable(self) -> bool:
            return False

    with pytest.raises(InvalidVideoInput, match="cannot seek"):
        load_video(OneWay(path.read_bytes()))
    with pytest.raises(InvalidVideoInput, match="text"):
        load_video(io.StringIO("text"))  # type: ignore[arg-type]
    handle = path.open("rb")
    handle.close()
    with pytest.raises(InvalidVideoInput, match="closed"):
        load_video(handle)
    with path.open("rb") as handle, pytest.raises(VideoError, match=r"<file .*h264\.mp4>#t=99"):
        load_video(VideoSegment(handle, 99.0))


def test_a_file_object_that_fails_while_reading(zoo: Zoo) -> None:
    class Failing(io.BytesIO):
        limit = 0

        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() >= self.limit:
                raise OSError("the disk went away")
            return super().read(size)

    handle = Failing(zoo.path("faststart.mp4").read_bytes() * 40)  # longer than one read
    for handle.limit in (100, 300_000):
        with pytest.raises(VideoError, match=r"file object.*the disk went away"):
            load_video(handle)


ERRORS = [
    kind
    for kind in (getattr(video, name) for name in video.__all__)
    if isinstance(kind, type) and issubclass(kind, VideoError)
]


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_pickle(kind: type[VideoError]) -> None:
    error = kind("clip.mp4", "it is broken; mend it")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.item, copy.reason, str(copy)) == (error.item, error.reason, "clip.mp4: it is broken; mend it")


def test_the_family_is_complete() -> None:
    names = "VideoNotFound NotAFile VideoPermission EmptyFile NotAVideo NoVideoStream UnsupportedCodec CorruptVideo"
    assert {kind.__name__ for kind in ERRORS} >= {*names.split(), "DecodeTimeout", "BackendUnavailable", "VideoError"}


def test_heavy_packages_are_not_imported() -> None:
    """Reading runs in worker processes, which must start fast."""
    script = "import vidembed.video, sys; print([m for m in sys.modules if m.split('.')[0] in sys.argv[1:]])"
    packages = ["torch", "transformers", "sentence_transformers", "decord"]
    done = subprocess.run([sys.executable, "-c", script, *packages], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
