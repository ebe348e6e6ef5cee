"""Figures of layers: against plain loops, with ties and several right answers, and what each half may see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidembed.analysis import measure, split_halves
from vidembed.analysis.measure import Bootstrap, Half, Readout, choose, cosines, measure_layer
from vidembed.analysis.result import DirectionFigures, PromptAnalysis
from vidembed.evaluation import Interval
from vidembed.scoring import dual_softmax

QUICK = Bootstrap(seed=0, resamples=50)


def problem(seed: int, texts: int = 40, videos: int = 24, *, layers: int = 4) -> tuple[Any, Any, Any]:
    """States (layers, N, D) of a relation with several texts a video and texts of several videos; layer 2 is best."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((texts, videos), dtype=bool)
    mask[np.arange(texts), np.arange(texts) % videos] = True
    mask[::7, 3] = True
    of_videos = rng.standard_normal((layers, videos, 16)).astype(np.float32)
    noise = np.abs(np.arange(layers) - 2)[:, None, None] + 0.5
    of_texts = of_videos[:, mask.argmax(axis=1)] + noise * rng.standard_normal((layers, texts, 16)).astype(np.float32)
    return of_texts, of_videos, mask


def measure_prompt(
    prefix: str, texts: Any, videos: Any, halves: tuple[Half, Half], bootstrap: Bootstrap, *, dual: bool
) -> tuple[PromptAnalysis, Readout]:
    """One kind of query."""
    return measure.measure_prompt(prefix, videos, {"": (texts, halves)}, bootstrap, dual=dual)[""]


def by_loops(scores: np.ndarray, mask: np.ndarray) -> list[int]:
    """Rank of the first right column, equal wrong ones before it."""
    found = []
    for row, right in zip(scores, mask, strict=True):
        best = max(score for score, is_right in zip(row, right, strict=True) if is_right)
        found.append(1 + sum(score >= best for score, is_right in zip(row, right, strict=True) if not is_right))
    return found


def check(figures: DirectionFigures, ranks: list[int]) -> None:
    assert figures.recall_1.estimate == pytest.approx(sum(rank == 1 for rank in ranks) / len(ranks))
    assert figures.recall_5 == pytest.approx(sum(rank <= 5 for rank in ranks) / len(ranks))
    assert figures.recall_10 == pytest.approx(sum(rank <= 10 for rank in ranks) / len(ranks))
    assert figures.median_rank == np.median(ranks)
    assert figures.recall_1.low <= figures.recall_1.estimate <= figures.recall_1.high


@pytest.mark.parametrize("coarse", [False, True])
def test_against_loops(coarse: bool) -> None:
    texts, videos, mask = problem(0)
    if coarse:  # few distinct directions, so that many scores tie
        texts, videos = np.sign(texts[..., :3]), np.sign(videos[..., :3])
    halves = split_halves(mask, seed=0)
    for layer in range(len(texts)):
        row = measure_layer(layer, texts[layer], videos[layer], halves, QUICK, dual=True).row
        score = cosines(texts[layer], videos[layer])
        first, second = (
            (score[np.ix_(half.texts, half.videos)], mask[np.ix_(half.texts, half.videos)]) for half in halves
        )
        check(row.t2v, by_loops(*second))
        check(row.v2t, by_loops(second[0].T, second[1].T))
        assert row.choosing_t2v == np.mean([rank == 1 for rank in by_loops(*first)])
        assert row.choosing_v2t == np.mean([rank == 1 for rank in by_loops(first[0].T, first[1].T)])
        assert row.t2v_dual is not None
        assert row.v2t_dual is not None
        check(row.t2v_dual, by_loops(dual_softmax(second[0], temperature=row.t2v_dual.temperature), second[1]))
        check(row.v2t_dual, by_loops(dual_softmax(second[0].T, temperature=row.v2t_dual.temperature), second[1].T))
        assert row.t2v.temperature is None


def test_by_hand() -> None:
    """Two halves of two videos; in the reporting half text 2 is true of both, and text 3 is closer to the wrong one."""
    videos = np.array([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    texts = np.array([[2.0, 0], [0, 3], [1, 1], [1, 0.1]])
    mask = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]], dtype=bool)
    halves = tuple(Half(np.array(s), np.array(s), mask[np.ix_(s, s)]) for s in ([0, 1], [2, 3]))
    row = measure_layer(1, texts, videos, halves, QUICK, dual=False).row  # type: ignore[arg-type]
    assert (row.choosing_t2v, row.choosing_v2t) == (1.0, 1.0)
    assert (row.t2v.recall_1.estimate, row.t2v.median_rank) == (0.5, 1.5)
    # video 2 ranks text 3 over its own text 2; video 3 has both texts for right
    assert (row.v2t.recall_1.estimate, row.v2t.median_rank) == (0.5, 1.5)
    assert row.t2v_dual is None
    assert row.v2t_dual is None


