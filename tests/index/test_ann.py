from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pytest

from tests.index.made import file_rows, made_index, made_vectors, queries
from vidembed.index import Filter, VideoIndex, ann
from vidembed.index.ann import write_record
from vidembed.index.search import nearest

ROWS, LIMIT = 400, 300


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidembed.index.ann.SAMPLE", 10)
    monkeypatch.setattr("vidembed.index.ann.EFFORTS", ((2, 2), (256, 64)))


@pytest.fixture
def index(tmp_path: Path) -> VideoIndex:
    return made_index(tmp_path / "ix", made_vectors(ROWS))


@pytest.fixture
def built(index: VideoIndex) -> VideoIndex:
    assert ann.refresh(index, exact_up_to=LIMIT)
    return index


def record(index: VideoIndex) -> Path:
    return index.folder / "derived" / "ann.json"


def how(index: VideoIndex, **options: Any) -> str:
    return nearest(index, queries(1)[0], **{"k": 5, **options}).method.name


def test_none_is_built_up_to_the_threshold(index: VideoIndex) -> None:
    assert ann.refresh(index, exact_up_to=ROWS)  # to be remembered
    assert not ann.refresh(index, exact_up_to=ROWS)
    assert (index.ann, record(index).exists(), how(index)) == (None, False, "exact")


def test_built_measured_and_said(built: VideoIndex) -> None:
    hits = nearest(built, queries(1)[0], k=5)
    stored = ann.stored(built)
    assert stored is not None
    assert (hits.method.name, hits.method.approximate, hits.method.recall_at, hits.method.rows) == (
        "ann",
        True,
        10,
        400,
    )
    assert hits.method.recall == stored.recall["10"] >= 0.95
    assert [hit.to_dict()["approximate"] for hit in hits] == [True] * 5
    assert {hit.to_dict()["recall"] for hit in hits} == {stored.recall["10"]}
    assert nearest(built, queries(1)[0], k=50).method.recall == stored.recall["100"]
    facts = ann.facts(built)
    assert facts is not None
    assert (facts["used"], facts["rows"], facts["kind"], facts["sample"]) == (True, ROWS, "IvfRq", 10)


def test_scores_are_exact_and_order_is_total(built: VideoIndex) -> None:
    for query in queries(5):
        every = {(hit.uri, hit.start_s): hit.score for hit in nearest(built, query, k=ROWS, exact=True)}
        assert len(every) == ROWS
        hits = nearest(built, query, k=10)
        assert [every[hit.uri, hit.start_s] for hit in hits] == [hit.score for hit in hits]
        assert list(hits) == sorted(hits, key=lambda hit: (-hit.score, hit.uri, hit.start_s))


def test_recall_is_that_of_the_search(built: VideoIndex) -> None:
    stored = ann.stored(built)
    assert stored is not None
    from vidembed.index.ann import draw

    shares = []
    for query in draw(built).queries:
        exact = {(hit.uri, hit.start_s) for hit in nearest(built, query, k=10, exact=True)}
        shares.append(len(exact & {(hit.uri, hit.start_s) for hit in nearest(built, query, k=10)}) / 10)
    assert stored.recall["10"] == pytest.approx(np.mean(shares))


def test_what_needs_every_row_is_exact(built: VideoIndex) -> None:
    assert how(built) == "ann"
    assert how(built, exact=True) == "exact"
    assert how(built, keep=Filter(path="000.mp4")) == "exact"
    assert how(built, k=101) == "exact"


def test_rows_added_since_are_found_and_rows_removed_are_not(built: VideoIndex) -> None:
    query = queries(1, seed=9)[0]
    built.put([file_rows("file:///v/new.mp4", query[None])], replace=False)
    found = nearest(built, query, k=3)
    assert (found.method.name, found[0].uri, found[0].score) == ("ann", "file:///v/new.mp4", 1.0)
    assert ann.facts(built)["rows_not_in_it"] == 1  # type: ignore[index]
    built.put([file_rows("file:///v/new.mp4", -query[None])], replace=True)
    assert nearest(built, query, k=3)[0].uri != "file:///v/new.mp4"
    built.remove([found[1].uri])
    again = nearest(built, query, k=3)
    assert (again.method.name, found[1].uri in {hit.uri for hit in again}) == ("ann", False)


