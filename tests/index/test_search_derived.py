"""A run of `index_videos` brings up to date what is derived from the rows; every search checks the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.index.fakes import FakeEncoder, write_video
from vidembed.index import Derived, Filter, IndexMismatchError, Report, VideoIndex, search, search_many
from vidembed.index.ingest import facts

Run = Callable[..., Report]
ALL = Derived(exact_up_to=3, compact=["int8"], query_bank=["red", "green", "grey"])


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidembed.index.ann.SAMPLE", 3)


def test_a_run_makes_it_and_the_next_keeps_it_up_to_date(run: Run, clips: Path, folder: Path) -> None:
    run(derived=ALL)
    index = VideoIndex.open(folder)
    said = facts(index)
    assert (said["exact_up_to"], said["ann"]["used"], said["ann"]["rows"]) == (3, True, 6)
    assert (said["quantize"], said["ann"]["kind"], said["ann"]["full_recall"]["10"]) == ("int8", "IvfSq", 1.0)
    assert (said["query_bank"]["queries"], said["query_bank"]["fresh"]) == (3, True)
    write_video(clips / "new.mp4", [(200, 30, 30)])
    run()
    index = VideoIndex.open(folder)
    said = facts(index)
    assert (said["ann"]["used"], said["ann"]["rows"]) == (True, 7)
    assert said["query_bank"]["fresh"]
    for options in (
        {},
        {"exact": True},
        {"copy": "int8"},
        {"bank": True},
        {"keep": Filter("new*")},
    ):
        hits = search(index, FakeEncoder(), "red", k=1, **options)
        assert hits[0].uri == (clips / "new.mp4").as_uri()


def test_a_small_index_has_nothing_beside_it(run: Run, folder: Path) -> None:
    run()
    assert not (folder / "derived").exists()
    assert facts(VideoIndex.open(folder)) == {
        "exact_up_to": 100_000,
        "quantize": None,
        "ann": None,
        "query_bank": None,
        "mirror": None,
    }


def test_a_threshold_is_remembered_by_later_runs(run: Run, clips: Path, folder: Path) -> None:
    run(derived=Derived(exact_up_to=6))
    assert facts(VideoIndex.open(folder)) == {
        "exact_up_to": 6,
        "quantize": None,
        "ann": None,
        "query_bank": None,
        "mirror": None,
    }
    write_video(clips / "new.mp4", [(200, 30, 30)])
    run()
    said = facts(VideoIndex.open(folder))
    assert (said["exact_up_to"], said["ann"]["used"]) == (6, True)
    run(derived=Derived(exact_up_to=7))
    said = facts(VideoIndex.open(folder))
    assert (said["exact_up_to"], said["ann"]) == (7, None)


def test_a_second_run_that_changes_nothing_makes_nothing(run: Run, folder: Path) -> None:
    run(derived=ALL)
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "derived").iterdir()}
    run(derived=Derived(compact=["int8"]))
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "derived").iterdir()} == before


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"copy": "int8"}, {"bank": True}, {"keep": Filter("*")}])
def test_every_search_refuses_another_model(run: Run, folder: Path, options: dict[str, Any]) -> None:
    run(derived=ALL)
    index = VideoIndex.open(folder)
    for ask in (search, search_many):
        words: Any = "red" if ask is search else ["red"]
        with pytest.raises(IndexMismatchError, match="made by 'fake'"):
            ask(index, FakeEncoder("other"), words, **options)


@pytest.mark.parametrize(
    ("derived", "said"),
    [
        (Derived(exact_up_to=-1), "exact_up_to: got -1"),
        (Derived(compact=["int3"]), "compact: got 'int3'"),
        (Derived(compact=["int8-8"]), "dimensions are no longer reduced"),
        (Derived(compact=["int8", "binary"]), "got int8, binary; an index has one"),
        (Derived(query_bank=["red", ""]), "query 2: got ''"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    run: Run, folder: Path, derived: Derived, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        run(derived=derived)
    assert not folder.exists()


def test_a_run_removes_a_mirror_of_what_was(
    run: Run, clips: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MIRROR_ABOVE", "SETTLED_S"):
        monkeypatch.setattr(f"vidembed.index.mirror.{name}", 0)
    run()
    search(VideoIndex.open(folder), FakeEncoder(), "red")
    [mirror] = (folder / "derived").glob("mirror-*.f32")
    run()
    assert mirror.exists()  # nothing changed
    write_video(clips / "new.mp4", [(200, 30, 30)])
    run()
    assert not mirror.exists()