@settings(max_examples=15)
@given(st.integers(0, 99), st.randoms(use_true_random=False))
def test_order_of_pairs_does_not_matter(seed: int, random: Any) -> None:
    texts, videos, mask = problem(seed, 14, 8, layers=1)
    halves = split_halves(mask, seed=0)
    rows = random.sample(range(14), 14)
    columns = random.sample(range(8), 8)
    back_rows, back_columns = np.argsort(rows), np.argsort(columns)
    moved = []
    for half in halves:
        new_texts, new_videos = back_rows[half.texts], back_columns[half.videos]
        moved.append(Half(new_videos, new_texts, mask[rows][:, columns][np.ix_(new_texts, new_videos)]))
    wanted = measure_layer(1, texts[0], videos[0], halves, QUICK, dual=False)
    got = measure_layer(1, texts[0][rows], videos[0][columns], (moved[0], moved[1]), QUICK, dual=False)
    assert got.merit == wanted.merit
    for name in ("t2v", "v2t"):
        a, b = getattr(wanted.row, name), getattr(got.row, name)
        assert (a.recall_5, a.recall_10, a.median_rank) == (b.recall_5, b.recall_10, b.median_rank)
        assert a.recall_1.estimate == pytest.approx(b.recall_1.estimate)


def test_length_of_states_does_not_matter() -> None:
    texts, videos, mask = problem(1)
    halves = split_halves(mask, seed=0)
    scale = np.random.default_rng(0).uniform(0.1, 9, (len(texts[0]), 1))
    a = measure_layer(1, texts[0], videos[0], halves, QUICK, dual=True).row
    b = measure_layer(1, texts[0] * scale, videos[0] * 1e4, halves, QUICK, dual=True).row
    assert a.t2v == b.t2v
    assert a.v2t == b.v2t


class TestLeaks:
    def test_the_reporting_half_chooses_nothing(self) -> None:
        texts, videos, mask = problem(2)
        halves = split_halves(mask, seed=0)
        first, _ = measure_prompt("none", texts, videos, halves, QUICK, dual=True)
        rng = np.random.default_rng(0)
        texts[:, halves[1].texts] = rng.standard_normal(texts[:, halves[1].texts].shape)
        videos[:, halves[1].videos] = rng.standard_normal(videos[:, halves[1].videos].shape)
        second, _ = measure_prompt("none", texts, videos, halves, QUICK, dual=True)
        assert second.chosen_layer == first.chosen_layer == 3  # place 2
        for a, b in zip(first.rows, second.rows, strict=True):
            assert (a.choosing_t2v, a.choosing_v2t) == (b.choosing_t2v, b.choosing_v2t)
            assert a.t2v_dual is not None
            assert b.t2v_dual is not None
            assert a.t2v_dual.temperature == b.t2v_dual.temperature
        assert second.row(3).t2v.recall_1.estimate < first.row(3).t2v.recall_1.estimate

    def test_the_choosing_half_reports_nothing(self) -> None:
        texts, videos, mask = problem(3)
        halves = split_halves(mask, seed=0)
        first, _ = measure_prompt("none", texts, videos, halves, QUICK, dual=False)
        texts[:, halves[0].texts] = 1.0
        second, _ = measure_prompt("none", texts, videos, halves, QUICK, dual=False)
        assert [(row.t2v, row.v2t) for row in first.rows] == [(row.t2v, row.v2t) for row in second.rows]


