"""Finding files by id."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluation.minis import touch
from vidembed.errors import AnnotationError
from vidembed.evaluation import dataset_files
from vidembed.evaluation.dataset_files import FileNames, locate
from vidembed.uri import VIDEO_SUFFIXES


def names(located: dict[str, Path]) -> dict[str, str]:
    return {name: path.name for name, path in located.items()}


@pytest.mark.parametrize("suffix", sorted(VIDEO_SUFFIXES))
def test_any_suffix_in_either_case(tmp_path: Path, suffix: str) -> None:
    touch(tmp_path, f"a{suffix}", f"b{suffix.upper()}", "a.txt", "a.npy", "a", "ab.mp4", "A.mp4x")
    assert names(locate(tmp_path, ["a", "b", "c"])) == {"a": f"a{suffix}", "b": f"b{suffix.upper()}"}


def test_in_folders_of_any_depth_with_dots_in_names(tmp_path: Path) -> None:
    touch(tmp_path, "x/y/z/a.b.mp4", "a.mp4/a.webm")  # a folder is no video, whatever it is called
    assert names(locate(tmp_path, ["a.b", "a"])) == {"a.b": "a.b.mp4", "a": "a.webm"}


def test_two_files_for_one_id(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "x/a.mkv", "b.mp4", "b.txt")
    with pytest.raises(AnnotationError, match=r"'a' has two files, .*a\.mp4 and .*x/a\.mkv"):
        locate(tmp_path, ["a", "b"])
    assert list(locate(tmp_path, ["b"])) == ["b"]  # other files do not matter


def test_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "store/0123abc", "folder/in/b.mp4")
    videos = touch(tmp_path / "videos", "c.mp4")
    (videos / "a.mp4").symlink_to(tmp_path / "store/0123abc")
    (videos / "linked").symlink_to(tmp_path / "folder")
    (videos / "loop").symlink_to(videos)
    (videos / "d.mp4").symlink_to(tmp_path / "nowhere")
    (videos / "again").mkdir()
    (videos / "again/c.mp4").symlink_to(videos / "c.mp4")  # one file under one name twice is no contradiction
    monkeypatch.setattr(dataset_files, "MAX_FILES", 5)  # all there are: the loop is not gone round
    assert names(locate(videos, ["a", "b", "c", "d"])) == {"a": "a.mp4", "b": "b.mp4", "c": "c.mp4"}


def test_two_names_of_one_content_are_two_videos(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos")
    videos.mkdir()
    touch(tmp_path, "store/0123abc")
    for name in ("a.mp4", "b.mp4"):
        (videos / name).symlink_to(tmp_path / "store/0123abc")
    assert names(locate(videos, ["a", "b"])) == {"a": "a.mp4", "b": "b.mp4"}


def test_the_whole_name_goes_first(tmp_path: Path) -> None:
    def forms(name: str) -> FileNames:
        return FileNames((name, name.rpartition(".")[0]), (name,))

    touch(tmp_path, "a.mov", "a.mp4", "b.mp4", "c.", "d.avi.mp4")
    got = names(locate(tmp_path, ["a.mov", "b.mov", "c.", "d.avi"], forms))
    assert got == {"a.mov": "a.mov", "b.mov": "b.mp4", "c.": "c.", "d.avi": "d.avi.mp4"}
    with pytest.raises(AnnotationError, match=r"'b\.mov' and 'b\.avi' are two videos, but .*b\.mp4 matches both"):
        locate(tmp_path, ["b.mov", "b.avi"], forms)
    with pytest.raises(AnnotationError, match=r"'a\.mov' and 'a\.avi' are two|'a\.avi' has two files"):
        locate(tmp_path, ["a.mov", "a.avi"], forms)


def test_bad_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AnnotationError, match="no such folder"):
        locate(tmp_path / "none", ["a"])
    touch(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(AnnotationError, match="not a folder"):
        locate(tmp_path / "a.mp4", ["a"])
    monkeypatch.setattr(dataset_files, "MAX_FILES", 1)
    with pytest.raises(AnnotationError, match="more than 1 files"):
        locate(tmp_path, ["a"])


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(dataset_files.os, "scandir", scandir)
    with pytest.raises(AnnotationError, match="cannot be read: Permission denied"):
        locate(tmp_path, ["a"])
