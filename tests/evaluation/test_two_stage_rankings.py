from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.stand_ins import random_scores
from vidembed.evaluation.two_stage import (
    COLUMNS,
    DualStages,
    candidate_mask,
    needed,
    rankings,
    reranked,
    second_stage,
)
from vidembed.scoring import ScoreFusion, dual_softmax


def cosines(seed: int, rows: int = 8, columns: int = 9) -> np.ndarray:
    return 0.3 + 0.05 * random_scores(seed, rows, columns)


def test_without_a_second_stage() -> None:
    first = cosines(0)
    found = rankings(first, temperature=0.05)
    assert list(found) == list(COLUMNS)
    assert found["rerank"] is None
    assert found["rerank_dual_softmax"] is None
    assert found["raw"] is first
    assert np.array_equal(found["dual_softmax"], dual_softmax(first, temperature=0.05))  # type: ignore[arg-type]


def test_with_one_as_fitted_stages_have_it() -> None:
    first, odds = cosines(1, 20, 20), 3 * random_scores(2, 20, 20)
    stages = DualStages(first, odds, np.eye(20, dtype=bool), k=4)
    found = rankings(first, odds, temperature=stages.first, second_temperature=stages.second, k=4)
    assert np.array_equal(found["rerank_dual_softmax"], stages(first, odds))  # type: ignore[arg-type]
    assert np.array_equal(found["rerank"], reranked(first, odds, 4))  # type: ignore[arg-type]


@given(st.integers(0, 200), st.integers(1, 9))
def test_scores_that_were_not_needed_change_nothing(seed: int, k: int) -> None:
    first, odds = cosines(seed), random_scores(seed + 1, 8, 9)
    wanted = needed(first, k, 0.03)
    assert (wanted | ~candidate_mask(first, k)).all()
    assert wanted.sum(axis=1).max() <= 2 * k
    one, other = (
        rankings(
            first,
            second_stage(first, np.where(wanted, odds, rest), wanted),
            temperature=0.03,
            second_temperature=1.0,
            k=k,
        )
        for rest in (np.nan, 99.0)
    )
    for name in COLUMNS:
        assert np.array_equal(one[name], other[name])  # type: ignore[arg-type]


def test_a_pair_without_an_answer_stands_below_those_that_have_one() -> None:
    first = np.array([[0.9, 0.8, 0.7]])
    wanted = np.array([[True, True, False]])
    found = second_stage(first, np.array([[np.nan, -7.0, np.nan]]), wanted)
    assert found[0, 0] < found[0, 1] == -7.0
    assert np.argsort(-reranked(first, found, 2)).tolist() == [[1, 0, 2]]
    assert np.isfinite(second_stage(first, np.full((1, 3), np.nan), wanted)).all()


def test_fused_with_the_other_candidates() -> None:
    first = np.array([[0.9, 0.5], [0.2, 0.3]])
    odds = np.array([[1.0, 2.0], [3.0, 4.0]])
    fusion = ScoreFusion.constant(log_odds_weight=2.0, gap_weight=10.0, intercept=1.0)
    found = second_stage(first, odds, np.ones((2, 2), bool), fusion)
    assert np.allclose(found, [[3.0, 1.0], [6.0, 9.0]])
    some = np.array([[True, False], [True, True]])
    by_mean = ScoreFusion(0.0, 1.0, 0.0, 0.0, 0.0)
    assert np.allclose(second_stage(first, odds, some, by_mean)[0, 0], np.log1p(np.e))
