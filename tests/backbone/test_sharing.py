"""One copy of the weights in a process: who shares, what keeps users apart, and what ends it."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.backbone import tiny
from vidembed import VideoEncoder, VideoFrames, VideoReranker
from vidembed.backbone import load
from vidembed.backbone.load import Backbone, load_backbone
from vidembed.pipeline import VideoModel

VIDEO = VideoFrames(np.full((4, 56, 56, 3), 90, dtype=np.uint8), fps=2.0)
PAIR = ({"text": "a red square"}, VIDEO)


@pytest.fixture(scope="module")
def mllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLLM of this file's own: its weights are in memory for no other test."""
    return tiny.save("qwen2_5_vl", tmp_path_factory.mktemp("sharing"))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of models whose weights were read."""
    read: list[str] = []
    real = load.load_weights

    def counted(name: str, *args: Any) -> Any:
        read.append(name)
        return real(name, *args)

    monkeypatch.setattr(load, "load_weights", counted)
    gc.collect()  # of earlier tests
    return read


def encoder_of(folder: Path, **how: Any) -> VideoEncoder:
    return VideoEncoder(folder, layer=3, device="cpu", **how)


def reranker_of(folder: Path, **how: Any) -> VideoReranker:
    return VideoReranker(folder, device="cpu", **how)


def memory(model: nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in model.parameters()}


def devices(model: nn.Module) -> set[str]:
    return {parameter.device.type for parameter in model.parameters()}


def vector(encoder: VideoEncoder) -> np.ndarray:
    return encoder.encode({"text": "a red square"})


class TestWhoShares:
    def test_whoever_asks(self, mllm: Path, loads: list[str]) -> None:
        models: list[VideoModel] = [encoder_of(mllm), reranker_of(mllm), VideoEncoder(mllm, layer=-1, device="cpu")]
        assert len(loads) == 1
        assert memory(models[2]) <= memory(models[1])
        assert len(memory(models[0]) - memory(models[1])) == 1  # the final norm of the cut
        assert len({id(model.processor) for model in models}) == 3  # each has its own prompt

    def test_the_dtype_of_the_files_by_its_name(self, mllm: Path, loads: list[str]) -> None:
        kept = encoder_of(mllm), encoder_of(mllm, model_kwargs={"dtype": "float32"})
        kept += encoder_of(mllm, model_kwargs={"dtype": torch.float32}), reranker_of(mllm)  # type: ignore[assignment]
        assert len(loads) == 1

    @pytest.mark.parametrize("other", [{"dtype": "bfloat16"}, {"attn_implementation": "eager"}])
    def test_not_with_other_settings(self, mllm: Path, loads: list[str], other: dict[str, Any]) -> None:
        first, second = encoder_of(mllm), encoder_of(mllm, model_kwargs=other)
        assert len(loads) == 2
        assert not memory(first) & memory(second)

    def test_not_where_the_files_have_changed(self, mllm: Path, tmp_path: Path, loads: list[str]) -> None:
        folder = Path(shutil.copytree(mllm, tmp_path / "m"))
        first = encoder_of(folder)
        before = vector(first)
        weights = load_file(folder / "model.safetensors")
        save_file(
            {name: value * 1.1 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
        )
        assert np.abs(vector(encoder_of(folder)) - before).max() > 1e-4
        assert len(loads) == 2

    def test_threads_that_ask_at_once_wait_for_one(self, mllm: Path, loads: list[str]) -> None:
        start = threading.Barrier(4)

        def ask(_: int) -> Backbone:
            start.wait()
            return load_backbone(mllm)

        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(ask, range(4)))
        assert len(loads) == 1
        assert len({id(one.model) for one in found}) == 1
        assert len({id(one.processor) for one in found}) == 4

    def test_memory_is_freed_with_the_last_user(self, mllm: Path, loads: list[str]) -> None:
        encoder, reranker = encoder_of(mllm), reranker_of(mllm)
        assert encoder.backbone is not None
        model = weakref.ref(encoder.backbone.model)
        del encoder
        gc.collect()
        assert model() is not None
        del reranker
        gc.collect()
        assert model() is None
        encoder_of(mllm)
        assert len(loads) == 2


class TestNeverHandedOutChanged:
    @pytest.mark.parametrize(
        "change",
        [
            lambda weight: weight.mul_(1.1),
            lambda weight: weight.data.mul_(1.1),  # leaves the version counter
            lambda weight: weight[1].add_(1),  # between the sampled values
        ],
    )
    def test_edited_in_place(self, mllm: Path, loads: list[str], change: Callable[[nn.Parameter], Any]) -> None:
        reference = vector(encoder_of(mllm))
        gc.collect()
        edited = encoder_of(mllm)
        with torch.no_grad():
            change(edited.get_parameter("0.model.language_model.layers.0.mlp.up_proj.weight"))
        count = len(loads)
        assert np.array_equal(vector(encoder_of(mllm)), reference)
        assert len(loads) == count + 1

    def test_cast_alone(self, mllm: Path, loads: list[str]) -> None:
        cast = encoder_of(mllm).to(torch.bfloat16)
        assert encoder_of(mllm).dtype == torch.float32
        assert len(loads) == 2
        assert cast.reranker().dtype == torch.bfloat16  # the head went along

    def test_trained_alone(self, mllm: Path, loads: list[str]) -> None:
        trained = encoder_of(mllm)
        step(trained)
        other = encoder_of(mllm)
        assert len(loads) == 2
        assert not memory(trained) & memory(other)


class TestUsersAreApart:
    def test_training_one_leaves_the_other(self, mllm: Path) -> None:
        encoder, reranker = encoder_of(mllm), reranker_of(mllm)
        before, score = vector(encoder), reranker.predict(PAIR)
        step(encoder)
        assert np.abs(vector(encoder) - before).max() > 1e-4
        assert reranker.predict(PAIR) == score
        assert np.array_equal(vector(reranker.encoder(layer=3)), before)

    def test_training_one_that_was_made_of_the_other(self, mllm: Path) -> None:
        reranker = reranker_of(mllm)
        encoder = reranker.encoder(layer=3)
        before, score = vector(encoder), reranker.predict(PAIR)
        assert encoder.is_on_weights_of(reranker)
        step(encoder)
        assert not encoder.is_on_weights_of(reranker)
        assert reranker.predict(PAIR) == score
        step(reranker)
        assert np.array_equal(vector(reranker_of(mllm).encoder(layer=3)), before)

    def test_frozen_weights_are_not_copied(self, mllm: Path) -> None:
        encoder, reranker = encoder_of(mllm), reranker_of(mllm)
        weight = encoder.requires_grad_(False).get_parameter("0.model.language_model.layers.0.mlp.up_proj.weight")
        weight.requires_grad_(True)
        encoder.train()
        assert len(memory(encoder) - memory(reranker)) == 2  # this one, and the norm
        assert reranker.get_parameter("0.model.model.language_model.layers.0.mlp.up_proj.weight").requires_grad

    def test_casting_one(self, mllm: Path) -> None:
        encoder, reranker = encoder_of(mllm), reranker_of(mllm)
        score = reranker.predict(PAIR)
        assert encoder.half().dtype == torch.float16
        assert reranker.dtype == torch.float32
        assert reranker.predict(PAIR) == score
        assert not encoder.is_on_weights_of(reranker)
        assert np.abs(vector(encoder.float()) - vector(reranker.encoder(layer=3))).max() > 0  # rounded for good

    def test_moving_one(self, mllm: Path) -> None:
        """To the device "meta", which a machine without a GPU has too."""
        encoder, reranker = encoder_of(mllm), reranker_of(mllm)
        score = reranker.predict(PAIR)
        encoder.to("meta")
        assert devices(reranker) == {"cpu"}
        assert reranker.predict(PAIR) == score
        assert not encoder.is_on_weights_of(reranker)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_both_to_a_gpu_are_there_once(self, mllm: Path) -> None:
        reranker = reranker_of(mllm)
        encoder = reranker.encoder(layer=3)
        encoder.to("cuda")
        assert (devices(encoder), devices(reranker)) == ({"cuda"}, {"cpu"})
        assert not encoder.is_on_weights_of(reranker)
        reranker.to("cuda")
        assert len(memory(encoder) - memory(reranker)) == 1
        assert encoder.is_on_weights_of(reranker)
        assert reranker.backbone is not None
        assert devices(reranker.backbone.model) == {"cuda"}  # nothing is left on the CPU
        reranker.to("cpu")
        assert (devices(encoder), devices(reranker)) == ({"cuda"}, {"cpu"})

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_loaded_by_name_on_a_gpu_are_there_once(self, mllm: Path) -> None:
        encoder = VideoEncoder(mllm, layer=3, device="cuda")
        assert encoder.backbone is not None
        assert devices(encoder.backbone.model) == {"cuda", "cpu"}  # what comes after the layer stays
        reranker = VideoReranker(mllm, device="cuda")
        assert len(memory(encoder) - memory(reranker)) == 1
        assert devices(encoder.backbone.model) == {"cuda"}
        on_cpu = VideoReranker(mllm, device="cpu")
        assert devices(on_cpu) == {"cpu"}
        assert abs(reranker.predict(PAIR) - on_cpu.predict(PAIR)) < 1e-3

    def test_modules_and_settings_are_each_ones_own(self, mllm: Path) -> None:
        encoder, reranker = encoder_of(mllm), reranker_of(mllm)
        score = reranker.predict(PAIR)
        encoder[0].model.language_model.layers[0] = nn.Identity()
        encoder[0].model.config.text_config.rms_norm_eps = 1.0
        encoder[0].model.visual.register_forward_hook(lambda *_: pytest.fail("a hook of another model ran"))
        assert reranker.predict(PAIR) == score

    def test_a_saved_reranker_and_its_encoder(self, mllm: Path, tmp_path: Path) -> None:
        reranker_of(mllm).save_pretrained(str(tmp_path / "saved"))
        reranker = reranker_of(tmp_path / "saved")
        encoder = reranker.encoder(layer=3)
        before = vector(encoder)
        assert encoder.is_on_weights_of(reranker)
        step(reranker)
        assert not encoder.is_on_weights_of(reranker)
        assert np.array_equal(vector(encoder), before)


def step(model: VideoModel) -> None:
    """One step of an optimizer, which holds the parameters before training begins, as those of trainers do."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    model.eval()


def test_what_is_loaded_in_inference_mode_is_shared_too(mllm: Path, loads: list[str]) -> None:
    with torch.inference_mode():
        encoder, reranker = encoder_of(mllm), reranker_of(mllm)
        assert encoder.backbone is not None
        assert reranker.backbone is not None
        assert encoder.backbone.model is reranker.backbone.model
    assert len(loads) == 1
