"""A real language model behind a random vision tower; skipped where its weights are not installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import real

from vidembed import VideoEncoder, VideoFrames, VideoReranker
from vidembed.backbone.load import Backbone, load_backbone


@pytest.fixture(scope="module")
def language() -> tuple[Any, Any]:
    try:
        real.gguf_file()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("the package gguf, which transformers reads these weights with, is not installed: `make real`")
    return real.language_model()


@pytest.fixture(scope="module")
def backbone(language: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(real.compose(tmp_path_factory.mktemp("real") / "mllm", *language))


@torch.inference_mode()
def test_the_language_model_is_the_one_of_the_file(language: tuple[Any, Any], backbone: Backbone) -> None:
    own, tokenizer = language[1], backbone.processor.tokenizer
    ids = tokenizer("A dog fetches a ball from the sea.", return_tensors="pt")["input_ids"]
    wanted = own(input_ids=ids).logits  # (1, S, V)
    found = backbone.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert found.shape[-1] == wanted.shape[-1] + len(real.PLACEHOLDERS)
    torch.testing.assert_close(found[..., : wanted.shape[-1]], wanted, rtol=1e-4, atol=1e-3)


def test_placeholders_and_tied_weights(backbone: Backbone) -> None:
    model, tokenizer = backbone.model, backbone.processor.tokenizer
    known = [model.config.image_token_id, model.config.video_token_id]
    assert tokenizer.convert_tokens_to_ids(real.PLACEHOLDERS) == known
    assert tokenizer.encode("".join(real.PLACEHOLDERS), add_special_tokens=False) == known
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert len(model.model.language_model.layers) == 30


def test_a_summary_finds_its_caption(backbone: Backbone) -> None:
    _, pairs = real.read_captions()
    pairs = pairs[::12]  # of three topics
    encoder = VideoEncoder(backbone=backbone, layer=real.MIDDLE, device="cpu")
    dense, summary = (
        encoder.encode([{"text": text} for text in side]) for side in zip(*map(_texts, pairs), strict=True)
    )
    assert np.argmax(summary @ dense.T, axis=1).tolist() == list(range(len(pairs)))
    video = encoder.encode(VideoFrames(np.zeros((2, 56, 56, 3), np.uint8), fps=2))
    assert np.linalg.norm(video) == pytest.approx(1, abs=1e-5)


def _texts(pair: real.TextPair) -> tuple[str, str]:
    return pair.dense, pair.summary


@torch.inference_mode()
def test_the_head_answers_yes_or_no(backbone: Backbone) -> None:
    reranker = VideoReranker(backbone=backbone, device="cpu")
    pair = ("A dog runs.", VideoFrames(np.zeros((2, 56, 56, 3), np.uint8), fps=2))
    shares = real.answer_shares(reranker, pair)
    yes_no = [shares[reranker.tokenizer.encode(word, add_special_tokens=False)[0]] for word in ("Yes", "No")]
    assert sum(yes_no) > 0.2  # of 49,154 tokens
    odds = reranker.answers([pair]).yes_no[0]
    assert odds == pytest.approx(float(yes_no[0].log() - yes_no[1].log()), abs=1e-3)


def test_captions_are_different_and_in_topics() -> None:
    train, test = real.read_captions()
    assert (len(train), len(test)) == (36, 36)
    texts = [text for pair in train + test for text in _texts(pair)]
    assert len(set(texts)) == len(texts)
    assert all(len(pair.dense) > 1.8 * len(pair.summary) for pair in train + test)


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(real, "PACKAGE", "no-such-package-as-this")
    with pytest.raises(FileNotFoundError, match="make real"):
        real.gguf_file()
