"""No prompt that exceeds the context of the model becomes a vector or a score, and none is read in its middle."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.backbone import tiny
from tests.clips import moving_square
from vidembed import VideoEncoder, VideoFrames
from vidembed.errors import InputError

LIMIT = 97
"""Tokens: "a" takes 91 with its prompt, the video of nine frames 99 or more."""
VIDEO = VideoFrames(moving_square(9, seed=1), fps=2.0)
IMAGE = Image.fromarray(moving_square(1, seed=2)[0])
LONG = "a red square " * 8
END = "\nSummarize above sentence in one word:<|im_end|>\n<|im_start|>assistant\n"
TOO_LONG = rf"it takes \d+ tokens with its prompt, and the limit of the model is {LIMIT}"

TOO_LONG_INPUTS = [
    pytest.param(VIDEO, id="video"),
    pytest.param(LONG, id="text"),
    pytest.param({"text": LONG}, id="text as dict"),
    pytest.param({"image": IMAGE, "text": LONG}, id="image and text"),
    pytest.param([{"role": "user", "content": [{"type": "text", "text": LONG}]}], id="message"),
    pytest.param([{"role": "user", "content": [{"type": "image", "image": IMAGE}] * 9}], id="images"),
]


@pytest.fixture(scope="module", params=tiny.ARCHITECTURES)
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoEncoder:
    folder = tiny.save(request.param, tmp_path_factory.mktemp("short"), max_position_embeddings=LIMIT)
    return VideoEncoder(folder, layer=2, prefix=None, device="cpu")


@pytest.mark.parametrize("item", TOO_LONG_INPUTS)
def test_too_long(encoder: VideoEncoder, item: Any, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=rf"^inputs\[1\] .*: {TOO_LONG}"):
        encoder.encode(["a", item])
    with pytest.raises(InputError, match=rf"inputs\[0\] .*: {TOO_LONG}"):
        encoder.preprocess([item])  # of a trainer
    with caplog.at_level(logging.WARNING, logger="vidembed"):
        vectors = encoder.encode(["a", item, "b"], on_error="skip")
    assert np.isnan(vectors).any(axis=1).tolist() == [False, True, False]
    assert caplog.text.count("skipped inputs[1]") == 1
    assert np.abs(vectors[[0, 2]] - encoder.encode(["a", "b"])).max() <= 1e-6
    first, second = encoder.encode_stream(iter([item, "a"]), on_error="skip")
    assert first.embedding is None
    assert second.embedding is not None
    assert isinstance(first.error, InputError)
    assert str(first.error).startswith("inputs[0] ")


@pytest.mark.parametrize("most", [LIMIT, LIMIT + 1])
def test_cutting_at_the_context_hides_nothing(encoder: VideoEncoder, most: int) -> None:
    before, encoder.max_seq_length = encoder.max_seq_length, most
    try:
        with pytest.raises(InputError, match=TOO_LONG):
            encoder.encode(["a", LONG])
        with pytest.raises(InputError, match=TOO_LONG):
            encoder.preprocess(["a", LONG])
    finally:
        encoder.max_seq_length = before


def test_a_prompt_as_long_as_the_context_fits(encoder: VideoEncoder) -> None:
    longest = "a" * (LIMIT - 90)
    assert encoder.preprocess([longest])["input_ids"].shape == (1, LIMIT)
    assert np.isfinite(encoder.encode([longest, "a"])).all()
    with pytest.raises(InputError, match=f"it takes {LIMIT + 1} tokens"):
        encoder.encode("a" + longest)


@pytest.fixture(params=tiny.ARCHITECTURES)
def roomy(request: pytest.FixtureRequest, tiny_mllm: Callable[[str], Path]) -> VideoEncoder:
    return VideoEncoder(tiny_mllm(request.param), layer=2, prefix=None, device="cpu")


class TestMaxSeqLength:
    """sentence-transformers' own setting cuts texts, never the end of a prompt."""

    def test_a_text_that_is_cut_keeps_the_end_of_its_prompt(self, roomy: VideoEncoder) -> None:
        roomy.max_seq_length = 110
        ids = roomy.preprocess([LONG, "a"])["input_ids"]
        assert ids.shape == (2, 110)
        assert all(str(roomy.tokenizer.decode(row)).endswith(END) for row in ids)
        assert 0 < roomy.tokenizer.decode(ids[0]).count("square") < LONG.count("square")
        cut, whole = roomy.encode([LONG, LONG[:20]])
        assert 0.5 < float(cut @ whole) < 0.999999

    def test_a_video_is_never_cut(self, roomy: VideoEncoder) -> None:
        wanted = roomy.encode([VIDEO, {"video": VIDEO, "text": "at night"}])
        for most in (60, 95, 150):
            roomy.max_seq_length = most
            assert np.array_equal(roomy.encode([VIDEO, {"video": VIDEO, "text": "at night"}]), wanted)

    @pytest.mark.parametrize("most", [5, 60, 90])
    def test_so_short_that_nothing_of_a_text_is_left(self, roomy: VideoEncoder, most: int) -> None:
        roomy.max_seq_length = most
        with pytest.raises(InputError, match=rf"inputs\[0\].*max_seq_length={most}: the prompt alone takes 90 tokens"):
            roomy.encode(["a red square", "b"])
        with pytest.raises(ValueError, match=f"max_seq_length={most}"):
            roomy.preprocess(["a red square", "b"])


class TestReranker:
    def test_a_video_too_long_for_any_sentence(self, encoder: VideoEncoder) -> None:
        reranker = encoder.reranker()
        with pytest.raises(InputError, match=rf"pairs\[0\] .*: {TOO_LONG}"):
            reranker.predict([("a", VIDEO), ("b", VIDEO)])
        with pytest.raises(InputError, match=rf"pairs\[0\] .*: {TOO_LONG}"):
            reranker.preprocess([("a", VIDEO)])
        scores = reranker.predict([("a", VIDEO), ("b", VIDEO)], on_error="skip")
        assert scores.mask.tolist() == [True, True]

    def test_a_sentence_too_long_for_its_video(self, tmp_path: Path) -> None:
        folder = tiny.save("qwen2_vl", tmp_path, max_position_embeddings=250)
        reranker = VideoEncoder(folder, layer=2, prefix=None, device="cpu").reranker()
        with pytest.raises(InputError, match=r"pairs\[1\]: the video takes \d+ tokens and the sentence \d+, and the "):
            reranker.predict([("a", VIDEO), (LONG * 9, VIDEO)])
        scores = reranker.predict([("a", VIDEO), (LONG * 9, VIDEO)], on_error="skip")
        assert scores.mask.tolist() == [False, True]

    def test_score_and_embedding_in_one_pass(self, tmp_path: Path) -> None:
        folder = tiny.save("video_llama_3", tmp_path, max_position_embeddings=200)
        reranker = VideoEncoder(folder, layer=2, prefix=None, device="cpu").reranker()
        encoder = reranker.encoder(layer=2, prefix=None)
        short = VideoFrames(moving_square(2, seed=1), fps=2.0)
        answers, vectors = reranker.answers_and_embeddings(["a"], [short, VIDEO], encoder, on_error="skip")
        assert answers.missing.tolist() == [False, True]
        assert np.isnan(vectors).any(axis=1).tolist() == [False, True]
        with pytest.raises(InputError, match=r"and the limit of the model is 200"):
            reranker.answers_and_embeddings(["a"], [short, VIDEO], encoder)
