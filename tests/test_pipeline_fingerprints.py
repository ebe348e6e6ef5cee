"""Fingerprints follow the weights, however those were changed; the digest stays what stored ones were made by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.modules import Dense
from torch import nn

from vidembed import VideoEncoder, VideoReranker
from vidembed.backbone.sharing import weights_digest
from vidembed.errors import BackboneError
from vidembed.evaluation.embedder import embedder_of

peft = pytest.importorskip("peft")

GetModel = Callable[[str], Path]

SHAPES = "b9781e8143ac3d583fb622988d14bd32652eddab3af19e2859e91c40a3c99bee"
SHAPES_RERANK = "edae397980e197502224ab572eb29227ae7a1c217fc03eaca2d076fdd1a141f3"


@pytest.fixture
def reranker(tiny_mllm: GetModel) -> VideoReranker:
    return VideoReranker(tiny_mllm("qwen2_5_vl"), device="cpu")


@pytest.fixture
def encoder(reranker: VideoReranker) -> VideoEncoder:
    """On the weights of `reranker`."""
    return reranker.encoder(layer=3)


def weight_of(model: Any) -> nn.Parameter:
    weight: nn.Parameter = model[0].model.get_parameter(
        next(name for name, _ in model[0].model.named_parameters() if name.endswith("layers.0.mlp.up_proj.weight"))
    )
    return weight


def add_in_place(model: Any) -> None:
    with torch.no_grad():
        weight_of(model).add_(0.01)


def add_to_data(model: Any) -> None:
    weight_of(model).data.add_(0.01)


def copy_into_data(model: Any) -> None:
    weight_of(model).data.copy_(torch.ones_like(weight_of(model)))


def replace_data(model: Any) -> None:
    weight_of(model).data = weight_of(model).data * 1.01


def load_state(model: Any) -> None:
    model.load_state_dict({name: value * 1.01 for name, value in model.state_dict().items()})


@torch.inference_mode()
def add_in_inference_mode(model: Any) -> None:
    weight_of(model).add_(0.01)


def step_of_an_optimizer(model: Any, **how: bool) -> None:
    weight = weight_of(model).requires_grad_()
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=1e-3, **how).step()


EDITS: list[Callable[[Any], None]] = [
    add_in_place,
    add_to_data,
    copy_into_data,
    replace_data,
    load_state,
    add_in_inference_mode,
    step_of_an_optimizer,
    lambda model: step_of_an_optimizer(model, fused=True),
    lambda model: step_of_an_optimizer(model, foreach=True),
    lambda model: model.to(torch.bfloat16),
    lambda model: model.half(),
]
ELSEWHERE = (replace_data, *EDITS[-2:])  # these leave the weights in common, and put others in their place


@pytest.mark.parametrize("edit", EDITS)
def test_every_edit_shows_and_those_in_place_in_both_models_of_the_same_weights(
    edit: Callable[[Any], None], encoder: VideoEncoder, reranker: VideoReranker
) -> None:
    before = encoder.fingerprint, reranker.fingerprint
    assert (encoder.fingerprint, reranker.fingerprint) == before
    in_memory = weight_of(encoder).data_ptr()
    edit(encoder)
    assert encoder.fingerprint != before[0]
    in_place = weight_of(encoder).data_ptr() == in_memory
    assert (reranker.fingerprint != before[1]) == in_place
    assert in_place == (edit not in ELSEWHERE)


def test_weights_made_for_inference_only_are_followed(tiny_mllm: GetModel) -> None:
    with torch.inference_mode():
        encoder = VideoEncoder(tiny_mllm("qwen2_vl"), layer=2, device="cpu")
        before = encoder.fingerprint
        weight_of(encoder).add_(0.01)
    assert encoder.fingerprint != before


def test_a_move_that_changes_nothing_keeps_it(encoder: VideoEncoder, reranker: VideoReranker) -> None:
    before = encoder.fingerprint, reranker.fingerprint
    kept = weight_of(encoder).data
    encoder.to("cpu").float().eval().requires_grad_(requires_grad=False)
    weight_of(encoder).data = kept.clone()  # as a move to another device does
    assert (encoder.fingerprint, reranker.fingerprint) == before
    add_in_place(encoder)
    weight_of(encoder).data = kept
    assert (encoder.fingerprint, reranker.fingerprint) == before


def test_without_values_there_is_none(encoder: VideoEncoder) -> None:
    encoder.to("meta")
    with pytest.raises(ValueError, match=r"on the device 'meta'.*Load the weights"):
        encoder.fingerprint  # noqa: B018


def test_those_of_the_bundled_models_stay() -> None:
    assert VideoEncoder("vidembed/shapes", device="cpu").fingerprint == SHAPES
    assert VideoReranker("vidembed/shapes-rerank", device="cpu").fingerprint == SHAPES_RERANK


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_a_saved_cast_comes_back_as_it_was(encoder: VideoEncoder, cast: torch.dtype, tmp_path: Path) -> None:
    encoder.to(cast)
    encoder.save_pretrained(str(tmp_path))
    again = VideoEncoder(str(tmp_path), device="cpu")
    assert again.checkpoint_config is not None
    assert encoder.fingerprint == again.fingerprint == again.checkpoint_config.fingerprint


def test_what_follows_the_transformer_counts(encoder: VideoEncoder) -> None:
    found = [encoder.fingerprint]
    dense = Dense(encoder.get_embedding_dimension() or 0, 4)
    encoder.append(dense)
    found.append(encoder.fingerprint)
    dense.linear.weight.data.add_(1)
    found.append(encoder.fingerprint)
    encoder[1].pooling_mode = "mean"
    found.append(encoder.fingerprint)
    assert len(set(found)) == 4


def test_persistent_buffers_count_and_others_do_not() -> None:
    module = nn.Linear(4, 4)
    plain = weights_digest(module)
    module.register_buffer("cache", torch.ones(4), persistent=False)
    assert weights_digest(module) == plain
    module.register_buffer("scale", torch.ones(4))
    with_scale = weights_digest(module)
    module.scale.mul_(2)
    assert len({plain, with_scale, weights_digest(module)}) == 3


def test_an_edit_between_the_sampled_values_is_not_seen() -> None:
    """The limit that the documentation states; a digest of all values would have to read them all."""
    table = nn.Embedding(6401, 1)  # of 64 values evenly spaced, the first two are 0 and 101
    before = weights_digest(table)
    with torch.no_grad():
        table.weight[1:101] += 1
    assert weights_digest(table) == before
    with torch.no_grad():
        table.weight[101] += 1
    assert weights_digest(table) != before


def test_a_plain_model_in_an_evaluation_is_followed(encoder: VideoEncoder) -> None:
    embedder = embedder_of(encoder)
    before = embedder.fingerprint, embedder.key
    add_to_data(encoder)
    assert embedder.fingerprint != before[0]
    assert embedder.key != before[1]


class TestAdapters:
    @pytest.fixture
    def adapted(self, encoder: VideoEncoder) -> VideoEncoder:
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        peft.inject_adapter_in_model(config, encoder[0].model, adapter_name="aligned")
        return encoder

    @staticmethod
    def layers(encoder: VideoEncoder) -> list[Any]:
        return [module for module in encoder[0].model.modules() if hasattr(module, "base_layer")]

    def test_off_is_the_plain_model_and_on_another(
        self, reranker: VideoReranker, tiny_mllm: GetModel, adapted: VideoEncoder
    ) -> None:
        plain = VideoReranker(tiny_mllm("qwen2_5_vl"), device="cpu")
        off = plain.encoder(layer=3).fingerprint, plain.fingerprint
        on = adapted.fingerprint, reranker.fingerprint
        assert on[0] != off[0]
        assert on[1] == off[1]  # the head does not see an adapter of the encoder
        for layer in self.layers(adapted):
            layer.enable_adapters(enabled=False)
        assert (adapted.fingerprint, reranker.fingerprint) == off
        for layer in self.layers(adapted):
            layer.enable_adapters(enabled=True)
        assert (adapted.fingerprint, reranker.fingerprint) == on

    def test_scale_and_choice_count(self, adapted: VideoEncoder) -> None:
        found = [adapted.fingerprint]
        for layer in self.layers(adapted):
            layer.scale_layer(0.5)
        found.append(adapted.fingerprint)
        config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        peft.inject_adapter_in_model(config, adapted[0].model, adapter_name="other")
        found.append(adapted.fingerprint)
        assert len(set(found)) == 3
        for layer in self.layers(adapted):
            layer.set_adapter("aligned")
        assert adapted.fingerprint == found[1]  # the other one is there and does nothing

    def test_merged_is_what_loads_from_disk(self, adapted: VideoEncoder, tmp_path: Path) -> None:
        for layer in self.layers(adapted):
            layer.merge()
        merged = adapted.fingerprint
        for parent in list(adapted[0].model.modules()):
            for name, child in list(parent.named_children()):
                if hasattr(child, "base_layer"):
                    setattr(parent, name, child.get_base_layer())
        assert adapted.fingerprint == merged
        adapted.save_pretrained(str(tmp_path))
        assert VideoEncoder(str(tmp_path), device="cpu").fingerprint == merged

    def test_merged_and_switched_off_is_neither(self, adapted: VideoEncoder) -> None:
        for layer in self.layers(adapted):
            layer.merge()
        merged = adapted.fingerprint
        for layer in self.layers(adapted):
            layer.enable_adapters(enabled=False)  # the next forward pass takes it out again
        assert adapted.fingerprint != merged

    def test_is_not_saved_where_it_could_not_be_loaded(self, adapted: VideoEncoder, tmp_path: Path) -> None:
        with pytest.raises(BackboneError, match=r"q_proj is an adapter layer.*Merge"):
            adapted.save_pretrained(str(tmp_path))
