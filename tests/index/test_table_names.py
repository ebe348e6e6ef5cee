"""Names of files: paths and URIs, and how they are shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vidembed.index.table import canonical, file_name_of, is_local, name_of, path_of, uri_of


@pytest.mark.parametrize("name", ["a b.mp4", "50%#?.mp4", "ü\n'\".mp4", "<script>.mp4", os.fsdecode(b"\xff\xfe.mp4")])
def test_uris_go_there_and_back(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    uri = uri_of(path)
    assert uri.startswith("file:///")
    assert uri.isascii()
    assert not set(uri) & set("<>\"' \n")
    assert path_of(uri) == path


@pytest.mark.parametrize(
    ("uri", "local", "name", "last"),
    [
        ("file:///v/a%20b.mp4", True, str(Path("/v/a b.mp4")), "a b.mp4"),
        ("s3://bucket/v/a%20b%25.mp4", False, "s3://bucket/v/a b%.mp4", "a b%.mp4"),
        ("gs://bucket", False, "gs://bucket", "bucket"),
    ],
)
def test_how_files_are_shown(uri: str, local: bool, name: str, last: str) -> None:
    assert (is_local(uri), name_of(uri), file_name_of(uri)) == (local, name, last)


def test_rejects_uris_of_other_schemes() -> None:
    with pytest.raises(ValueError, match="https"):
        path_of("https://example.org/a.mp4")


def test_canonical_resolves_folders_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.mp4").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "b.mp4").symlink_to("a.mp4")
    monkeypatch.chdir(tmp_path)
    assert canonical("link/b.mp4") == tmp_path.resolve() / "real" / "b.mp4"
    assert canonical("link/..") == tmp_path.resolve()
