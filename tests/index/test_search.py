from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.index.fakes import DIMENSION, FakeEncoder, write_video
from vidembed.index import IndexMeta, IndexMismatchError, Report, VideoIndex, search, search_many
from vidembed.index.rows import MAX_QUERY_CHARS
from vidembed.index.schema import FileRows, Segment, segment_id
from vidembed.index.search import nearest
from vidembed.video.clip import FileState


@pytest.fixture
def index(tmp_path: Path) -> VideoIndex:
    meta = IndexMeta("fake", None, {}, "f" * 64, {}, DIMENSION, None, 0.0, "2026-01-01T00:00:00+00:00")
    return VideoIndex.create(tmp_path / "index", meta)


def put(index: VideoIndex, uri: str, vectors: Any, *, replace: bool = False) -> None:
    segments = [Segment(float(i), i + 1.0, np.asarray(vector, dtype=np.float32)) for i, vector in enumerate(vectors)]
    index.put([FileRows(uri, segments, float(len(segments)), "c", FileState(1, 1))], replace=replace)


def test_words_find_the_video(run: Callable[..., Report], clips: Path, folder: Path) -> None:
    for colour, values in {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}.items():
        write_video(clips / f"{colour}.mp4", [values])
    run()
    for colour in ("red", "green", "blue"):
        hits = search(VideoIndex.open(folder), FakeEncoder(), colour, k=3)
        assert hits[0].uri == (clips / f"{colour}.mp4").as_uri()
        assert (hits[0].start_s, hits[0].end_s) == (0, 1)
        assert 1 >= hits[0].score > hits[1].score >= hits[2].score >= -1


@pytest.mark.parametrize("k", [1, 3, 17, 500])
def test_equals_a_plain_ranking(index: VideoIndex, k: int) -> None:
    rng = np.random.default_rng(0)
    vectors = {f"file:///{i:02}.mp4": rng.normal(size=(5, DIMENSION)).astype(np.float32) for i in range(20)}
    for uri, rows in vectors.items():
        put(index, uri, rows)
    query = rng.normal(size=DIMENSION)
    expected = sorted(
        (
            (-round(float(row @ query / np.linalg.norm(row.astype(float)) / np.linalg.norm(query)), 6), uri, float(i))
            for uri, rows in vectors.items()
            for i, row in enumerate(rows.astype(np.float64))
        ),
    )[:k]
    found = [(-hit.score, hit.uri, hit.start_s) for hit in nearest(index, query, k=k)]
    assert [row[1:] for row in found] == [row[1:] for row in expected]
    assert [row[0] for row in found] == pytest.approx([row[0] for row in expected], abs=1.1e-6)


def test_ties_are_broken_by_uri_and_start(index: VideoIndex) -> None:
    vector = np.full(DIMENSION, 0.3)
    for uri in ("file:///c.mp4", "file:///a.mp4", "file:///b.mp4"):
        put(index, uri, [vector, -vector, vector])
    index.compact()
    put(index, "file:///a.mp4", [vector, -vector, vector], replace=True)
    for k in range(1, 7):
        found = [(hit.uri[-5], hit.start_s) for hit in nearest(index, vector, k=k)]
        assert found == [("a", 0), ("a", 2), ("b", 0), ("b", 2), ("c", 0), ("c", 2)][:k]


def test_scores_stay_within_one(index: VideoIndex) -> None:
    vector = np.random.default_rng(1).normal(size=DIMENSION).astype(np.float32) * 1e3
    put(index, "file:///a.mp4", [vector, -vector])
    assert [hit.score for hit in nearest(index, vector.astype(np.float64), k=2)] == [1.0, -1.0]


def test_an_empty_index_has_no_hits(index: VideoIndex) -> None:
    assert nearest(index, np.ones(DIMENSION), k=5) == []


@pytest.mark.parametrize("vector", [np.zeros(DIMENSION), np.full(DIMENSION, np.nan), np.ones(DIMENSION + 1)])
def test_a_bad_query_vector_is_refused(index: VideoIndex, vector: np.ndarray) -> None:
    with pytest.raises(RuntimeError, match="query vector"):
        nearest(index, vector, k=1)


def test_bad_queries_and_other_models_are_refused(run: Callable[..., Report], folder: Path) -> None:
    run()
    index = VideoIndex.open(folder)
    for query, k, message in [
        ("", 1, "query"),
        (" \n", 1, "query"),
        ("x" * (MAX_QUERY_CHARS + 1), 1, "10001"),
        ("a", 0, "k: got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            search(index, FakeEncoder(), query, k=k)
    other = FakeEncoder("other")
    with pytest.raises(IndexMismatchError) as refused:
        search(index, other, "red", name="there/other")
    for said in ("'fake'", FakeEncoder().fingerprint[:12], "'there/other'", other.fingerprint[:12]):
        assert said in str(refused.value)


def test_ids_are_those_of_every_run() -> None:
    assert segment_id("file:///a.mp4", 0, 1.5) == "4f9e7e76-ab59-5587-b8d6-d6660502d529"


def test_many_queries_at_once_find_what_each_finds_alone(run: Callable[..., Report], folder: Path) -> None:
    run()
    index, encoder = VideoIndex.open(folder), FakeEncoder()
    words = ["green", "red", "something else", "green"]
    together = search_many(index, encoder, words, k=4)
    assert [list(hits) for hits in together] == [list(search(index, encoder, each, k=4)) for each in words]
    assert {(hits.method.name, hits.method.rows, hits.method.approximate) for hits in together} == {("exact", 6, False)}
    assert "recall" not in together[0][0].to_dict()


def test_many_queries_read_the_vectors_once(index: VideoIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    put(index, "file:///a.mp4", np.eye(DIMENSION))
    scans = []
    scan = VideoIndex.scan
    monkeypatch.setattr(VideoIndex, "scan", lambda self, *args: scans.append(args) or scan(self, *args))
    encoder = FakeEncoder()
    monkeypatch.setattr(IndexMeta, "require_model", lambda *_, **__: None)
    assert [len(hits) for hits in search_many(index, encoder, ["red"] * 70, k=3)] == [3] * 70
    assert len(scans) == 1


@pytest.mark.parametrize(
    ("queries", "said"),
    [([], "queries: got 0"), (["red", " "], r"queries\[1\]: got ' '"), (["x" * 10_001], r"queries\[0\]: got 10001")],
)
def test_a_batch_says_which_query_is_wrong(index: VideoIndex, queries: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        search_many(index, FakeEncoder(), queries)


def test_a_batch_says_which_vector_is_wrong(run: Callable[..., Report], folder: Path) -> None:
    class Broken(FakeEncoder):
        def encode_query(self, inputs: Any) -> np.ndarray:
            vectors = super().encode_query(inputs)
            if isinstance(inputs, list):
                vectors[1, 2] = np.nan
            return vectors

    run()
    with pytest.raises(RuntimeError, match="query vector 2 of 3"):
        search_many(VideoIndex.open(folder), Broken(), ["red", "green", "blue"])
