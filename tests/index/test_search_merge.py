"""Merging hits: as pure functions, and in a search, where it equals merging all that there is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.index.fakes import FakeEncoder
from tests.index.made import made_index, made_vectors, queries
from vidembed.index import (
    Filter,
    Hit,
    IndexMeta,
    VideoIndex,
    ann,
    bank,
    merge_moments,
    merge_videos,
    search,
    search_many,
)
from vidembed.index.hits import MERGES, OVERLAP, Merge, merged, overlap
from vidembed.index.schema import FileRows, Segment
from vidembed.index.search import SearchOptions, nearest
from vidembed.video.clip import FileState

SECONDS = st.integers(0, 12).map(lambda ticks: ticks / 2)
HITS = st.lists(
    st.builds(
        lambda uri, start, length: Hit(uri, start, start + length, 0.5), st.sampled_from("abc"), SECONDS, SECONDS
    ),
    max_size=40,
)
LIMITS = st.sampled_from([0.0, 0.25, 0.4, 0.5, 0.9])
TOP = st.none() | st.integers(1, 10)


def plain_moments(hits: list[Hit], limit: float) -> list[Hit]:
    """Non-maximum suppression, each with each."""
    kept: list[Hit] = []
    for hit in hits:
        if all(overlap(hit, other) <= limit for other in kept):
            kept.append(hit)
    return kept


def is_subsequence(part: list[Hit], whole: list[Hit]) -> bool:
    rest = iter(whole)
    return all(any(hit is other or hit == other for other in rest) for hit in part)


@given(HITS, LIMITS, TOP)
def test_moments(hits: list[Hit], limit: float, k: int | None) -> None:
    kept = merge_moments(hits, limit=limit, k=k)
    assert kept == plain_moments(hits, limit)[:k]
    assert is_subsequence(kept, hits)
    assert kept[:1] == hits[:1]
    assert all(overlap(one, other) <= limit for i, one in enumerate(kept) for other in kept[:i])
    assert merge_moments(kept, limit=limit, k=k) == kept
    if k is None:  # each that is gone overlaps one that is kept and better
        for place, hit in enumerate(hits):
            assert hit in kept or any(overlap(hit, other) > limit for other in hits[:place] if other in kept)


@given(HITS, TOP)
def test_videos(hits: list[Hit], k: int | None) -> None:
    kept = merge_videos(hits, k=k)
    bare = [replace(hit, segments=None) for hit in kept]
    assert is_subsequence(bare, hits)
    assert bare[:1] == hits[:1]
    uris = list(dict.fromkeys(hit.uri for hit in hits))[:k]
    assert [hit.uri for hit in kept] == uris
    for hit in bare:
        assert next(other for other in hits if other.uri == hit.uri) == hit
    last = max((hits.index(hit) for hit in bare), default=-1)
    assert [hit.segments for hit in kept] == [sum(hit.uri == uri for hit in hits[: last + 1]) for uri in uris]
    assert merge_videos(kept, k=k) == kept


@given(HITS)
def test_nothing_is_changed_without_overlap(hits: list[Hit]) -> None:
    apart = [Hit(str(place), hit.start_s, hit.end_s, hit.score) for place, hit in enumerate(hits)]
    assert merge_moments(apart, limit=0) == apart
    assert merged(hits, "none", k=5) == hits[:5]


def test_overlap() -> None:
    long, short = Hit("a", 0, 10, 0.5), Hit("a", 8, 12, 0.5)
    assert overlap(long, short) == overlap(short, long) == 0.5
    assert overlap(long, replace(short, uri="b")) == 0
    assert overlap(long, Hit("a", 10, 12, 0.5)) == 0
    assert overlap(long, Hit("a", 2, 3, 0.5)) == 1
    assert overlap(long, Hit("a", 5, 5, 0.5)) == 0


def test_windows_that_overlap_by_half_are_one_moment_and_by_a_fifth_are_two() -> None:
    first = Hit("a", 0, 10, 0.5)
    assert 0.2 < OVERLAP < 0.5
    assert merge_moments([first, Hit("a", 5, 15, 0.4)]) == [first]
    assert len(merge_moments([first, Hit("a", 8, 18, 0.4)])) == 2
    assert merge_moments([first, Hit("a", 4, 5, 0.4)]) == [first]  # a scene within a window


@pytest.mark.parametrize("limit", [-0.1, 1.0, math.nan])
def test_a_limit_that_is_none(limit: float) -> None:
    with pytest.raises(ValueError, match="limit: got"):
        merge_moments([], limit=limit)


def test_a_way_that_is_none() -> None:
    with pytest.raises(ValueError, match="merge: got 'scenes'; one of none, moments, videos"):
        SearchOptions(merge="scenes")  # type: ignore[arg-type]


# -- in a search -------------------------------------------------------------------------------------------------------


def overlapping(folder: Path, vectors: np.ndarray, *, per_file: int, step: float) -> VideoIndex:
    """An index whose segments last a second and begin every `step` seconds; the last file has half as many."""
    meta = IndexMeta("made", None, {}, "f" * 64, {}, vectors.shape[1], 1.0, 1 - step, "2026-01-01T00:00:00+00:00")
    index = VideoIndex.create(folder, meta)
    files = []
    for first in range(0, len(vectors), per_file):
        rows = vectors[first : first + per_file]
        segments = [Segment(i * step, i * step + 1.0, row) for i, row in enumerate(rows)]
        uri = f"file:///v/{first // per_file:03}.mp4"
        files.append(FileRows(uri, segments, segments[-1].end_s, "c", FileState(1, 1)))
    index.put(files, replace=False)
    return index


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VideoIndex]:
    folder = tmp_path_factory.mktemp("merge")
    return {
        "few long": overlapping(folder / "few", made_vectors(150), per_file=50, step=0.25),
        "many short": overlapping(folder / "many", made_vectors(150, seed=3), per_file=6, step=0.5),
        "apart": made_index(folder / "apart", made_vectors(150, seed=4)),
        "one": overlapping(folder / "one", made_vectors(150, seed=5), per_file=150, step=0.5),
    }


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["few long", "many short", "apart", "one"]),
    seed=st.integers(0, 50),
    k=st.integers(1, 40),
    merge=st.sampled_from(["moments", "videos"]),
    after=st.none() | st.integers(0, 10),
)
def test_a_search_equals_merging_everything(
    indexes: dict[str, VideoIndex], name: str, seed: int, k: int, merge: Merge, after: int | None
) -> None:
    index, query = indexes[name], queries(1, seed=seed)[0]
    keep = None if after is None else Filter(after=after)
    everything = nearest(index, query, k=1000, keep=keep)
    hits = nearest(index, query, k=k, keep=keep, merge=merge)
    assert list(hits) == merged(everything, merge, k=k)
    assert (hits.method.merge, hits.method.name) == (merge, "exact")
    assert hits.method.to_dict()["merge"] == merge


def test_nothing_is_merged_unless_asked(indexes: dict[str, VideoIndex]) -> None:
    hits = nearest(indexes["few long"], queries(1)[0], k=20)
    assert hits.method.merge is None
    assert "merge" not in hits.method.to_dict()
    assert all(hit.segments is None for hit in hits)
    assert len(merge_moments(hits)) < 20


@dataclass
class Ones(FakeEncoder):
    """The same vector for all queries."""

    sign: float = 1.0

    def encode_query(self, inputs: Any) -> np.ndarray:
        return np.full((len(inputs), 16), self.sign)


class Words(FakeEncoder):
    """A vector for each word, of the dimension of the made indexes."""

    def encode_query(self, inputs: Any) -> np.ndarray:
        each = inputs if isinstance(inputs, list) else [inputs]
        vectors = np.stack([queries(1, seed=len(one["text"]))[0] for one in each])  # (Q, D)
        return vectors if isinstance(inputs, list) else vectors[0]


@pytest.mark.parametrize("name", ["few long", "many short"])
@pytest.mark.parametrize("k", [1, 4, 40])
def test_many_queries_are_each_as_alone(
    indexes: dict[str, VideoIndex], name: str, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IndexMeta, "require_model", lambda *_, **__: None)
    index, encoder, words = indexes[name], Words(), ["a", "bb", "ccc", "a", "eeeee", "ffffffff"]
    for merge in MERGES:
        together = search_many(index, encoder, words, k=k, merge=merge, around=0.1)
        alone = [search(index, encoder, each, k=k, merge=merge, around=0.1) for each in words]
        assert [list(hits) for hits in together] == [list(hits) for hits in alone]
        assert together[0] == together[3] != together[1]


def test_the_rows_are_read_a_few_times_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best thousand segments are all of one video; the depth grows until the second comes in sight."""
    vectors = np.concatenate([np.ones((1000, 16)), -np.ones((3, 16))]).astype(np.float32)
    index = overlapping(tmp_path / "ix", vectors, per_file=1000, step=0.5)
    scans = []
    scan = VideoIndex.scan
    monkeypatch.setattr(VideoIndex, "scan", lambda self, *args: scans.append(args) or scan(self, *args))
    monkeypatch.setattr(IndexMeta, "require_model", lambda *_, **__: None)
    results = search_many(index, Ones(), ["a"] * 20, k=2, merge="videos")
    assert [[(hit.uri[-7:], hit.segments) for hit in hits] for hits in results] == [
        [("000.mp4", 1000), ("001.mp4", 1)]
    ] * 20
    assert len(scans) == 5  # 8, 32, 128, 512, 2048 rows
    scans.clear()
    found = search_many(index, Ones(sign=-1.0), ["a", "b"], k=50, merge="videos")
    assert [len(hits) for hits in found] == [2, 2]  # there are no more videos: no need to go on
    assert len(scans) == 1


