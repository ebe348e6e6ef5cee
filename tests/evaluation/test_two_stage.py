from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidembed.evaluation.metrics import ranks, recall_at
from vidembed.evaluation.two_stage import (
    DualStages,
    above_least,
    candidate_mask,
    dual_reranked,
    reranked,
    top_candidates,
)
from vidembed.scoring import dual_softmax


def test_by_hand() -> None:
    first = np.array([[0.9, 0.8, 0.1, 0.7]])
    second = np.array([[-3.0, 5.0, 99.0, -4.0]])
    assert top_candidates(first, 3).tolist() == [[0, 1, 3]]
    assert candidate_mask(first, 3).tolist() == [[True, True, False, True]]
    assert np.argsort(-reranked(first, second, 3)).tolist() == [[1, 0, 3, 2]]  # 2 is no candidate: last
    assert np.argsort(-reranked(first, second, 1)).tolist() == [[0, 1, 3, 2]]


@given(st.integers(0, 1000), st.integers(1, 12))
def test_against_sorting_row_by_row(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.normal(size=(2, 5, 8))
    found = np.argsort(-reranked(first, second, k), axis=1)
    for row in range(5):
        by_first = sorted(range(8), key=lambda column: -first[row, column])
        expected = sorted(by_first[:k], key=lambda column: -second[row, column]) + by_first[k:]
        assert found[row].tolist() == expected


def test_ties_stay_ties() -> None:
    scores = reranked([[3.0, 2.0, 1.0]], [[5.0, 5.0, 0.0]], 2)
    assert scores[0, 0] == scores[0, 1]
    assert ranks(scores, np.array([0])).tolist() == [2]


def test_above_least() -> None:
    candidates = np.array([[True, False], [True, True]])
    assert above_least([[-2.0, -9.0], [1.0, 3.0]], candidates).tolist() == [[0.0, 0.0], [3.0, 5.0]]


def test_dual_stages_by_definition_and_use() -> None:
    rng = np.random.default_rng(0)

    def world() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        right = np.eye(60, dtype=bool)
        popular = rng.random(60)  # hubs: videos that suit every query, which dual-softmax is there for
        first = 0.3 + 0.2 * right + 0.2 * popular + 0.1 * rng.random((60, 60))
        return first, 2 * right + 2 * popular + rng.normal(size=(60, 60)), right

    first, second, right = world()
    stages = DualStages(first, second, right, k=10)
    first, second, right = world()
    one = dual_softmax(first, temperature=stages.first)
    two = dual_softmax(above_least(second, candidate_mask(one, 10)), temperature=stages.second)
    assert np.array_equal(stages(first, second), reranked(one, two, 10))
    temperatures = {"temperature": stages.first, "second_temperature": stages.second}
    assert np.array_equal(stages(first, second), dual_reranked(first, second, 10, **temperatures))
    dual = recall_at(ranks(stages(first, second), right), 1)
    assert dual > recall_at(ranks(reranked(first, second, 10), right), 1)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="k=0"):
        top_candidates([[1.0]], 0)
    with pytest.raises(ValueError, match="second: expected shape"):
        reranked([[1.0, 2.0]], [[1.0]], 1)
