from __future__ import annotations

import numpy as np
import pytest
import torch
from tools.shapes import prompts
from tools.shapes.dataset import GRID, RowBuilder
from tools.shapes.evaluate import TEXT_PROMPT, VIDEO_PROMPT
from tools.shapes.model import (
    build_config,
    build_model,
    build_processor,
    build_tokenizer,
    forward,
    layer_outputs,
    patchify,
)

from vidembed.shapes import sample_clips

PROCESSOR = build_processor()
BUILDER = RowBuilder(PROCESSOR.tokenizer)


def test_content_words_and_verdicts_are_single_tokens():
    tokenizer = PROCESSOR.tokenizer
    forms = [form for word in prompts.lexicon() for form in (word, f" {word}", word.capitalize())]
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


@pytest.fixture(scope="module")
def model():
    made = build_model(build_config(PROCESSOR.tokenizer, layers=2, hidden=64), seed=1)
    with torch.no_grad():  # off the trivial values, so that a norm or bias left out would show
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return made.eval()


def processed(frames: np.ndarray | None, texts: list[str]):
    media = [] if frames is None else [{"type": "video"}]
    prompts = [
        PROCESSOR.apply_chat_template(
            [{"role": "user", "content": [*media, {"type": "text", "text": text}]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        for text in texts
    ]
    options = {}
    if frames is not None:
        metadata = {"fps": 2.0, "total_num_frames": 8, "frames_indices": list(range(8)), "duration": 4.0}
        options = {
            "videos": [torch.from_numpy(clip).permute(0, 3, 1, 2) for clip in frames],
            "video_metadata": [metadata] * len(frames),
        }
    return PROCESSOR(text=prompts, padding=True, return_tensors="pt", **options)


@pytest.fixture(scope="module")
def frames():
    return np.stack([record.frames() for record in sample_clips(3)])


def test_patches_equal_the_processors(frames):
    expected = processed(frames, [VIDEO_PROMPT] * 3)["pixel_values_videos"]
    assert torch.allclose(patchify(frames), expected, atol=1e-5)


def test_clip_prompts_and_states_equal_those_of_the_processor_and_the_model(model, frames):
    inputs = processed(frames, [VIDEO_PROMPT] * 3)
    packed = BUILDER.pack([BUILDER.prompt(None)] * 3)
    assert torch.equal(packed.input_ids, inputs["input_ids"])
    with torch.inference_mode():
        with layer_outputs(model) as expected:
            model(**inputs)
        with layer_outputs(model) as found:
            forward(model, packed, patchify(frames), GRID)
    assert len(found) == len(expected) == 2
    for one, two in zip(found, expected, strict=True):
        assert torch.allclose(one, two, atol=1e-5)


def test_text_prompts_and_states_equal_those_of_the_processor_and_the_model(model):
    captions = [record.caption for record in sample_clips(3)]
    inputs = processed(None, [caption + TEXT_PROMPT for caption in captions])
    packed = BUILDER.pack([BUILDER.prompt(caption) for caption in captions])
    with torch.inference_mode():
        with layer_outputs(model) as expected:
            model(**inputs)
        with layer_outputs(model) as found:
            forward(model, packed, None, GRID)
    for one, two in zip(found, expected, strict=True):
        assert torch.allclose(one[torch.arange(3), packed.last], two[:, -1], atol=1e-5)


def test_layer_outputs_are_the_hidden_states_before_the_norm(model, frames):
    inputs = processed(frames[:1], [VIDEO_PROMPT])
    with torch.inference_mode(), layer_outputs(model) as found:
        states = model(**inputs, output_hidden_states=True).hidden_states
    assert torch.equal(found[0], states[1])
    assert torch.allclose(model.model.language_model.norm(found[-1]), states[-1], atol=1e-6) or torch.equal(
        found[-1], states[-1]
    )
