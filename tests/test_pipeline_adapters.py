"""Which weights compute, on real PEFT layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vidembed import VideoEncoder, VideoReranker
from vidembed.backbone.load import load_backbone
from vidembed.backbone.sharing import applied_adapters

peft = pytest.importorskip("peft")
BaseTunerLayer = pytest.importorskip("peft.tuners.tuners_utils").BaseTunerLayer


def test_a_reranker_says_which_weights_answer(tiny_mllm: Callable[[str], Path]) -> None:
    backbone = load_backbone(tiny_mllm("qwen2_5_vl"))
    encoder = VideoEncoder(backbone=backbone, layer=-1, device="cpu")
    plain = encoder.reranker()
    assert plain.weights == "base weights"
    assert applied_adapters(backbone.model) == {}
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, backbone.model, adapter_name="aligned")
    adapted = encoder.reranker()
    assert adapted.weights == "base weights with adapter aligned"
    assert adapted.fingerprint != plain.fingerprint or plain.weights == adapted.weights
    for module in adapted[0].model.modules():
        if isinstance(module, BaseTunerLayer):
            module.enable_adapters(enabled=False)
    assert adapted.weights == "base weights"


def test_an_adapter_of_the_head_answers_from_the_next_call_on(
    tiny_mllm: Callable[[str], Path], clips: list[Path]
) -> None:
    reranker = VideoReranker(tiny_mllm("qwen2_5_vl"), device="cpu")
    before = reranker.predict(("a", clips[0]))
    config = peft.LoraConfig(r=2, target_modules=["lm_head"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, reranker[0].model, adapter_name="aligned")
    assert reranker.parts.head is reranker[0].model.lm_head
    assert reranker.predict(("a", clips[0])) != before
