from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from vidembed.index.files import UNKNOWN_TIME, Job, Listing, make_plan
from vidembed.index.schema import IndexedFile
from vidembed.index.table import path_of, uri_of
from vidembed.ray.stores import Address, Store, find
from vidembed.video.clip import FileState


@pytest.fixture
def store(tmp_path: Path) -> Any:
    (tmp_path / "bucket" / "v").mkdir(parents=True)
    return fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())


def touch(path: Path) -> FileState:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(path.name.encode())
    return FileState.of(path)


def indexed(uri: str, state: FileState) -> IndexedFile:
    return IndexedFile(uri, f"content of {uri}", state, 1)


def names(jobs: list[Job]) -> list[str]:
    return [job.uri.rpartition("/")[2] for job in jobs]


def test_paths_and_uris_together(tmp_path: Path, store: Any) -> None:
    touch(tmp_path / "bucket/v/b.mp4")
    touch(tmp_path / "here/a.mp4")
    touch(tmp_path / "there/c d.mp4")
    found = find(["s3://bucket/v", tmp_path / "here", uri_of(tmp_path / "there/c d.mp4")], filesystem=store)
    *here, there = found.files
    assert [path_of(uri).name for uri in here] == ["a.mp4", "c d.mp4"]
    assert there == "s3://bucket/v/b.mp4"
    todo = make_plan(found, {})
    assert names(todo.jobs) == ["a.mp4", "c%20d.mp4", "b.mp4"]
    assert [job.state for job in todo.jobs] == [FileState.of(job.path) for job in todo.jobs[:2]] + [
        found.files["s3://bucket/v/b.mp4"]
    ]


def test_what_is_in_the_index_as_it_is_needs_no_work(tmp_path: Path, store: Any) -> None:
    states = {f"s3://bucket/v/{name}.mp4": touch(tmp_path / "bucket" / "v" / f"{name}.mp4") for name in "abc"}
    known = {uri: indexed(uri, state) for uri, state in states.items()}
    known["s3://bucket/v/b.mp4"] = indexed("s3://bucket/v/b.mp4", FileState(1, 1))
    del known["s3://bucket/v/c.mp4"]
    found = find(["s3://bucket"], filesystem=store)
    todo = make_plan(found, known)
    assert (len(todo.unchanged), names(todo.jobs), todo.gone) == (1, ["b.mp4", "c.mp4"], [])
    assert [job.previous for job in todo.jobs] == [known["s3://bucket/v/b.mp4"], None]
    assert [job.state for job in todo.jobs] == [states["s3://bucket/v/b.mp4"], states["s3://bucket/v/c.mp4"]]
    assert make_plan(found, known, rehash=True).unchanged == []


def test_without_a_time_a_file_is_read_again() -> None:
    uri, state = "timed://box/a.mp4", FileState(3, UNKNOWN_TIME)
    found = Listing()
    found.files[uri] = state
    todo = make_plan(found, {uri: indexed(uri, state)})
    assert (len(todo.unchanged), names(todo.jobs)) == (0, ["a.mp4"])


def test_what_is_gone(tmp_path: Path, store: Any) -> None:
    touch(tmp_path / "bucket/v/here.mp4")
    state = touch(tmp_path / "bucket/v/odd.dat")  # no video's suffix: it was named when it was indexed
    uris = ["s3://bucket/v/gone.mp4", "s3://bucket/elsewhere/x.mp4", "gs://bucket/v/y.mp4", "file:///v/z.mp4"]
    known = {uri: indexed(uri, FileState(1, 1)) for uri in uris}
    known["s3://bucket/v/odd.dat"] = indexed("s3://bucket/v/odd.dat", state)
    found = find(["s3://bucket/v"], filesystem=store)
    todo = make_plan(found, known)
    assert [file.uri for file in todo.gone] == ["s3://bucket/v/gone.mp4"]
    assert (len(todo.unchanged), names(todo.jobs)) == (1, ["here.mp4"])
    assert [uri for uri in known if found.is_gone(uri)] == ["s3://bucket/v/gone.mp4", "s3://bucket/v/odd.dat"]


@pytest.mark.parametrize("how", ["emptied", "removed", "refused"])
def test_a_named_store_that_holds_no_video_any_more(
    tmp_path: Path, store: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path / "bucket/v/here.mp4")
    touch(tmp_path / "bucket/drive/notes.txt")
    lost, gone = "s3://bucket/drive/a.mp4", "s3://bucket/v/gone.mp4"
    known = {uri: indexed(uri, FileState(1, 1)) for uri in (lost, gone)}
    if how == "removed":
        (tmp_path / "bucket/drive/notes.txt").unlink()
        (tmp_path / "bucket/drive").rmdir()
    elif how == "refused":
        listed = Store.find

        def refused(self: Store, address: Address) -> Any:
            if address.path == "drive":
                raise OSError(5, "AWS Error ACCESS_DENIED")
            return listed(self, address)

        monkeypatch.setattr(Store, "find", refused)
    found = find(["s3://bucket/v", "s3://bucket/drive"], filesystem=store, indexed=known.keys)
    (problem,) = found.problems
    assert (problem.uri, problem.kind) == ("s3://bucket/drive", "PathVanished")
    todo = make_plan(found, known)
    assert ([file.uri for file in todo.gone], names(todo.jobs)) == ([gone], ["here.mp4"])
    assert not found.is_gone(lost)


def test_a_local_folder_that_vanished_does_not_end_a_run_over_a_store(tmp_path: Path, store: Any) -> None:
    touch(tmp_path / "bucket/v/here.mp4")
    (tmp_path / "drive").mkdir()
    lost = uri_of(tmp_path / "drive" / "a.mp4")
    found = find(["s3://bucket/v", tmp_path / "drive"], filesystem=store, indexed=lambda: [lost])
    assert [problem.uri for problem in found.problems] == [uri_of(tmp_path / "drive")]
    todo = make_plan(found, {lost: indexed(lost, FileState(1, 1))})
    assert (todo.gone, names(todo.jobs)) == ([], ["here.mp4"])


def test_local_files_that_are_gone(tmp_path: Path, store: Any) -> None:
    touch(tmp_path / "bucket/v/here.mp4")
    touch(tmp_path / "here/a.mp4")
    gone = uri_of(tmp_path / "here" / "gone.mp4")
    found = find(["s3://bucket/v", tmp_path / "here"], filesystem=store)
    todo = make_plan(found, {gone: indexed(gone, FileState(1, 1))})
    assert [file.uri for file in todo.gone] == [gone]
    assert found.is_gone(gone)
    assert not found.is_gone(uri_of(tmp_path / "here" / "a.mp4"))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "got none"),
        (["s3://bucket/v"], "no video in s3://bucket/v; looked for files ending in .*mp4"),
        (["s3://bucket/none"], "'s3://bucket/none' does not exist"),
        (["https://example.org/v"], "cannot be listed"),
        (["/no/such"], "does not exist"),
    ],
)
def test_refusals(paths: list[str], message: str, store: Any) -> None:
    with pytest.raises(ValueError, match=message):
        find(paths, filesystem=store)
