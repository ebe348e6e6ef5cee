"""A quick look at a model in training, on arrays and through the fast path; ``evaluate`` measures on real files."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration

from vidembed.shapes import language
from vidembed.shapes.dataset import GRID, RowBuilder
from vidembed.shapes.fast import forward, layer_outputs, patchify
from vidembed.shapes.files import sample_clips
from vidembed.shapes.metrics import recalls
from vidembed.shapes.packing import Row

_TAG_WORDS = ("colour", "shape", "size", "direction", "speed", "event", "background", "", "")
_CORNER_WORDS = (*_TAG_WORDS, "corner_colour", "corner_shape", "corner", "corner")


def prompt_states(
    model: Qwen2_5_VLForConditionalGeneration, builder: RowBuilder, rows: list[Row], frames: NDArray[np.uint8] | None
) -> torch.Tensor:
    """Output of every decoder block at the last token of each row, (layers, N, D); the fast path, on arrays."""
    packed = builder.pack(rows).to(model.device)
    values = None if frames is None else patchify(frames).to(model.device)
    with layer_outputs(model) as outputs:
        forward(model, packed, values, GRID)
    index = torch.arange(len(rows), device=model.device)
    return torch.stack([output[index, packed.last] for output in outputs])


@torch.inference_mode()
def probe(model: Qwen2_5_VLForConditionalGeneration, builder: RowBuilder, n: int = 100) -> dict[str, Any]:
    """A quick look at a model in training: tag words, yes/no and recall by layer on ``n`` held-out clips, from arrays.

    Args:
        model: The model; left in training mode.
        builder: Of its tokenizer.
        n: Clips.

    Returns:
        ``tags``: accuracy by attribute, each word given the ones before it; ``match``: accuracy on right sentences and
        on wrong ones that differ in one attribute; ``t2v_r1``: text-to-video Recall@1 in percent by layer.
    """
    model.train(mode=False)
    told = sample_clips(n, "test", seed=1)
    frames = np.stack([record.frames() for record in told])  # (N, T, H, W, C)
    values = patchify(frames).to(model.device)
    rng = np.random.default_rng(1)
    tag_rows: list[Row] = []
    match_rows: list[Row] = []
    for record in told:
        tag_rows.append([builder.clip])
        instruction = language.TAG_INSTRUCTIONS[0].format(kind="video")
        builder.ask(tag_rows[-1], instruction, record.tags, video=True, isolated=False)
        match_rows.append([builder.clip])
        for true in (True, False):
            builder.judge(match_rows[-1], language.statement(record.scene, rng, true=true))

    def predict(rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        packed = builder.pack(rows).to(model.device)
        hidden = forward(model, packed, values, GRID)
        return model.lm_head(hidden[packed.rows, packed.predictors]), packed.targets, packed.rows.tolist()

    logits, targets, owners = predict(tag_rows)
    right = (logits.argmax(-1) == targets).tolist()
    hits: dict[str, list[bool]] = defaultdict(list)
    word: dict[int, int] = defaultdict(int)
    for hit, owner in zip(right, owners, strict=True):
        names = _CORNER_WORDS if told[owner].scene.corner else _TAG_WORDS
        if word[owner] < len(names) and names[word[owner]]:
            hits[names[word[owner]]].append(hit)
        word[owner] += 1
    logits, targets, _ = predict(match_rows)
    yes, no = builder.ids("Yes")[0], builder.ids("No")[0]
    asked = (targets == yes) | (targets == no)
    match = ((logits[asked, yes] > logits[asked, no]) == (targets[asked] == yes)).float().mean().item()
    video = prompt_states(model, builder, [builder.prompt(None)] * n, frames)  # (layers, N, D)
    text = prompt_states(model, builder, [builder.prompt(record.caption) for record in told], None)
    video, text = functional.normalize(video, dim=-1), functional.normalize(text, dim=-1)
    model.train()
    return {
        "tags": {name: round(float(np.mean(values)), 3) for name, values in hits.items()},
        "match": round(match, 3),
        "t2v_r1": [recalls(t @ v.T)["R@1"] for t, v in zip(text, video, strict=True)],
    }
