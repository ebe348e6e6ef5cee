from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vidembed.scoring import HybridWeights, reciprocal_rank_fusion
from vidembed.scoring.hybrid import ranks

WEIGHTS = HybridWeights(20.0, 10.0, 0.5, 1.0, caption_mean=-0.2, text_mean=-3.0)
SCORES = st.floats(-1, 1, width=16) | st.just(np.nan)


def pairs(queries: int, *, wrong: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Similarities (P, 3), labels and queries of 8 candidates each; captions are of another clip with p = `wrong`."""
    rng = np.random.default_rng(seed)
    right = np.tile(np.arange(8) == 0, queries)
    level = np.repeat(rng.normal(size=queries), 8)  # what all candidates of a query have in common
    video = 0.5 + 0.1 * level + 0.04 * right + 0.03 * rng.normal(size=right.size)
    says = np.where(rng.random(right.size) < wrong, rng.random(right.size) < 0.5, right)
    caption = 0.4 + 0.2 * level + 0.2 * says + 0.03 * rng.normal(size=right.size)
    text = np.maximum(0, 5 + 2 * level + 6 * says + rng.normal(size=right.size))
    return np.column_stack([video, caption, text]), right, [str(n) for n in range(queries) for _ in range(8)]


def recall(scores: np.ndarray) -> float:
    return float((scores.reshape(-1, 8).argmax(axis=1) == 0).mean())


def fused(weights: HybridWeights, features: np.ndarray) -> np.ndarray:
    return np.concatenate([weights(each) for each in features.reshape(-1, 8, 3)])


@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_fitted_weights_help_and_do_not_hurt_where_captions_are_wrong(wrong: float) -> None:
    weights = HybridWeights.fit(*pairs(200, wrong=wrong))
    features, _, _ = pairs(300, wrong=wrong, seed=1)
    alone = recall(features[:, 0])
    assert recall(fused(weights, features)) >= alone + (0.1 if wrong < 0.5 else -0.03)


def test_an_equal_sum_hurts_where_captions_are_wrong() -> None:
    features, _, _ = pairs(300, wrong=1.0, seed=1)
    spread = (features - features.mean(axis=0)) / features.std(axis=0)
    assert recall(spread.sum(axis=1)) < recall(features[:, 0]) - 0.2  # so the test above is not an easy one


def test_a_score_is_a_probability_that_holds() -> None:
    features, labels, queries = pairs(300, wrong=0.2)
    probabilities = fused(HybridWeights.fit(features, labels, queries), features)
    assert probabilities.mean() == pytest.approx(labels.mean(), abs=0.01)


def test_the_level_of_a_query_does_not_count() -> None:
    features, labels, queries = pairs(50)
    moved = features + np.repeat(np.random.default_rng(2).normal(size=(50, 3)), 8, axis=0)
    one, other = HybridWeights.fit(features, labels, queries), HybridWeights.fit(moved, labels, queries)
    assert np.allclose(fused(one, features), fused(other, moved), atol=1e-6)


def test_words_that_are_in_no_caption_have_no_weight() -> None:
    features, labels, queries = pairs(50)
    features[:, 2] = 0.0
    assert HybridWeights.fit(features, labels, queries).text_weight == 0.0


def test_a_weight_below_zero_is_said(caplog: pytest.LogCaptureFixture) -> None:
    features, labels, queries = pairs(50)
    features[:, 2] *= -1
    with caplog.at_level(logging.WARNING):
        assert HybridWeights.fit(features, labels, queries).text_weight < 0
    assert "text has weight -" in caplog.text


def test_fits_with_candidates_that_have_no_caption() -> None:
    features, labels, queries = pairs(100)
    features[::5, 1:] = np.nan
    weights = HybridWeights.fit(features, labels, queries)
    assert np.isfinite(fused(weights, features)).all()
    assert recall(fused(weights, features)) > recall(features[:, 0])


def test_no_caption_counts_as_the_mean_gap_of_the_fit() -> None:
    features = np.array([[0.5, 0.6, 8.0], [0.5, 0.4, 5.0], [0.5, np.nan, np.nan]])
    odds = WEIGHTS.log_odds(features)
    assert odds[1] == pytest.approx(odds[2])  # 0.4 - 0.6 and 5 - 8 are the means
    assert odds[0] == WEIGHTS.intercept


@given(arrays(np.float64, st.tuples(st.integers(1, 8), st.just(3)), elements=SCORES), st.floats(-1, 1, width=16))
def test_always_finite_and_shifting_a_similarity_changes_nothing(features: np.ndarray, shift: float) -> None:
    features[:, 0] = np.nan_to_num(features[:, 0])
    assert np.isfinite(WEIGHTS.log_odds(features)).all()
    assert np.allclose(WEIGHTS.log_odds(features), WEIGHTS.log_odds(features + shift), atol=1e-9)


@given(arrays(np.float64, st.tuples(st.integers(2, 8), st.just(3)), elements=st.floats(-1, 1, width=16)), st.data())
def test_a_score_depends_on_the_best_of_the_others_alone(features: np.ndarray, data: st.DataObject) -> None:
    best = np.unique(features.argmax(axis=0))
    others = data.draw(st.sets(st.integers(0, len(features) - 1)))
    kept = sorted({*best.tolist(), *others})
    assert np.array_equal(WEIGHTS.log_odds(features)[kept], WEIGHTS.log_odds(features[kept]))


def test_saved_weights_are_the_same(tmp_path: Path) -> None:
    WEIGHTS.save(tmp_path / "w.json")
    assert HybridWeights.load(tmp_path / "w.json") == WEIGHTS


@pytest.mark.parametrize(
    ("features", "labels", "queries", "message"),
    [
        (np.ones((4, 2)), [1, 0, 1, 0], None, "columns video, caption, text"),
        (np.ones((0, 3)), [], None, "got \\(0, 3\\)"),
        (np.ones((4, 3)), [1, 0, 1, 0], None, "all values are the same"),
        (np.random.default_rng(0).random((4, 3)), [1, 1, 1, 1], None, "both classes"),
        (np.random.default_rng(0).random((4, 3)), [1, 0, 1], None, "one label per pair"),
        (np.random.default_rng(0).random((4, 3)), [1, 0, 1, 0], ["a"], "expected 4 names"),
        (np.full((4, 3), np.inf), [1, 0, 1, 0], None, "infinite"),
        ([[np.nan, 1, 1], [0, 0, 0]], [1, 0], None, "no video similarity"),
        ([["a", "b", "c"]], [1], None, "expected numbers"),
    ],
)
def test_rejects(features: np.ndarray, labels: list[int], queries: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HybridWeights.fit(features, labels, queries)


def test_reciprocal_ranks_are_summed() -> None:
    found = reciprocal_rank_fusion([1, 2, np.nan], [2, np.nan, np.nan])
    assert found.tolist() == [1 / 61 + 1 / 62, 1 / 62, 0.0]


@given(st.lists(arrays(np.float64, 6, elements=SCORES), min_size=1, max_size=4), st.permutations(range(6)))
def test_fusion_is_of_candidates_in_any_order(scores: list[np.ndarray], order: list[int]) -> None:
    whole = reciprocal_rank_fusion(*map(ranks, scores))
    assert np.isfinite(whole).all()
    assert (whole >= 0).all()
    assert np.allclose(whole[order], reciprocal_rank_fusion(*(ranks(each[order]) for each in scores)))
    assert np.allclose(whole, reciprocal_rank_fusion(*map(ranks, scores[::-1])))


@given(arrays(np.float64, st.integers(1, 9), elements=SCORES))
def test_ranks_follow_the_scores(scores: np.ndarray) -> None:
    found = ranks(scores)
    assert np.array_equal(np.isnan(found), np.isnan(scores))
    for one in np.flatnonzero(~np.isnan(scores)):
        assert found[one] == 1 + (scores > scores[one]).sum()


@given(arrays(np.float64, st.integers(2, 9), elements=SCORES))
def test_a_ranking_that_agrees_moves_nothing(scores: np.ndarray) -> None:
    alone = reciprocal_rank_fusion(ranks(scores))
    twice = reciprocal_rank_fusion(ranks(scores), ranks(scores))
    assert np.array_equal(ranks(alone), ranks(twice))


@pytest.mark.parametrize(
    ("lists", "k", "message"),
    [
        ([], 60, "at least one ranking"),
        ([[1, 2], [1]], 60, r"ranks\[1\]: expected 2 ranks"),
        ([[0, 1]], 60, "the least 0"),
        ([[1, np.inf]], 60, "infinite"),
        ([[[1]]], 60, "1 axes"),
        ([["first"]], 60, "expected numbers"),
        ([[1]], 0, "k=0"),
    ],
)
def test_fusion_rejects(lists: list[list[float]], k: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reciprocal_rank_fusion(*lists, k=k)
