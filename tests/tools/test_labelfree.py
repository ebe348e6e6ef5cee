"""Choices without labels: the arithmetic on subsets, and a run of a few clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tools.shapes import labelfree
from tools.shapes.labelfree import Queries, curves_of, layer_name, losses, mean_curves, merits, subsets, tables, within

from vidembed.analysis.measure import Bootstrap, Half, measure_prompt
from vidembed.captions import CaptionRecord
from vidembed.evaluation.shapes import draw_sets
from vidembed.shapes import sample_clips


def states(seed: int, layers: int = 3, n: int = 12, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Videos and texts (layers, n, width), of which layer 2 fits best."""
    rng = np.random.default_rng(seed)
    videos = rng.standard_normal((layers, n, width)).astype(np.float32)
    noise = np.array([3.0, 0.1, 1.5])[:, None, None]
    return videos, (videos + noise * rng.standard_normal(videos.shape)).astype(np.float32)


def test_merits_are_those_that_analyze_layers_chooses_by() -> None:
    videos, texts = states(0)
    short = tuple(f"text {number // 3}" for number in range(12))
    at = np.array([0, 1, 2, 3, 4, 5, 9, 10, 11])
    kinds = [Queries(texts, tuple(map(str, range(12)))), Queries(texts, short)]
    first = at[[0, 3, 6]]
    positives = np.array([[short[text] == short[video] for video in at] for text in first])
    halves = [Half(at, at, np.eye(9, dtype=bool)), Half(at, first, positives)]
    found = measure_prompt(
        "none",
        videos,
        {str(number): (texts, (half, half)) for number, half in enumerate(halves)},
        Bootstrap(0, 10),
        dual=False,
    )
    got = merits(videos, kinds, at)
    chosen = {prompt.chosen_layer for prompt, _ in found.values()}
    assert chosen == {layer_name(max(range(3), key=lambda place: got[place]), 3)} == {2}
    recalls = [
        np.mean([[row.choosing_t2v, row.choosing_v2t] for row in rows])
        for rows in zip(*(prompt.rows for prompt, _ in found.values()), strict=True)
    ]
    assert [merit for merit, _ in got] == pytest.approx(recalls)


def test_equal_texts_are_one_query() -> None:
    kind = Queries(np.zeros((1, 4, 2), dtype=np.float32), ("a", "b", "a", "c"))
    texts, positives = kind.among(np.array([0, 2, 3]))
    assert texts.tolist() == [0, 3]
    assert positives.tolist() == [[True, True, False], [False, False, True]]


def test_losses_are_against_the_best_layer_of_each_kind() -> None:
    curves = {"captions": [50.0, 90.0, 89.0], "short": [20.0, 30.0, 36.0]}
    lost = losses(curves, [0, 1, 2])
    assert lost == {"captions": [40.0, 0.0, 1.0], "short": [16.0, 6.0, 0.0]}
    assert within(lost, {"captions": 1.5, "short": 4.0}) == 1
    assert within(lost, {"captions": 1.5, "short": 6.0}) == 2
    assert [layer_name(place, 3) for place in range(3)] == [1, 2, -1]
    half = {kind: [value / 2 for value in curve] for kind, curve in curves.items()}
    assert mean_curves([curves, half]) == {kind: [0.75 * v for v in curve] for kind, curve in curves.items()}


def test_subsets() -> None:
    drawn = subsets(400, 100, 20, 0)
    assert all(len(set(one.tolist())) == 100 and max(one) < 400 for one in drawn)
    assert len({tuple(one) for one in drawn}) == 20
    assert np.array_equal(drawn[3], subsets(400, 100, 20, 0)[3])
    assert not np.array_equal(drawn[3], subsets(400, 100, 20, 1)[3])


def test_curves_count_each_clip_that_a_short_query_fits() -> None:
    records = sample_clips(2, "test", 0)
    pair = [records[0], records[0], records[1]]
    videos = np.array([[[1.0, 0], [0.9, 0.1], [0, 1]]])
    swapped = videos[:, [1, 0, 2]]  # the texts of the first two fit each other's clip better
    found = curves_of(videos, swapped, swapped, pair)
    assert found["short"] == [100.0]
    assert found["captions"][0] < 100


@pytest.mark.parametrize("shortens", [True, False])
def test_a_small_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shortens: bool
) -> None:
    records = [record for _, record in draw_sets(tmp_path / "drawn", [(0, 4), (101, 22)])[1]]
    problems = {} if shortens else {"short": "not one sentence"}

    def caption(_: object, videos: list[Path]) -> list[CaptionRecord]:
        """What the toy says is measured elsewhere."""
        return [
            CaptionRecord(str(video), record.name, {"dense": record.caption, "short": record.summary}, problems)
            for video, record in zip(videos, records, strict=True)
        ]

    monkeypatch.setattr(labelfree, "caption_videos", caption)
    monkeypatch.setattr(labelfree, "MEASURED", (0,))
    monkeypatch.setattr(labelfree, "POOLS", (101,))
    out = tmp_path / "figures.json"
    arguments = ["--clips", "4", "--pool", "22", "--size", "10", "--subsets", "3", "--device", "cpu"]
    labelfree.main(["choice", *arguments, "--out", str(out)])
    found = json.loads(out.read_text())
    assert tables(found) in capsys.readouterr().out
    assert len(found["curves"]["captions"]) == 11
    assert [one["choices"] for one in found["chosen_on"].values()] == [3] * 6
    first = next(iter(found["chosen_on"]))
    assert first == f"own dense + own {'short' if shortens else 'crop'}"
    assert found["pools"] == [{"described": 22, "used": 22, "kind": "short" if shortens else "crop"}]
    assert "within 1.5 on captions and 4.0 on short" in tables(found)


def test_tables_of_adapt() -> None:
    row = {"captions t2v": 90.0, "short t2v": 80.0}
    found = {"before": row, "own": row, "true": row, "pairs": 7, "lost": {"captions t2v": 5.0, "short t2v": -1.0}}
    assert "| true less own | +5.0 | -1.0 |" in tables(found)
    assert "7 pairs each; within 5.0 points everywhere: yes" in tables(found)
    assert "everywhere: no" in tables({**found, "lost": {"captions t2v": 5.1, "short t2v": 0.0}})
