"""An aligned encoder and a reranker on one copy of the weights, asked by many threads at once."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vidembed import VideoEncoder, VideoFrames, VideoReranker
from vidembed.backbone.sharing import applied_adapters
from vidembed.checkpoint import CheckpointConfig
from vidembed.errors import BackboneError

pytest.importorskip("peft")

from vidembed.building import write_recipe
from vidembed.training import LanguageAdapter, LoraSettings

GetModel = Callable[[str], Path]
THREADS, ROUNDS = 8, 3
VIDEOS = [
    VideoFrames(np.random.default_rng(seed).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8), fps=2.0)
    for seed in range(3)
]
TEXTS = ["a red square moves down", "two dogs run along the beach in the evening", "a door"]


@pytest.fixture
def aligned(tiny_mllm: GetModel, tmp_path: Path) -> Path:
    """A recipe with an adapter that changes vectors, on a random small MLLM."""
    encoder = VideoEncoder(tiny_mllm("qwen2_5_vl"), layer=3, prefix=None, device="cpu")
    adapter = LanguageAdapter(encoder, LoraSettings(rank=4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.parameters.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    adapter.save(tmp_path)
    write_recipe(encoder.eval(), tmp_path, tmp_path, adapter=True)
    return tmp_path


def test_an_aligned_recipe_is_the_model_that_was_trained(tiny_mllm: GetModel, aligned: Path, tmp_path: Path) -> None:
    encoder = VideoEncoder(aligned, device="cpu")
    config = CheckpointConfig.read(aligned / "vidembed_config.json")
    assert config.recipe is not None
    assert config.recipe.adapter
    assert encoder.fingerprint == config.fingerprint
    plain = VideoEncoder(tiny_mllm("qwen2_5_vl"), layer=3, prefix=None, device="cpu")
    vectors = encoder.encode([*VIDEOS, *TEXTS])
    assert np.abs(vectors - plain.encode([*VIDEOS, *TEXTS])).max() > 1e-2
    encoder.save_pretrained(str(tmp_path / "plain"))  # merged, since no checkpoint holds the adapter
    assert np.array_equal(encoder.encode([*VIDEOS, *TEXTS]), vectors)
    again = VideoEncoder(tmp_path / "plain", device="cpu")
    assert again.backbone is None
    assert np.abs(again.encode([*VIDEOS, *TEXTS]) - vectors).max() <= 1e-5


def test_the_adapter_is_on_for_embedding_and_off_for_the_head(aligned: Path) -> None:
    encoder = VideoEncoder(aligned, device="cpu")
    assert any(applied_adapters(encoder[0].model).values())
    reranker = encoder.reranker()
    assert reranker.weights == "base weights"
    assert encoder.backbone is not None
    assert not applied_adapters(encoder.backbone.model)
    own = {parameter.data_ptr() for parameter in reranker.parameters()}
    new = {name for name, parameter in encoder.named_parameters() if parameter.data_ptr() not in own}
    assert all("lora_" in name or name.endswith("language_model.norm.weight") for name in new)
    assert not encoder.is_on_weights_of(reranker)  # one prefill cannot serve both


def test_threads_get_what_each_model_gives_alone(tiny_mllm: GetModel, aligned: Path) -> None:
    head = VideoReranker(tiny_mllm("qwen2_5_vl"), device="cpu")
    pairs = [({"text": text}, video) for text in TEXTS for video in VIDEOS]
    scores = [head.predict(pair) for pair in pairs]
    inputs = [*VIDEOS, *TEXTS]
    alone = VideoEncoder(aligned, device="cpu")
    vectors = [alone.encode(item) for item in inputs]
    del alone, head

    encoder = VideoEncoder(aligned, device="cpu")
    reranker = encoder.reranker()

    def embed(index: int) -> bool:
        return bool(np.abs(encoder.encode(inputs[index]) - vectors[index]).max() <= 1e-6)

    def score(index: int) -> bool:
        return bool(abs(reranker.predict(pairs[index]) - scores[index]) <= 1e-6)

    jobs: list[tuple[Callable[[int], bool], int]] = [(embed, index) for index in range(len(inputs))]
    jobs += [(score, index) for index in range(len(pairs))]
    jobs *= ROUNDS
    random.Random(0).shuffle(jobs)
    with ThreadPoolExecutor(THREADS) as threads:
        same = list(threads.map(lambda job: job[0](job[1]), jobs))
    assert all(same)


def test_an_adapter_of_another_model_is_refused(tiny_mllm: GetModel, aligned: Path) -> None:
    weights = load_file(aligned / "adapter_model.safetensors")
    name = sorted(weights)[0]
    save_file({**weights, name: weights[name][:1]}, aligned / "adapter_model.safetensors")
    with pytest.raises(BackboneError, match="its adapter is of another model or rank"):
        VideoEncoder(aligned, device="cpu")
    del weights[name]
    save_file(weights, aligned / "adapter_model.safetensors")
    with pytest.raises(BackboneError, match="its adapter is of another model or layer"):
        VideoEncoder(aligned, device="cpu")
