"""Exact searches find the same with a mirror of the vectors, whatever becomes of its file."""

from __future__ import annotations

import errno
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.index.made import file_rows, made_index, made_vectors, queries
from tests.index.test_bank import Words
from vidembed.index import Condition, Filter, VideoIndex, bank, mirror, rows
from vidembed.index.ingest import facts
from vidembed.index.rows import rank_all, unit
from vidembed.index.search import nearest
from vidembed.index.table import Block

ROWS, DIMENSION = 60, 16
ROW_BYTES = 4 * DIMENSION + 12


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mirrors of few rows, at once, read seven rows at a time."""
    monkeypatch.setattr(mirror, "MIRROR_ABOVE", 0)
    monkeypatch.setattr(mirror, "SETTLED_S", 0.0)
    monkeypatch.setattr(mirror, "BLOCK_BYTES", 7 * 4 * DIMENSION)


@pytest.fixture
def index(tmp_path: Path) -> VideoIndex:
    return made_index(tmp_path / "ix", made_vectors(ROWS))


def mirrors(index: VideoIndex) -> list[str]:
    """Names of what lies beside the table but the lock."""
    return sorted(file.name for file in index.derived("").glob("*") if file.name != "mirror.lock")


def search(index: VideoIndex, **options: Any) -> list[Any]:
    return list(nearest(index, queries(1)[0], **{"k": 5, **options}))


def plainly(index: VideoIndex, **options: Any) -> list[Any]:
    """The same search without a mirror."""
    return search(VideoIndex.open(index.folder, mirror=False), **options)


@st.composite
def kept(draw: st.DrawFn) -> Filter | None:
    """A filter of rows: none, some or nearly all of them pass."""
    if draw(st.booleans()):
        return None
    path = draw(st.sampled_from([None, "00[0-2]*", "*[13579].mp4", "no.mp4"]))
    start = draw(st.sampled_from([(), ("start_s != 2",), ("start_s > 1", "start_s < 4")]))
    return Filter(path, where=tuple(map(Condition.parse, start)))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    distinct=st.sampled_from([1, 3, 20, 60]),
    count=st.integers(1, 60),
    k=st.sampled_from([1, 2, 7, 30, 100]),
    keep=kept(),
    bank_queries=st.sampled_from([0, 0, 8]),
    ties=st.sampled_from([0, 4096]),
)
def test_the_same_hits_with_and_without(
    *, seed: int, distinct: int, count: int, k: int, keep: Filter | None, bank_queries: int, ties: int
) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct vectors, of several lengths: many rows have the same score.
    vectors = made_vectors(distinct, seed=seed)[rng.integers(0, distinct, count)]
    vectors = (vectors * 2.0 ** rng.integers(-3, 4, (count, 1))).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "TIES", ties)
        patch.setattr(rows, "COARSE_BYTES", 64)
        patch.setattr(rows, "EXACT_ROWS", 3)
        index = made_index(Path(folder) / "ix", vectors)
        index.remove([f"file:///v/{number:03}.mp4" for number in range(1, 12, 4)])  # ids have gaps
        if not len(index):
            return
        if bank_queries:
            bank.refresh(index, Words(), [f"query {i}" for i in range(bank_queries)], progress=False)
        plain = VideoIndex.open(index.folder, mirror=False)
        asked = queries(3, seed=seed + 1)
        where = None if keep is None else keep.sql(index)
        assert rank_all(index, unit(asked), k=k, where=where) == rank_all(plain, unit(asked), k=k, where=where)
        for merge in ("none", "moments", "videos"):
            options: dict[str, Any] = {"k": k, "keep": keep, "merge": merge, "bank": bool(bank_queries)}
            found = nearest(index, asked[0], **options)
            assert found == nearest(plain, asked[0], **options)
            assert found.method.name == "exact"
        assert len(list(index.derived("").glob(mirror.FILES))) == 1


def test_equal_rows_are_ordered_by_name_whatever_their_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "TIES", 0)
    index = made_index(tmp_path / "ix", np.ones((ROWS, DIMENSION), np.float32))
    index.put([file_rows("file:///v/0.mp4", np.ones((2, DIMENSION)))], replace=False)  # comes last, is first
    hits = nearest(index, np.ones(DIMENSION), k=4)
    assert [(hit.uri, hit.start_s) for hit in hits] == [
        *(("file:///v/0.mp4", start) for start in (0.0, 1.0)),
        *(("file:///v/000.mp4", start) for start in (0.0, 1.0)),
    ]


def test_scores_come_from_the_mirror(index: VideoIndex) -> None:
    search(index)
    [name] = mirrors(index)
    stored = np.memmap(index.derived(name), np.float32, mode="r+", shape=(ROWS, DIMENSION))
    stored[:] = -stored
    stored.flush()
    query = queries(1)[0]
    for keep in (None, Filter("00*"), Filter(where=(Condition.parse("start_s = 3"),))):
        best = nearest(index, query, k=1, keep=keep)[0]
        worst = nearest(VideoIndex.open(index.folder, mirror=False), -query, k=1, keep=keep)[0]
        assert (best.uri, best.start_s, best.score) == (worst.uri, worst.start_s, worst.score)


def test_it_is_written_once_and_mapped(index: VideoIndex) -> None:
    expected = plainly(index)
    assert mirrors(index) == []
    assert search(index) == expected
    [name] = mirrors(index)
    file = index.derived(name)
    assert (name, file.stat().st_size) == (f"mirror-{index.stamp()}.f32", ROWS * ROW_BYTES)
    before = file.stat().st_mtime_ns, file.stat().st_ino
    assert search(index) == search(VideoIndex.open(index.folder)) == expected
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == before
    vectors = mirror.Mirror.open(file, ROWS, DIMENSION).vectors
    assert not vectors.flags.owndata
    assert not vectors.flags.writeable
    assert isinstance(vectors.base, np.memmap)


def test_no_mirror_of_few_rows_or_of_a_table_that_just_changed(
    index: VideoIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MIRROR_ABOVE", ROWS), ("SETTLED_S", 3600.0)):
        with monkeypatch.context() as patch:
            patch.setattr(mirror, name, value)
            assert search(index) == plainly(index)
            assert mirrors(index) == []
    search(index)
    assert len(mirrors(index)) == 1


def test_it_follows_the_table_though_another_reader_has_the_old_one_open(index: VideoIndex) -> None:
    reader = VideoIndex.open(index.folder)
    search(reader)
    old = mirrors(index)
    index.put([file_rows("file:///v/new.mp4", queries(1))], replace=False)
    hits = search(index)
    assert (hits[0].uri, hits[0].score) == ("file:///v/new.mp4", 1.0)
    new = mirrors(index)
    assert len(new) == 1
    assert new != old
    assert search(reader) == hits == plainly(index)


def test_drafts_of_killed_processes_and_short_files_are_replaced(index: VideoIndex) -> None:
    expected = search(index)
    [name] = mirrors(index)
    for content in (b"", b"\0" * (ROWS * ROW_BYTES - 1)):
        index.derived(name).write_bytes(content)
        index.derived(".draft-0123.f32").write_bytes(b"half")
        assert search(VideoIndex.open(index.folder)) == expected
        assert mirrors(index) == [name]
        assert index.derived(name).stat().st_size == ROWS * ROW_BYTES


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_it_never_takes_more_than_its_share_of_the_free_space(
    index: VideoIndex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = 2 * ROWS * ROW_BYTES - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert search(index) == search(index) == plainly(index)
    assert mirrors(index) == []
    [said] = warnings(caplog)  # once for two searches
    assert f"{ROWS * ROW_BYTES} bytes, more than 50% of the {free} bytes" in said
    free += 1
    assert search(VideoIndex.open(index.folder)) == plainly(index)
    assert len(mirrors(index)) == 1


def test_a_folder_that_cannot_be_written_to(index: VideoIndex, caplog: pytest.LogCaptureFixture) -> None:
    index.derived("").write_text("no folder")  # a test may run as root, who may write to every folder
    assert search(index) == search(index) == plainly(index)
    assert len(warnings(caplog)) == 1
    index.derived("").unlink()
    index.put([file_rows("file:///v/new.mp4", queries(1))], replace=False)  # then it is tried again
    search(index)
    assert len(mirrors(index)) == 1


def test_a_full_disk_leaves_nothing(
    index: VideoIndex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocks = VideoIndex.blocks

    def full(self: VideoIndex, where: str | None = None) -> Iterator[Block]:
        monkeypatch.setattr(VideoIndex, "blocks", blocks)
        yield next(blocks(self, where))
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = plainly(index)
    monkeypatch.setattr(VideoIndex, "blocks", full)
    assert search(index) == expected
    assert mirrors(index) == []
    assert "No space left on device" in warnings(caplog)[0]


def test_an_interruption_leaves_nothing(index: VideoIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Iterator[Block]:
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        patch.setattr(VideoIndex, "blocks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            search(index)
    assert mirrors(index) == []
    assert search(index) == plainly(index)
    assert len(mirrors(index)) == 1


def test_a_search_does_not_wait_for_another_one_that_writes(
    index: VideoIndex, caplog: pytest.LogCaptureFixture
) -> None:
    index.derived("").mkdir()
    with FileLock(index.derived("mirror.lock")):
        assert search(index) == plainly(index)
        assert mirrors(index) == []
    search(index)
    assert len(mirrors(index)) == 1
    assert warnings(caplog) == []


def test_info_says_what_it_takes(index: VideoIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ROWS * ROW_BYTES
    assert facts(index)["mirror"] == {"bytes": 0, "fresh": False, "needs": needs}
    before = index.size_on_disk()
    search(index)
    assert facts(index)["mirror"] == {"bytes": needs, "fresh": True, "needs": needs}
    assert index.size_on_disk() == before + needs
    index.put([file_rows("file:///v/new.mp4", queries(1))], replace=False)
    assert facts(index)["mirror"] == {"bytes": needs, "fresh": False, "needs": needs + ROW_BYTES}
    monkeypatch.setattr(mirror, "MIRROR_ABOVE", ROWS + 1)
    assert facts(index)["mirror"] is not None
    index.derived(mirrors(index)[0]).unlink()
    assert facts(index)["mirror"] is None
