from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from vidembed.scoring import ScoreFusion, similarity_gaps


def pairs(count: int = 5000, *, useful: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    odds, gaps = rng.normal(size=count), -rng.random(count)
    labels = rng.random(count) < 1 / (1 + np.exp(-(useful * odds + 4 * gaps + 1)))
    return odds, gaps, labels


def test_finds_the_weights_and_equals_an_independent_regression() -> None:
    odds, gaps, labels = pairs()
    fusion = ScoreFusion.fit(odds, gaps, labels)
    assert fusion.log_odds_weight == pytest.approx(1.0, abs=0.15)
    assert fusion.gap_weight == pytest.approx(4.0, abs=0.4)
    other = LogisticRegression(C=1e9, tol=1e-10).fit(np.column_stack([odds, gaps]), labels)
    assert np.abs(fusion(odds, gaps) - other.predict_proba(np.column_stack([odds, gaps]))[:, 1]).max() < 1e-2


def test_a_head_that_knows_nothing_gets_no_weight() -> None:
    odds, gaps, labels = pairs(useful=0.0)
    fusion = ScoreFusion.fit(odds, gaps, labels)
    assert abs(fusion.log_odds_weight) < 0.1
    assert (np.argsort(fusion(np.zeros(100), gaps[:100])) == np.argsort(gaps[:100])).all()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(-1, 1)), min_size=1, max_size=30), st.floats(-2, 2))
def test_gaps_forget_the_level_of_a_query(rows: list[tuple[str, float]], shift: float) -> None:
    queries = [query for query, _ in rows]
    values = np.array([value for _, value in rows])
    gaps = similarity_gaps(values, queries)
    assert (gaps <= 0).all()
    for name in set(queries):
        own = np.array([query == name for query in queries])
        assert gaps[own].max() == 0
        assert np.allclose(gaps[own], values[own] - values[own].max())
    moved = values + np.where(np.array(queries) == queries[0], shift, 0.0)
    assert np.allclose(similarity_gaps(moved, queries), gaps)


def test_one_query() -> None:
    assert similarity_gaps([0.2, 0.5]).tolist() == pytest.approx([-0.3, 0.0])
    with pytest.raises(ValueError, match="queries: expected 2 names"):
        similarity_gaps([0.2, 0.5], ["a"])


def test_file_and_bad_arguments(tmp_path: Path) -> None:
    fusion = ScoreFusion(0.5, 2.0, -1.0)
    fusion.save(tmp_path / "f.json")
    assert ScoreFusion.load(tmp_path / "f.json") == fusion
    with pytest.raises(ValueError, match="gap_weight"):
        ScoreFusion(0.5, float("nan"), 1.0)
    with pytest.raises(ValueError, match="expected the shape of log_odds"):
        fusion([0.1, 0.2], [0.1])
    with pytest.raises(ValueError, match="both classes"):
        ScoreFusion.fit([0.1, 0.2], [0.0, -0.1], [1, 1])
