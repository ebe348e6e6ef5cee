"""The original remote-code layout of VideoLLaMA3, synthesized with its names and shapes, on the native class."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.backbone import tiny
from tests.backbone.test_cut import features
from vidembed.backbone.architectures import find_parts
from vidembed.backbone.load import load_backbone
from vidembed.backbone.templates import eol_template
from vidembed.errors import UnsupportedBackboneError

ORIGINAL = (  # native name -> the name in the published modeling file
    (r"^model\.vision_model\.", "model.vision_encoder."),
    (r"^model\.projector\.", "model.mm_projector."),
    (r"^model\.language_model\.", "model."),
)
VISION = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
    "layer_norm_eps",
)


def original_checkpoint(native: Path, folder: Path, *, tower: str = "") -> Path:
    """Write the native small model as the original repositories lay it out."""
    renamed = {}
    for name, tensor in load_file(native / "model.safetensors").items():
        new = name
        for pattern, replacement in ORIGINAL:
            new = re.sub(pattern, replacement, new)
        renamed[new.replace("vision_encoder.", f"vision_encoder.{tower}")] = tensor
    assert "model.layers.0.self_attn.q_proj.weight" in renamed
    assert f"model.vision_encoder.{tower}encoder.layers.0.self_attn.out_proj.bias" in renamed
    assert "model.mm_projector.readout.2.weight" in renamed
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((native / "config.json").read_text())
    text = config["text_config"]
    original = {key: text[key] for key in text if key not in ("model_type", "rope_parameters", "layer_types", "dtype")}
    original |= {
        "model_type": "videollama3_qwen2",
        "architectures": ["Videollama3Qwen2ForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_videollama3.Videollama3Qwen2ForCausalLM"},
        "rope_theta": 10000.0,
        "torch_dtype": "float32",
        "mm_projector_type": "mlp2x_gelu",
        "use_token_compression": True,
        "image_token_index": 9,
        "vision_encoder": None,
        "vision_encoder_config": {
            "model_type": "videollama3_vision_encoder",
            **{key: config["vision_config"][key] for key in VISION},
        },
    }
    (folder / "config.json").write_text(json.dumps(original))
    tiny.tokenizer().save_pretrained(folder)
    return folder


@torch.inference_mode()
@pytest.mark.parametrize("tower", ["", "vision_tower."])
def test_same_hidden_states_as_the_native_checkpoint(
    tiny_mllm: Callable[[str], Path], tmp_path: Path, tower: str
) -> None:
    native = load_backbone(tiny_mllm("video_llama_3"))
    remapped = load_backbone(original_checkpoint(tiny_mllm("video_llama_3"), tmp_path, tower=tower))
    assert type(remapped.model) is type(native.model)
    wanted = native.model.state_dict()
    got = remapped.model.state_dict()
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    inputs = features(native.processor, text="a red square", frames=4)
    outputs = [find_parts(model.model).base(**inputs).last_hidden_state for model in (native, remapped)]
    assert torch.equal(*outputs)


def test_processor_takes_videos_and_carries_the_prompt(tiny_mllm: Callable[[str], Path], tmp_path: Path) -> None:
    backbone = load_backbone(original_checkpoint(tiny_mllm("video_llama_3"), tmp_path))
    ids = features(backbone.processor, text="what?", frames=3)["input_ids"]
    rendered = backbone.processor.tokenizer.decode(ids[0])
    assert rendered.startswith("<|im_start|>user\nTime 0.0s:<|video_pad|>")
    assert "Summarize above video in one word:" in eol_template(backbone.processor)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type 'linear'"),
        ({"vision_encoder_config": None, "vision_encoder": "DAMO-NLP-SG/SigLIP-NaViT"}, "vision_encoder_config"),
    ],
)
def test_variants_without_a_native_counterpart(
    tiny_mllm: Callable[[str], Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = original_checkpoint(tiny_mllm("video_llama_3"), tmp_path)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedBackboneError, match=message):
        load_backbone(folder)


def test_projector_of_another_depth_is_not_filled_in(tiny_mllm: Callable[[str], Path], tmp_path: Path) -> None:
    folder = original_checkpoint(tiny_mllm("video_llama_3"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["model.mm_projector.readout.2.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing.*projector\.readout\.2\.bias"):
        load_backbone(folder)
