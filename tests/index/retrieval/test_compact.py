from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.util import quantize_embeddings

from tests.index.made import file_rows, made_index, made_vectors, queries
from vidembed.index import Filter, IndexMismatchError, VideoIndex, compact
from vidembed.index.ann import draw
from vidembed.index.compact import Spec, _binary_scores, pack
from vidembed.index.search import nearest

NAMES = ["int8", "binary", "int8-8", "binary-12", "float32-8"]


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidembed.index.ann.SAMPLE", 10)


@pytest.fixture
def index(tmp_path: Path) -> VideoIndex:
    return made_index(tmp_path / "ix", made_vectors(300))


def keys(hits: list) -> list[tuple[str, float]]:
    return [(hit.uri, hit.start_s) for hit in hits]


@pytest.mark.parametrize("name", NAMES)
def test_search_rescore_and_recall(index: VideoIndex, name: str) -> None:
    assert compact.refresh(index, [name], progress=False)
    opened = compact.open_compact(index, name)
    shares = []
    for query in draw(index).queries:
        exact = nearest(index, query, k=10, exact=True)
        hits = nearest(index, query, k=10, copy=name)
        every = {(hit.uri, hit.start_s): hit.score for hit in nearest(index, query, k=300)}
        assert [every[place] for place in keys(hits)] == [hit.score for hit in hits]
        assert list(hits) == sorted(hits, key=lambda hit: (-hit.score, hit.uri, hit.start_s))
        assert hits.method.name == f"compact {name}"
        assert hits.method.recall == opened.recall["10"]
        shares.append(len(set(keys(exact)) & set(keys(hits))) / 10)
        [all_rescored] = opened.find(index, query[None], 10, multiplier=30)
        assert [(row.uri, row.start_s) for row in all_rescored] == keys(exact)
    assert opened.recall["10"] == pytest.approx(np.mean(shares), abs=1e-6)
    assert opened.recall["10"] > 0.6  # rows by chance would be 10 * multiplier / 300
    assert opened.record["rescore_multiplier"] <= 16


def test_sizes(index: VideoIndex) -> None:
    compact.refresh(index, ["int8", "binary-12", "float32-8"], progress=False)
    codes = {file.name.split("-")[1]: np.load(file) for file in (index.folder / "derived").glob("*-codes.npy")}
    assert codes["int8"].shape == (300, 16)
    assert codes["int8"].dtype == np.int8
    assert codes["binary"].shape == (300, 1)
    assert codes["float32"].shape == (300, 8)
    assert np.linalg.norm(codes["float32"], axis=1) == pytest.approx(np.ones(300), abs=1e-6)
    said = {fact["name"]: fact for fact in compact.facts(index)}
    assert all(fact["fresh"] and fact["rows"] == 300 and fact["sample"] == 10 for fact in said.values())
    assert said["int8"]["bytes"] > 300 * 16


