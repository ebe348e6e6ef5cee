"""``vidembed_config.json`` of a checkpoint, and the digests that a fingerprint is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vidembed.backbone.cut import WRAPPED, applied_adapters
from vidembed.errors import BackboneError

FILE_NAME = "vidembed_config.json"
FORMAT_VERSION = 1
LAYER_DEFINITION = (
    "layer l is the output of decoder block l (1-based, before any norm), scaled by an RMSNorm with unit weight; "
    "layer -1 is the output of the last block through the trained final norm"
)


@dataclass(frozen=True)
class CheckpointConfig:
    """Settings that the vectors of a checkpoint depend on, beside those that sentence-transformers keeps.

    Attributes:
        layer: Decoder block that is read, or -1 (see `LAYER_DEFINITION`).
        depth: Decoder blocks of the model that it was cut from.
        model_type: Architecture, as transformers names it.
        source: What it was built from.
        prefix: What stands before the content in the prompt, None for nothing.
        sampling: The frame grid, as `Sampling.as_dict`.
        fingerprint: `VideoEncoder.fingerprint` when it was saved; empty before.
    """

    layer: int
    depth: int
    model_type: str
    source: str
    prefix: str | None
    sampling: dict[str, Any]
    fingerprint: str = ""

    def write(self, folder: str | Path) -> None:
        """Write the file into a checkpoint folder."""
        content = {"format_version": FORMAT_VERSION, "layer_definition": LAYER_DEFINITION, **asdict(self)}
        Path(folder, FILE_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: str | Path) -> CheckpointConfig:
        """Read a file that `write` wrote.

        Raises:
            BackboneError: It is of a newer format, or not such a file.
        """
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        version = content.pop("format_version", None)
        content.pop("layer_definition", None)
        if version != FORMAT_VERSION:
            raise BackboneError(
                f"{file}: format_version {version!r}; this vidembed reads {FORMAT_VERSION}. Upgrade vidembed, or build "
                "the checkpoint again."
            )
        try:
            return cls(**content)
        except TypeError as error:
            raise BackboneError(f"{file}: {error}. Build the checkpoint again.") from error


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

_STANDARD_KEYS = ("type", "pooling_mode", "include_prompt")
_STANDARD = [{"type": "Pooling", "pooling_mode": "lasttoken", "include_prompt": True}, {"type": "Normalize"}]

WEIGHT_SAMPLES = 64
"""Values read per tensor: enough to tell any two trained or merged models apart, cheap at 7B parameters."""


@torch.no_grad()
def weights_digest(model: nn.Module) -> str:
    """Hash name, shape and `WEIGHT_SAMPLES` evenly spaced values of every parameter and persistent buffer.

    Nothing is kept between calls: the values are read each time, since neither the address nor the version counter of a
    tensor shows every change (writes through ``.data`` and to inference tensors leave both as they were). Adapter
    layers that apply no adapter count as the layers that they wrap, so that switching an adapter off gives the digest
    of the plain model; those that apply one count with its name and scale.

    Returns:
        A SHA-256 hex digest. It changes with training, merging an adapter or a cast, not with the device. It does not
        see an edit that touches none of the sampled values, such as one row of an embedding table.

    Raises:
        ValueError: A tensor is on the device "meta" and has no values.
    """
    adapters, saved = applied_adapters(model), model.state_dict(keep_vars=True)
    stored = [*model.named_parameters(), *(one for one in model.named_buffers() if one[0] in saved)]  # tied ones once
    named = ((_name_in_use(name, adapters), tensor) for name, tensor in stored)
    tensors = {name: tensor for name, tensor in named if name is not None}
    digest = hashlib.sha256()
    for name, values in sorted(_sampled(tensors).items()):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(values)
    for name, applied in sorted(adapters.items()):
        if applied:
            digest.update(f"{name}{sorted(applied.items())}".encode())
    return digest.hexdigest()


def _name_in_use(name: str, adapters: Mapping[str, Mapping[str, object]]) -> str | None:
    """The name of a tensor in the model without the adapters that it does not apply; None if it belongs to one."""
    layer, _, rest = name.rpartition(".")
    while layer and layer not in adapters:
        layer, _, last = layer.rpartition(".")
        rest = f"{last}.{rest}"
    if not layer:
        return name
    kind, _, rest = rest.partition(".")  # such as lora_A, then the name of the adapter
    if kind == WRAPPED:
        return name if adapters[layer] else f"{layer}.{rest}"
    return name if rest.partition(".")[0] in adapters[layer] else None


def _sampled(tensors: Mapping[str, torch.Tensor]) -> dict[str, bytes]:
    """The sampled values of each tensor as little-endian float32; one transfer per device, since each would wait."""
    places: dict[tuple[int, torch.device], torch.Tensor] = {}
    picked: dict[torch.device, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ValueError(f"{name}: it is on the device 'meta' and has no values. Load the weights first.")
        key = (tensor.numel(), tensor.device)
        if key not in places:
            count = min(WEIGHT_SAMPLES, tensor.numel())
            places[key] = torch.linspace(0, tensor.numel() - 1, count, dtype=torch.float64).long().to(tensor.device)
        picked.setdefault(tensor.device, {})[name] = tensor.reshape(-1)[places[key]].float()  # (<= WEIGHT_SAMPLES,)
    found: dict[str, bytes] = {}
    for parts in picked.values():
        values = torch.cat(list(parts.values())).cpu().numpy().astype("<f4")
        ends = np.cumsum([len(part) for part in parts.values()])
        for name, part in zip(parts, np.split(values, ends[:-1]), strict=True):
            found[name] = part.tobytes()
    return found


def fields_digest(fields: Mapping[str, object]) -> str:
    """SHA-256 hex digest of a JSON-able dict, independent of key order."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def module_fields(model_type: str, processor: Any) -> dict[str, object]:
    """The architecture, the prompts and the pixels of a processor: the part of a fingerprint that is no weights."""
    pixels: dict[str, object] = {}
    for kind in ("video_processor", "image_processor"):
        values: dict[str, object] = getattr(processor, kind).to_dict()
        pixels[kind] = {name: values[name] for name in _PIXEL_SETTINGS if values.get(name) is not None}
    template = hashlib.sha256(str(processor.chat_template).encode()).hexdigest()
    return {"model_type": model_type, "chat_template": template, **pixels}


def pooling_fields(modules: Sequence[nn.Module]) -> dict[str, object]:
    """Settings and weights of the modules after the transformer; nothing for last-token pooling and normalization."""
    settings = [{"type": type(module).__name__, **getattr(module, "get_config_dict", dict)()} for module in modules]
    known = [{key: one[key] for key in _STANDARD_KEYS if key in one} for one in settings]
    if known == _STANDARD:
        return {}
    return {"modules": [{**one, "weights": weights_digest(part)} for one, part in zip(settings, modules, strict=True)]}
