"""The search benchmark at a size at which its clock means nothing: its recipe, its arithmetic and its checks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks import search

from vidembed.index import VideoIndex, ann
from vidembed.index.search import nearest


@pytest.fixture(scope="module")
def world() -> search.World:
    return search.World(48)


def test_vectors_come_from_the_seed_alone(world: search.World) -> None:
    rows = world.made(3, 25)
    assert np.array_equal(rows, search.World(48).made(3, 25))
    assert not np.array_equal(rows, world.made(4, 25))
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(25), abs=1e-5)


def test_vectors_have_structure() -> None:
    rows = search.World(1024).made(0, 400)
    cosines = rows @ rows.T
    videos = np.arange(400) // search.SEGMENTS
    same = videos[:, None] == videos[None]
    np.fill_diagonal(same, val=False)
    assert cosines[same].mean() > cosines[videos[:, None] != videos[None]].mean() + 0.2 > 0.4


def test_queries_lie_near_some_rows_and_are_none_of_them(world: search.World) -> None:
    wide = search.World(1024)
    queries, rows = wide.queries(20), wide.made(0, search.BATCH)
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ rows.T
    best = cosines.max(axis=1)
    assert (best < 0.95).all()
    assert (best > cosines.mean(axis=1) + 3 * cosines.std(axis=1)).all()


def test_one_size_and_its_growth(world: search.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidembed.index.ann.SAMPLE", 10)
    rows: list[dict[str, Any]] = [
        search.one_size(tmp_path / str(size), world, size, queries=10, repeats=2, quantizations=("int8", "binary"))
        for size in (300, 600)
    ]
    for row in rows:
        assert row["vectors_bytes"] == row["rows"] * 48 * 4 < row["index_bytes"]
        assert set(row["approximate"]) == {"ann", "int8", "binary"}
        for cost in row["approximate"].values():
            assert 0.7 <= cost["recall_at_10"] <= 1
            assert cost["speedup_over_exact"] == pytest.approx(row["exact_s"] / cost["query_s"])
            assert cost["bytes_over_vectors"] == pytest.approx(cost["bytes"] / row["vectors_bytes"])
        assert row["approximate"]["int8"]["recall_at_10"] > 0.95
    [step] = search.growth(rows)
    assert (step["from"], step["to"], step["rows"]) == (300, 600, 2)
    assert step["exact_s"] == pytest.approx(rows[1]["exact_s"] / rows[0]["exact_s"])
    assert 1.5 < step["int8"]["bytes"] < 2.5


def test_exact_beside_numpy(world: search.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MIRROR_ABOVE", "SETTLED_S"):
        monkeypatch.setattr(f"vidembed.index.mirror.{name}", 0)
    search.filled(tmp_path / "ix", world, 500)
    row = search.exact_beside_numpy(tmp_path / "ix", world, queries=6, repeats=2)
    assert (row["rows"], row["mirror_bytes"], row["same_hits_as_without"]) == (500, 500 * (4 * 48 + 12), True)
    for suffix in ("", "_lengths_computed"):
        assert row[f"exact_over_numpy{suffix}"] == pytest.approx(row["exact_s"] / row[f"numpy{suffix}_s"])
    assert row["exact_over_numpy_cold"] == pytest.approx(row["exact_cold_s"] / row["numpy_cold_s"])
    more = search.at_a_million(row)
    assert more["mirror_bytes"] == 10**6 * (4 * 48 + 12)
    assert more["exact_s"] == pytest.approx(2000 * row["exact_s"])


def test_the_kept_run_is_within_three_times_of_numpy() -> None:
    kept = json.loads(Path(search.__file__).with_name("search_exact.json").read_text())
    assert [row["rows"] for row in kept["sizes"]] == [50_000, 100_000]
    for row in kept["sizes"]:
        assert (row["dimension"], row["same_hits_as_without"]) == (3584, True)
        assert max(row["exact_over_numpy"], row["exact_over_numpy_cold"]) < 3
        assert row["exact_over_numpy"] == pytest.approx(row["exact_s"] / row["numpy_s"])


def test_recall_is_of_what_was_found(world: search.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidembed.index.ann.SAMPLE", 10)

    def usable(index: VideoIndex, k: int) -> ann.Ann | None:
        monkeypatch.setattr(ann, "find", lambda *_: [])  # after the index measured itself
        return ann.stored(index)

    monkeypatch.setattr(ann, "usable", usable)
    row = search.one_size(tmp_path / "ix", world, 300, queries=5, repeats=2, quantizations=())
    assert row["approximate"]["ann"]["recall_at_10"] == 0
    assert row["approximate"]["ann"]["recall_at_10_by_own_measure"] > 0.9


def test_an_index_is_filled_with_the_rows(world: search.World, tmp_path: Path) -> None:
    index, seconds = search.filled(tmp_path / "ix", world, 35)
    assert (len(index), len(index.files()), seconds > 0) == (35, 4, True)
    hits = nearest(index, world.made(0, 35)[34].astype(np.float64), k=1)
    assert (hits[0].uri, hits[0].start_s, hits[0].score) == ("file:///made/0000003.mp4", 40.0, 1.0)
