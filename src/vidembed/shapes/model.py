"""The small MLLM of the embedded world: configuration, tokenizer and processor, all of them classes of transformers."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from vidembed.shapes import language
from vidembed.shapes.world import FRAME_SIZE, sample_scene

PATCH_SIZE: Final = 14
MERGE_SIZE: Final = 2
TEMPORAL_PATCH_SIZE: Final = 2
TOKENS_PER_SECOND: Final = 2
VOCAB_SIZE: Final = 800

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
        *language.TAG_INSTRUCTIONS,
        *language.KEYWORD_INSTRUCTIONS,
        *language.DENSE_INSTRUCTIONS,
        *language.SHORT_INSTRUCTIONS,
        "Summarize above {kind} in one word:",
    )
    lines += [i.format(kind=kind) for i in instructions for kind in ("video", "sentence", "image")] * 40
    lines += [language.MATCH_QUESTION, "user\n", "assistant\n", "system\n"] * 40
    # Each content word bare, after a space, and capitalised, often enough to become one token in every form.
    lines += [form for word in language.lexicon() for form in (word, f" {word}", word.capitalize())] * 40
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
        hidden: Width of the decoder; a multiple of 32.

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
