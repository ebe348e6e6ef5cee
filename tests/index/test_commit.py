from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.index.fakes import FakeEncoder, rows, write_videos
from vidembed.index import IndexWriteError, Report, VideoIndex, index_videos
from vidembed.index.commit import locked

Run = Callable[..., Report]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB, which takes the rights to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("no rights to mount a small file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk(small_disk: Path, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    write_videos(clips, 40)
    folder = small_disk / "index"
    (small_disk / "filler").write_bytes(bytes(4 * 2**20 - 200 * 1024))

    def index() -> Report:
        return index_videos([clips], folder, FakeEncoder(), model="fake", batch_size=1, progress=False)

    with pytest.raises(IndexWriteError, match=r"writing to .*index' failed .*free space"):
        index()
    kept = rows(folder)
    assert 0 < len(kept) < 40
    assert len(VideoIndex.open(folder)) == len(kept)  # it opens, and what was committed is whole
    with pytest.raises(IndexWriteError):
        index()
    assert rows(folder)[: len(kept)] == kept
    (small_disk / "filler").unlink()
    report = index()
    assert (report.files, report.indexed + report.unchanged) == (40, 40)
    index_videos([clips], tmp_path / "undisturbed", FakeEncoder(), model="fake", progress=False)
    assert rows(folder) == rows(tmp_path / "undisturbed")


def test_a_folder_that_cannot_be_written(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(IndexWriteError, match=r"cannot be written to .Read-only file system"), locked(folder):
        pytest.fail("it was not locked")


@pytest.mark.parametrize("method", ["put", "remove", "compact", "flush"])
def test_an_error_of_the_disk_says_what_to_do(
    run: Run, clips: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    run()
    write_videos(clips, 7)
    (clips / "000.mp4").unlink()

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(VideoIndex, method, refuse)
        with pytest.raises(IndexWriteError, match=r"to: writing to .* failed .*Input/output error.* run again"):
            run(prune=True)
    report = run(prune=True)
    assert (report.files, len(rows(folder))) == (6, 6)