def test_too_many_rows_since_are_searched_exactly_until_the_next_refresh(built: VideoIndex) -> None:
    built.put([file_rows("file:///v/many.mp4", made_vectors(100, seed=5))], replace=False)
    assert how(built) == "exact"
    assert "index` again" in ann.facts(built)["why_not"]  # type: ignore[index]
    assert ann.refresh(built, exact_up_to=LIMIT)
    assert how(built) == "ann"
    assert ann.stored(built).rows == 500  # type: ignore[union-attr]


def test_nothing_is_done_where_nothing_changed(built: VideoIndex) -> None:
    before = record(built).read_bytes()
    assert not ann.refresh(built, exact_up_to=LIMIT)
    assert record(built).read_bytes() == before
    built.put([file_rows("file:///v/new.mp4", made_vectors(1, seed=5))], replace=False)
    built.compact()  # LanceDB takes the row into the index
    assert how(built) == "exact"  # it is not as it was measured any more
    uuid = str(built.ann.index_uuid)
    assert ann.refresh(built, exact_up_to=LIMIT)
    again = ann.stored(built)
    assert again is not None
    assert (again.rows, again.index_uuid, again.trained_rows) == (ROWS + 1, uuid, ROWS)  # measured anew, not built
    assert how(built) == "ann"


def test_growth_builds_anew(built: VideoIndex) -> None:
    uuid = ann.stored(built).index_uuid  # type: ignore[union-attr]
    built.put([file_rows("file:///v/many.mp4", made_vectors(500, seed=5))], replace=False)
    built.compact()
    ann.refresh(built, exact_up_to=LIMIT)
    again = ann.stored(built)
    assert again is not None
    assert (again.trained_rows, again.index_uuid != uuid) == (900, True)


def test_below_the_threshold_it_is_removed(built: VideoIndex) -> None:
    built.remove([f"file:///v/{i:03}.mp4" for i in range(30)])
    assert how(built) == "exact"
    assert ann.refresh(built, exact_up_to=LIMIT)
    assert (built.ann, record(built).exists()) == (None, False)


@pytest.mark.parametrize("field", ["index_uuid", "model_fingerprint"])
def test_a_record_of_another_index_or_model_is_not_used(built: VideoIndex, field: str) -> None:
    said = json.loads(record(built).read_text())
    record(built).write_text(json.dumps({**said, field: "other"}))
    assert (ann.stored(built), how(built)) == (None, "exact")
    assert ann.facts(built)["used"] is False  # type: ignore[index]


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"format_version": 1}', "\udcff", '{"format_version": 1, "recall": 3}']
)
def test_a_damaged_record_is_not_used(built: VideoIndex, content: str) -> None:
    record(built).write_bytes(content.encode("utf-8", "surrogateescape"))
    assert how(built) == "exact"


def test_an_index_rebuilt_by_others_is_not_used(built: VideoIndex) -> None:
    from lancedb.index import IvfRq

    built.build_ann(IvfRq(distance_type="cosine"))
    assert how(built) == "exact"
    ann.refresh(built, exact_up_to=LIMIT)
    assert how(built) == "ann"


