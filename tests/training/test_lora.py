"""The adapter: where it is, where it is not, and what merging does."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.clips import moving_square
from tests.training.conftest import filled
from vidembed import VideoEncoder, VideoFrames
from vidembed.backbone.architectures import find_parts
from vidembed.errors import MissingExtraError
from vidembed.shapes import CHECKPOINT
from vidembed.training import LanguageAdapter, LoraSettings
from vidembed.training.lora import target_modules

INPUTS = [{"text": "a red square"}, VideoFrames(moving_square(8), fps=2.0)]


def weights(encoder: VideoEncoder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in encoder[0].model.state_dict().items()}


def test_every_linear_of_the_blocks_and_nothing_else(each_mllm: Path):
    encoder = VideoEncoder(each_mllm, layer=-1, prefix=None, device="cpu")
    model = encoder[0].model
    parts = find_parts(model)
    linears = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith("language_model.layers.")
    }
    pattern = target_modules(model)
    assert {name for name, _ in model.named_modules() if re.fullmatch(pattern, name)} == linears
    assert len(linears) == 7 * parts.depth
    expected = sum(
        4 * (module.in_features + module.out_features) for n, module in model.named_modules() if n in linears
    )
    adapter = LanguageAdapter(encoder, LoraSettings(rank=4))
    assert adapter.size == expected
    assert all(".language_model.layers." in name and ".lora_" in name for name in adapter.parameters)
    trained = [name for name, value in encoder.named_parameters() if value.requires_grad]
    assert sorted(trained) == sorted(adapter.parameters)


def test_defaults_are_the_papers():
    assert (LoraSettings().rank, LoraSettings().alpha) == (64, 128)


@pytest.mark.parametrize("layer", [-1, 3])
def test_merging_keeps_the_vectors_and_every_other_weight(each_mllm: Path, layer: int):
    encoder = VideoEncoder(each_mllm, layer=layer, prefix=None, device="cpu")
    before, plain = weights(encoder), encoder.encode(INPUTS)
    digest = encoder.fingerprint
    adapter = LanguageAdapter(encoder, LoraSettings(rank=4, alpha=8, dropout=0.3))
    assert np.abs(encoder.encode(INPUTS) - plain).max() <= 1e-6  # a fresh adapter changes nothing
    filled(adapter)
    with_adapter = encoder.encode(INPUTS)
    assert np.abs(with_adapter - plain).max() > 1e-2
    assert adapter.merge() is encoder
    assert np.abs(encoder.encode(INPUTS) - with_adapter).max() <= 1e-5
    after = weights(encoder)
    assert after.keys() == before.keys()
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed
    assert all(re.fullmatch(target_modules(encoder[0].model), name.removesuffix(".weight")) for name in changed)
    assert any(name.startswith(("visual.", "vision_model.")) for name in set(after) - changed)
    assert encoder.fingerprint != digest


def test_a_head_on_the_same_weights_sees_neither_the_adapter_nor_the_merge(encoder: VideoEncoder):
    reranker = encoder.reranker()
    before = reranker.fingerprint, encoder.fingerprint
    adapter = filled(LanguageAdapter(encoder, LoraSettings(rank=4)))
    assert reranker.fingerprint == encoder.reranker().fingerprint == before[0]
    adapter.merge()
    assert encoder.fingerprint != before[1]
    assert reranker.fingerprint == encoder.reranker().fingerprint == before[0]
    assert encoder.float().fingerprint != before[1]  # nor do they come back together in a move


def test_save_and_load(adapted: LanguageAdapter, tmp_path: Path):
    wanted = adapted.encoder.encode(INPUTS)
    adapted.save(tmp_path / "adapter")
    assert sorted(file.name for file in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == adapted.encoder.checkpoint_config.source
    assert "/" not in config["base_model_name_or_path"]  # no path of the machine that trained it
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.language_model.layers.") for name in names)
    other = filled(LanguageAdapter(fresh_like(adapted), adapted.settings), seed=9)
    assert np.abs(other.encoder.encode(INPUTS) - wanted).max() > 1e-2
    other.load(tmp_path / "adapter")
    assert np.array_equal(other.encoder.encode(INPUTS), wanted)


def fresh_like(adapter: LanguageAdapter) -> VideoEncoder:
    backbone = adapter.encoder.backbone
    assert backbone is not None
    return VideoEncoder(backbone.name, layer=-1, prefix=None, device="cpu")


def test_peft_itself_loads_the_adapter(adapted: LanguageAdapter, tmp_path: Path):
    from peft import PeftModel

    wanted = adapted.encoder.encode(INPUTS)
    adapted.save(tmp_path)
    encoder = fresh_like(adapted)
    PeftModel.from_pretrained(encoder[0].model, str(tmp_path))
    assert np.abs(encoder.encode(INPUTS) - wanted).max() <= 1e-6


class TestMisuse:
    def test_another_rank_or_model(self, adapted: LanguageAdapter, tmp_path: Path):
        adapted.save(tmp_path / "adapter")
        other = LanguageAdapter(fresh_like(adapted), LoraSettings(rank=8))
        with pytest.raises(ValueError, match=r"another model, layer or rank.*84 weights differ.*\(4, 96\).*\(8, 96\)"):
            other.load(tmp_path / "adapter")
        shapes = LanguageAdapter(VideoEncoder(CHECKPOINT, layer=-1, prefix=None, device="cpu"), LoraSettings(rank=4))
        with pytest.raises(ValueError, match="another model, layer or rank"):
            shapes.load(tmp_path / "adapter")

    def test_no_adapter(self, adapted: LanguageAdapter, tmp_path: Path):
        with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors"):
            adapted.load(tmp_path)

    @pytest.mark.parametrize("kwargs", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"dropout": -0.1}])
    def test_settings(self, kwargs):
        with pytest.raises(ValueError, match=next(iter(kwargs))):
            LoraSettings(**kwargs)

    def test_missing_extra(self, encoder: VideoEncoder, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else shutil)
        with pytest.raises(MissingExtraError, match=r'training needs peft.*pip install "vidembed\[train\]"'):
            LanguageAdapter(encoder)
