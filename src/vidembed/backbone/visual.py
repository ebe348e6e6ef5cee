"""Visual tokens apart from pixels: what the vision tower made of a video, as flat tensors that can be kept.

A processor's features hold pixels; with `encode_visual` they are replaced by the visual tokens, under names that begin
with `VISUAL`. `model_inputs` turns either form into the keyword arguments of the base model.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import torch

from vidembed.backbone.parts import Parts

VISUAL = "visual."
_PIXELS = "pixel_values_videos"
_TOKENS = VISUAL + "tokens"  # (V, D)
_DEEPSTACK = VISUAL + "deepstack."  # one (V, D) per level, Qwen3-VL only
_BOOKKEEPING = ("modality", "num_images_per_sample", "num_videos_per_sample", "logits_to_keep")


@torch.inference_mode()
def encode_visual(parts: Parts, features: dict[str, Any]) -> dict[str, Any]:
    """Run the vision tower on the video of one prompt.

    Args:
        parts: The model's parts.
        features: Of the processor, on the model's device, with one video and no image.

    Returns:
        The features with the visual tokens in the place of the pixels.
    """
    base: Any = parts.base
    encode = base.get_video_features
    grids = {name: features[name] for name in inspect.signature(encode).parameters if name in features}
    output = encode(**grids, return_dict=True)
    kept = {name: value for name, value in features.items() if name != _PIXELS}
    kept[_TOKENS] = torch.cat(list(output.pooler_output))  # (V, D), before token compression
    for level, tokens in enumerate(getattr(output, "deepstack_features", None) or ()):
        kept[f"{_DEEPSTACK}{level}"] = torch.cat(list(tokens))  # (V, D)
    return kept


def has_pixels(features: dict[str, Any]) -> bool:
    """Whether the features hold the pixels of a video, and of nothing else."""
    return _PIXELS in features and "pixel_values" not in features


def model_inputs(features: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the base model: without what the host keeps for itself, visual tokens as it takes them."""
    inputs = {
        name: value for name, value in features.items() if name not in _BOOKKEEPING and not name.startswith(VISUAL)
    }
    if _TOKENS in features:
        levels = sorted((name for name in features if name.startswith(_DEEPSTACK)), key=lambda name: (len(name), name))
        output = SimpleNamespace(
            pooler_output=(features[_TOKENS],), deepstack_features=[(features[name],) for name in levels]
        )
        inputs["mm_encoder_outputs"] = {"video": output}
    return inputs
