"""An ANN index whose quantization was asked for: searched whole, whatever the number of rows."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from tests.index.fakes import FakeEncoder
from tests.index.made import file_rows, made_index, made_vectors, queries
from vidembed.index import Filter, IndexMismatchError, VideoIndex, ann
from vidembed.index.ann import draw
from vidembed.index.ingest import refresh
from vidembed.index.search import nearest


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidembed.index.ann.SAMPLE", 10)


@pytest.fixture
def index(tmp_path: Path) -> VideoIndex:
    return made_index(tmp_path / "ix", made_vectors(300))


def keys(hits: list) -> list[tuple[str, float]]:
    return [(hit.uri, hit.start_s) for hit in hits]


@pytest.mark.parametrize("name", ["int8", "binary"])
def test_search_rescore_and_recall(index: VideoIndex, name: str) -> None:
    assert ann.refresh(index, quantize=name)
    stored = ann.stored(index)
    assert stored is not None
    assert stored.full_recall is not None
    shares = []
    for query in draw(index).queries:
        exact = nearest(index, query, k=10)
        assert exact.method.name == "exact"  # so few rows are not searched approximately unless it is asked for
        hits = nearest(index, query, k=10, copy=name)
        every = {(hit.uri, hit.start_s): hit.score for hit in nearest(index, query, k=300)}
        assert [every[place] for place in keys(hits)] == [hit.score for hit in hits]
        assert list(hits) == sorted(hits, key=lambda hit: (-hit.score, hit.uri, hit.start_s))
        assert (hits.method.name, hits.method.recall) == ("ann", stored.full_recall["10"])
        shares.append(len(set(keys(exact)) & set(keys(hits))) / 10)
    assert stored.full_recall["10"] == pytest.approx(np.mean(shares), abs=1e-6)
    assert stored.full_recall["10"] >= ann.TARGET_RECALL
    assert (stored.kind, stored.full_refine in ann.FULL_REFINES) == (ann.KINDS[name], True)
    facts = ann.facts(index)
    assert facts is not None
    assert (facts["used"], facts["full_recall"]) == (False, stored.full_recall)


def test_bytes_of_the_quantizations(tmp_path: Path) -> None:
    sizes = {}
    for name in ann.KINDS:
        index = made_index(tmp_path / name, made_vectors(2000, 256), per_file=500)
        ann.refresh(index, quantize=name)
        sizes[name] = ann.facts(index)["bytes"] / (2000 * 256)  # type: ignore[index, operator]
    assert sizes["int8"] == pytest.approx(1, abs=0.3)  # a byte a dimension, and what partitions take
    assert sizes["binary"] == pytest.approx(1 / 8, abs=0.3)
    assert sizes["int8"] > 2 * sizes["binary"]


def test_it_is_remembered_and_follows_the_rows(index: VideoIndex) -> None:
    assert ann.refresh(index, quantize="int8")
    assert not ann.refresh(index, quantize="int8")
    assert not ann.refresh(index)
    assert ann.settings(index) == (ann.EXACT_UP_TO, "int8")
    index.put([file_rows("file:///v/new.mp4", made_vectors(3, seed=4))], replace=False)
    asked = made_vectors(3, seed=4)[0].astype(float)
    for reader in (index, VideoIndex.open(index.folder)):
        assert nearest(reader, asked, k=1, copy="int8")[0].uri == "file:///v/new.mp4"
    assert ann.refresh(index)
    assert ann.stored(index).rows == 303  # type: ignore[union-attr]
    assert ann.refresh(index, quantize="binary")  # another takes its place
    assert nearest(index, asked, k=1, copy="binary")[0].uri == "file:///v/new.mp4"
    with pytest.raises(ValueError, match="no int8 quantization; run `vidembed index` again with --quantize int8"):
        nearest(index, asked, k=1, copy="int8")


def test_it_is_refused_where_its_recall_is_not_known(index: VideoIndex, tmp_path: Path) -> None:
    ann.refresh(index, quantize="int8")
    index.put([file_rows("file:///v/many.mp4", made_vectors(100, seed=4))], replace=False)
    with pytest.raises(IndexMismatchError, match="before the index changed"):
        nearest(index, queries(1)[0], k=5, copy="int8")
    ann.refresh(index)
    assert nearest(index, queries(1)[0], k=5, copy="int8").method.approximate
    record = index.folder / "derived" / "ann.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "model_fingerprint": "e" * 64}))
    with pytest.raises(IndexMismatchError, match="before the index changed"):
        nearest(index, queries(1)[0], k=5, copy="int8")
    large = made_index(tmp_path / "large", made_vectors(300))
    ann.refresh(large, exact_up_to=100)  # without the measurement of all partitions
    with pytest.raises(IndexMismatchError, match="--quantize binary"):
        nearest(large, queries(1)[0], k=5, copy="binary")
    assert ann.refresh(large, quantize="binary")  # measured, not built
    assert nearest(large, queries(1)[0], k=5, copy="binary").method.approximate


@pytest.mark.parametrize("name", ["int4", "float32", "int8-0", "int8-x", "../int8", ""])
def test_rejects_unknown_names(index: VideoIndex, name: str) -> None:
    for ask in (lambda: ann.refresh(index, quantize=name), lambda: nearest(index, queries(1)[0], k=5, copy=name)):
        with pytest.raises(ValueError, match=r"compact: got .* int8 \(one byte per dimension\) and binary"):
            ask()


@pytest.mark.parametrize("name", ["int8-8", "binary-12", "float32-8"])
def test_truncated_copies_are_refused_with_what_to_use(index: VideoIndex, name: str) -> None:
    for ask in (lambda: ann.refresh(index, quantize=name), lambda: nearest(index, queries(1)[0], k=5, copy=name)):
        with pytest.raises(ValueError, match=f"compact: got '{name}'.*Use int8, or binary"):
            ask()


def test_binary_needs_a_multiple_of_eight(tmp_path: Path) -> None:
    index = made_index(tmp_path / "ix", made_vectors(50, 13))
    with pytest.raises(ValueError, match="13 dimensions; it needs a multiple of eight"):
        ann.refresh(index, quantize="binary")
    assert ann.refresh(index, quantize="int8")
    assert nearest(index, queries(1, 13)[0], k=5, copy="int8").method.recall == 1.0


def test_what_does_not_go_together(index: VideoIndex) -> None:
    ann.refresh(index, quantize="int8")
    for options, message in [
        ({"exact": True}, "exact"),
        ({"bank": True}, "bank"),
        ({"keep": Filter(path="a")}, "a filter"),
        ({"k": 101}, "k: got 101"),
    ]:
        with pytest.raises(ValueError, match=message):
            nearest(index, queries(1)[0], **{"k": 5, "copy": "int8", **options})


@pytest.mark.parametrize("name", ["int8", "binary"])
def test_one_row_and_none(tmp_path: Path, name: str) -> None:
    one = made_index(tmp_path / "one", made_vectors(1))
    ann.refresh(one, quantize=name)
    assert len(nearest(one, queries(1)[0], k=5, copy=name)) == 1
    one.remove(["file:///v/000.mp4"])
    assert ann.refresh(one)
    assert (one.ann, ann.refresh(one)) == (None, False)


def test_compact_copies_of_an_earlier_version_are_ignored_and_removed(
    index: VideoIndex, caplog: pytest.LogCaptureFixture
) -> None:
    folder = index.folder / "derived"
    folder.mkdir()
    token = "0123456789abcdef" * 2
    old = [f"compact-int8-{token}-codes.npy", "compact-int8.json", f"compact-float32-512-{token}-ids.npy"]
    for name in [*old, "compact-notes.txt"]:
        (folder / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        opened = VideoIndex.open(index.folder)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "--quantize" in caplog.text
    assert len(nearest(opened, queries(1)[0], k=5)) == 5
    with pytest.raises(ValueError, match="no int8 quantization"):
        nearest(opened, queries(1)[0], k=5, copy="int8")
    refresh(opened, FakeEncoder(), progress=False)
    assert [file.name for file in folder.iterdir()] == ["compact-notes.txt"]  # not ours
    caplog.clear()
    VideoIndex.open(index.folder)
    assert not caplog.records
