from __future__ import annotations

import numpy as np
import torch
from tools.shapes.dataset import GRID, TOKENS_PER_GRID, Mixture, RowBuilder, make_batch
from tools.shapes.model import build_config, build_model, build_processor, forward, patchify
from tools.shapes.packing import Segment, pack
from tools.shapes.prompts import ONE_WORD_INSTRUCTION

from vidembed.shapes import sample_clips

PROCESSOR = build_processor()
BUILDER = RowBuilder(PROCESSOR.tokenizer)


def test_branches_of_a_row_do_not_see_each_other():
    model = build_model(build_config(PROCESSOR.tokenizer, layers=2, hidden=64), seed=1).eval()
    pixel_values = patchify(sample_clips(1)[0].frames()[np.newaxis])

    def answer_states(rows):
        with torch.inference_mode():
            return forward(model, BUILDER.pack(rows), pixel_values, GRID)[0]

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
    kinds = [ONE_WORD_INSTRUCTION.format(kind=kind) for kind in ("video", "sentence")]
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
