"""Batched forms of what the processor and the model do clip by clip; the tests hold them equal to the originals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.vision_utils import get_vision_position_ids

from vidembed.shapes.model import MERGE_SIZE, PATCH_SIZE, TEMPORAL_PATCH_SIZE
from vidembed.shapes.packing import Packed

_SCALE: Final = (1.0 / (255.0 * np.array(OPENAI_CLIP_STD))).astype(np.float32)
_SHIFT: Final = (np.array(OPENAI_CLIP_MEAN) / np.array(OPENAI_CLIP_STD)).astype(np.float32)


def patchify(frames: NDArray[np.uint8]) -> torch.Tensor:
    """What the video processor makes of clips that already have the trained size.

    Args:
        frames: (B, T, H, W, 3) uint8; T even, H and W multiples of 28.

    Returns:
        (B * T/2 * H/14 * W/14, 1176) float32.
    """
    b, t, h, w, c = frames.shape
    p, m, q = PATCH_SIZE, MERGE_SIZE, TEMPORAL_PATCH_SIZE
    values = torch.from_numpy(frames * _SCALE - _SHIFT)  # (B, T, H, W, C)
    grid = values.view(b, t // q, q, h // (m * p), m, p, w // (m * p), m, p, c)
    #        b, t, merged row, merged column, row in merge, column in merge, channel, frame, y, x
    grid = grid.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
    return grid.reshape(-1, c * q * p * p)


def visual_tokens(
    model: Qwen2_5_VLForConditionalGeneration, pixel_values: torch.Tensor, grid: tuple[int, int, int]
) -> torch.Tensor:
    """What the vision tower makes of equally shaped clips, all time steps in one attention call.

    Args:
        model: Its vision blocks must all be of full attention.
        pixel_values: (B * t*h*w * 4, 1176) float32.
        grid: (t, h, w) in merged tokens.

    Returns:
        (B * t*h*w, D) visual tokens.
    """
    tower = model.model.visual
    _, h, w = grid
    patches = h * w * MERGE_SIZE**2
    # A convolution whose kernel is its stride is a product, and several times faster as one on a CPU.
    x = functional.linear(pixel_values, tower.patch_embed.proj.weight.flatten(1))  # (B * t * patches, d)
    n, d = x.shape[0] // patches, x.shape[1]
    one = torch.tensor([[1, h * MERGE_SIZE, w * MERGE_SIZE]], device=x.device)
    cos, sin = tower.rotary_pos_emb(x, get_vision_position_ids(one, MERGE_SIZE))  # (patches, head)
    x = x.view(n, patches, d)
    for block in tower.blocks:
        attention = block.attn
        qkv = attention.qkv(block.norm1(x)).view(n, patches, 3, attention.num_heads, -1)
        q, k, v = qkv.unbind(2)  # each (n, patches, heads, head)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
        mixed = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = x + attention.proj(mixed.transpose(1, 2).reshape(n, patches, d))
        x = x + block.mlp(block.norm2(x))
    merged: torch.Tensor = tower.merger(x.reshape(-1, d))
    return merged


def forward(
    model: Qwen2_5_VLForConditionalGeneration,
    packed: Packed,
    pixel_values: torch.Tensor | None,
    grid: tuple[int, int, int],
) -> torch.Tensor:
    """The decoder's normed output for packed rows.

    Args:
        model: The MLLM.
        packed: B rows of L tokens.
        pixel_values: The patches of the rows' clips, one clip a row, or None for rows of text.
        grid: (t, h, w) of a clip in merged tokens.

    Returns:
        (B, L, D).
    """
    embeds = model.get_input_embeddings()(packed.input_ids)  # (B, L, D)
    if pixel_values is not None:
        visual = visual_tokens(model, pixel_values, grid)
        where = (packed.input_ids == model.config.video_token_id)[..., None].expand_as(embeds)
        embeds = embeds.masked_scatter(where, visual)
    bias = torch.zeros(packed.visible.shape, dtype=embeds.dtype, device=embeds.device)  # (B, 1, L, L)
    bias.masked_fill_(~packed.visible, torch.finfo(embeds.dtype).min)
    hidden: torch.Tensor = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask={"full_attention": bias},
        position_ids=packed.position_ids,
        use_cache=False,
    ).last_hidden_state
    return hidden


@contextmanager
def layer_outputs(model: Qwen2_5_VLForConditionalGeneration) -> Iterator[list[torch.Tensor]]:
    """Collects what each decoder block returns, before any norm; block 1 comes first."""
    outputs: list[torch.Tensor] = []

    def keep(_module: torch.nn.Module, _args: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        outputs.append(output if isinstance(output, torch.Tensor) else output[0])

    hooks = [layer.register_forward_hook(keep) for layer in model.model.language_model.layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
