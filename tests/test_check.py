"""`check_model` passes on every architecture that is tested here, and finds what is wrong with a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.backbone import tiny, zoo
from vidembed import VideoEncoder, check_model
from vidembed.backbone.architectures import find_parts
from vidembed.backbone.load import load_backbone
from vidembed.check import CheckItem, ModelCheck
from vidembed.errors import LayerError

GetModel = Callable[[str], Path]
CHECKS = [
    *("load", "cut", "batch", "times", "prompt", "tokens"),
    *("answers", "reranker prompt", "shared prefix", "answer mass"),
]


def item(found: ModelCheck, name: str) -> CheckItem:
    return next(each for each in found.items if each.name == name)


@pytest.mark.parametrize("model_type", [*tiny.ARCHITECTURES, *zoo.MAKERS])
def test_passes_on_each_architecture(model_type: str, tmp_path: Path) -> None:
    made = tiny if model_type in tiny.ARCHITECTURES else zoo
    found = check_model(made.save(model_type, tmp_path), layer=4, device="cpu")
    assert [each.name for each in found.items] == CHECKS
    assert {each.name: each.detail for each in found.items if each.status in ("fail", "not run")} == {}
    assert found.passed
    assert found.works == {"embed": True, "rerank": True, "shared prefill": True}
    assert item(found, "answer mass").status == "note"  # a random head does not answer
    assert item(found, "tokens").values["tokens_per_frame"] > 0
    assert json.loads(json.dumps(found.to_dict()))["passed"] is True


def test_a_cut_at_another_block_fails(tiny_mllm: GetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidembed.backbone.cut import cut

    monkeypatch.setattr("vidembed.encoder.cut", lambda model, layer, **kwargs: cut(model, layer - 1, **kwargs))
    found = check_model(tiny_mllm("qwen2_vl"), layer=4, device="cpu")
    assert item(found, "cut").status == "fail"
    assert "above 1e-06" in item(found, "cut").detail
    assert not found.passed
    assert not found.works["embed"]


def test_batches_that_are_not_those_of_the_processor_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Joined all the same, the second video of molmo2 would be pooled from the pixels of the first."""
    monkeypatch.setattr("vidembed.proof.can_join", lambda *_args, **_kwargs: True)
    found = check_model(zoo.save("molmo2", tmp_path), layer=4, device="cpu")
    assert item(found, "batch").status == "fail"


def test_times_that_do_not_reach_the_processor_fail(tiny_mllm: GetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess = VideoEncoder.preprocess

    def without_times(self: VideoEncoder, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        processor: Any = self.processor
        told = processor.video_processor
        if type(told).__name__ == "_Recorder":
            call = told.wrapped

            class Deaf:
                def __call__(self, *args: Any, **kwargs: Any) -> Any:
                    told.metadata.append(None)
                    return call(*args, **kwargs)

                def __getattr__(self, name: str) -> Any:
                    return getattr(call, name)

            processor.video_processor = Deaf()
        try:
            return preprocess(self, inputs, *args, **kwargs)
        finally:
            processor.video_processor = told

    monkeypatch.setattr(VideoEncoder, "preprocess", without_times)
    found = check_model(tiny_mllm("qwen3_vl"), layer=4, device="cpu")
    assert item(found, "times").status == "fail"
    assert "does not get the times" in item(found, "times").detail


def test_a_prefix_that_cannot_be_shared_is_noted_and_scores_stay_right(
    tiny_mllm: GetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(_parts: Any, prefix: Any, suffixes: Any, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        return torch.randn(len(suffixes), tiny.HIDDEN)

    monkeypatch.setattr("vidembed.yes_no.read_suffixes", wrong)
    found = check_model(tiny_mllm("qwen2_vl"), layer=4, device="cpu")
    assert item(found, "shared prefix").status == "note"
    assert "every pair takes a whole forward pass" in item(found, "shared prefix").detail
    assert found.works == {"embed": True, "rerank": True, "shared prefill": False}
    assert found.passed


def test_a_model_without_its_parts_says_what_is_missing(tiny_mllm: GetModel) -> None:
    backbone = load_backbone(tiny_mllm("qwen2_vl"))
    decoder = find_parts(backbone.model).decoder
    decoder.second = decoder.norm  # type: ignore[assignment]
    del decoder.norm
    decoder.second = torch.nn.Identity()
    found = check_model(backbone, layer=4)
    assert item(found, "load").status == "fail"
    assert "stacks of 6 blocks ['layers'] and the norms []" in item(found, "load").detail
    assert found.works == {"embed": False, "rerank": False, "shared prefill": False}


def test_a_checkpoint_is_checked_without_what_needs_its_mllm(tiny_mllm: GetModel, tmp_path: Path) -> None:
    VideoEncoder(tiny_mllm("qwen2_vl"), layer=4, device="cpu").save_pretrained(str(tmp_path))
    found = check_model(tmp_path, device="cpu")
    assert {each.name for each in found.items if each.status == "not run"} == {"cut", "answers"}
    assert found.passed
    assert found.works == {"embed": True, "rerank": False, "shared prefill": False}


def test_a_text_model_fails_to_load(tmp_path: Path) -> None:
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1)).save_pretrained(tmp_path)
    found = check_model(tmp_path, device="cpu")
    assert [(each.name, each.status) for each in found.items] == [("load", "fail")]
    assert "model_type 'llama' is not a video language model" in found.items[0].detail


def test_what_is_not_there_raises(tiny_mllm: GetModel, tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="layer=7"):
        check_model(tiny_mllm("qwen2_vl"), layer=7, device="cpu")
    with pytest.raises((OSError, ValueError)):
        check_model(tmp_path / "none", device="cpu")