class TestPrompt:
    def test_rows_choice_and_margins(self) -> None:
        texts, videos, mask = problem(4)
        halves = split_halves(mask, seed=0)
        got, chosen = measure_prompt("none", texts, videos, halves, QUICK, dual=False)
        assert [row.layer for row in got.rows] == [1, 2, 3, -1]
        assert got.chosen_layer == chosen.row.layer == 3
        assert [(margin.over_prefix, margin.over_layer) for margin in got.margins] == [("none", -1), ("none", 3)]
        for direction in ("t2v", "v2t"):
            best, last = (getattr(got.row(layer), direction).recall_1.estimate for layer in (3, -1))
            margin = getattr(got.margin, direction)
            assert margin.estimate == pytest.approx(best - last)
            assert margin.low <= margin.estimate <= margin.high
            assert getattr(got.margins[1], direction) == Interval(0.0, 0.0, 0.0, 0.95)

    def test_same_seed_same_intervals(self) -> None:
        texts, videos, mask = problem(5)
        halves = split_halves(mask, seed=0)
        first, again, other = (
            measure_prompt("none", texts, videos, halves, Bootstrap(seed, 200), dual=False)[0] for seed in (0, 0, 1)
        )
        assert first == again
        assert first != other
        assert [row.t2v.recall_5 for row in first.rows] == [row.t2v.recall_5 for row in other.rows]

    def test_a_collapsed_layer(self) -> None:
        """A layer that gives everything the same vector is ranked last, and has no dual-softmax."""
        texts, videos, mask = problem(6)
        texts[0], videos[0] = 1.0, 1.0
        got, _ = measure_prompt("none", texts, videos, split_halves(mask, seed=0), QUICK, dual=True)
        assert got.rows[0].t2v.recall_1.estimate == 0
        assert got.rows[0].t2v_dual is None
        assert got.rows[1].t2v_dual is not None

    def test_texts_of_a_video_are_drawn_together(self) -> None:
        """Copies of each text must not make the interval narrower."""
        rng = np.random.default_rng(7)
        videos = rng.standard_normal((60, 8))
        texts = videos + 1.2 * rng.standard_normal((60, 8))
        width = {}
        for copies in (1, 8):
            mask = np.repeat(np.eye(60, dtype=bool), copies, axis=0)
            halves = split_halves(mask, seed=0)
            row = measure_layer(1, np.repeat(texts, copies, axis=0), videos, halves, Bootstrap(0, 1000), dual=False).row
            width[copies] = row.t2v.recall_1.high - row.t2v.recall_1.low
        assert width[8] == pytest.approx(width[1])


@pytest.mark.parametrize(
    ("merits", "chosen"),
    [
        ([(0.1, 0.5), (0.9, 0.5), (0.9, 0.6), (0.2, 0.9)], 3),  # the second figure decides
        ([(0.5, 0.5)] * 5, 3),  # the middle
        ([(0.5, 0.5)] * 4, 2),  # of two the earlier
        ([(0.9, 0.9), (0.1, 0.1), (0.9, 0.9), (0.9, 0.9), (0.9, 0.9)], 4),  # of the longest run
        ([(0.9, 0.9), (0.1, 0.1), (0.9, 0.9)], 1),  # of equal runs the first
    ],
)
def test_choice(merits: list[tuple[float, float]], chosen: int) -> None:
    assert choose(merits) + 1 == chosen


class TestKinds:
    def test_the_choice_is_by_the_mean_over_kinds(self) -> None:
        """One kind is best at layer 2, another at layer 3, and layer 1 is second for both."""
        merits = [[(0.8, 0.0), (0.9, 0.0), (0.1, 0.0)], [(0.8, 0.0), (0.1, 0.0), (0.9, 0.0)]]
        assert choose([measure.joint_merit(same) for same in zip(*merits, strict=True)]) == 0

    @given(st.integers(0, 30))
    def test_halves_of_kinds_are_those_of_the_whole(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        videos = tuple(Path(f"/{number}.mp4") for number in range(12))
        dense = measure.Relation(videos, tuple(f"dense {number}" for number in range(12)), np.eye(12, dtype=bool))
        mask = np.repeat(np.eye(6, dtype=bool), 2, axis=1)[:, rng.permutation(12)]
        short = measure.Relation(videos, tuple(f"short {number}" for number in range(6)), mask)
        whole = measure.join([dense, short])
        halves = split_halves(whole.positives, seed=seed)
        found = measure.halves_of_kinds({"dense": dense, "short": short}, halves)
        for side in (0, 1):
            assert found["dense"][side].videos.tolist() == halves[side].videos.tolist()
            assert set(found["short"][side].videos) <= set(halves[side].videos)
            assert found["short"][side].positives.any(axis=0).all()
        other = measure.Relation(videos[::-1], short.texts, mask[:, ::-1])  # by name, whatever the order
        assert np.array_equal(measure.join([dense, other]).positives, whole.positives)


def test_cosines_of_zero() -> None:
    assert cosines(np.zeros((1, 3)), np.ones((2, 3))).tolist() == [[0.0, 0.0]]
