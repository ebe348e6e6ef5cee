"""What the head says in every mode: priors against the model's own forward pass, and the arithmetic of modes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from vidembed import VideoReranker
from vidembed.backbone.architectures import find_parts
from vidembed.errors import InputError
from vidembed.inputs import load_input
from vidembed.scoring import PriorCorrection, prior_corrected
from vidembed.yes_no import Answers, answer_tokens, yes_log_odds

TEXTS = ["a red square", "a blue circle moves to the left and stops"]


@torch.inference_mode()
def own_pass(reranker: VideoReranker, features: dict[str, Any]) -> tuple[float, float]:
    """Log-odds against the vocabulary and against No, of one whole forward pass."""
    inputs = {key: value for key, value in features.items() if isinstance(value, torch.Tensor) and "num_" not in key}
    logits = reranker[0].model(**inputs).logits[:, -1].float()
    tokens = answer_tokens(reranker.tokenizer, name="m")
    return tuple(float(yes_log_odds(logits, tokens, against=over)) for over in ("vocabulary", "no"))  # type: ignore[return-value, arg-type]


def without_video(reranker: VideoReranker, text: str) -> dict[str, Any]:
    processor: Any = reranker.processor
    messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    return dict(processor.tokenizer(processor.apply_chat_template(messages, tokenize=False), return_tensors="pt"))


def without_sentence(reranker: VideoReranker, clip: Path) -> dict[str, Any]:
    loaded, _ = load_input({"video": clip, "text": ""}, reranker.sampling)
    return CrossEncoder.preprocess(reranker, [loaded], processing_kwargs={"video": {"do_sample_frames": False}})


@pytest.mark.parametrize("shared", [True, False])
def test_answers_equal_whole_passes(each_reranker: VideoReranker, clips: list[Path], shared: bool) -> None:
    each_reranker.shared_prefix = shared
    pairs = [(text, clip) for text in TEXTS for clip in clips]
    answers = each_reranker.answers(pairs, priors=True)
    assert answers.video_prior is not None
    assert answers.text_prior is not None
    for index, (text, clip) in enumerate(pairs):
        whole, against_no = own_pass(each_reranker, each_reranker.preprocess([{"video": clip, "text": text}]))
        assert abs(answers.yes[index] - whole) <= 1e-4
        assert abs(answers.yes_no[index] - against_no) <= 1e-4
        empty = without_sentence(each_reranker, clip)
        assert abs(answers.video_prior[index] - own_pass(each_reranker, empty)[1]) <= 1e-4
        assert abs(answers.text_prior[index] - own_pass(each_reranker, without_video(each_reranker, text))[1]) <= 1e-4
    assert answers.video_prior.std() > 0.01
    assert answers.text_prior.std() > 0.01


def test_modes_of_a_reranker(reranker: VideoReranker, clips: list[Path]) -> None:
    pairs = [(text, clip) for text in TEXTS for clip in clips]
    answers = reranker.answers(pairs, priors=True)
    expected = {
        "yes": answers.yes,
        "yes_no": answers.yes_no,
        "prior_corrected": answers.yes_no - answers.video_prior - answers.text_prior,  # type: ignore[operator]
    }
    for mode, odds in expected.items():
        reranker.mode = mode  # type: ignore[assignment]
        assert np.abs(reranker.predict(pairs) - 1 / (1 + np.exp(-odds))).max() <= 1e-6
    reranker.prior_correction = PriorCorrection(0.25, 0.0)
    corrected = answers.yes_no - 0.25 * answers.video_prior  # type: ignore[operator]
    assert np.abs(reranker.predict(pairs) - 1 / (1 + np.exp(-corrected))).max() <= 1e-6


def test_prior_correction_equals_that_of_matrices() -> None:
    rng = np.random.default_rng(0)
    odds, video, text = rng.normal(size=(3, 4)), rng.normal(size=4), rng.normal(size=3)
    answers = Answers(odds.ravel(), odds.ravel(), np.tile(video, 3), np.repeat(text, 4))
    correction = PriorCorrection(0.7, -0.2)
    whole = prior_corrected(odds, video_prior=video, text_prior=text, video_weight=0.7, text_weight=-0.2)
    assert np.allclose(answers.log_odds("prior_corrected", correction).reshape(3, 4), whole)


def test_a_prior_that_was_not_asked() -> None:
    answers = Answers(np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match=r"needs video_prior at weight 1\.0.*priors=True"):
        answers.log_odds("prior_corrected")
    with pytest.raises(ValueError, match=r"mode='maybe'"):
        answers.log_odds("maybe")  # type: ignore[arg-type]


def test_skipped_pairs_are_missing(reranker: VideoReranker, clips: list[Path]) -> None:
    pairs = [("a", clips[0]), ("a", "gone.mp4"), (" ", clips[0]), ("x" * 5000, clips[1]), ("b", clips[1])]
    answers = reranker.answers(pairs, priors=True, on_error="skip")
    assert answers.missing.tolist() == [False, True, True, True, False]
    assert np.isnan(answers.text_prior).tolist() == [False, True, True, True, False]  # type: ignore[arg-type]
    assert np.isfinite(answers.take(~answers.missing).log_odds("prior_corrected")).all()
    none = reranker.answers([("a", "gone.mp4")], on_error="skip")
    assert none.missing.all()


def test_an_answer_that_is_not_finite_is_none(reranker: VideoReranker, clips: list[Path]) -> None:
    pairs = [("a", clips[0]), ("b", clips[1])]
    with torch.no_grad():
        find_parts(reranker[0].model).head.weight.fill_(float("inf"))  # type: ignore[union-attr, arg-type]
    with pytest.raises(InputError, match=r"pairs\[0\] .*clip00\.mp4: the model gave an answer that is not finite"):
        reranker.predict(pairs)
    assert reranker.predict(pairs, on_error="skip").mask.all()