@given(st.integers(1, 150), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_binary_scores_are_the_sums_that_they_stand_for(dimension: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, query = rng.normal(size=(7, dimension)), rng.normal(size=dimension).astype(np.float32)
    codes = pack(np.asarray(quantize_embeddings(rows, "ubinary")), -(-dimension // 64))
    factors = rng.uniform(0.5, 2, size=7).astype(np.float32)
    step = (query.max() - query.min()) / 15
    rounded = query.min() + step * np.rint((query - query.min()) / (step or 1))
    expected = (np.where(rows > 0, 1, -1) @ rounded.astype(np.float64)) * factors
    assert _binary_scores(codes, factors, query) == pytest.approx(expected, abs=1e-3)


def test_int8_orders_nearly_as_the_vectors_do(index: VideoIndex) -> None:
    compact.refresh(index, ["int8"], progress=False)
    opened = compact.open_compact(index, "int8")
    for query in queries(5):
        unit = query / np.linalg.norm(query)
        [places] = opened.places(unit[None], 300)
        rows = index.take(opened._arrays["ids"], ["vector"])
        order = np.argsort(rows.column("_rowid").to_numpy())
        vectors = np.stack(rows.column("vector").to_pylist())[order]
        cosines = vectors @ unit / np.linalg.norm(vectors, axis=1)
        drops = np.diff(cosines[places])  # ids rise with positions in a table that was only added to
        assert drops.max() < 0.02


def test_a_stale_copy_is_never_used(index: VideoIndex) -> None:
    compact.refresh(index, ["int8"], progress=False)
    assert not compact.refresh(index, ["int8"], progress=False)
    index.put([file_rows("file:///v/new.mp4", made_vectors(3, seed=4))], replace=False)
    for reader in (index, VideoIndex.open(index.folder)):
        with pytest.raises(IndexMismatchError, match="another state of the index"):
            nearest(reader, queries(1)[0], k=5, copy="int8")
    assert [fact["fresh"] for fact in compact.facts(index)] == [False]
    assert compact.refresh(index, progress=False)  # what is there is kept up to date
    assert nearest(index, made_vectors(3, seed=4)[0].astype(float), k=1, copy="int8")[0].uri == "file:///v/new.mp4"
    assert len(list((index.folder / "derived").glob("compact-int8-*-codes.npy"))) == 1  # the old files are gone


def test_a_copy_of_another_table_or_model_is_refused(tmp_path: Path, index: VideoIndex) -> None:
    compact.refresh(index, ["int8"], progress=False)
    other = made_index(tmp_path / "other", made_vectors(300), model="e" * 64)
    (index.folder / "derived").rename(other.folder / "derived")
    with pytest.raises(IndexMismatchError, match="another state"):
        nearest(other, queries(1)[0], k=5, copy="int8")
    file = other.folder / "derived" / "compact-int8.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "stamp": other.stamp()}))
    with pytest.raises(IndexMismatchError, match="another state"):  # by the model alone
        nearest(other, queries(1)[0], k=5, copy="int8")


@pytest.mark.parametrize("damage", ["cut", "gone", "pickle", "shape"])
def test_a_damaged_copy_is_refused(index: VideoIndex, damage: str) -> None:
    compact.refresh(index, ["int8"], progress=False)
    [file] = (index.folder / "derived").glob("compact-int8-*-codes.npy")
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[:500])
        case "gone":
            file.unlink()
        case "pickle":
            np.save(file, np.array([{}], dtype=object), allow_pickle=True)
        case "shape":
            np.save(file, np.zeros((299, 16), dtype=np.int8))
    with pytest.raises(IndexMismatchError, match="damaged"):
        nearest(index, queries(1)[0], k=5, copy="int8")
    assert nearest(index, queries(1)[0], k=5).method.name == "exact"


def test_an_interruption_leaves_the_old_copy(index: VideoIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    compact.refresh(index, ["int8"], progress=False)
    before = {file.name for file in (index.folder / "derived").iterdir()}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("sentence_transformers.util.quantize_embeddings", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compact.refresh(index, ["binary"], progress=False)
    assert {file.name for file in (index.folder / "derived").iterdir()} == before
    assert nearest(index, queries(1)[0], k=5, copy="int8").method.approximate


@pytest.mark.parametrize("name", ["int4", "float32", "int8-0", "int8-x", "../int8", "int8-16", "binary-99", ""])
def test_names_that_are_none(index: VideoIndex, name: str) -> None:
    with pytest.raises(ValueError, match="compact: got"):
        compact.refresh(index, [name], progress=False)
    with pytest.raises(ValueError, match="compact: got"):
        nearest(index, queries(1)[0], k=5, copy=name)


def test_what_does_not_go_together(index: VideoIndex) -> None:
    compact.refresh(index, ["int8"], progress=False)
    for options, said in [
        ({"exact": True}, "exact"),
        ({"bank": True}, "bank"),
        ({"keep": Filter(path="a")}, "a filter"),
        ({"k": 101}, "k: got 101"),
    ]:
        with pytest.raises(ValueError, match=said):
            nearest(index, queries(1)[0], **{"k": 5, "copy": "int8", **options})
    with pytest.raises(ValueError, match="no binary copy"):
        nearest(index, queries(1)[0], k=5, copy="binary")


def test_a_spec_says_its_name() -> None:
    for name in NAMES:
        assert Spec.parse(name, 16).name == name


def test_one_row_and_none(tmp_path: Path) -> None:
    one = made_index(tmp_path / "one", made_vectors(1))
    compact.refresh(one, ["int8", "binary"], progress=False)
    for name in ("int8", "binary"):
        assert len(nearest(one, queries(1)[0], k=5, copy=name)) == 1
    one.remove(["file:///v/000.mp4"])
    assert not compact.refresh(one, ["int8"], progress=False)
