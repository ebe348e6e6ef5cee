from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidembed.scoring import MarginPolicy


def test_by_hand() -> None:
    policy = MarginPolicy(0.1)
    scores = [0.5, 0.9, 0.82, 0.79]
    assert policy.asked(scores, top_k=1).tolist() == [False, True, True, False]
    assert policy.asked(scores, top_k=2).tolist() == [False, True, True, True]
    assert policy.asked(scores, top_k=9).all()
    assert policy.asked([scores, scores[::-1]], top_k=1).tolist() == [
        [False, True, True, False],
        [False, True, True, False],
    ]


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.integers(1, 25), st.floats(0, 1), st.floats(0, 1))
def test_the_top_is_always_asked_and_a_wider_margin_asks_no_fewer(
    scores: list[float], top_k: int, margin: float, more: float
) -> None:
    asked = MarginPolicy(margin).asked(scores, top_k=top_k)
    assert asked.sum() >= min(top_k, len(scores))
    assert asked[int(np.argmax(scores))]
    assert (MarginPolicy(margin + more).asked(scores, top_k=top_k) >= asked).all()


def recall(second: np.ndarray, right: np.ndarray, asked: np.ndarray, top_k: int) -> float:
    """By sorting, one row at a time."""
    hits = []
    for scores, answers, mask in zip(second, right, asked, strict=True):
        order = sorted(np.flatnonzero(mask), key=lambda column: (-scores[column], answers[column]))
        hits.append(bool(answers[order[:top_k]].any()))
    return float(np.mean(hits))


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([1, 3]), st.sampled_from([0.0, 0.05, 0.3]))
def test_fit_keeps_its_word(seed: int, top_k: int, max_loss: float) -> None:
    rng = np.random.default_rng(seed)
    first = rng.random((40, 15))
    right = rng.random((40, 15)) < 0.1
    second = first + right + rng.normal(scale=0.5, size=first.shape)
    fitted = MarginPolicy.fit(first, second, right, top_k=top_k, max_loss=max_loss)
    asked = fitted.policy.asked(first, top_k=top_k)
    assert fitted.recall_full == pytest.approx(recall(second, right, np.ones_like(asked), top_k))
    assert fitted.recall == pytest.approx(recall(second, right, asked, top_k))
    assert fitted.recall_lost <= max_loss + 1e-12
    assert fitted.passes_saved == pytest.approx(1 - asked.mean())


def test_saves_where_the_first_stage_is_sure() -> None:
    first = np.tile([1.0, 0.2, 0.1, 0.0], (10, 1))
    right = np.tile([True, False, False, False], (10, 1))
    assert MarginPolicy.fit(first, first, right, top_k=1).passes_saved == 0.75
    confused = 1 - first  # the second stage would undo it: asking fewer only helps
    assert MarginPolicy.fit(first, confused, right, top_k=1).recall == 1.0


def test_file_and_bad_arguments(tmp_path: Path) -> None:
    MarginPolicy(0.25).save(tmp_path / "m.json")
    assert MarginPolicy.load(tmp_path / "m.json") == MarginPolicy(0.25)
    for bad in (-0.1, float("inf"), "wide"):
        with pytest.raises(ValueError, match="margin"):
            MarginPolicy(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="top_k=0"):
        MarginPolicy(0.1).asked([1.0], top_k=0)
    scores, right = np.ones((2, 3)), np.ones((2, 3), bool)
    with pytest.raises(ValueError, match="max_loss=2"):
        MarginPolicy.fit(scores, scores, right, top_k=1, max_loss=2)
    with pytest.raises(ValueError, match="positives boolean"):
        MarginPolicy.fit(scores, scores, right.astype(int), top_k=1)