def test_a_build_that_fails_is_told_and_searches_stay_exact(
    index: VideoIndex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(self: VideoIndex, config: Any) -> None:
        raise RuntimeError("no space left")

    with monkeypatch.context() as broken, caplog.at_level(logging.ERROR):
        broken.setattr(VideoIndex, "build_ann", failing)
        ann.refresh(index, exact_up_to=LIMIT)
    assert "no space left" in caplog.text
    assert (record(index).exists(), how(index)) == (False, "exact")
    ann.refresh(index, exact_up_to=LIMIT)
    assert how(index) == "ann"


def test_an_interruption_leaves_searches_exact(built: VideoIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(index: VideoIndex) -> None:
        raise KeyboardInterrupt

    built.put([file_rows("file:///v/many.mp4", made_vectors(500, seed=5))], replace=False)
    with monkeypatch.context() as broken:
        broken.setattr("vidembed.index.ann.draw", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ann.refresh(built, exact_up_to=LIMIT)
    assert how(VideoIndex.open(built.folder)) == "exact"
    ann.refresh(built, exact_up_to=LIMIT)
    assert how(built) == "ann"


def test_poor_recall_is_not_used(
    index: VideoIndex, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vidembed.index.ann.EFFORTS", ((1, 1),))
    monkeypatch.setattr("vidembed.index.ann.TARGET_RECALL", 0.99)
    ann.refresh(index, exact_up_to=LIMIT)
    assert ann.stored(index).recall["100"] < 0.99  # type: ignore[union-attr]
    assert how(index) == "exact"
    assert "recall" in ann.facts(index)["why_not"]  # type: ignore[index]
    assert "stay exact" in caplog.text


def test_a_dimension_that_is_no_multiple_of_eight(tmp_path: Path) -> None:
    index = made_index(tmp_path / "ix", made_vectors(ROWS, 13))
    ann.refresh(index, exact_up_to=LIMIT)
    assert ann.stored(index).kind == "IvfSq"  # type: ignore[union-attr]
    assert nearest(index, queries(1, 13)[0], k=5).method.name == "ann"


def test_a_negative_threshold_is_refused(index: VideoIndex) -> None:
    with pytest.raises(ValueError, match="exact_up_to: got -1"):
        ann.refresh(index, exact_up_to=-1)


def test_a_threshold_is_remembered_while_the_index_is_small(tmp_path: Path) -> None:
    index = made_index(tmp_path / "ix", made_vectors(LIMIT - 100))
    assert ann.settings(index).exact_up_to == ann.EXACT_UP_TO
    assert not ann.refresh(index)
    assert not (index.folder / "derived").exists()
    assert ann.refresh(index, exact_up_to=LIMIT)
    assert not ann.refresh(index)
    index = VideoIndex.open(index.folder)
    assert (ann.settings(index).exact_up_to, index.ann) == (LIMIT, None)
    index.put([file_rows("file:///v/many.mp4", made_vectors(200, seed=5))], replace=False)
    assert ann.refresh(index)
    assert (how(index), ann.settings(index).exact_up_to) == ("ann", LIMIT)
    assert ann.refresh(index, exact_up_to=1000)
    assert (how(index), ann.settings(index).exact_up_to, index.ann) == ("exact", 1000, None)
    assert ann.refresh(index, exact_up_to=0)
    assert not ann.refresh(index)
    assert (how(index), ann.settings(index).exact_up_to) == ("ann", 0)


def test_another_threshold_that_asks_for_the_same_index_builds_nothing(built: VideoIndex) -> None:
    before = record(built).read_bytes()
    assert ann.refresh(built, exact_up_to=LIMIT - 1)
    assert (record(built).read_bytes(), ann.settings(built).exact_up_to) == (before, LIMIT - 1)


def test_a_run_cut_off_after_it_noted_its_threshold_leaves_searches_right(built: VideoIndex) -> None:
    write_record(built.folder / "derived" / "exact-up-to.json", {"exact_up_to": ROWS})
    assert how(built) == "exact"
    assert ann.facts(built)["why_not"] == "the index is small enough for an exact search"  # type: ignore[index]


@pytest.mark.parametrize("content", ["", "{}", '{"format_version": 1, "exact_up_to": true}', "[1]"])
def test_a_threshold_that_cannot_be_read_is_said(
    built: VideoIndex, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    (built.folder / "derived" / "exact-up-to.json").write_text(content)
    assert ann.settings(built).exact_up_to == ann.EXACT_UP_TO
    assert "--exact-up-to" in caplog.text
    assert how(built) == "exact"
    assert ann.refresh(built, exact_up_to=LIMIT)
    assert how(built) == "ann"


def test_vectors_replaced_in_a_table_with_columns_of_the_user_are_found(built: VideoIndex) -> None:
    lancedb.connect(built.folder).open_table("segments").add_columns(pa.field("camera", pa.string()))
    new = -made_vectors(5, seed=9)
    built.put([file_rows("file:///v/003.mp4", new)], replace=True)
    hits = nearest(built, new[2].astype(np.float64), k=3)
    assert (hits.method.name, hits[0].uri, hits[0].start_s, hits[0].score) == ("ann", "file:///v/003.mp4", 2.0, 1.0)
