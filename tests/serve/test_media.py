from __future__ import annotations

import os
from pathlib import Path

import pytest

from vidembed.index.schema import IndexedFile
from vidembed.serve import media
from vidembed.serve.media import MediaLibrary, keep_one_range, media_type
from vidembed.serve.security import ApiError
from vidembed.video.clip import FileState


def indexed(path: Path) -> dict[str, IndexedFile]:
    return {path.as_uri(): IndexedFile(path.as_uri(), "", FileState.of(path), 1)}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a b.mp4"
    path.write_bytes(b"12345")
    return path


def test_a_file_of_the_index_is_found_by_its_id_alone(file: Path) -> None:
    library = MediaLibrary(lambda: indexed(file))
    media_id = library.id_of(file.as_uri())
    assert library.find(media_id) == file
    for wrong in (media_id[:-1] + ("0" if media_id[-1] != "0" else "1"), "", str(file), file.as_uri(), "../a b.mp4"):
        with pytest.raises(LookupError, match="no file of the index"):
            library.find(wrong)


def test_ids_are_of_a_process_and_say_nothing(file: Path) -> None:
    one, other = MediaLibrary(dict), MediaLibrary(dict)
    assert one.id_of(file.as_uri()) == one.id_of(file.as_uri()) != other.id_of(file.as_uri())
    assert len(one.id_of("x")) == 32


def test_a_file_that_was_changed_or_is_gone_is_not_served(file: Path) -> None:
    known = indexed(file)
    library = MediaLibrary(lambda: known)
    media_id = library.id_of(file.as_uri())
    file.write_bytes(b"123456")
    with pytest.raises(LookupError, match="changed since"):
        library.find(media_id)
    file.unlink()
    with pytest.raises(LookupError, match="is gone"):
        library.find(media_id)
    file.symlink_to("/etc/passwd")
    with pytest.raises(LookupError, match="changed since"):
        library.find(media_id)
    file.unlink()
    file.mkdir()
    os.utime(file)
    with pytest.raises(LookupError, match="changed since"):
        library.find(media_id)


def test_the_index_is_read_again_for_an_unknown_id_but_not_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, reads, known = [100.0], [0], {}
    monkeypatch.setattr(media.time, "monotonic", lambda: now[0])

    def files() -> dict[str, IndexedFile]:
        reads[0] += 1
        return dict(known)

    library = MediaLibrary(files)
    media_id = library.id_of(file.as_uri())
    for _ in range(3):
        with pytest.raises(LookupError):
            library.find(media_id)
    assert reads == [1]  # a flood of guesses does not read the index each time
    known.update(indexed(file))
    now[0] += 1.5
    assert library.find(media_id) == file
    known.clear()
    now[0] += 20
    assert library.find(media_id) == file
    now[0] += 15
    with pytest.raises(LookupError):
        library.find(media_id)
    assert reads == [3]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.mp4", "video/mp4"),
        ("a.WEBM", "video/webm"),
        ("a.html", "application/octet-stream"),
        ("a.svg", "application/octet-stream"),
        ("a", "application/octet-stream"),
    ],
)
def test_media_type(name: str, kind: str) -> None:
    assert media_type(Path(name)) == kind


@pytest.mark.parametrize("header", ["bytes=0-4", "bytes=3-", "bytes=-2", "bytes=0-999"])
def test_one_range_is_kept(header: str) -> None:
    scope = {"headers": [(b"range", header.encode()), (b"a", b"b")]}
    keep_one_range(scope, 10)
    assert len(scope["headers"]) == 2


@pytest.mark.parametrize(
    "header", ["bytes=0-1,3-4", "bytes=-", "bytes=5-2", "lines=1-2", "bytes=a-b", "bytes=" + "9" * 99]
)
def test_other_ranges_are_ignored(header: str) -> None:
    scope = {"headers": [(b"range", header.encode()), (b"a", b"b")]}
    keep_one_range(scope, 10)
    assert scope["headers"] == [(b"a", b"b")]


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=0-1", 0)])
def test_a_range_outside_of_the_file(header: str, size: int) -> None:
    with pytest.raises(ApiError) as caught:
        keep_one_range({"headers": [(b"range", header.encode())]}, size)
    assert (caught.value.status_code, caught.value.headers) == (416, {"Content-Range": f"bytes */{size}"})
