"""Loading: real classes, safetensors only, and everything else refused with what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.backbone import tiny
from vidembed.backbone.architectures import find_parts
from vidembed.backbone.load import load_backbone
from vidembed.errors import BackboneError, UnsupportedBackboneError

GetModel = Callable[[str], Path]


def test_loads_each_architecture(each_mllm: Path) -> None:
    backbone = load_backbone(each_mllm)
    parts = find_parts(backbone.model)
    assert parts.depth == tiny.DEPTH
    assert parts.head is not None
    assert not backbone.model.training


def test_no_video_model(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedBackboneError, match=r"model_type 'llama' is not a video language model.*Allowed: .*qwen2_5_vl"
    ):
        load_backbone(tmp_path)


def test_missing_processor(tiny_mllm: GetModel, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_mllm("qwen2_vl") / name, tmp_path)
    with pytest.raises(BackboneError, match="processor"):
        load_backbone(tmp_path)


def test_tokenizer_alone_is_no_processor(tiny_mllm: GetModel, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_mllm("qwen2_vl") / name, tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match="processor"):
        load_backbone(tmp_path)


def test_wrong_dtype(tiny_mllm: GetModel) -> None:
    with pytest.raises(BackboneError, match=r"dtype='float23' is not known. Allowed: auto, float32, bfloat16, float16"):
        load_backbone(tiny_mllm("qwen2_vl"), model_kwargs={"dtype": "float23"})


def test_dtype_is_kept(tiny_mllm: GetModel) -> None:
    model = load_backbone(tiny_mllm("qwen2_vl"), model_kwargs={"dtype": "bfloat16"}).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_remote_code_is_refused(tiny_mllm: GetModel) -> None:
    with pytest.raises(BackboneError, match="trust_remote_code"):
        load_backbone(tiny_mllm("qwen2_vl"), model_kwargs={"trust_remote_code": True})


def test_incomplete_weights(tiny_mllm: GetModel, tmp_path: Path) -> None:
    """transformers would fill the gap with random numbers and say so in a log only."""
    shutil.copytree(tiny_mllm("qwen2_vl"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights[next(name for name in weights if name.endswith("layers.2.mlp.up_proj.weight"))]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"1 weights .* missing .*layers\.2\.mlp\.up_proj"):
        load_backbone(tmp_path)


def test_pickled_weights_are_refused(tiny_mllm: GetModel, tmp_path: Path) -> None:
    shutil.copytree(tiny_mllm("qwen2_vl"), tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_backbone(tmp_path)


def test_not_a_model_directory(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(BackboneError, match=r"config\.json"):
        load_backbone(tmp_path)


def test_another_layout_is_refused(tiny_mllm: GetModel) -> None:
    model = load_backbone(tiny_mllm("qwen2_vl")).model
    del model.model.language_model.norm
    with pytest.raises(UnsupportedBackboneError, match="norm"):
        find_parts(model)


def test_config_without_model_type(tiny_mllm: GetModel, tmp_path: Path) -> None:
    shutil.copytree(tiny_mllm("qwen2_vl"), tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedBackboneError, match="model_type None"):
        load_backbone(tmp_path)
