"""Retrieval metrics: by hand, against a slow count, and whatever the order of rows and columns."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidembed.evaluation import (
    Interval,
    bootstrap_interval,
    mean_rank,
    median_rank,
    paired_bootstrap,
    ranks,
    recall_at,
)


def slow_rank(row: list[float], right: list[bool]) -> int:
    """Place of the first right answer when the wrong ones go first among equals."""
    order = sorted(zip(row, right, strict=True), key=lambda pair: (-pair[0], pair[1]))
    wrong_before = 0
    for _, is_right in order:
        if is_right:
            break
        wrong_before += 1
    return wrong_before + 1


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Few distinct scores, so that ties are common; at least one right column a row."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    scores = np.array(draw(st.lists(st.integers(-2, 2), min_size=rows * columns, max_size=rows * columns)), float)
    mask = np.array(draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))).reshape(rows, -1)
    mask[np.arange(rows), draw(st.lists(st.integers(0, columns - 1), min_size=rows, max_size=rows))] = True
    return scores.reshape(rows, columns), mask


class TestRanks:
    def test_by_hand(self) -> None:
        scores = [
            [0.9, 0.5, 0.1],  # first
            [0.9, 0.5, 0.1],  # last
            [0.5, 0.5, 0.5],  # all tied: last
            [0.2, 0.7, 0.7],  # tied with one
        ]
        assert ranks(scores, [0, 2, 1, 1]).tolist() == [1, 3, 3, 2]

    def test_several_right_answers(self) -> None:
        scores = [[0.9, 0.8, 0.7, 0.7], [0.9, 0.8, 0.7, 0.7], [0.9, 0.9, 0.9, 0.1]]
        right = [[False, True, True, False], [True, True, False, False], [True, True, False, False]]
        # other right ones do not stand in the way; of the last row one wrong column ties with both
        assert ranks(scores, np.array(right)).tolist() == [2, 1, 2]

    @given(problems())
    def test_against_a_slow_count(self, problem: tuple[np.ndarray, np.ndarray]) -> None:
        scores, mask = problem
        wanted = [slow_rank(row, right) for row, right in zip(scores.tolist(), mask.tolist(), strict=True)]
        assert ranks(scores, mask).tolist() == wanted

    @given(problems(), st.randoms(use_true_random=False))
    def test_order_does_not_matter(self, problem: tuple[np.ndarray, np.ndarray], random: Any) -> None:
        scores, mask = problem
        rows, columns = (random.sample(range(count), count) for count in scores.shape)
        got = ranks(scores[rows][:, columns], mask[rows][:, columns])
        assert got.tolist() == ranks(scores, mask)[rows].tolist()

    def test_a_constant_model_is_last(self) -> None:
        assert ranks(np.zeros((4, 9)), np.arange(4)).tolist() == [9] * 4

    @pytest.mark.parametrize(
        ("scores", "positives", "message"),
        [
            ([[1.0, np.nan]], [0], "not finite"),
            ([1.0, 2.0], [0], r"shape \(Q, N\)"),
            ([[1.0, 2.0]], [2], r"positives\[0\]=2.*0 to 1"),
            ([[1.0, 2.0]], [[False, False]], "no column is right"),
            ([[1.0, 2.0]], [0.5], "integers"),
        ],
    )
    def test_misuse(self, scores: Any, positives: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ranks(scores, np.array(positives))


class TestSummaries:
    def test_by_hand(self) -> None:
        got = [1, 1, 3, 10]
        assert [recall_at(got, k) for k in (1, 2, 3, 5, 10)] == [0.5, 0.5, 0.75, 0.75, 1.0]
        assert median_rank(got) == 2.0
        assert mean_rank(got) == 3.75
        assert median_rank([4, 1, 2]) == 2.0

    @pytest.mark.parametrize("bad", [[], [0, 1], [1.0, 2.0], [[1, 2]]])
    def test_what_is_no_rank(self, bad: Any) -> None:
        for function in (median_rank, mean_rank, lambda value: recall_at(value, 1)):
            with pytest.raises(ValueError, match="ranks: expected"):
                function(bad)

    @pytest.mark.parametrize("k", [0, -1, 1.5, True])
    def test_wrong_k(self, k: Any) -> None:
        with pytest.raises(ValueError, match="k="):
            recall_at([1], k)


class TestBootstrap:
    def test_same_seed_same_interval(self) -> None:
        values = np.random.default_rng(0).random(50) < 0.4
        first = bootstrap_interval(values, seed=3)
        assert first == bootstrap_interval(values, seed=3)
        assert first != bootstrap_interval(values, seed=4)
        assert first.low < first.estimate == values.mean() < first.high
        assert first.level == 0.95

    def test_against_the_normal_approximation(self) -> None:
        values = np.random.default_rng(1).random(4000) < 0.3
        got = bootstrap_interval(values, seed=0)
        half = 1.96 * values.std() / np.sqrt(values.size)
        assert got.low == pytest.approx(values.mean() - half, abs=0.15 * half)
        assert got.high == pytest.approx(values.mean() + half, abs=0.15 * half)

    def test_coverage(self) -> None:
        """Of many samples of a known mean, about 95 % of the intervals hold it."""
        rng = np.random.default_rng(2)
        samples = rng.random((200, 80)) < 0.6
        intervals = [bootstrap_interval(sample, seed=0, resamples=400) for sample in samples]
        assert 0.9 <= np.mean([i.low <= 0.6 <= i.high for i in intervals]) <= 0.99

    def test_level(self) -> None:
        values = np.arange(30.0)
        narrow, wide = (bootstrap_interval(values, seed=0, level=level) for level in (0.5, 0.99))
        assert wide.low < narrow.low < narrow.high < wide.high

    def test_constant_values_have_no_width(self) -> None:
        assert bootstrap_interval([1, 1, 1], seed=0) == Interval(1.0, 1.0, 1.0, 0.95)

    def test_resamples_are_drawn_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        values = np.random.default_rng(0).random(40)
        whole = bootstrap_interval(values, seed=0, resamples=101)
        monkeypatch.setattr("vidembed.evaluation.metrics._DRAWS_AT_ONCE", 320)
        assert bootstrap_interval(values, seed=0, resamples=101) == whole

    def test_groups_are_drawn_whole(self) -> None:
        """Ten copies of each query say no more than one: the interval must not shrink."""
        values = np.random.default_rng(3).random(60) < 0.5
        alone = bootstrap_interval(values, seed=0)
        copies = np.repeat(values, 10)
        grouped = bootstrap_interval(copies, seed=0, groups=np.repeat(np.arange(60), 10))
        naive = bootstrap_interval(copies, seed=0)
        assert (grouped.low, grouped.high) == pytest.approx((alone.low, alone.high))
        assert naive.high - naive.low < 0.5 * (grouped.high - grouped.low)

    def test_groups_of_one_change_nothing(self) -> None:
        values = np.random.default_rng(4).random(30)
        assert bootstrap_interval(values, seed=1, groups=np.arange(30)) == bootstrap_interval(values, seed=1)

    def test_paired(self) -> None:
        rng = np.random.default_rng(5)
        b = rng.random(200) < 0.5
        a = b | (rng.random(200) < 0.1)  # never worse
        paired = paired_bootstrap(a, b, seed=0)
        assert paired.estimate == pytest.approx(a.mean() - b.mean())
        assert 0 < paired.low < paired.high
        assert paired_bootstrap(a, a, seed=0) == Interval(0.0, 0.0, 0.0, 0.95)
        swapped = paired_bootstrap(b, a, seed=0)
        assert (swapped.low, swapped.high) == pytest.approx((-paired.high, -paired.low))

    @settings(max_examples=30)
    @given(st.lists(st.booleans(), min_size=1, max_size=20), st.integers(0, 1000))
    def test_bounds(self, values: list[bool], seed: int) -> None:
        got = bootstrap_interval(np.array(values), seed=seed, resamples=50)
        assert min(values) <= got.low <= got.high <= max(values)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"values": []}, r"values: expected shape \(Q,\)"),
            ({"values": [1.0, np.inf]}, "not finite"),
            ({"values": ["a"]}, "numeric"),
            ({"seed": -1}, "seed=-1"),
            ({"seed": None}, "seed=None"),
            ({"resamples": 0}, "resamples=0"),
            ({"level": 1.0}, "level=1.0"),
            ({"level": 0.0}, "level=0.0"),
            ({"groups": [0]}, r"groups: expected shape \(3,\)"),
        ],
    )
    def test_misuse(self, kwargs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            bootstrap_interval(**{"values": [0.0, 1.0, 1.0], "seed": 0, **kwargs})

    def test_paired_lengths(self) -> None:
        with pytest.raises(ValueError, match=r"b: expected shape \(2,\)"):
            paired_bootstrap([1, 0], [1, 0, 1], seed=0)


def test_takes_no_torch() -> None:
    code = "import sys, vidembed.evaluation; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
