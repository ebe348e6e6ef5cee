"""The cut view: same vectors as the hidden state, same parameters as the full model, nothing else touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel

from tests.backbone import tiny
from vidembed.backbone.architectures import capture_block, check_layer, find_parts
from vidembed.backbone.cut import cut
from vidembed.backbone.load import load_backbone
from vidembed.errors import LayerError, UnsupportedBackboneError


def features(processor: Any, *, text: str = "", frames: int = 0) -> dict[str, Any]:
    """One prompt through the model's own template."""
    content: list[dict[str, Any]] = [{"type": "text", "text": text}]
    kwargs: dict[str, Any] = {}
    if frames:
        video = torch.randint(
            0, 255, (frames, 3, 56, 70), generator=torch.Generator().manual_seed(frames), dtype=torch.uint8
        )
        content.insert(0, {"type": "video", "video": video})
        metadata = {
            "fps": 2.0,
            "total_num_frames": frames,
            "frames_indices": list(range(frames)),
            "duration": frames / 2,
        }
        kwargs = {"videos_kwargs": {"video_metadata": [metadata], "do_sample_frames": False}}
    return dict(
        processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs=kwargs,
        )
    )


@torch.inference_mode()
@pytest.mark.parametrize("layer", [1, 2, 4, tiny.DEPTH, -1])
@pytest.mark.parametrize("frames", [0, 6])
def test_view_reads_the_hidden_state(each_mllm: Path, layer: int, frames: int) -> None:
    backbone = load_backbone(each_mllm)
    parts = find_parts(backbone.model)
    inputs = features(backbone.processor, text="a red square", frames=frames)
    with capture_block(parts, tiny.DEPTH if layer == -1 else layer) as captured:
        parts.base(**inputs, use_cache=False)
    wanted = captured.hidden if layer != -1 else parts.norm(captured.hidden)
    got = cut(backbone.model, layer)(**inputs, use_cache=False).last_hidden_state
    assert got.shape == wanted.shape
    similarity = nn.functional.cosine_similarity(got[0, -1].double(), wanted[0, -1].double(), dim=0)
    assert 1 - similarity.item() <= 1e-6


@torch.inference_mode()
@pytest.mark.parametrize("frames", [0, 6])
def test_layers_count_as_transformers_does(each_mllm: Path, frames: int) -> None:
    """`hidden_states[l]` of transformers is the output of block l, for every block before the last."""
    backbone = load_backbone(each_mllm)
    parts = find_parts(backbone.model)
    inputs = features(backbone.processor, text="a red square", frames=frames)
    hidden_states = parts.base(**inputs, output_hidden_states=True).hidden_states
    for layer in range(1, tiny.DEPTH):
        with capture_block(parts, layer) as captured:
            parts.base(**inputs)
        assert captured.hidden is not None
        assert torch.allclose(captured.hidden[0, -1], hidden_states[layer][0, -1], atol=1e-6)


@torch.inference_mode()
def test_neighbour_layers_differ(each_mllm: Path) -> None:
    """The control: an index off by one would not pass the test above."""
    backbone = load_backbone(each_mllm)
    inputs = features(backbone.processor, text="a red square", frames=6)
    third, fourth = (cut(backbone.model, layer)(**inputs).last_hidden_state[0, -1] for layer in (3, 4))
    assert nn.functional.cosine_similarity(third, fourth, dim=0).item() < 0.99


def test_view_shares_every_weight_but_the_norm(each_mllm: Path) -> None:
    backbone = load_backbone(each_mllm)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    own = {id(parameter) for parameter in backbone.model.parameters()}
    view = cut(backbone.model, 4)
    new = [name for name, parameter in view.named_parameters() if id(parameter) not in own]
    assert new == ["language_model.norm.weight"]
    assert len(find_parts(view).blocks) == 4
    assert len(find_parts(backbone.model).blocks) == tiny.DEPTH
    assert find_parts(backbone.model).base.config.get_text_config().num_hidden_layers == tiny.DEPTH
    assert view.config.get_text_config().num_hidden_layers == 4
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name])


@torch.inference_mode()
def test_hidden_states_count_is_right_after_the_view_ran_first(each_mllm: Path) -> None:
    """transformers hooks blocks per decoder object: a view that is first must not make the full model hook twice."""
    backbone = load_backbone(each_mllm)
    inputs = features(backbone.processor, text="a red square")
    view = cut(backbone.model, 4)
    assert len(view(**inputs, output_hidden_states=True).hidden_states) == 4 + 1
    full = find_parts(backbone.model).base(**inputs, output_hidden_states=True)
    assert len(full.hidden_states) == tiny.DEPTH + 1
    assert len(view(**inputs, output_hidden_states=True).hidden_states) == 4 + 1


@torch.inference_mode()
def test_view_is_an_ordinary_checkpoint(each_mllm: Path, tmp_path: Path) -> None:
    backbone = load_backbone(each_mllm)
    view = cut(backbone.model, 3)
    view.save_pretrained(tmp_path)  # type: ignore[operator]
    assert not list(tmp_path.glob("*.bin"))
    again = AutoModel.from_pretrained(tmp_path).eval()
    inputs = features(backbone.processor, text="a blue circle", frames=5)
    assert torch.equal(again(**inputs).last_hidden_state, view(**inputs).last_hidden_state)


@pytest.mark.parametrize("layer", [0, -2, 7, 100, 2.0, "4", True, None])
def test_bad_layer(layer: Any) -> None:
    with pytest.raises(LayerError, match=r"layer=.*Allowed: 1\.\.6"):
        check_layer(layer, 6, name="m")


class RMSNorm(nn.Module):
    """y = scale(weight) * x / rms(x)."""

    def __init__(self, scale: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(tiny.HIDDEN))
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale(self.weight) * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


@torch.inference_mode()
def test_norm_of_one_plus_weight_keeps_the_direction_of_the_block(tiny_mllm: Any) -> None:
    backbone = load_backbone(tiny_mllm("qwen2_vl"))
    parts = find_parts(backbone.model)
    parts.decoder.norm = RMSNorm(lambda weight: 1 + weight)
    inputs = features(backbone.processor, text="a red square")
    with capture_block(find_parts(backbone.model), 3) as block:
        parts.base(**inputs)
    vector = cut(backbone.model, 3)(**inputs).last_hidden_state[0, -1]
    assert block.hidden is not None
    assert 1 - torch.cosine_similarity(vector.double(), block.hidden[0, -1].double(), dim=0) <= 1e-6


@pytest.mark.parametrize("norm", [RMSNorm(lambda weight: 1 + weight.cumsum(0)), nn.LayerNorm(tiny.HIDDEN)])
def test_norm_that_changes_the_direction_is_refused(tiny_mllm: Any, norm: nn.Module) -> None:
    model = load_backbone(tiny_mllm("qwen2_vl")).model
    find_parts(model).decoder.norm = norm
    with pytest.raises(UnsupportedBackboneError, match=r"changes the direction.*layer=-1"):
        cut(model, 3)
    cut(model, -1)  # the trained norm is kept: nothing to refuse
