from __future__ import annotations

import os
from pathlib import Path

from vidembed.index.files import Listing, make_plan
from vidembed.index.schema import IndexedFile
from vidembed.index.table import uri_of
from vidembed.video.clip import FileState, content_fingerprint


def on_disk(root: Path, name: str, content: bytes = b"x") -> Path:
    path = root / name
    path.write_bytes(content)
    return path


def as_indexed(path: Path) -> IndexedFile:
    return IndexedFile(uri_of(path), content_fingerprint(path), FileState.of(path), 1)


def listed(files: list[Path], roots: list[Path]) -> Listing:
    return Listing(dict.fromkeys(map(uri_of, files)), [f"{uri_of(root)}/" for root in roots])


def test_files_are_sorted_by_what_must_be_done(tmp_path: Path) -> None:
    same, touched, new, gone = (on_disk(tmp_path, name) for name in ("a.mp4", "b.mp4", "c.mp4", "d.mp4"))
    indexed = {file.uri: file for file in map(as_indexed, (same, touched, gone))}
    os.utime(touched, ns=(1, 1))
    gone.unlink()
    plan = make_plan(listed([same, touched, new], [tmp_path]), indexed)
    assert [file.uri for file in plan.unchanged] == [uri_of(same)]
    assert [(one.path, one.previous is None) for one in plan.jobs] == [(touched, False), (new, True)]
    assert [file.uri for file in plan.gone] == [uri_of(gone)]


def test_what_is_not_under_a_root_is_not_gone(tmp_path: Path) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    a, b = on_disk(here, "a.mp4"), on_disk(elsewhere, "b.mp4")
    indexed = {uri_of(b): as_indexed(b)}
    b.unlink()
    assert make_plan(listed([a], [here]), indexed).gone == []
    assert make_plan(listed([a], [here, elsewhere]), indexed).gone == [indexed[uri_of(b)]]
    shut = listed([a], [tmp_path])
    shut.unreadable[uri_of(elsewhere)] = PermissionError()
    assert make_plan(shut, indexed).gone == []


def test_a_file_that_was_named_once_stays(tmp_path: Path) -> None:
    odd = on_disk(tmp_path, "odd.dat")
    indexed = {uri_of(odd): as_indexed(odd)}
    plan = make_plan(listed([], [tmp_path]), indexed)
    assert (len(plan.unchanged), plan.jobs, plan.gone) == (1, [], [])


def test_rehash_reads_every_file(tmp_path: Path) -> None:
    a = on_disk(tmp_path, "a.mp4")
    plan = make_plan(listed([a], [tmp_path]), {uri_of(a): as_indexed(a)}, rehash=True)
    assert [one.path for one in plan.jobs] == [a]


def test_the_fingerprint_is_that_of_all_bytes(tmp_path: Path) -> None:
    data = bytearray(os.urandom(3_000_000))
    before = content_fingerprint(on_disk(tmp_path, "a", bytes(data)))
    data[1_234_567] ^= 1
    assert content_fingerprint(on_disk(tmp_path, "b", bytes(data))) != before
