"""Which weights compute, on real PEFT layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vidembed import VideoEncoder
from vidembed.backbone.cut import BASE, active_adapters
from vidembed.backbone.load import load_backbone

peft = pytest.importorskip("peft")
BaseTunerLayer = pytest.importorskip("peft.tuners.tuners_utils").BaseTunerLayer


def test_a_reranker_says_which_weights_answer(tiny_mllm: Callable[[str], Path]) -> None:
    backbone = load_backbone(tiny_mllm("qwen2_5_vl"))
    encoder = VideoEncoder(backbone=backbone, layer=-1, device="cpu")
    plain = encoder.reranker()
    assert plain.weights == BASE
    assert active_adapters(backbone.model) == ()
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, backbone.model, adapter_name="aligned")
    adapted = encoder.reranker()
    assert adapted.weights == "base weights with adapter aligned"
    assert adapted.fingerprint != plain.fingerprint or plain.weights == adapted.weights
    for module in backbone.model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(enabled=False)
    assert adapted.weights == BASE
