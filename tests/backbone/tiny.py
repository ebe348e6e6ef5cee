"""Random small models of the real transformers classes, one per supported architecture, with real processors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

ARCHITECTURES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "video_llama_3")
DEPTH = 6
HIDDEN = 64
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{- IMAGE -}}"
    "{%- elif item['type'] == 'video' -%}{{- VIDEO -}}"
    "{%- else -%}{{- item['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
WRAPPED = {
    "IMAGE": "'<|vision_start|><|image_pad|><|vision_end|>'",
    "VIDEO": "'<|vision_start|><|video_pad|><|vision_end|>'",
}
BARE = {"IMAGE": "'<|image_pad|>\\n'", "VIDEO": "'<|video_pad|>\\n'"}


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 256 bytes and Qwen's special tokens: every text has tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["Yes No a red square moves"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<|endoftext|>", eos_token="<|im_end|>", model_max_length=4096
    )


def template(model_type: str) -> str:
    text = TEMPLATE
    for name, literal in (BARE if model_type == "video_llama_3" else WRAPPED).items():
        text = text.replace(name, literal)
    return text


def processor(model_type: str) -> Any:
    tok = tokenizer()
    patch = 16 if model_type == "qwen3_vl" else 14
    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": (4 * patch) ** 2}
    if model_type == "video_llama_3":
        return transformers.VideoLlama3Processor(
            transformers.VideoLlama3ImageProcessor(size=size),
            tok,
            transformers.VideoLlama3VideoProcessor(size=size),
            chat_template=template(model_type),
        )
    video_size = size
    if model_type == "qwen3_vl":  # its budget is for the whole video, not for a frame
        video_size = {"shortest_edge": size["shortest_edge"], "longest_edge": size["longest_edge"] * 8}
    video_class = transformers.Qwen3VLVideoProcessor if model_type == "qwen3_vl" else transformers.Qwen2VLVideoProcessor
    processor_class = {
        "qwen2_vl": transformers.Qwen2VLProcessor,
        "qwen2_5_vl": transformers.Qwen2_5_VLProcessor,
        "qwen3_vl": transformers.Qwen3VLProcessor,
    }[model_type]
    return processor_class(
        transformers.Qwen2VLImageProcessor(size=size, patch_size=patch),
        tok,
        video_class(size=video_size, patch_size=patch),
        chat_template=template(model_type),
    )


def config(model_type: str, **text_overrides: Any) -> Any:
    ids = {token: index for token, index in tokenizer().get_vocab().items() if token in SPECIAL}
    text = {
        "vocab_size": 320,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    text |= text_overrides
    token_ids = {"image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"]}
    if model_type == "video_llama_3":
        vision = {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "patch_size": 14,
        }
        return transformers.VideoLlama3Config(
            text_config={**text, "model_type": "qwen2"}, vision_config=vision, **token_ids
        )
    token_ids |= {"vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"]}
    text.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]})
    if model_type == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": text["hidden_size"], "num_heads": 4, "mlp_ratio": 2}
        return transformers.Qwen2VLConfig(text_config=text, vision_config=vision, **token_ids)
    if model_type == "qwen2_5_vl":
        vision = {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 4,
            "out_hidden_size": text["hidden_size"],
            "fullatt_block_indexes": [1],
        }
        return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **token_ids)
    text |= {"head_dim": 16}
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": text["hidden_size"],
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    return transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **token_ids)


def save(model_type: str, folder: Path, *, seed: int = 0, **text_overrides: Any) -> Path:
    """Write a random model of `model_type` with its processor to `folder`."""
    torch.manual_seed(seed)
    cfg = config(model_type, **text_overrides)
    name = {
        "qwen2_vl": "Qwen2VLForConditionalGeneration",
        "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
        "qwen3_vl": "Qwen3VLForConditionalGeneration",
        "video_llama_3": "VideoLlama3ForConditionalGeneration",
    }[model_type]
    model = getattr(transformers, name)(cfg)
    generator = torch.Generator().manual_seed(seed + 1)
    for key, parameter in model.named_parameters():  # trained norms are not ones; residual streams are not tiny
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = (
            1 + 0.3 * noise if "norm" in key and key.endswith("weight") else noise * (0.6 / parameter.shape[-1] ** 0.5)
        )
    model.save_pretrained(folder)
    processor(model_type).save_pretrained(folder)
    return folder