@pytest.fixture
def approximate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VideoIndex:
    """An index of 30 videos with 20 segments each, with an ANN index of int8."""
    monkeypatch.setattr("vidembed.index.ann.SAMPLE", 20)
    index = overlapping(tmp_path / "ix", made_vectors(600), per_file=20, step=0.5)
    ann.refresh(index, exact_up_to=10, quantize="int8")
    return index


@pytest.mark.parametrize(("options", "name"), [({}, "ann"), ({"copy": "int8"}, "ann")])
@pytest.mark.parametrize("merge", ["moments", "videos"])
def test_approximate_searches(approximate: VideoIndex, options: dict[str, Any], name: str, merge: Merge) -> None:
    for query in queries(5):
        hits = nearest(approximate, query, k=8, merge=merge, **options)
        assert (len(hits), hits.method.name, hits.method.merge) == (8, name, merge)
        assert merged(hits, merge, k=8) == list(hits)
        candidates = (nearest(approximate, query, k=depth, **options) for depth in (8, 32, 100))
        first = next(found for each in candidates if len(found := merged(each, merge, k=8)) == 8)
        assert [(hit.uri, hit.start_s, hit.score) for hit in hits] == [
            (hit.uri, hit.start_s, hit.score) for hit in first
        ]
        assert all(hit.recall is not None for hit in hits)


