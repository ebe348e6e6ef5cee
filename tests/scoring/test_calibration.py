"""Platt scaling against known answers and scikit-learn; calibration error by hand and by loops."""

from __future__ import annotations

import logging
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.linear_model import LogisticRegression

from vidembed.scoring import PlattScaling, expected_calibration_error, log_odds, reliability_curve, reliability_plot


def pairs(count: int, slope: float, intercept: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds, and labels drawn with ``sigmoid(slope * log_odds + intercept)``."""
    rng = np.random.default_rng(seed)
    x = rng.normal(-1.0, 3.0, count)
    return x, rng.random(count) < 1 / (1 + np.exp(-(slope * x + intercept)))


def targets(labels: np.ndarray) -> np.ndarray:
    matches, others = labels.sum(), (~labels).sum()
    return np.where(labels, (matches + 1) / (matches + 2), 1 / (others + 2))


def test_fit_finds_what_made_the_labels() -> None:
    fitted = PlattScaling.fit(*pairs(50_000, 0.4, -1.5), kind="log_odds")
    assert fitted.slope == pytest.approx(0.4, abs=0.02)
    assert fitted.intercept == pytest.approx(-1.5, abs=0.05)


@pytest.mark.parametrize(("slope", "intercept"), [(0.4, -1.5), (3.0, 2.0), (1.0, -4.0)])
def test_fit_agrees_with_scikit_learn(slope: float, intercept: float) -> None:
    x, labels = pairs(300, slope, intercept)
    soft = targets(labels)
    reference = LogisticRegression(C=1e10, tol=1e-10, max_iter=10_000).fit(
        np.concatenate([x, x])[:, None], np.repeat([1, 0], len(x)), sample_weight=np.concatenate([soft, 1 - soft])
    )
    fitted = PlattScaling.fit(x, labels, kind="log_odds")
    assert fitted.slope == pytest.approx(float(reference.coef_[0, 0]), rel=1e-3)
    assert fitted.intercept == pytest.approx(float(reference.intercept_[0]), rel=1e-3)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-3, 1.0, 1e3]), st.integers(2, 60))
def test_fit_is_at_rest(seed: int, unit: float, count: int) -> None:
    x, labels = pairs(count, 1.0, 0.0, seed)
    labels[:2] = [True, False]
    fitted = PlattScaling.fit(unit * x, labels, kind="log_odds")
    residual = fitted(unit * x, kind="log_odds") - targets(labels)
    assert abs(residual.mean()) < 1e-6
    assert abs((residual * (x - x.mean()) / x.std()).mean()) < 1e-6


def test_separable_pairs_have_a_finite_answer() -> None:
    x = np.concatenate([np.linspace(-9, -5, 500), np.linspace(5, 9, 500)])
    fitted = PlattScaling.fit(x, x > 0, kind="log_odds")
    assert 0 < fitted.slope < 10
    assert abs(fitted.intercept) < 0.01
    assert 0.99 < fitted(9.0, kind="log_odds") < 1.0


def test_two_pairs_are_fitted_exactly() -> None:
    fitted = PlattScaling.fit([-1.0, 1.0], [0, 1], kind="log_odds")  # targets 1/3 and 2/3
    assert fitted.slope == pytest.approx(math.log(2))
    assert fitted.intercept == pytest.approx(0.0, abs=1e-9)


def test_calibration_error_falls_on_a_held_out_half() -> None:
    x, labels = pairs(8_000, 0.4, -1.5)
    p = 1 / (1 + np.exp(-x))
    fitted = PlattScaling.fit(p[:4_000], labels[:4_000])
    before = expected_calibration_error(p[4_000:], labels[4_000:])
    after = expected_calibration_error(fitted(p[4_000:]), labels[4_000:])
    assert before > 0.15
    assert after < 0.03


@given(
    hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(-8, 8, width=32)), st.floats(0.1, 3), st.floats(-3, 3)
)
def test_slope_above_zero_keeps_the_order(x: np.ndarray, slope: float, intercept: float) -> None:
    calibrated = PlattScaling(slope, intercept)(x, kind="log_odds")
    assert ((calibrated >= 0) & (calibrated <= 1)).all()
    assert (np.diff(calibrated[np.argsort(x, kind="stable")]) >= 0).all()
    apart = x[:, None] > x[None, :] + 1e-3
    assert (calibrated[:, None] > calibrated[None, :])[apart].all()


@given(hnp.arrays(np.float64, hnp.array_shapes(max_dims=3, max_side=4), elements=st.floats(1e-9, 1 - 1e-9)))
def test_slope_one_and_intercept_zero_change_nothing(p: np.ndarray) -> None:
    calibrated = PlattScaling(1, 0)(p)
    assert calibrated.shape == p.shape
    assert np.allclose(calibrated, p, rtol=1e-6)
    assert np.allclose(PlattScaling(1, 0)(log_odds(p), kind="log_odds"), calibrated, rtol=1e-12)


def test_sure_probabilities_have_finite_log_odds() -> None:
    assert log_odds([0.0, 0.5, 1.0]) == pytest.approx([math.log(1e-12), 0.0, -math.log(1e-12)], rel=1e-4)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        assert PlattScaling(1e3, 0.0)([0.0, 1.0]).tolist() == [0.0, 1.0]
    fitted = PlattScaling.fit(np.array([0, 1, 0, 1, 1], dtype=np.float32), [0, 1, 0, 1, 0])
    assert math.isfinite(fitted.slope)


def test_scores_that_rank_the_wrong_way_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fitted = PlattScaling.fit([0.9, 0.8, 0.1, 0.2], [0, 0, 1, 1])
    assert fitted.slope < 0
    assert "below non-matches" in caplog.text


@pytest.mark.parametrize(
    ("values", "labels", "kind", "message"),
    [
        ([0.1, 0.2], [1, 1], "probabilities", "labels: expected both classes, got 2 matches and 0 non-matches"),
        ([0.1, 0.2], [0, 0], "probabilities", "expected both classes"),
        ([0.1, np.nan], [0, 1], "probabilities", "not finite"),
        ([0.1, 0.2], [0, np.nan], "probabilities", "labels: expected only 0 and 1"),
        ([0.1, 0.2], [0, 2], "probabilities", "labels: expected only 0 and 1 .*got .*2"),
        ([0.1, 0.2], ["yes", "no"], "probabilities", "labels: expected only 0 and 1"),
        ([0.1, 0.2], [0, 1, 1], "probabilities", r"labels: expected shape \(2,\)"),
        ([], [], "probabilities", r"probabilities: expected shape \(P,\) with at least one"),
        ([[0.1, 0.2]], [[0, 1]], "probabilities", r"probabilities: expected shape \(P,\)"),
        ([0.1, 1.2], [0, 1], "probabilities", "from 0 to 1, got values from 0.1 to 1.2 .*kind='log_odds'"),
        ([0.3, 0.3], [0, 1], "log_odds", "log_odds: all values are the same"),
        ([0.1, 0.2], [0, 1], "logits", "kind='logits': expected 'probabilities' or 'log_odds'"),
    ],
)
def test_fit_refuses(values, labels, kind, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PlattScaling.fit(values, labels, kind=kind)


@pytest.mark.parametrize("slope", [np.nan, np.inf, "1", None])
def test_fields_are_checked(slope) -> None:
    with pytest.raises(ValueError, match=r"PlattScaling: slope=.*: expected a finite number"):
        PlattScaling(slope, 0.0)


def test_saved_and_loaded(tmp_path: Path) -> None:
    scaling = PlattScaling(1 / 3, -0.1)
    scaling.save(tmp_path / "platt.json")
    assert PlattScaling.load(tmp_path / "platt.json") == scaling


def test_calibration_error_by_hand() -> None:
    p = [0.1, 0.2, 0.3, 0.9]  # two bins: (0, 0.5] holds three, mean 0.2, a third match; (0.5, 1] one, mean 0.9, all
    assert expected_calibration_error(p, [0, 0, 1, 1], bins=2) == pytest.approx(0.75 * (1 / 3 - 0.2) + 0.25 * 0.1)
    assert expected_calibration_error([1.0, 1.0, 0.0], [1, 1, 0]) == 0.0
    assert expected_calibration_error([1.0, 0.0], [0, 1]) == 1.0


def test_bins_hold_their_upper_edge() -> None:
    curve = reliability_curve([0.0, 0.5, 0.5 + 1e-9, 1.0], [0, 1, 0, 1], bins=2)
    assert curve.counts.tolist() == [2, 2]
    assert curve.edges.tolist() == [0.0, 0.5, 1.0]
    assert curve.frequency.tolist() == [0.5, 0.5]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 20),
)
def test_calibration_error_by_loops(drawn: list[tuple[float, bool]], bins: int) -> None:
    edges = np.linspace(0, 1, bins + 1)
    error = 0.0
    for k in range(bins):
        held = [(p, y) for p, y in drawn if edges[k] < p <= edges[k + 1] or (k == 0 and p == 0)]
        if held:
            error += abs(sum(p for p, _ in held) - sum(y for _, y in held)) / len(drawn)
    p, labels = zip(*drawn, strict=True)
    curve = reliability_curve(p, labels, bins=bins)
    assert curve.counts.sum() == len(drawn)
    assert (np.isnan(curve.frequency) == (curve.counts == 0)).all()
    assert expected_calibration_error(p, labels, bins=bins) == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize(
    ("p", "labels", "bins", "message"),
    [
        ([0.1], [1], 0, "bins=0: expected a whole number"),
        ([0.1], [1], 1.5, "bins=1.5"),
        ([0.1], [1], True, "bins=True"),
        ([], [], 15, "probabilities: expected shape"),
        ([1.1], [1], 15, "from 0 to 1"),
        ([0.1], [0.5], 15, "labels: expected only 0 and 1"),
    ],
)
def test_curve_is_checked(p, labels, bins, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reliability_curve(p, labels, bins=bins)


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_plot(tmp_path: Path, suffix: str, magic: bytes) -> None:
    pytest.importorskip("matplotlib")
    x, labels = pairs(200, 0.4, -1.5)
    before = reliability_curve(1 / (1 + np.exp(-x)), labels)
    after = reliability_curve(PlattScaling(0.4, -1.5)(x, kind="log_odds"), labels)
    reliability_plot(before, after, tmp_path / f"plot{suffix}")
    assert (tmp_path / f"plot{suffix}").read_bytes().startswith(magic)


def test_plot_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    curve = reliability_curve([0.1], [1])
    with pytest.raises(ModuleNotFoundError, match=r"vidembed\[plot\]"):
        reliability_plot(curve, curve, tmp_path / "plot.png")
    with pytest.raises(ValueError, match=r"ends in \.png"):
        reliability_plot(curve, curve, tmp_path / "plot.exe")
