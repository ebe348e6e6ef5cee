from __future__ import annotations

import os
from pathlib import Path

import pytest

from vidembed.index.files import Listing, find_videos
from vidembed.index.table import path_of, uri_of

SUFFIXES = {".mp4", ".mov"}


def names(root: Path, *paths: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in files(find_videos(paths or [root], SUFFIXES))]


def files(listing: Listing) -> list[Path]:
    return list(map(path_of, listing.files))


def touch(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")


def test_walks_deep_in_sorted_order_and_takes_either_case(tmp_path: Path) -> None:
    touch(tmp_path, "b.MP4", "a/z.mov", "a/b/c.mp4", "a/notes.txt", "c.mkv")
    assert names(tmp_path) == ["a/b/c.mp4", "a/z.mov", "b.MP4"]


def test_leaves_out_hidden_names(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", ".b.mp4", ".trash/c.mp4")
    assert names(tmp_path) == ["a.mp4"]


def test_a_named_file_is_taken_whatever_it_is_called(tmp_path: Path) -> None:
    touch(tmp_path, "a.dat", ".b.mp4")
    assert names(tmp_path, tmp_path / "a.dat", tmp_path / ".b.mp4") == [".b.mp4", "a.dat"]


def test_the_same_file_twice_is_listed_once(tmp_path: Path) -> None:
    touch(tmp_path, "a/b.mp4")
    assert names(tmp_path, tmp_path, tmp_path / "a", tmp_path / "a" / ".." / "a" / "b.mp4") == ["a/b.mp4"]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.mp4", "out/b.mp4")
    (tmp_path / "in" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "there").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "again").symlink_to(tmp_path / "in")
    assert names(tmp_path, tmp_path / "in") == ["in/a.mp4", "in/there/b.mp4"]


def test_a_real_name_goes_before_a_linked_one(tmp_path: Path) -> None:
    touch(tmp_path, "z/deep/a.mp4")
    (tmp_path / "a").symlink_to(tmp_path / "z" / "deep")
    (tmp_path / "b.mp4").symlink_to(tmp_path / "z" / "deep" / "a.mp4")
    assert names(tmp_path) == ["z/deep/a.mp4"]


def test_a_link_that_points_to_itself_is_listed_and_left_for_reading(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    (tmp_path / "lost.mp4").symlink_to(tmp_path / "nowhere.mp4")
    assert names(tmp_path) == ["a.mp4", "loop.mp4", "lost.mp4"]


def test_a_link_keeps_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "blobs/0123abcd")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "holiday.mp4").symlink_to(tmp_path / "blobs" / "0123abcd")
    assert names(tmp_path) == ["clips/holiday.mp4"]


def test_a_linked_root_is_resolved(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.mp4")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert names(tmp_path, tmp_path / "link") == ["real/a.mp4"]


def test_only_links_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, *(f"{i % 3}/{i}.mp4" for i in range(100)))
    (tmp_path / "0" / "link.mp4").symlink_to(tmp_path / "1" / "1.mp4")
    real, resolved = os.path.realpath, []
    monkeypatch.setattr(os.path, "realpath", lambda path, **how: resolved.append(str(path)) or real(path, **how))
    assert len(names(tmp_path)) == 100
    assert len(resolved) < 10  # each costs a call of the system for every folder above


def test_paths_are_sorted_part_by_part(tmp_path: Path) -> None:
    touch(tmp_path, "a/z.mp4", "a-b/c.mp4", "a.mp4", "a b/c.mp4", "A/x.mp4")
    listed = files(find_videos([tmp_path], SUFFIXES))
    assert listed == sorted(listed)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every folder")
def test_an_unreadable_folder_is_noted(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "shut/b.mp4")
    (tmp_path / "shut").chmod(0)
    try:
        listing = find_videos([tmp_path], SUFFIXES)
    finally:
        (tmp_path / "shut").chmod(0o755)
    assert [path_of(uri).name for uri in listing.unreadable] == ["shut"]
    assert not listing.knows(uri_of(tmp_path / "shut" / "b.mp4"))
    assert listing.knows(uri_of(tmp_path / "a.mp4"))


def test_unreadable_folders_are_noted_when_listing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.mp4", "shut/b.mp4")
    listed = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    listing = find_videos([tmp_path], SUFFIXES)
    assert [path.name for path in files(listing)] == ["a.mp4"]
    assert not listing.knows(uri_of(tmp_path.resolve() / "shut" / "b.mp4"))


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "got none"),
        (["missing"], "'.*missing' does not exist"),
        (["empty"], "no video in .*empty.*looked for.*mp4"),
    ],
)
def test_refusals_name_the_path(tmp_path: Path, paths: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        find_videos([tmp_path / path for path in paths], SUFFIXES)


def test_refers_addresses_of_stores_to_the_ray_engine() -> None:
    with pytest.raises(ValueError, match=r"'s3://bucket/a' does not exist; .*--engine ray"):
        find_videos(["s3://bucket/a"], SUFFIXES)
