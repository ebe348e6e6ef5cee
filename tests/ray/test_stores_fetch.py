from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from pyarrow import fs

from tests.ray import s3
from vidembed.errors import (
    ChangedWhileRead,
    EmptyFile,
    InvalidVideoInput,
    NotAFile,
    VideoError,
    VideoNotFound,
    VideoTooLarge,
)
from vidembed.index.files import UNKNOWN_TIME
from vidembed.index.table import uri_of
from vidembed.ray.stores import Fetcher
from vidembed.video.clip import FileState


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary copies go."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


@pytest.fixture
def box(tmp_path: Path) -> Path:
    (tmp_path / "box").mkdir()
    return tmp_path / "box"


@pytest.fixture
def fetcher(tmp_path: Path, box: Path) -> Iterator[Fetcher]:
    made = Fetcher(filesystem=fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), max_bytes=1000)
    yield made
    made.close()


def test_a_local_file_is_read_where_it_is(box: Path, fetcher: Fetcher, scratch: Path) -> None:
    (box / "a b.mp4").write_bytes(b"abc")
    uri = fetcher.uri(str(box / "a b.mp4"))
    assert uri == fetcher.uri(uri) == uri_of(box / "a b.mp4")
    with fetcher.fetch(uri) as file:
        assert (file.path, file.state) == (box / "a b.mp4", FileState.of(box / "a b.mp4"))
        assert file.content == hashlib.sha256(b"abc").hexdigest()
        fetcher.check_unchanged(uri, file)
        (box / "a b.mp4").write_bytes(b"abcd")
        with pytest.raises(ChangedWhileRead, match="run again"):
            fetcher.check_unchanged(uri, file)
    assert not any(scratch.iterdir())


def test_another_file_is_copied_and_the_copy_removed(box: Path, fetcher: Fetcher, scratch: Path) -> None:
    (box / "a.mp4").write_bytes(b"abc")
    with fetcher.fetch("s3://box/a.mp4") as file:
        assert file.path.is_relative_to(scratch)
        assert file.path.read_bytes() == b"abc"
        assert file.content == hashlib.sha256(b"abc").hexdigest()
        assert file.state == FileState.of(box / "a.mp4")
        (box / "a.mp4").unlink()
        fetcher.check_unchanged("s3://box/a.mp4", file)  # the copy stays what it is
    assert not file.path.exists()
    fetcher.close()
    assert not any(scratch.iterdir())


def test_a_copy_takes_few_requests(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.mp4").write_bytes(bytes(20_000_000))
    with s3.serve(tmp_path) as (host, asked):
        system = fs.S3FileSystem(
            endpoint_override=host, scheme="http", access_key="k", secret_key="s", region="us-east-1"
        )
        fetcher = Fetcher(filesystem=system)
        with fetcher.fetch("s3://b/a.mp4") as file:
            assert file.path.stat().st_size == 20_000_000
        fetcher.close()
    assert asked.count(("GET", "a.mp4")) <= 4  # three of 8 MiB and perhaps one that finds the end


@pytest.mark.parametrize(
    ("size", "error"), [(0, EmptyFile), (1001, VideoTooLarge), (None, VideoNotFound)], ids=["empty", "large", "missing"]
)
def test_what_cannot_be_copied(box: Path, fetcher: Fetcher, scratch: Path, size: int | None, error: type) -> None:
    if size is not None:
        (box / "a.mp4").write_bytes(bytes(size))
    with pytest.raises(error), fetcher.fetch("s3://box/a.mp4"):
        pass
    assert not list(scratch.glob("*/*.video"))


def test_a_store_that_lies_about_the_size_fills_no_disk(fetcher: Fetcher, box: Path) -> None:
    (box / "a.mp4").write_bytes(bytes(5000))
    with pytest.raises(VideoTooLarge, match="max_bytes"), fetcher.fetch("s3://box/a.mp4", FileState(10, 0)):
        pass


@pytest.mark.parametrize(
    "listed", [FileState(4, 0), FileState(3, 10**18), FileState(3, 10**9)], ids=["size", "time", "second"]
)
def test_a_file_that_is_not_as_it_was_listed(box: Path, fetcher: Fetcher, listed: FileState) -> None:
    (box / "a.mp4").write_bytes(b"abc")
    os.utime(box / "a.mp4", ns=(0, 0))
    with pytest.raises(ChangedWhileRead), fetcher.fetch("s3://box/a.mp4", listed):
        pass


def test_rows_get_the_time_of_the_listing(box: Path, fetcher: Fetcher) -> None:
    (box / "a.mp4").write_bytes(b"abc")
    os.utime(box / "a.mp4", ns=(7_000_000_001, 7_000_000_001))
    with fetcher.fetch("s3://box/a.mp4", FileState(3, 7_999_999_999)) as file:
        assert file.state == FileState(3, 7_999_999_999)


def test_a_store_without_times() -> None:
    class Timeless(fsspec.AbstractFileSystem):
        def info(self, path: str, **_: Any) -> dict[str, Any]:
            return {"name": path, "size": 3, "type": "file"}

        def open(self, path: str, *_: Any, **__: Any) -> Any:
            return io.BytesIO(b"abc")

    fetcher = Fetcher(filesystem=Timeless())
    with fetcher.fetch("timed://box/a.mp4") as file:
        assert file.state == FileState(3, UNKNOWN_TIME)
    fetcher.close()


def test_the_errors_of_a_store_become_those_of_reading_videos(scratch: Path) -> None:
    class Broken(fsspec.AbstractFileSystem):
        def info(self, path: str, **_: Any) -> dict[str, Any]:
            return {"name": path, "size": 3, "type": "file", "mtime": 1}

        def open(self, path: str, *_: Any, **__: Any) -> Any:
            raise OSError("GET https://host/a?signature=SECRET: broken pipe")

    fetcher = Fetcher(filesystem=Broken())
    with pytest.raises(VideoError, match="broken pipe") as caught, fetcher.fetch("timed://box/a.mp4"):
        pass
    assert "SECRET" not in str(caught.value)
    assert not list(scratch.glob("*/*.video"))
    fetcher.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.mp4", "relative path"), ("https://example.org/a.mp4", "cannot be listed"), ("s3://k:S@b/a", "password")],
)
def test_names_that_are_not_read(fetcher: Fetcher, name: str, message: str) -> None:
    with pytest.raises(InvalidVideoInput, match=message):
        fetcher.uri(name)


def test_a_folder_is_no_file(box: Path, fetcher: Fetcher) -> None:
    with pytest.raises(NotAFile), fetcher.fetch(uri_of(box)):
        pass


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_what_a_killed_process_left_is_removed_and_the_living_are_spared(
    box: Path, fetcher: Fetcher, scratch: Path
) -> None:
    (box / "a.mp4").write_bytes(b"abc")
    code = (
        "import sys, time, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from vidembed.ray.stores import Fetcher; from pyarrow import fs\n"
        "f = Fetcher(filesystem=fs.SubTreeFileSystem(sys.argv[2], fs.LocalFileSystem()))\n"
        "with f.fetch('s3://box/a.mp4'):\n    print('copied', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(scratch), str(box.parent)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "copied\n"
    [theirs] = scratch.iterdir()
    with fetcher.fetch("s3://box/a.mp4"):
        assert theirs.exists()
    fetcher.close()
    process.send_signal(signal.SIGKILL)
    process.wait()
    with fetcher.fetch("s3://box/a.mp4"):
        assert not theirs.exists()
