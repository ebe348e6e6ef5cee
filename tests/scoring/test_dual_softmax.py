"""Dual-softmax against its definition, what it must not change, and the choice of its temperature."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vidembed.scoring import DualSoftmax, dual_softmax, fit_temperature
from vidembed.scoring.dual_softmax import middle_of_plateau

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=6)
matrices = hnp.arrays(np.float64, shapes, elements=st.floats(-1, 1, width=32))
temperatures = st.floats(1e-3, 1e3)


def by_loops(scores: np.ndarray, temperature: float) -> np.ndarray:
    queries, candidates = scores.shape
    out = np.empty_like(scores)
    for j in range(candidates):
        total = sum(math.exp(scores[k, j] / temperature) for k in range(queries))
        for i in range(queries):
            out[i, j] = scores[i, j] * queries * math.exp(scores[i, j] / temperature) / total
    return out


def hubby(seed: int, queries: int = 40, hubness: float = 0.6) -> np.ndarray:
    """Cosine-like scores whose diagonal is right, with columns that suit every query."""
    rng = np.random.default_rng(seed)
    hubs = hubness * rng.random(queries)
    return 0.2 + 0.3 * np.eye(queries) + hubs + 0.1 * rng.standard_normal((queries, queries))


@given(matrices, st.floats(0.01, 1e3))
def test_definition(scores: np.ndarray, temperature: float) -> None:
    assert np.allclose(
        dual_softmax(scores, temperature=temperature), by_loops(scores, temperature), rtol=1e-9, atol=1e-12
    )


def test_by_hand() -> None:
    third = math.log(3)
    assert np.allclose(dual_softmax([[third, 1.0], [0.0, 1.0]], temperature=1.0), [[1.5 * third, 1.0], [0.0, 1.0]])


@given(matrices, temperatures, st.randoms(use_true_random=False))
def test_order_of_queries_and_candidates_does_not_matter(scores: np.ndarray, temperature: float, random) -> None:
    rows, columns = (random.sample(range(n), n) for n in scores.shape)
    dual = dual_softmax(scores, temperature=temperature)
    shuffled = dual_softmax(scores[np.ix_(rows, columns)], temperature=temperature)
    assert np.allclose(shuffled, dual[np.ix_(rows, columns)], rtol=1e-9, atol=1e-12)


@given(hnp.arrays(np.int64, shapes, elements=st.integers(-100, 100)))
def test_ranking_of_the_scores_at_infinite_temperature(scores: np.ndarray) -> None:
    dual = dual_softmax(scores / 100, temperature=1e9)
    assert np.allclose(dual, scores / 100, atol=1e-6)
    for row, expected in zip(dual, scores, strict=True):
        apart = expected[:, None] > expected[None, :]
        assert (row[:, None] > row[None, :])[apart].all()


@given(matrices, st.floats(0.01, 1e3), st.sampled_from([2.0**-20, 0.5, 2.0, 2.0**20]))
def test_unit_of_the_scores_does_not_matter(scores: np.ndarray, temperature: float, unit: float) -> None:
    scores = np.round(scores, 4)  # far from the smallest numbers, where a change of unit rounds
    dual = dual_softmax(scores, temperature=temperature)
    assert np.array_equal(dual_softmax(unit * scores, temperature=unit * temperature), unit * dual)


@given(hnp.arrays(np.float64, st.integers(1, 6), elements=st.floats(-1, 1, width=32)), temperatures)
def test_one_query_is_left_as_it_is(scores: np.ndarray, temperature: float) -> None:
    assert np.allclose(dual_softmax(scores[None], temperature=temperature), scores[None])


@given(matrices, st.sampled_from([5e-324, 1e-300, 1e-30, 1e-6, 1e30, 1e300]))
def test_extreme_temperatures_give_finite_scores(scores: np.ndarray, temperature: float) -> None:
    assert np.isfinite(dual_softmax(scores, temperature=temperature)).all()


def test_weights_that_underflow_leave_the_order_of_the_scores() -> None:
    scores = np.array([[0.1, 0.3, 0.2], [0.9, 0.9, 0.9]])  # the first query is outdone everywhere
    assert np.argsort(dual_softmax(scores, temperature=1e-4)[0]).tolist() == [0, 2, 1]


def test_a_hub_counts_less() -> None:
    scores = np.array([[0.60, 0.65], [0.20, 0.70]])
    assert np.argmax(scores, axis=1).tolist() == [1, 1]
    assert np.argmax(dual_softmax(scores, temperature=0.1), axis=1).tolist() == [0, 1]


def test_fit_helps_on_hubs_and_reports_both_figures() -> None:
    scores = hubby(0)
    right = np.arange(40)
    fitted = fit_temperature(scores, right)
    dual = dual_softmax(scores, temperature=fitted.temperature)
    assert fitted.recall_before == (scores.argmax(axis=1) == right).mean()
    assert fitted.recall_after == (dual.argmax(axis=1) == right).mean()
    assert fitted.recall_after > fitted.recall_before + 0.2
    assert fitted.mrr_after == pytest.approx(np.mean(1 / (1 + (dual > np.diag(dual)[:, None]).sum(axis=1))))
    assert fitted.queries == 40
    held_out = hubby(1)
    after = (dual_softmax(held_out, temperature=fitted.temperature).argmax(axis=1) == right).mean()
    assert after > (held_out.argmax(axis=1) == right).mean()


def test_fit_takes_the_best_of_the_grid() -> None:
    scores, right = hubby(2), np.arange(40)
    grid = np.logspace(-2, 1, 30)
    fitted = fit_temperature(scores, right, grid=grid[::-1])

    def figures(t: float) -> tuple[float, float]:
        dual = by_loops(scores, t)
        ranks = 1 + (dual > np.diag(dual)[:, None]).sum(axis=1)
        return float((ranks == 1).mean()), round(float((1 / ranks).mean()), 12)

    each = [figures(t) for t in grid]
    assert fitted.temperature in grid
    assert (fitted.recall_after, fitted.mrr_after) == max(each) == each[grid.tolist().index(fitted.temperature)]


def test_fit_prefers_the_middle_of_a_plateau() -> None:
    scores = np.array([[0.9, 0.1], [0.1, 0.9]])  # right at every temperature
    assert fit_temperature(scores, [0, 1], grid=[1e-2, 1e-1, 1.0, 1e1, 1e2]).temperature == 1.0
    assert fit_temperature(scores, [0, 1], grid=[1e-2, 1e-1, 1.0, 1e1]).temperature == 1.0  # of two in the middle


def test_fit_takes_the_longest_run_of_a_broken_plateau() -> None:
    best = np.array([1, 0, 1, 1, 1, 0, 1, 1], dtype=bool)
    assert middle_of_plateau(np.arange(8.0), best) == 3
    assert middle_of_plateau(np.arange(8.0), np.array([1, 1, 0, 0, 0, 0, 1, 1], dtype=bool)) == 7


def test_fit_follows_the_unit_of_the_scores() -> None:
    scores, right = hubby(3), np.arange(40)
    one, other = fit_temperature(scores, right), fit_temperature(64 * scores, right)
    assert other.temperature == pytest.approx(64 * one.temperature)
    assert other.recall_after == one.recall_after


def test_fit_counts_any_right_column() -> None:
    scores = np.array([[0.5, 0.9, 0.1], [0.2, 0.1, 0.6]])
    right = np.array([[True, True, False], [False, False, True]])
    assert fit_temperature(scores, right).recall_before == 1.0
    assert fit_temperature(scores, [0, 2]).recall_before == 0.5


def test_fit_counts_ties_against_the_right_column() -> None:
    fitted = fit_temperature(np.array([[0.5, 0.5], [0.1, 0.2]]), [0, 1], grid=[1e9])
    assert fitted.recall_before == 0.5
    assert fitted.mrr_before == 0.75


@pytest.mark.parametrize(
    ("scores", "positives", "grid", "message"),
    [
        ([[0.1, 0.2]], [0], None, "at least 2 queries"),
        ([[0.1, 0.2]] * 2, [0, 2], None, r"positives\[1\]=2: expected a column from 0 to 1"),
        ([[0.1, 0.2]] * 2, [0, -1], None, r"positives\[1\]=-1"),
        ([[0.1, 0.2]] * 2, [0.0, 1.0], None, "positives: expected"),
        ([[0.1, 0.2]] * 2, [[True, False], [False, False]], None, r"positives\[1\]: it has no matching column"),
        ([[0.1, 0.2]] * 2, [0, 1, 1], None, "positives: expected"),
        ([[0.1, 0.1]] * 2, [0, 1], None, "scores: all are 0.1"),
        ([[0.1, 0.2]] * 2, [0, 1], [0.0, 1.0], "grid: expected temperatures above 0"),
        ([[0.1, 0.2]] * 2, [0, 1], [], "grid: expected shape"),
    ],
)
def test_fit_refuses(scores, positives, grid, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(scores, positives, grid=grid)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.1, 0.2], r"scores: expected shape \(Q, N\)"),
        (np.zeros((0, 3)), r"scores: expected shape \(Q, N\)"),
        ([[0.1, np.nan]], r"scores: 1 of 2 values are not finite, the first is nan at \[0, 1\]"),
        ([[0.1, -np.inf]], "not finite"),
        ([["a"]], "scores: expected a numeric array"),
        ([[0.1], [0.1, 0.2]], "scores: expected an array of numbers"),
        ([[True]], "scores: expected a numeric array"),
    ],
)
def test_scores_are_checked(scores, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dual_softmax(scores, temperature=0.1)


@pytest.mark.parametrize("temperature", [0, -0.1, np.nan, np.inf, True, "0.1", None])
def test_temperature_is_checked(temperature) -> None:
    with pytest.raises(ValueError, match=r"temperature=.*: expected a finite number above 0"):
        dual_softmax([[0.1, 0.2]], temperature=temperature)


def test_both_directions() -> None:
    scores = hubby(4)[:30]
    both = DualSoftmax(t2v=0.05, v2t=0.2)
    assert np.array_equal(both.text_to_video(scores), dual_softmax(scores, temperature=0.05))
    assert np.array_equal(both.video_to_text(scores), dual_softmax(scores.T, temperature=0.2))
    assert both.video_to_text(scores).shape == (40, 30)


def test_arguments_are_left_as_they_were() -> None:
    scores = hubby(5)
    kept = scores.copy()
    dual_softmax(scores, temperature=0.1)
    fit_temperature(scores, np.arange(40))
    assert np.array_equal(scores, kept)


def test_saved_and_loaded(tmp_path: Path) -> None:
    both = DualSoftmax(t2v=0.1 + 0.2, v2t=1 / 3)
    both.save(tmp_path / "dual.json")
    assert DualSoftmax.load(tmp_path / "dual.json") == both


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", "expected a JSON object"),
        (
            json.dumps({"kind": "platt_scaling", "format_version": 1, "t2v": 1.0, "v2t": 1.0}),
            "expected kind 'dual_softmax'",
        ),
        (json.dumps({"kind": "dual_softmax", "format_version": 2, "t2v": 1.0, "v2t": 1.0}), "format_version '?2"),
        (json.dumps({"kind": "dual_softmax", "format_version": 1, "t2v": 1.0}), "v2t missing"),
        (json.dumps({"kind": "dual_softmax", "format_version": 1, "t2v": "1", "v2t": 1.0}), "expected a finite number"),
        (json.dumps({"kind": "dual_softmax", "format_version": 1, "t2v": -1.0, "v2t": 1.0}), "t2v=-1.0"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "dual.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        DualSoftmax.load(tmp_path / "dual.json")
