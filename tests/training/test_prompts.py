"""The prompts of the two sides, token by token."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.backbone import tiny
from tests.clips import moving_square
from tests.training.conftest import make_pairs
from vidembed import VideoEncoder, VideoFrames
from vidembed.backbone.templates import ZERO_SHOT_PREFIX, eol_template, stand_in_template
from vidembed.errors import AnnotationError, TemplateError
from vidembed.shapes import CHECKPOINT
from vidembed.training import TextPair
from vidembed.training.trainer import PairCollator, context_length, fit_context, stand_in_kwargs, tokenize

CAPTION = "A red square moves down quickly. A still star is in a corner."


def token_ids(encoder: VideoEncoder, text: str) -> list[int]:
    return encoder.tokenizer(text, add_special_tokens=False)["input_ids"]


def stood_in(encoder: VideoEncoder, text: str) -> list[int]:
    tokens = tokenize(encoder.preprocess, [text], stand_in_kwargs(encoder))
    return tokens["input_ids"][0].tolist()


def common(a: list[int], b: list[int]) -> int:
    return next((index for index, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("prefix", [None, ZERO_SHOT_PREFIX])
@pytest.mark.parametrize("model_type", [*tiny.ARCHITECTURES, "shapes"])
def test_a_caption_takes_the_place_of_the_visual_tokens(
    tiny_mllm: Callable[[str], Path], model_type: str, prefix: str | None
) -> None:
    folder = CHECKPOINT if model_type == "shapes" else tiny_mllm(model_type)
    encoder = VideoEncoder(folder, layer=-1, prefix=prefix, device="cpu")
    video = encoder.preprocess([VideoFrames(moving_square(8), fps=2.0)])["input_ids"][0].tolist()
    caption = stood_in(encoder, CAPTION)
    words = token_ids(encoder, CAPTION)
    start = common(video, caption)
    end = common(video[::-1], caption[::-1])
    assert caption[start : len(caption) - end] == words
    visual = video[start : len(video) - end]
    pads = {encoder.tokenizer.convert_tokens_to_ids(token) for token in ("<|video_pad|>", "<|image_pad|>")}
    assert pads & set(visual)
    assert not pads & set(video[:start] + video[len(video) - end :])  # all of them are what the caption replaces
    tail = encoder.tokenizer.decode(caption[start + len(words) :])
    assert tail.startswith("\nSummarize above video in one word:")
    head = encoder.tokenizer.decode(caption[:start])
    assert head.endswith(f"{prefix}\n" if prefix else "user\n")


def test_a_summary_takes_the_prompt_of_text(encoder: VideoEncoder):
    batch = PairCollator(encoder.preprocess, stand_in=stand_in_kwargs(encoder))(
        [{"dense": "a long caption", "summary": "short.mp4"}, {"dense": "b", "summary": "a word"}]
    )
    plain = encoder.preprocess([{"text": "short.mp4"}])["input_ids"][0].tolist()
    rows = batch["summary_input_ids"], batch["summary_attention_mask"].bool()
    assert rows[0][0][rows[1][0]].tolist() == plain
    assert "above sentence in one word" in encoder.tokenizer.decode(plain)
    assert batch["dense_input_ids"][0][batch["dense_attention_mask"][0].bool()].tolist() == stood_in(
        encoder, "a long caption"
    )
    assert (batch["dense_attention_mask"][:, 0] == 1).all()  # padded on the right


def test_the_checkpoints_template_stays(encoder: VideoEncoder):
    before = str(encoder[0].processor.chat_template)
    stood_in(encoder, CAPTION)
    assert str(encoder[0].processor.chat_template) == before
    assert "kind='text'" in before


def test_another_template_is_refused():
    with pytest.raises(TemplateError, match="not written by vidembed"):
        stand_in_template(tiny.TEMPLATE)
    with pytest.raises(TemplateError):
        stand_in_template(stand_in_template(eol_template(tiny.processor("qwen2_vl"))))


class TestContext:
    def test_what_fits_is_kept(self, encoder: VideoEncoder):
        assert context_length(encoder) == 4096
        assert fit_context(encoder, make_pairs()) == make_pairs()

    @pytest.mark.parametrize("side", ["dense", "summary"])
    def test_longer_texts_are_never_cut(self, encoder: VideoEncoder, side: str, caplog: pytest.LogCaptureFixture):
        long: dict[str, Any] = {"dense": "a", "summary": "b", side: "so long a text " * 40}
        pairs = [*make_pairs(3), TextPair(**long), *make_pairs(2)]
        with pytest.raises(AnnotationError, match=r"pairs\[3\] takes \d+ tokens.*max_tokens=300.*too_long='drop'"):
            fit_context(encoder, pairs, max_tokens=300)
        with caplog.at_level(logging.WARNING):
            assert fit_context(encoder, pairs, max_tokens=300, too_long="drop") == [*make_pairs(3), *make_pairs(2)]
        assert "left out 1 of 6" in caplog.text
        assert fit_context(encoder, pairs) == pairs

    def test_the_limit_is_exact(self, encoder: VideoEncoder):
        pair = make_pairs(1)[0]
        tokens = len(stood_in(encoder, pair.dense))
        assert fit_context(encoder, [pair], max_tokens=tokens) == [pair]
        with pytest.raises(AnnotationError, match=f"takes {tokens} tokens"):
            fit_context(encoder, [pair], max_tokens=tokens - 1)

    def test_nothing_fits(self, encoder: VideoEncoder):
        with pytest.raises(AnnotationError, match="none of the 12 pairs fits into 3 tokens"):
            fit_context(encoder, make_pairs(), max_tokens=3, too_long="drop")

    @pytest.mark.parametrize("kwargs", [{"max_tokens": 0}, {"max_tokens": 5000}, {"too_long": "cut"}])
    def test_misuse(self, encoder: VideoEncoder, kwargs: dict[str, Any]):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            fit_context(encoder, make_pairs(), **kwargs)
