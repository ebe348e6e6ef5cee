from __future__ import annotations

import numpy as np
import pytest
import torch

from vidembed.shapes import sample_clips
from vidembed.shapes.dataset import EOL_INSTRUCTION, GRID, TOKENS_PER_GRID, Mixture, RowBuilder, make_batch
from vidembed.shapes.evaluate import TEXT_PROMPT, VIDEO_PROMPT
from vidembed.shapes.fast import forward, layer_outputs, patchify
from vidembed.shapes.model import build_config, build_model, build_processor
from vidembed.shapes.packing import Segment, pack

PROCESSOR = build_processor()
BUILDER = RowBuilder(PROCESSOR.tokenizer)


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


def test_branches_of_a_row_do_not_see_each_other(model, frames):
    def answer_states(rows):
        packed = BUILDER.pack(rows)
        with torch.inference_mode():
            return forward(model, packed, patchify(frames[:1]), GRID)[0]

    alone, together = [BUILDER.clip], [BUILDER.clip]
    BUILDER.ask(together, "Describe above video in brief:", "A red ring.", video=True, isolated=False)
    skipped = sum(len(segment.tokens) for segment in together[1:])
    for row in (alone, together):
        BUILDER.ask(row, "Summarize above video in short:", "red ring", video=True, isolated=False)
    clip = len(BUILDER.clip.tokens)
    one, two = answer_states([alone]), answer_states([together])
    assert torch.allclose(one[clip:], two[clip + skipped :], atol=1e-5)


def test_isolated_answers_see_only_the_last_prompt_token():
    row = [Segment([1, 2, 3]), Segment([4, 5], parent=0), Segment([6, 7], parent=1, weights=[1, 1], isolated=True)]
    packed = pack([row], pad=0, tokens_per_grid=2)
    visible = packed.visible[0, 0]
    assert visible[5].nonzero().flatten().tolist() == [4, 5]
    assert visible[6].nonzero().flatten().tolist() == [4, 5, 6]
    assert visible[4].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    assert packed.position_ids[0, 0].tolist() == list(range(7))
    assert packed.predictors.tolist() == [4, 5]
    assert packed.targets.tolist() == [6, 7]


def test_batches_depend_on_seed_and_step_alone():
    mixture = Mixture(
        clips=2, texts=2, captions=1, summaries=1, questions=1, statements=2, text_answers=("tags", "short", "dense")
    )
    one, two = (make_batch(BUILDER, mixture, seed=3, step=7) for _ in range(2))
    assert torch.equal(one.pixel_values, two.pixel_values)
    assert torch.equal(one.clips.input_ids, two.clips.input_ids)
    assert torch.equal(one.texts.input_ids, two.texts.input_ids)
    other = make_batch(BUILDER, mixture, seed=3, step=8)
    assert not torch.equal(one.pixel_values, other.pixel_values)


def test_the_one_word_prompt_is_never_trained():
    mixture = Mixture(
        clips=8, texts=8, captions=1, summaries=1, questions=1, statements=2, text_answers=("tags", "short", "dense")
    )
    kinds = [EOL_INSTRUCTION.format(kind=kind) for kind in ("video", "sentence")]
    seen = ""
    for step in range(5):
        batch = make_batch(BUILDER, mixture, seed=0, step=step)
        for packed in (batch.clips, batch.texts):
            seen += " ".join(PROCESSOR.tokenizer.batch_decode(packed.input_ids))
    assert "Summarize above video in" in seen
    assert not any(kind in seen for kind in kinds)


def test_time_steps_are_two_positions_apart():
    assert TOKENS_PER_GRID == 2
    assert GRID == (4, 3, 3)