@pytest.mark.parametrize("options", [{}, {"copy": "int8"}])
def test_beyond_what_was_measured_a_search_is_exact(approximate: VideoIndex, options: dict[str, Any]) -> None:
    query = queries(1)[0]
    hits = nearest(approximate, query, k=100, merge="moments", **options)  # needs more than 100 rows
    assert (len(hits), hits.method.name, hits.method.recall) == (100, "exact", None)
    assert list(hits) == list(nearest(approximate, query, k=100, merge="moments", exact=True))
    assert all(hit.recall is None for hit in hits)


def test_with_a_query_bank(approximate: VideoIndex) -> None:
    bank.refresh(approximate, Words(), ["a", "bb", "ccc"], progress=False)
    for query in queries(5):
        everything = nearest(approximate, query, k=600, bank=True)
        hits = nearest(approximate, query, k=7, bank=True, merge="videos")
        assert list(hits) == merge_videos(everything, k=7)
        assert hits.method.query_bank == everything.method.query_bank


# -- what is around ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("around", [0.0, 0.3, 100.0])
def test_around(indexes: dict[str, VideoIndex], merge: Merge, around: float) -> None:
    index, query = indexes["few long"], queries(1)[0]
    plain = nearest(index, query, k=20, merge=merge)
    hits = nearest(index, query, k=20, merge=merge, around=around)
    assert [replace(hit, context_start_s=None, context_end_s=None) for hit in hits] == list(plain)
    duration = 49 * 0.25 + 1
    for hit in hits:
        assert hit.context_start_s == pytest.approx(max(0.0, hit.start_s - around))
        assert hit.context_end_s == pytest.approx(min(duration, hit.end_s + around))
        assert {"context_start_s", "context_end_s"} <= set(hit.to_dict())
    assert all("context_start_s" not in hit.to_dict() for hit in plain)


def test_around_a_segment_that_ends_after_its_video(tmp_path: Path) -> None:
    index = made_index(tmp_path / "ix", made_vectors(1))
    file = FileRows("file:///v/000.mp4", [Segment(0, 1.5, made_vectors(1)[0])], 1.2, "c", FileState(1, 1))
    index.put([file], replace=True)
    (hit,) = nearest(index, queries(1)[0], k=5, around=2)
    assert hit.context_end_s == hit.end_s == 1.5


@pytest.mark.parametrize("around", [-1.0, math.nan, math.inf])
def test_around_that_is_none(indexes: dict[str, VideoIndex], around: float) -> None:
    with pytest.raises(ValueError, match="around: got"):
        nearest(indexes["one"], queries(1)[0], k=1, around=around)


def test_nothing_to_merge(tmp_path: Path) -> None:
    index = made_index(tmp_path / "ix", np.zeros((0, 16), dtype=np.float32))
    for merge in MERGES:
        assert nearest(index, queries(1)[0], k=5, merge=merge, around=1.0) == []
