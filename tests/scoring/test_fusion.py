from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidembed.scoring import ScoreFusion

FUSION = ScoreFusion(-0.7, 1.2, 0.16, 0.3, 4.7, slope=0.9, intercept=0.3)


def candidates(queries: int, *, understood: bool, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Log-odds, similarities and labels (Q, 8); the first candidate is right, and the head knows only if it says so."""
    right = np.tile(np.arange(8) == 0, (queries, 1))
    similarity = 0.4 + 0.02 * right + 0.03 * rng.normal(size=right.shape)
    if understood:
        return np.where(right, 2.0, -9.0) + rng.normal(size=right.shape), similarity, right
    return -5.5 + 2.0 * rng.normal(size=right.shape), similarity + 0.1 * right, right


def recall(scores: np.ndarray) -> float:
    return float((scores.argmax(axis=1) == 0).mean())


def test_each_query_weighs_the_better_judge() -> None:
    rng = np.random.default_rng(0)
    kinds = [candidates(200, understood=understood, rng=rng) for understood in (True, False)]
    odds, similarity, right = (np.concatenate(parts) for parts in zip(*kinds, strict=True))
    queries = [str(row) for row in range(len(odds)) for _ in range(8)]
    fusion = ScoreFusion.fit(odds.ravel(), similarity.ravel(), right.ravel(), queries)
    for understood in (True, False):
        odds, similarity, _ = candidates(200, understood=understood, rng=rng)
        fused = recall(fusion(odds, similarity))
        assert fused >= max(recall(odds), recall(similarity)) - 0.03
        assert fused >= min(recall(odds), recall(similarity)) + 0.2


def test_a_fused_score_is_a_calibrated_probability() -> None:
    rng = np.random.default_rng(1)
    odds, similarity, right = candidates(400, understood=True, rng=rng)
    odds += 5 * rng.normal(size=odds.shape)
    queries = [str(row) for row in range(len(odds)) for _ in range(8)]
    fusion = ScoreFusion.fit(odds.ravel(), similarity.ravel(), right.ravel(), queries)
    assert fusion(odds, similarity).mean() == pytest.approx(right.mean(), abs=0.01)


def test_fits_the_same_on_any_order_of_pairs() -> None:
    rng = np.random.default_rng(2)
    odds, similarity, right = candidates(30, understood=True, rng=rng)
    queries = np.array([str(row) for row in range(30) for _ in range(8)])
    flat = [odds.ravel(), similarity.ravel(), right.ravel(), queries]
    order = rng.permutation(len(queries))
    one, other = ScoreFusion.fit(*flat), ScoreFusion.fit(*(values[order] for values in flat))
    assert np.allclose(one(odds, similarity), other(odds, similarity), atol=1e-3)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.floats(-12, 5), st.floats(-1, 1)), min_size=1, max_size=30),
    st.integers(0, 29),
)
def test_queries_do_not_touch_each_other(rows: list[tuple[str, float, float]], missing: int) -> None:
    queries = [query for query, _, _ in rows]
    odds, similarity = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    odds[missing % len(rows)] = np.nan
    together = FUSION(odds, similarity, queries)
    for name in set(queries):
        own = np.array([query == name for query in queries])
        assert np.allclose(together[own], FUSION(odds[own], similarity[own]), equal_nan=True)
    assert np.array_equal(np.isnan(together), np.isnan(odds))
    assert ((together >= 0) & (together <= 1) | np.isnan(odds)).all()


def test_a_higher_similarity_or_log_odds_never_ranks_lower() -> None:
    odds, similarity = np.array([-3.0, -3.0, 1.0, 1.0]), np.array([0.2, 0.4, 0.4, 0.5])
    assert (np.diff(FUSION(odds, similarity)) > 0).all()


def test_older_files_mean_what_they_meant(tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    old = {"log_odds_weight": 0.5, "gap_weight": 2.0, "intercept": -1.0}
    file.write_text(json.dumps({"kind": "score_fusion", "format_version": 1, **old}))
    odds, similarity = np.array([1.0, -2.0]), np.array([0.3, 0.6])
    expected = 0.5 * odds + 2.0 * (similarity - 0.6) - 1.0
    assert np.allclose(ScoreFusion.load(file).fused_log_odds(odds, similarity), expected)


def test_file_and_bad_arguments(tmp_path: Path) -> None:
    FUSION.save(tmp_path / "f.json")
    assert ScoreFusion.load(tmp_path / "f.json") == FUSION
    with pytest.raises(ValueError, match="gap_by_best"):
        ScoreFusion(0.5, 0.0, 0.0, 1.0, float("nan"))
    with pytest.raises(ValueError, match="expected the shape of log_odds"):
        FUSION([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="not finite"):
        FUSION([0.1, np.inf], [0.1, 0.2])
    with pytest.raises(ValueError, match="queries: expected 2 names"):
        FUSION([0.1, 0.2], [0.1, 0.2], ["a"])
    with pytest.raises(ValueError, match="no query has both a match and another candidate"):
        ScoreFusion.fit([0.1, 0.2], [0.0, -0.1], [1, 0], ["a", "b"])
