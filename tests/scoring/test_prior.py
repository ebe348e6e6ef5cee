"""Prior correction against its definition, which rankings it can change, and its fitted weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.linear_model import LogisticRegression

from vidembed.scoring import PriorCorrection, prior_corrected

values = st.integers(-40, 40).map(lambda n: n / 4)  # exact in float64, so orders are exact


@st.composite
def inputs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    queries, videos = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    shapes = ((queries, videos), (videos,), (queries,))
    scores, video, text = (draw(hnp.arrays(np.float64, shape, elements=values)) for shape in shapes)
    return scores, video, text


weights = st.sampled_from([0.0, 0.5, 1.0, 2.0])


@given(inputs(), weights, weights)
def test_definition(drawn, video_weight: float, text_weight: float) -> None:
    scores, video, text = drawn
    corrected = prior_corrected(
        scores, video_prior=video, text_prior=text, video_weight=video_weight, text_weight=text_weight
    )
    for i in range(len(text)):
        for j in range(len(video)):
            assert corrected[i, j] == scores[i, j] - video_weight * video[j] - text_weight * text[i]


@given(inputs(), weights)
def test_text_prior_changes_no_ranking_of_videos(drawn, weight: float) -> None:
    scores, video, text = drawn
    both = prior_corrected(scores, video_prior=video, text_prior=text, text_weight=weight)
    video_only = prior_corrected(scores, video_prior=video, text_prior=None)
    order = np.argsort(both, axis=1, kind="stable")
    assert np.array_equal(order, np.argsort(video_only, axis=1, kind="stable"))


@given(inputs(), weights)
def test_video_prior_changes_no_ranking_of_texts(drawn, weight: float) -> None:
    scores, video, text = drawn
    both = prior_corrected(scores, video_prior=video, text_prior=text, video_weight=weight)
    text_only = prior_corrected(scores, video_prior=None, text_prior=text)
    order = np.argsort(both, axis=0, kind="stable")
    assert np.array_equal(order, np.argsort(text_only, axis=0, kind="stable"))


def test_a_video_that_always_says_yes_loses_its_lead() -> None:
    scores = np.array([[2.0, 3.0], [-1.0, 3.5]])
    assert prior_corrected(scores, video_prior=[0.0, 3.0], text_prior=None).argmax(axis=1).tolist() == [0, 1]


def made(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs whose log-odds are the truth's plus 0.8 of the video's prior and 0.3 of the sentence's."""
    rng = np.random.default_rng(seed)
    video, text, truth = rng.normal(-1, 2, count), rng.normal(1, 2, count), rng.normal(-1, 2, count)
    labels = rng.random(count) < 1 / (1 + np.exp(-1.5 * truth))
    return truth + 0.8 * video + 0.3 * text, labels, video, text


def test_fit_finds_the_weights() -> None:
    scores, labels, video, text = made(30_000)
    fitted = PriorCorrection.fit(scores, labels, video_prior=video, text_prior=text)
    assert fitted.video_weight == pytest.approx(0.8, abs=0.03)
    assert fitted.text_weight == pytest.approx(0.3, abs=0.03)
    corrected = fitted(scores[None, :5], video_prior=video[:5], text_prior=text[:1])
    expected = prior_corrected(
        scores[None, :5],
        video_prior=video[:5],
        text_prior=text[:1],
        video_weight=fitted.video_weight,
        text_weight=fitted.text_weight,
    )
    assert np.array_equal(corrected, expected)


def test_fit_agrees_with_scikit_learn() -> None:
    scores, labels, video, text = made(400, seed=1)
    soft = np.where(labels, (labels.sum() + 1) / (labels.sum() + 2), 1 / ((~labels).sum() + 2))
    features = np.tile(np.column_stack([scores, video, text]), (2, 1))
    reference = LogisticRegression(C=1e10, tol=1e-10, max_iter=10_000).fit(
        features, np.repeat([1, 0], 400), sample_weight=np.concatenate([soft, 1 - soft])
    )
    slope, by_video, by_text = reference.coef_[0]
    fitted = PriorCorrection.fit(scores, labels, video_prior=video, text_prior=text)
    assert fitted.video_weight == pytest.approx(-by_video / slope, rel=1e-3)
    assert fitted.text_weight == pytest.approx(-by_text / slope, rel=1e-3)


def test_fit_of_one_prior_leaves_the_other_out() -> None:
    scores, labels, video, text = made(2_000)
    fitted = PriorCorrection.fit(scores, labels, video_prior=video, text_prior=None)
    assert fitted.text_weight == 0.0
    assert fitted.video_weight == pytest.approx(0.8, abs=0.2)
    fitted(scores[None, :5], video_prior=video[:5], text_prior=None)
    with pytest.raises(ValueError, match="video_prior=None: expected an array, as its weight is"):
        fitted(scores[None, :5], video_prior=None, text_prior=text[:1])


def test_fit_refuses() -> None:
    scores, labels, video, text = made(50)
    with pytest.raises(ValueError, match="at least one of them"):
        PriorCorrection.fit(scores, labels, video_prior=None, text_prior=None)
    with pytest.raises(ValueError, match="linear function of the others"):
        PriorCorrection.fit(scores, labels, video_prior=2 * scores + 1, text_prior=None)
    with pytest.raises(ValueError, match="all values are the same"):
        PriorCorrection.fit(scores, labels, video_prior=np.ones(50), text_prior=None)
    with pytest.raises(ValueError, match="both classes"):
        PriorCorrection.fit(scores, np.ones(50), video_prior=video, text_prior=text)
    with pytest.raises(ValueError, match="log_odds: their slope is"):
        PriorCorrection.fit(scores, ~labels, video_prior=video, text_prior=text)
    with pytest.raises(ValueError, match=r"video_prior: expected shape \(P,\) with P = 50"):
        PriorCorrection.fit(scores, labels, video_prior=video[:9], text_prior=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_prior": [0.0]}, r"video_prior: expected shape \(N,\) with N = 2, got \(1,\)"),
        ({"text_prior": [0.0, 1.0]}, r"text_prior: expected shape \(Q,\) with Q = 1, got \(2,\)"),
        ({"video_prior": [0.0, np.nan]}, "video_prior: 1 of 2 values are not finite"),
        ({"video_prior": None, "text_prior": None}, "at least one of them"),
        ({"video_weight": np.nan}, "video_weight=nan"),
        ({"text_weight": "1"}, "text_weight='1'"),
    ],
)
def test_arguments_are_checked(changes, message: str) -> None:
    arguments = {"video_prior": [0.0, 1.0], "text_prior": [0.0], **changes}
    with pytest.raises(ValueError, match=message):
        prior_corrected([[0.1, 0.2]], **arguments)


def test_saved_and_loaded(tmp_path: Path) -> None:
    correction = PriorCorrection(1 / 3, 0.1)
    correction.save(tmp_path / "prior.json")
    assert PriorCorrection.load(tmp_path / "prior.json") == correction
