from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.stand_ins import random_scores
from vidembed.evaluation.metrics import average_precision, bootstrap_interval, ndcg_at, ranks
from vidembed.evaluation.result import Figures, outcomes

ALL = np.ones


def random_positives(seed: int, rows: int, columns: int) -> np.ndarray:
    mask = np.random.default_rng(seed).random((rows, columns)) < 0.25
    mask[np.arange(rows), np.arange(rows) % columns] = True
    return mask


@given(st.integers(0, 500), st.integers(2, 7), st.integers(2, 14))
def test_with_everything_readable_they_are_the_metrics(seed: int, rows: int, columns: int) -> None:
    scores, right = random_scores(seed, rows, columns), random_positives(seed, rows, columns)
    found = outcomes(scores, right, rows=ALL(rows, bool), columns=ALL(columns, bool))
    assert np.array_equal(found.ranks, ranks(scores, right))
    assert np.allclose(found.ndcg, ndcg_at(scores, right, 10))
    assert np.allclose(found.average_precision, average_precision(scores, right))


@given(st.integers(0, 500))
def test_unreadable_answers_only_cost(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, right = random_scores(seed, 6, 13), random_positives(seed, 6, 13)
    readable = rng.random(13) < 0.6
    readable[0] = True
    part = outcomes(scores[:, readable], right, rows=ALL(6, bool), columns=readable)
    never = ~(right & readable).any(axis=1)
    assert (part.ranks[never] == 14).all()
    assert (part.ranks[~never] <= 13).all()
    assert (part.ndcg[never] == 0).all()
    assert (part.average_precision[never] == 0).all()
    # an answer that cannot be read counts like one below all others that adds nothing
    at_the_end = np.where(readable, scores, scores.min() - 1 - np.arange(13))
    for row in np.flatnonzero(~never):
        order = np.argsort(-at_the_end[row])
        hits = (right[row] & readable)[order]
        precision = (hits.cumsum() / np.arange(1, 14))[hits].sum() / right[row].sum()
        assert part.average_precision[row] == pytest.approx(precision)
        gains = 1 / np.log2(np.arange(2, 12))
        best = gains[: min(10, right[row].sum())].sum()
        assert part.ndcg[row] == pytest.approx((gains * hits[:10]).sum() / best)


def test_by_hand() -> None:
    right = np.array([[True, False, False], [False, True, True]])
    scores = np.array([[0.1, 0.9], [0.5, 0.4]])  # of videos 0 and 2; 1 cannot be read
    found = outcomes(scores, right, rows=np.array([True, True]), columns=np.array([True, False, True]))
    assert found.ranks.tolist() == [2, 2]
    assert found.average_precision.tolist() == [0.5, 0.25]  # one of two right videos, at place 2
    turned = outcomes(scores.T, right.T, rows=np.array([True, False, True]), columns=np.array([True, True]))
    assert turned.ranks.tolist() == [2, 3, 2]
    assert turned.ndcg[1] == turned.average_precision[1] == 0


def test_no_query_can_be_answered() -> None:
    right = np.array([[True, False]])
    found = outcomes(np.array([[0.5]]), right, rows=np.array([True]), columns=np.array([False, True]))
    assert found.ranks.tolist() == [3]


def test_percent_and_groups() -> None:
    right = np.eye(8, dtype=bool)
    found = outcomes(random_scores(1, 8, 8), right, rows=ALL(8, bool), columns=ALL(8, bool))
    groups = np.arange(8) // 2
    shown = Figures.of(found, seed=3, groups=groups)
    expected = bootstrap_interval(found.ranks == 1, seed=3, groups=groups)
    assert shown.recall_1.estimate == pytest.approx(100 * expected.estimate)
    assert (shown.recall_1.low, shown.recall_1.high) == (100 * expected.low, 100 * expected.high)
    assert shown.recall_1.estimate <= shown.recall_5.estimate <= shown.recall_10.estimate == 100
    assert shown.mean_rank == found.ranks.mean()
    assert shown.median_rank == np.median(found.ranks)
    assert shown.mean_average_precision == pytest.approx(100 * (1 / found.ranks).mean())
