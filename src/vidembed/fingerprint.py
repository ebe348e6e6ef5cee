"""What made a vector, as a short hash: two vectors compare only if their fingerprints are equal."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

_PIXEL_SETTINGS = (
    "size",
    "do_resize",
    "resample",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "patch_size",
    "temporal_patch_size",
    "merge_size",
    "use_token_compression",
    "cap_pixels_per_frame",
)
"""The numbers of an image or video processor that change pixels; not its class or the library's version."""

WEIGHT_SAMPLES = 64
"""Values read per parameter: enough to tell any two trained or merged models apart, cheap at 7B parameters."""


def weights_digest(model: nn.Module) -> str:
    """Hash name, shape and `WEIGHT_SAMPLES` evenly spaced values of every parameter.

    Returns:
        A SHA-256 hex digest. It changes with training, merging an adapter or a cast, not with the device.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        picked = torch.linspace(0, flat.numel() - 1, min(WEIGHT_SAMPLES, flat.numel()), dtype=torch.float64).long()
        values = flat[picked.to(flat.device)].float().cpu().numpy().astype("<f4")  # (<= WEIGHT_SAMPLES,)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def fields_digest(fields: dict[str, Any]) -> str:
    """SHA-256 hex digest of a JSON-able dict, independent of key order."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def module_fields(model_type: str, processor: Any) -> dict[str, Any]:
    """The architecture, the prompts and the pixels: the part of a fingerprint that the processor decides.

    Args:
        model_type: As transformers names it.
        processor: A transformers processor with image and video processors.
    """
    template = str(processor.chat_template)
    return {
        "model_type": model_type,
        "chat_template": hashlib.sha256(template.encode()).hexdigest(),
        "video_processor": _pixel_settings(processor.video_processor),
        "image_processor": _pixel_settings(processor.image_processor),
    }


def _pixel_settings(processor: Any) -> dict[str, Any]:
    values: dict[str, Any] = processor.to_dict()
    return {name: values[name] for name in _PIXEL_SETTINGS if values.get(name) is not None}
