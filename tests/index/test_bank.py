from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.index.fakes import FakeEncoder
from tests.index.made import file_rows, made_index, made_vectors, queries
from vidembed.index import Filter, IndexMismatchError, Report, VideoIndex, bank
from vidembed.index.search import nearest
from vidembed.scoring import QueryBank


class Words:
    """Gives a made vector for each text; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def encode_query(self, inputs: list[dict[str, str]]) -> np.ndarray:
        self.asked += 1
        return queries(len(inputs), seed=7).astype(np.float32)


@pytest.fixture
def index(tmp_path: Path) -> VideoIndex:
    index = made_index(tmp_path / "ix", made_vectors(120))
    bank.refresh(index, Words(), [f"query {i}" for i in range(30)], progress=False)
    return index


def gallery(index: VideoIndex) -> tuple[list[tuple[str, float]], np.ndarray]:
    stored = (row for batch in index.scan(["uri", "start_s", "vector"]) for row in batch.to_pylist())
    rows = [((row["uri"], row["start_s"]), row["vector"]) for row in stored]
    return [place for place, _ in rows], np.array([vector for _, vector in rows], dtype=np.float64)


def test_ranking_is_that_of_qb_norm_over_the_whole_gallery(index: VideoIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidembed.index.bank.DEFAULT_BLOCK_BYTES", 8 * 30 * 7)  # seven rows at a time
    bank.refresh(index, Words(), [f"query {i}" for i in range(30)], progress=False)
    places, vectors = gallery(index)
    reference = QueryBank.from_embeddings(queries(30, seed=7), vectors)
    seen = set()
    for query in queries(40, seed=11):
        cosines = vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
        expected = reference.normalize(cosines[None])[0]
        order = np.argsort(-expected)[:10]
        hits = nearest(index, query, k=10, bank=True)
        seen.add(hits.method.query_bank)
        assert [(hit.uri, hit.start_s) for hit in hits] == [places[i] for i in order]
        assert [hit.score for hit in hits] == pytest.approx(cosines[order], abs=1e-6)  # always the cosine
        if hits.method.query_bank:
            assert [hit.normalized for hit in hits] == pytest.approx(expected[order], abs=2e-5)
            assert hits[0].to_dict()["normalized"] == hits[0].normalized
        else:
            assert {hit.normalized for hit in hits} == {None}
    assert seen == {True, False}
    assert not hits.method.approximate


def test_with_a_filter(index: VideoIndex) -> None:
    keep = Filter(path="00?.mp4")
    for query in queries(10, seed=11):
        hits = nearest(index, query, k=100, bank=True, keep=keep)
        assert len(hits) == 50
        assert all("/v/00" in hit.uri for hit in hits)


def test_a_stale_bank_is_never_used_and_follows_the_rows(index: VideoIndex) -> None:
    index.put([file_rows("file:///v/new.mp4", made_vectors(20, seed=4))], replace=False)
    for reader in (index, VideoIndex.open(index.folder)):
        with pytest.raises(IndexMismatchError, match="before the index changed"):
            nearest(reader, queries(1)[0], k=5, bank=True)
    assert bank.facts(index)["fresh"] is False  # type: ignore[index]
    words = Words()
    assert bank.refresh(index, words, progress=False)
    assert words.asked == 0  # the bank's vectors are kept
    assert len(nearest(index, queries(1)[0], k=200, bank=True)) == 140
    assert not bank.refresh(index, words, progress=False)
    facts = bank.facts(index)
    assert facts is not None
    assert (facts["queries"], facts["fresh"], facts["beta"]) == (30, True, 20.0)
    assert bank.refresh(index, words, beta=5.0, progress=False)
    assert bank.facts(index)["beta"] == 5.0  # type: ignore[index]


def test_a_bank_of_another_model(tmp_path: Path, index: VideoIndex) -> None:
    other = made_index(tmp_path / "other", made_vectors(120), model="e" * 64)
    (index.folder / "derived").rename(other.folder / "derived")
    with pytest.raises(IndexMismatchError, match="before the index changed"):
        nearest(other, queries(1)[0], k=5, bank=True)
    with pytest.raises(IndexMismatchError, match="made with another model"):
        bank.refresh(other, Words(), progress=False)


def test_a_damaged_bank_is_no_bank(index: VideoIndex) -> None:
    file = index.folder / "derived" / "query-bank.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match="no query bank that can be read"):
        nearest(index, queries(1)[0], k=5, bank=True)
    assert bank.facts(index) == {"fresh": False, "why_not": "it cannot be read"}
    assert nearest(index, queries(1)[0], k=5).method.query_bank is None


def test_none_asked_for_and_none_there(tmp_path: Path) -> None:
    index = made_index(tmp_path / "ix", made_vectors(10))
    assert not bank.refresh(index, Words(), progress=False)
    assert bank.facts(index) is None
    with pytest.raises(ValueError, match="--query-bank"):
        nearest(index, queries(1)[0], k=5, bank=True)


@pytest.mark.parametrize(
    ("spoil", "value"),
    [
        ("log_normalizer", np.full(120, np.nan)),
        ("log_normalizer", np.zeros(119)),
        ("activation", np.zeros(120)),
        ("vectors", np.zeros((30, 15), dtype=np.float32)),
        ("vectors", np.zeros((0, 16), dtype=np.float32)),
        ("beta", (0.0).hex()),
        ("beta", "twenty"),
    ],
)
def test_values_that_are_no_bank_are_no_bank(index: VideoIndex, spoil: str, value: Any) -> None:
    file = index.folder / "derived" / "query-bank.safetensors"
    with safe_open(file, framework="numpy") as content:
        metadata, tensors = content.metadata(), {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    save_file(tensors, file, metadata=metadata)
    assert bank.facts(index)["fresh"]  # type: ignore[index]
    if spoil == "beta":
        metadata["beta"] = value
    else:
        tensors[spoil] = value
    save_file(tensors, file, metadata=metadata)
    assert bank.facts(index) == {"fresh": False, "why_not": "it cannot be read"}


def test_a_bank_of_an_empty_index_follows_the_rows_that_come(tmp_path: Path) -> None:
    index = made_index(tmp_path / "ix", made_vectors(5))
    index.remove(list(index.files()))
    words = Words()
    assert bank.refresh(index, words, ["a", "b"], progress=False)
    assert nearest(index, queries(1)[0], k=5, bank=True) == []
    assert bank.facts(index) == {"queries": 2, "beta": 20.0, "activated_share": 0.0, "fresh": True}
    index.put([file_rows("file:///v/new.mp4", made_vectors(6, seed=4))], replace=False)
    assert bank.refresh(index, words, progress=False)
    assert words.asked == 1
    assert len(nearest(index, queries(1)[0], k=9, bank=True)) == 6


@pytest.mark.parametrize(
    ("texts", "said"), [([], "got 0 queries"), (["a", " "], "query 2: got ' '"), (["a"] * 20_001, "20001")]
)
def test_banks_that_cannot_be(tmp_path: Path, texts: list[str], said: str) -> None:
    index = made_index(tmp_path / "ix", made_vectors(10))
    with pytest.raises(ValueError, match=said):
        bank.refresh(index, Words(), texts, progress=False)


def test_a_model_that_gives_a_zero_vector(run: Callable[..., Report], folder: Path) -> None:
    class Zero(FakeEncoder):
        def encode_query(self, inputs: list[dict[str, str]]) -> np.ndarray:  # type: ignore[override]
            vectors = super().encode_query(inputs)
            if isinstance(inputs, list):
                vectors[1] = 0
            return vectors

    run()
    with pytest.raises(RuntimeError, match="query vector 2 of 3"):
        bank.refresh(VideoIndex.open(folder), Zero(), ["red", "green", "blue"], progress=False)
