"""Files that are whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from vidembed.errors import MissingExtraError
from vidembed.text import printable, replacing, require, write_atomically


def test_the_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")
    with replacing(file) as draft:
        draft.write_text("new")
        assert (draft.parent, draft.suffix) == (tmp_path, ".json")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    file = tmp_path / "a.json"
    file.write_text("old")

    def fails() -> None:
        with replacing(file) as draft:
            draft.write_text("half")
            raise error

    with pytest.raises(error):
        fails()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_two_writers_do_not_share_a_draft(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as one, replacing(tmp_path / "a") as other:
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"


@pytest.mark.skipif(os.name == "nt", reason="permissions are those of POSIX")
def test_permissions_are_those_of_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", "text")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_text_is_written_as_utf8(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", "zażółć\n")
    assert (tmp_path / "a").read_bytes() == "zażółć\n".encode()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "no" / "a", b"")


def test_require_names_what_is_missing() -> None:
    require("train", "os", "json", purpose="training")
    with pytest.raises(
        MissingExtraError, match=r'^training needs no_such_package, which .*pip install "vidembed\[train\]"$'
    ):
        require("train", "os", "no_such_package", purpose="training")


def test_printable_keeps_what_can_be_printed() -> None:
    assert printable("clip 1 \u00fc.mp4") == "clip 1 \u00fc.mp4"
    assert printable("a\nb\x1b\ud800") == "a\\nb\\x1b\\ud800"
