"""The table of what differs between the supported video architectures.

A new one is a row here and a random small model of it in ``tests/backbone/tiny.py``, whose tests then all run on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from vidembed.errors import LayerError, UnsupportedBackboneError


@dataclass(frozen=True)
class Architecture:
    """What differs per architecture."""

    model_type: str  # `config.model_type` of transformers
    conditional_class: str  # the transformers class that carries the language model head
    base_class: str  # the transformers class without the head; cut checkpoints are of this class
    vision: tuple[str, ...]  # submodules of the base model that turn pixels into visual tokens
    position_dims: int  # rows of ``position_ids``: 3 for multimodal RoPE (time, height, width), 1 for a plain range
    published_depth: tuple[int, int] | None = None  # depth and layer that the paper reads without training (section 4)
    min_frames: int = 1  # fewest frames that the processor takes; a shorter video is extended by its last frame


ARCHITECTURES: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        Architecture("qwen2_vl", "Qwen2VLForConditionalGeneration", "Qwen2VLModel", ("visual",), 3),
        Architecture("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel", ("visual",), 3),
        Architecture("qwen3_vl", "Qwen3VLForConditionalGeneration", "Qwen3VLModel", ("visual",), 3, min_frames=2),
        Architecture(
            "video_llama_3",
            "VideoLlama3ForConditionalGeneration",
            "VideoLlama3Model",
            ("vision_model", "projector"),
            position_dims=1,
            published_depth=(28, 24),
        ),
    )
}

# model types of remote-code checkpoints, and the native type that `vidembed.backbone.load` turns them into
REMOTE_CODE_TYPES: dict[str, str] = {"videollama3_qwen2": "video_llama_3"}


def architecture_of(config: object, *, name: str) -> Architecture:
    """The row of a transformers config, or of anything with ``model_type``; UnsupportedBackboneError without one."""
    model_type = getattr(config, "model_type", None)
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    raise UnsupportedBackboneError(
        f"{name}: model_type {model_type!r} is not a supported video backbone. Supported: {sorted(ARCHITECTURES)}, and "
        f"remote-code checkpoints of type {sorted(REMOTE_CODE_TYPES)}. To add one, write a row of "
        "vidembed.backbone.architectures.ARCHITECTURES and a small model of it in tests/backbone/tiny.py."
    )


@dataclass(frozen=True)
class Parts:
    """The parts of a loaded model."""

    architecture: Architecture
    base: PreTrainedModel  # without the head: vision tower and decoder
    decoder: PreTrainedModel  # the text decoder inside `base`
    decoder_name: str  # attribute of `base` under which the decoder hangs
    blocks: nn.ModuleList  # block ``l`` (1-based) is ``blocks[l - 1]``
    norm: nn.Module  # after the last block
    head: nn.Module | None  # of the language model; None when the model was loaded without it

    @property
    def depth(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)


def find_parts(model: nn.Module, *, name: str | None = None) -> Parts:
    """Find decoder, blocks, norm and head of a transformers model, with or without its language model head.

    Raises:
        UnsupportedBackboneError: The architecture is not supported, or the model is not laid out as expected.
    """
    name = name or type(model).__name__
    architecture = architecture_of(getattr(model, "config", None), name=name)
    base, head = model, None
    if type(model).__name__ == architecture.conditional_class:
        base, head = model.get_submodule("model"), model.get_submodule("lm_head")
    if type(base).__name__ != architecture.base_class or not isinstance(base, PreTrainedModel):
        raise UnsupportedBackboneError(
            f"{name}: expected {architecture.conditional_class} or {architecture.base_class} for model_type "
            f"{architecture.model_type!r}, got {type(model).__name__}. Load it with transformers' own classes."
        )
    decoder_name = "language_model"
    decoder = getattr(base, decoder_name, None)
    missing = [part for part in ("layers", "norm", "embed_tokens") if not hasattr(decoder, part)]
    missing += [part for part in architecture.vision if not hasattr(base, part)]
    blocks = getattr(decoder, "layers", None)
    if not isinstance(decoder, PreTrainedModel) or not isinstance(blocks, nn.ModuleList) or missing:
        raise UnsupportedBackboneError(
            f"{name}: {architecture.base_class} has no {missing or [decoder_name]}; this transformers version lays it "
            "out differently. Please report it with the output of `pip show transformers`."
        )
    return Parts(architecture, base, decoder, decoder_name, blocks, decoder.get_submodule("norm"), head)


def check_layer(layer: int, depth: int, *, name: str) -> int:
    """Return how many of `depth` decoder blocks to keep for `layer`: itself, or all for -1 (VidVec-O).

    Raises:
        LayerError: `layer` is not an int, is 0, or lies beyond the depth.
    """
    if isinstance(layer, int) and not isinstance(layer, bool):
        if layer == -1:
            return depth
        if 1 <= layer <= depth:
            return layer
    raise LayerError(
        f"layer={layer!r} is not a decoder block of {name}, which has {depth}. Allowed: 1..{depth} (the output of that "
        "block, before any norm), or -1 for the last block with its trained final norm."
    )


@dataclass
class BlockOutput:
    """Filled by `capture_block` with the output of the block's last call."""

    hidden: torch.Tensor | None = None  # (B, S, D)


@contextmanager
def capture_block(parts: Parts, layer: int) -> Iterator[BlockOutput]:
    """Record the output of decoder block `layer` (1-based, before any norm) of each forward pass.

    This is the package's definition of "layer l". It does not use ``output_hidden_states``, whose last entry is
    before or after the final norm depending on the transformers version.
    """
    box = BlockOutput()

    def record(_module: nn.Module, _args: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
        box.hidden = output[0] if isinstance(output, tuple) else output

    handle = parts.blocks[layer - 1].register_forward_hook(record)
    try:
        yield box
    finally:
        handle.remove()
