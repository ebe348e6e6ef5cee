from __future__ import annotations

import numpy as np
import pytest
import torch

from vidembed.shapes import language
from vidembed.shapes.model import build_config, build_model, build_processor, build_tokenizer

PROCESSOR = build_processor()


def test_content_words_and_verdicts_are_single_tokens():
    tokenizer = PROCESSOR.tokenizer
    forms = [form for word in language.lexicon() for form in (word, f" {word}", word.capitalize())]
    split = [form for form in (*forms, "Yes", "No", " Yes", " No", "yes", "no") if len(tokenizer.encode(form)) != 1]
    assert split == []
    assert len(tokenizer) <= 800


def test_tokenizer_is_reproducible_and_lossless():
    again = build_tokenizer()
    assert again.get_vocab() == PROCESSOR.tokenizer.get_vocab()
    text = "Grüße: 3 cats & a dog — twice.\n"
    assert again.decode(again.encode(text)) == text


def test_model_is_small():
    model = build_model(build_config(PROCESSOR.tokenizer))
    assert sum(p.numel() for p in model.parameters()) <= 3_500_000
    assert len(model.model.language_model.layers) == 10


@pytest.mark.parametrize(("height", "width"), [(360, 640), (1080, 1920), (640, 360), (168, 168), (40, 200)])
def test_any_frame_size_becomes_few_tokens(height, width):
    clip = torch.from_numpy(np.zeros((8, 3, height, width), np.uint8))
    found = PROCESSOR.video_processor(videos=[clip], return_tensors="pt")
    t, h, w = found["video_grid_thw"][0].tolist()
    assert t == 4
    assert h * w // 4 <= 16  # tokens a time step: 9 at the trained 84 x 84, a few more for very long frames


def test_square_frames_become_the_trained_grid():
    clip = torch.from_numpy(np.zeros((8, 3, 168, 168), np.uint8))
    assert PROCESSOR.video_processor(videos=[clip], return_tensors="pt")["video_grid_thw"].tolist() == [[4, 6, 6]]
