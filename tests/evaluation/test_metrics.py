"""Retrieval metrics: by hand, against a slow count, and whatever the order of rows and columns."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, ndcg_score

from vidembed import evaluation
from vidembed.evaluation import (
    Interval,
    average_precision,
    bootstrap_interval,
    mean_rank,
    median_rank,
    ndcg_at,
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
def problems(draw: st.DrawFn, columns: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Few distinct scores, so that ties are common; at least one right column a row."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, columns))
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
            ([[1.0, 2.0]], [[False, False]], "it has no matching column"),
            ([[1.0, 2.0]], [0.5], "integers"),
        ],
    )
    def test_misuse(self, scores: Any, positives: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ranks(scores, np.array(positives))


def slow_ndcg(right: list[bool], k: int) -> float:
    """By definition, of the right and wrong columns in their order."""
    gains = [1 / np.log2(1 + place) for place in range(1, len(right) + 1)]
    got = sum(gain for gain, is_right in list(zip(gains, right, strict=True))[:k] if is_right)
    return float(got / sum(gains[: min(k, sum(right))]))


def slow_precision(right: list[bool]) -> float:
    """By definition, of the right and wrong columns in their order."""
    precisions = [sum(right[:place]) / place for place in range(1, len(right) + 1) if right[place - 1]]
    return sum(precisions) / len(precisions)


def least(row: list[float], right: list[bool], figure: Callable[[list[bool]], float]) -> float:
    """The worst figure of all orders that the scores allow, tried one by one."""
    orders = itertools.permutations(range(len(row)))
    allowed = [order for order in orders if all(row[a] >= row[b] for a, b in itertools.pairwise(order))]
    return min(figure([right[at] for at in order]) for order in allowed)


class TestSeveralPositives:
    def test_by_hand(self) -> None:
        scores = np.array([[0.9, 0.8, 0.7, 0.6], [0.5, 0.5, 0.5, 0.1]])
        right = np.array([[True, False, True, False], [True, False, False, True]])  # the second row: at 3 and 4
        assert average_precision(scores, right) == pytest.approx([(1 + 2 / 3) / 2, (1 / 3 + 2 / 4) / 2])
        best = 1 + 1 / np.log2(3)
        assert ndcg_at(scores, right) == pytest.approx([(1 + 0.5) / best, (0.5 + 1 / np.log2(5)) / best])
        assert ndcg_at(scores, right, k=2) == pytest.approx([1 / best, 0])
        assert ndcg_at(scores, right, k=1).tolist() == [1, 0]

    def test_one_positive_is_the_reciprocal_rank(self) -> None:
        scores = np.random.default_rng(0).integers(0, 5, (20, 9)).astype(float)
        columns = np.random.default_rng(1).integers(0, 9, 20)
        assert average_precision(scores, columns) == pytest.approx(1 / ranks(scores, columns))

    @settings(max_examples=40)
    @given(problems(columns=5), st.integers(1, 6))
    def test_the_worst_of_the_orders_that_ties_allow(self, problem: tuple[np.ndarray, np.ndarray], k: int) -> None:
        scores, mask = problem
        rows = list(zip(scores.tolist(), mask.tolist(), strict=True))
        assert average_precision(scores, mask) == pytest.approx([least(*row, slow_precision) for row in rows])
        wanted = [least(*row, lambda right: slow_ndcg(right, k)) for row in rows]
        assert ndcg_at(scores, mask, k=k) == pytest.approx(wanted)

    @settings(max_examples=50)  # the first call of scikit-learn is slow
    @given(st.integers(0, 10_000), st.integers(1, 12))
    def test_against_scikit_learn_without_ties(self, seed: int, k: int) -> None:
        rng = np.random.default_rng(seed)
        scores = rng.permuted(np.tile(np.arange(9.0), (4, 1)), axis=1) - 4
        mask = rng.random((4, 9)) < 0.4
        mask[:, rng.integers(9)] = True
        assert ndcg_at(scores, mask, k=k).mean() == pytest.approx(ndcg_score(mask, scores, k=k))
        wanted = [average_precision_score(right, row) for right, row in zip(mask, scores, strict=True)]
        assert average_precision(scores, mask) == pytest.approx(wanted)

    @given(problems(), st.integers(1, 8), st.randoms(use_true_random=False))
    def test_order_does_not_matter_and_bounds_hold(
        self, problem: tuple[np.ndarray, np.ndarray], k: int, random: Any
    ) -> None:
        scores, mask = problem
        columns = random.sample(range(scores.shape[1]), scores.shape[1])
        for figure in (average_precision, lambda scores, right: ndcg_at(scores, right, k=k)):
            got = figure(scores, mask)
            assert np.array_equal(figure(scores[:, columns], mask[:, columns]), got)
            assert got.shape == (len(scores),)
            assert got.min() >= 0
            assert got.max() <= 1
            assert figure(mask.astype(float), mask).tolist() == [1.0] * len(mask)  # the best order

    def test_a_constant_model_is_last(self) -> None:
        right = np.tile([True, True, False, False], (3, 1))
        assert average_precision(np.zeros((3, 4)), right) == pytest.approx([(1 / 3 + 2 / 4) / 2] * 3)
        assert ndcg_at(np.zeros((3, 4)), right, k=2).tolist() == [0, 0, 0]

    def test_misuse(self) -> None:
        for figure in (average_precision, ndcg_at):
            with pytest.raises(ValueError, match="not finite"):
                figure([[1.0, np.nan]], np.array([0]))
            with pytest.raises(ValueError, match="it has no matching column"):
                figure([[1.0, 2.0]], np.array([[False, False]]))
        for k in (0, 1.5, True):
            with pytest.raises(ValueError, match="k="):
                ndcg_at([[1.0, 2.0]], [0], k=k)  # type: ignore[arg-type]


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


def test_every_public_name_is_there() -> None:
    assert {name for name in evaluation.__all__ if not hasattr(evaluation, name)} == set()
    with pytest.raises(AttributeError, match="no attribute 'draw_shapes'"):
        evaluation.draw_shapes  # noqa: B018
