"""The small MLLM: its tokenizer, processor and weights, and batched forms of what transformers does clip by clip.

All of them are classes of transformers. The tests hold the batched forms equal to the originals.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.vision_utils import get_vision_position_ids

from tools.shapes import prompts
from tools.shapes.packing import Packed
from vidembed.backbone.templates import MATCH_QUESTION
from vidembed.shapes import language
from vidembed.shapes.world import FRAME_SIZE, sample_scene

PATCH_SIZE: Final = 14
MERGE_SIZE: Final = 2
TEMPORAL_PATCH_SIZE: Final = 2
TOKENS_PER_SECOND: Final = 2
VOCAB_SIZE: Final = 800
_SCALE: Final = (1.0 / (255.0 * np.array(OPENAI_CLIP_STD))).astype(np.float32)
_SHIFT: Final = (np.array(OPENAI_CLIP_MEAN) / np.array(OPENAI_CLIP_STD)).astype(np.float32)

SPECIAL_TOKENS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# The layout of Qwen2.5-VL's own template, without its default system turn.
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _corpus(seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    lines: list[str] = []
    for _ in range(2000):
        scene = sample_scene(rng, "train")
        lines += [language.caption(scene, rng), language.summary(scene, rng), language.tags(scene)]
        lines += list(language.question(scene, rng))
    instructions = (
        *prompts.TAG_INSTRUCTIONS,
        *prompts.KEYWORD_INSTRUCTIONS,
        *prompts.DENSE_INSTRUCTIONS,
        *prompts.SHORT_INSTRUCTIONS,
        prompts.ONE_WORD_INSTRUCTION,
    )
    lines += [i.format(kind=kind) for i in instructions for kind in ("video", "sentence", "image")] * 40
    lines += [MATCH_QUESTION, "user\n", "assistant\n", "system\n"] * 40
    # Each content word bare, after a space, and capitalised, often enough to become one token in every form.
    lines += [form for word in prompts.lexicon() for form in (word, f" {word}", word.capitalize())] * 40
    return lines


def build_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most ``VOCAB_SIZE`` tokens, trained on the language of the world."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_corpus(seed), trainer)
    wrap: Any = PreTrainedTokenizerFast  # its constructor is untyped
    wrapped: PreTrainedTokenizerFast = wrap(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        additional_special_tokens=list(SPECIAL_TOKENS[1:2] + SPECIAL_TOKENS[3:]),
        padding_side="left",
        model_max_length=4096,
    )
    return wrapped


def build_processor(seed: int = 0) -> Qwen2_5_VLProcessor:
    """The processor: every frame is resized to at most the area the model was trained on (84 x 84 pixels)."""
    grid: dict[str, Any] = {
        "size": {"shortest_edge": FRAME_SIZE**2, "longest_edge": FRAME_SIZE**2},  # areas in pixels, despite the names
        "patch_size": PATCH_SIZE,
        "merge_size": MERGE_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
    }
    join: Any = Qwen2_5_VLProcessor  # its constructor is untyped
    processor: Qwen2_5_VLProcessor = join(
        image_processor=Qwen2VLImageProcessor(**grid),
        tokenizer=build_tokenizer(seed),
        video_processor=Qwen2VLVideoProcessor(**grid, cap_pixels_per_frame=False, do_sample_frames=False),
        chat_template=CHAT_TEMPLATE,
    )
    return processor


def build_config(tokenizer: PreTrainedTokenizerFast, *, layers: int = 10, hidden: int = 128) -> Qwen2_5_VLConfig:
    """The configuration for a tokenizer: ``layers`` thin decoder blocks over a small vision tower.

    Args:
        tokenizer: Decides the vocabulary and the ids of the special tokens.
        layers: Decoder blocks.
        hidden: Width of the decoder; a multiple of 64.

    Returns:
        A configuration of about 2.9M parameters at the defaults.
    """
    ids: dict[str, Any] = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    heads = hidden // 32
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden,
            "intermediate_size": hidden * 5 // 2,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "initializer_range": 0.04,
            # The three sections (time, height, width) must sum to half the head size of 32.
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": 2,
            "initializer_range": 0.04,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": TEMPORAL_PATCH_SIZE,
            "tokens_per_second": TOKENS_PER_SECOND,
            "window_size": 112,
            "out_hidden_size": hidden,
            "fullatt_block_indexes": [0, 1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
    )


def build_model(config: Qwen2_5_VLConfig, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """A freshly initialised model, float32."""
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    text: Any = config.text_config
    stop = {"eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id}
    model.generation_config = GenerationConfig.from_dict({"do_sample": False, **stop})
    return model


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
