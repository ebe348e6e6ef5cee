from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.shapes import draw_world
from vidembed.shapes.clips import iterate_clips
from vidembed.shapes.language import SUMMARY_ATTRIBUTES


def records(seed: int, count: int) -> list[dict[str, str]]:
    return [record.attributes for record, _ in zip(iterate_clips("test", seed), range(count), strict=False)]


@pytest.fixture
def no_files(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Writes names instead of videos, and lists them."""
    written: list[Path] = []

    def write(scene: Any, path: Path) -> Path:
        path.write_text(repr(scene.attributes))
        written.append(path)
        return path

    monkeypatch.setattr("vidembed.evaluation.shapes.write_clip", write)
    return written


def test_real_files_that_are_kept(shapes_world: tuple[Benchmark, Benchmark]) -> None:
    folder = shapes_world[0].videos[0].parent
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(before) == 9
    again = draw_world("shapes-short", folder, clips=6, seed=5)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [one.videos for one in again] == [one.videos for one in shapes_world]
    assert all(path.stat().st_size > 1000 for path in before)


def test_captions_are_distinct_and_true_of_one_clip(tmp_path: Path, no_files: list[Path]) -> None:
    test, validation = draw_world("shapes", tmp_path, clips=40)
    for one, count in ((test, 40), (validation, 20)):
        assert len(one.videos) == len(set(one.videos)) == len(set(one.texts)) == count
        assert one.owners == tuple((place,) for place in range(count))
    assert not set(test.videos) & set(validation.videos)


def test_short_summaries_are_true_of_every_clip_that_has_what_they_tell(tmp_path: Path, no_files: list[Path]) -> None:
    test, _ = draw_world("shapes-short", tmp_path, clips=120)
    shown = [tuple(one[name] for name in SUMMARY_ATTRIBUTES) for one in records(0, 120)]
    assert any(len(places) > 1 for places in test.owners)
    for places in test.owners:
        content = {shown[place] for place in places}
        assert len(content) == 1
        assert places == tuple(place for place, other in enumerate(shown) if other in content)


def test_validation_shares_no_clip_with_the_test(
    tmp_path: Path, no_files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vidembed.evaluation.shapes.iterate_clips", lambda split, seed: iterate_clips(split, seed // 2))
    test, validation = draw_world("shapes", tmp_path, clips=20, seed=8)  # both are drawn from one seed
    shown, others = ({path.read_text() for path in one.videos} for one in (test, validation))
    assert (len(shown), len(others)) == (20, 10)
    assert not shown & others


def test_an_interrupted_draw_leaves_no_part_of_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(scene: object, path: Path) -> Path:
        path.write_text("half")
        if len(list(tmp_path.iterdir())) > 2:
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr("vidembed.evaluation.shapes.write_clip", write)
    with pytest.raises(KeyboardInterrupt):
        draw_world("shapes", tmp_path, clips=8)
    assert len(list(tmp_path.iterdir())) == 2


def test_clips_that_the_calibration_may_know_are_noted(tmp_path: Path, no_files: list[Path]) -> None:
    assert len(draw_world("shapes", tmp_path, clips=4)[0].notes) == 1
    assert "calibration" in draw_world("shapes", tmp_path, clips=4, seed=1)[0].notes[1]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"name": "squares"}, "name='squares': expected one of shapes, shapes-short"),
        ({"name": "shapes", "clips": 3}, "clips=3: expected from 4"),
        ({"name": "shapes", "clips": 10**6}, "clips=1000000"),
        ({"name": "shapes", "seed": -1}, "seed=-1"),
    ],
)
def test_bad_arguments(tmp_path: Path, how: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        draw_world(folder=tmp_path, **how)  # type: ignore[arg-type]
