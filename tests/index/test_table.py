"""Files are stored, replaced, moved and removed a commit at a time, and columns of the user stay the user's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.index.fakes import rows
from tests.index.made import MODEL, file_rows, made_vectors
from vidembed.index import Condition, Filter, IndexDamagedError, IndexMeta, IndexMismatchError, VideoIndex
from vidembed.index.schema import FileRows, Segment, own_rows
from vidembed.index.search import nearest
from vidembed.index.table import uri_of
from vidembed.video.clip import FileState

DIMENSION = 8
META = IndexMeta("made", None, {}, MODEL, {}, DIMENSION, 1.0, 0.0, "2026-01-01T00:00:00+00:00")
A, B, C, D = (f"file:///v/{name}.mp4" for name in "abcd")


def file(uri: str, count: int, *, seed: int = 0) -> FileRows:
    return file_rows(uri, made_vectors(count, DIMENSION, seed=seed), content=f"content {seed}")


@pytest.fixture
def index(folder: Path) -> VideoIndex:
    """Files `a` and `b` of three and two segments."""
    made = VideoIndex.create(folder, META)
    made.put([file(A, 3, seed=1), file(B, 2, seed=2)], replace=False)
    return made


@pytest.fixture
def table(index: VideoIndex) -> Any:
    """The table of `index`, to which the user added columns and what they hold, with LanceDB alone."""
    user = lancedb.connect(index.folder).open_table("segments")
    user.add_columns(
        [
            pa.field("camera", pa.string()),
            pa.field("Shot Size", pa.int64()),
            pa.field("tags", pa.list_(pa.string())),
            pa.field("at", pa.struct([pa.field("lat", pa.float64()), pa.field("lon", pa.float64())])),
        ]
    )
    known = user.to_arrow().select(["id", "uri", "start_s"]).to_pylist()
    said = [
        {
            "id": row["id"],
            "camera": f"{row['uri'][-5]}{row['start_s']:.0f}",
            "Shot Size": int(row["start_s"]),
            "tags": [row["uri"][-5], "t"],
            "at": {"lat": row["start_s"], "lon": None},
        }
        for row in known
    ]
    columns = ["id", "camera", "Shot Size", "tags", "at"]
    schema = pa.schema([user.schema.field(name) for name in columns])
    user.merge_insert("id").when_matched_update_all().execute(pa.Table.from_pylist(said, schema=schema))
    return user


def cameras(index: VideoIndex) -> dict[tuple[str, float], str | None]:
    return {(row["uri"][-5], row["start_s"]): row["camera"] for row in rows(index.folder)}


def vectors(index: VideoIndex, uri: str) -> np.ndarray:
    return np.array([row["vector"] for row in rows(index.folder) if row["uri"] == uri], dtype=np.float32)


def versions(index: VideoIndex) -> int:
    return int(lancedb.connect(index.folder).open_table("segments").version)


def test_put_stores_and_replaces_a_file_in_one_commit_each(index: VideoIndex) -> None:
    before = versions(index)
    index.put([file(A, 2, seed=3), file(B, 4, seed=4)], replace=True)
    assert versions(index) == before + 1
    assert [(row["uri"], row["start_s"]) for row in rows(index.folder)] == [
        *((A, float(i)) for i in range(2)),
        *((B, float(i)) for i in range(4)),
    ]
    np.testing.assert_array_equal(vectors(index, A), made_vectors(2, DIMENSION, seed=3))
    assert index.files()[B].content_fingerprint == "content 4"


def test_nothing_makes_no_commit(index: VideoIndex) -> None:
    before = versions(index)
    index.put([], replace=True)
    index.move([], [])
    index.remove([])
    assert versions(index) == before


def test_remove_takes_files_and_no_others(index: VideoIndex) -> None:
    index.put([file(f"file:///v/{i:04}.mp4", 1) for i in range(700)], replace=False)
    index.remove([A, *(f"file:///v/{i:04}.mp4" for i in range(699))])
    assert set(index.files()) == {B, "file:///v/0699.mp4"}


def test_new_files_have_no_value_in_columns_of_the_user(index: VideoIndex, table: Any) -> None:
    before = cameras(index)
    index.put([file(C, 2)], replace=False)
    assert cameras(index) == {**before, ("c", 0.0): None, ("c", 1.0): None}
    assert [row["at"] for row in rows(index.folder) if row["uri"] == C] == [None, None]
    assert len(VideoIndex.open(index.folder)) == 7


def test_new_files_of_a_table_with_a_struct_whose_fields_must_have_a_value(index: VideoIndex) -> None:
    user = lancedb.connect(index.folder).open_table("segments")
    user.add_columns([pa.field("at", pa.struct([pa.field("lat", pa.float64(), nullable=False)]))])
    index.put([file(C, 2)], replace=False)
    index.put([file(C, 3)], replace=True)
    assert [row["at"] for row in rows(index.folder) if row["uri"] == C] == [None] * 3


def test_a_replaced_file_keeps_values_of_rows_that_stay(index: VideoIndex, table: Any) -> None:
    before = {row["id"]: row for row in rows(index.folder)}
    index.put([file(A, 2, seed=5), file(B, 3, seed=6)], replace=True)
    assert cameras(index) == {
        ("a", 0.0): "a0",
        ("a", 1.0): "a1",
        ("b", 0.0): "b0",
        ("b", 1.0): "b1",
        ("b", 2.0): None,
    }
    for row in rows(index.folder):
        if row["id"] in before:
            names = ("camera", "Shot Size", "tags", "at")
            assert [row[name] for name in names] == [before[row["id"]][name] for name in names]
            assert row["vector"] != before[row["id"]]["vector"]


def test_files_can_be_stored_after_columns_came_while_the_index_was_open(index: VideoIndex) -> None:
    user = lancedb.connect(index.folder).open_table("segments")
    user.add_columns(pa.field("camera", pa.string()))
    index.put([file(C, 1)], replace=False)
    user.drop_columns(["camera"])
    index.put([file(D, 1)], replace=False)
    assert set(index.files()) == {A, B, C, D}


def test_a_filter_sees_values_after_files_came_and_moved(index: VideoIndex, table: Any) -> None:
    index.put([file(C, 2)], replace=False)
    index.move([file(D, 3, seed=1)], [A])
    keep = Filter(where=(Condition.parse("camera >= a1"), Condition.parse("camera <= a2")))
    hits = nearest(index, np.ones(DIMENSION), k=9, keep=keep)
    assert {(hit.uri, hit.start_s) for hit in hits} == {(D, 1.0), (D, 2.0)}


@pytest.mark.parametrize("replace", [False, True])
def test_a_column_that_must_have_a_value_is_refused_and_the_remedy_works(index: VideoIndex, replace: bool) -> None:
    user = lancedb.connect(index.folder).open_table("segments")
    user.add_columns({"camera": "'left'"})  # LanceDB makes that a column without nulls
    before = rows(index.folder)
    added = file(A if replace else C, 4)
    said = r"'camera'.*alter_columns\(\{\"path\": \"camera\", \"nullable\": True\}\)"
    with pytest.raises(IndexMismatchError, match=said):
        index.put([added], replace=replace)
    assert rows(index.folder) == before
    user.checkout_latest()
    user.alter_columns({"path": "camera", "nullable": True})
    index.put([added], replace=replace)
    name = "a" if replace else "c"
    assert [camera for (uri, _), camera in cameras(index).items() if uri == name] == (
        ["left", "left", "left", None] if replace else [None] * 4
    )


def test_a_column_of_ours_that_is_gone_or_changed_is_said(index: VideoIndex) -> None:
    user = lancedb.connect(index.folder).open_table("segments")
    user.alter_columns({"path": "size", "data_type": pa.int32()})
    with pytest.raises(IndexDamagedError, match="'size' is of type int32 and not int64"):
        index.put([file(C, 1)], replace=False)
    user.drop_columns(["size"])
    with pytest.raises(IndexDamagedError, match="'size' is gone"):
        index.move([file(C, 3)], [A])


def test_vectors_of_another_length_are_refused(index: VideoIndex) -> None:
    with pytest.raises(RuntimeError, match=r"c\.mp4: vectors of length 4 for an index of 8"):
        index.put([file_rows(C, made_vectors(2, 4))], replace=False)


def test_a_moved_file_takes_its_values_along_in_one_commit(index: VideoIndex, table: Any) -> None:
    before = versions(index)
    old = {row["start_s"]: row for row in rows(index.folder) if row["uri"] == A}
    index.move([file(C, 3, seed=1)], [A])
    assert versions(index) == before + 1
    assert set(index.files()) == {B, C}
    moved = [row for row in rows(index.folder) if row["uri"] == C]
    assert len(moved) == 3
    for row in moved:
        assert {**row, "id": 0, "uri": 0} == {**old[row["start_s"]], "id": 0, "uri": 0}
        assert row["id"] != old[row["start_s"]]["id"]
    assert cameras(index)["b", 1.0] == "b1"


def test_a_move_of_a_table_without_columns_of_the_user(index: VideoIndex) -> None:
    index.move([file(C, 3, seed=1), file(D, 2, seed=2)], [A, B])
    assert {uri: known.segments for uri, known in index.files().items()} == {C: 3, D: 2}
    np.testing.assert_array_equal(vectors(index, D), made_vectors(2, DIMENSION, seed=2))


def test_names_that_change_places(index: VideoIndex, table: Any) -> None:
    index.move([file(B, 3, seed=1), file(A, 2, seed=2)], [A, B])
    assert cameras(index) == {
        ("a", 0.0): "b0",
        ("a", 1.0): "b1",
        ("b", 0.0): "a0",
        ("b", 1.0): "a1",
        ("b", 2.0): "a2",
    }
    np.testing.assert_array_equal(vectors(index, B), made_vectors(3, DIMENSION, seed=1))


def test_a_move_over_a_file_replaces_it_and_its_values(index: VideoIndex, table: Any) -> None:
    index.move([file(A, 2, seed=2)], [B])
    assert cameras(index) == {("a", 0.0): "b0", ("a", 1.0): "b1"}


def test_segments_without_a_counterpart_have_no_value_after_a_move(index: VideoIndex, table: Any) -> None:
    index.move([file(C, 4, seed=1)], [A])
    assert [cameras(index)["c", float(i)] for i in range(4)] == ["a0", "a1", "a2", None]


def test_a_column_that_must_have_a_value_moves_where_there_is_one(index: VideoIndex) -> None:
    user = lancedb.connect(index.folder).open_table("segments")
    user.add_columns({"camera": "'left'"})
    index.move([file(C, 3, seed=1)], [A])
    assert {camera for (uri, _), camera in cameras(index).items() if uri == "c"} == {"left"}
    before = rows(index.folder)
    with pytest.raises(IndexMismatchError, match="'camera'"):
        index.move([file(D, 4, seed=1)], [C])
    assert rows(index.folder) == before


@pytest.mark.parametrize(
    ("files", "from_uris", "said"),
    [
        ([C], [], "from_uris: got 0 for 1 files"),
        ([C], [A, B], "from_uris: got 2 for 1 files"),
        ([C, C], [A, B], "files: got 'file:///v/c.mp4' twice"),
        ([C, D], [A, "file:///v/x.mp4"], "from_uris: 'file:///v/x.mp4' is not in the index"),
    ],
)
def test_what_cannot_be_moved_is_refused_and_nothing_changes(
    index: VideoIndex, files: list[str], from_uris: list[str], said: str
) -> None:
    before = rows(index.folder)
    with pytest.raises(ValueError, match=said):
        index.move([file(uri, 2) for uri in files], from_uris)
    assert rows(index.folder) == before


def test_a_name_with_a_quote_moves(index: VideoIndex, table: Any) -> None:
    odd = "file:///v/o'neil.mp4"
    index.move([file(odd, 3, seed=1)], [A])
    index.move([file(A, 3, seed=1)], [odd])
    assert cameras(index)["a", 2.0] == "a2"
    assert set(index.files()) == {A, B}


def test_moves_are_compacted_like_other_commits(index: VideoIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidembed.index.table.COMPACT_EVERY", 2)
    compacted = []
    monkeypatch.setattr(VideoIndex, "compact", lambda self: compacted.append(1))
    index.move([file(C, 3, seed=1)], [A])
    index.move([file(A, 3, seed=1)], [C])
    assert compacted


NAMES = st.binary(min_size=1, max_size=20).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_"))


@given(name=NAMES, size=st.integers(), mtime_ns=st.integers(), duration=st.floats(), start=st.floats(0, 1e6))
def test_rows_can_be_built_of_any_name_and_state(
    name: bytes, size: int, mtime_ns: int, duration: float, start: float
) -> None:
    uri = uri_of(Path("/v", os.fsdecode(name)))
    state = FileState(size, mtime_ns)
    segment = Segment(start, start + 1, made_vectors(1, DIMENSION)[0])
    (row,) = own_rows(FileRows(uri, [segment], duration, "c", state), META).to_pylist()
    assert (row["uri"], FileState(row["size"], row["mtime_ns"])) == (uri, state)
    assert row["duration"] == pytest.approx(duration, nan_ok=True)
