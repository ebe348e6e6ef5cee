"""Decoder, blocks, norm and head of a loaded model, found in the model itself, and what no model says of itself."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES  # type: ignore[attr-defined]

from vidembed.errors import LayerError, UnsupportedBackboneError

M = TypeVar("M", bound=nn.Module)

_OWN_REGISTRIES = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")

# model types of remote-code checkpoints, and the native type that `vidembed.backbone.load` turns them into
REMOTE_CODE_TYPES: dict[str, str] = {"videollama3_qwen2": "video_llama_3"}

# of which a random small model passes cut, batch, reload and prefix tests: tests/backbone/{tiny,zoo}.py
TESTED_TYPES = frozenset(
    {
        *("exaone4_5", "gemma4", "glm46v", "glm4v", "hyperclovax_vision_v2", "internvl", "lfm3_vl"),
        *("llava_next_video", "llava_onevision", "minicpmv4_6", "minicpmv4_7", "molmo2", "qwen2_5_vl", "qwen2_vl"),
        *("qwen3_5", "qwen3_5_moe", "qwen3_vl", "qwen3_vl_moe", "smolvlm", "video_llama_3", "video_llava"),
    }
)


def video_types() -> list[str]:
    """Model types that transformers has both a language model head and a video processor for, sorted."""
    return sorted(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES.keys() & VIDEO_PROCESSOR_MAPPING_NAMES.keys())


def conditional_class(model_type: str | None, *, name: str) -> type[PreTrainedModel]:
    """The transformers class with the language model head; UnsupportedBackboneError for no video language model."""
    if model_type in video_types():
        found: type[PreTrainedModel] = getattr(transformers, str(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES[model_type]))
        return found
    raise UnsupportedBackboneError(
        f"{name}: model_type {model_type!r} is not a video language model of transformers {transformers.__version__}. "
        f"Allowed: {', '.join(video_types())}, and remote-code checkpoints of type {', '.join(REMOTE_CODE_TYPES)}."
    )


@dataclass(frozen=True)
class Parts:
    """The parts of a loaded model."""

    model: PreTrainedModel  # as it was given
    base: PreTrainedModel  # without the head: vision tower and decoder
    decoder: PreTrainedModel  # the text decoder inside `base`
    decoder_name: str  # path of the decoder in `base`
    blocks: nn.ModuleList  # block ``l`` (1-based) is ``blocks[l - 1]``
    blocks_name: str  # attribute of the decoder
    norm: nn.Module  # after the last block
    norm_name: str  # attribute of the decoder
    head: nn.Module | None  # of the language model; None when the model was loaded without it

    @property
    def depth(self) -> int:
        """Number of decoder blocks."""
        return len(self.blocks)

    @property
    def model_type(self) -> str:
        """Architecture, as transformers names it."""
        return str(self.base.config.model_type)

    @property
    def attention(self) -> str | None:
        """Attention implementation, as transformers names it."""
        return getattr(self.base.config, "_attn_implementation", None)


def find_parts(model: nn.Module, *, name: str | None = None) -> Parts:
    """Find decoder, blocks, norm and head of a transformers model, with or without its language model head.

    Raises:
        UnsupportedBackboneError: It does not hold one decoder of one stack of blocks with one norm after them.
    """
    name = name or type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedBackboneError(
            f"{name}: got a {type(model).__name__}, which is not a model of transformers. Load it with transformers' "
            f"own "
            "classes."
        )
    untyped: Any = model  # some of its methods have no types
    base, decoder = untyped.base_model, untyped.get_decoder()
    paths = [path for path, module in base.named_modules() if module is decoder and path]
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    width = untyped.get_input_embeddings().weight.shape[-1]
    children = dict(decoder.named_children())
    stacks = [key for key, child in children.items() if isinstance(child, nn.ModuleList) and len(child) == depth]
    norms = [key for key, child in children.items() if _is_norm(child, width)]
    if not paths or not isinstance(decoder, PreTrainedModel) or len(stacks) != 1 or len(norms) != 1:
        raise UnsupportedBackboneError(
            f"{name}: in {type(base).__name__} (model_type {model.config.model_type!r}), the decoder "
            f"{type(decoder).__name__} at {paths} has the stacks of {depth} blocks {stacks} and the norms {norms}; one "
            f"of each is needed to cut the model. Tested types: {', '.join(sorted(TESTED_TYPES))}."
        )
    blocks = decoder.get_submodule(stacks[0])
    assert isinstance(blocks, nn.ModuleList)  # noqa: S101 - looked for above
    head = None if base is model else untyped.get_output_embeddings()
    return Parts(model, base, decoder, paths[0], blocks, stacks[0], children[norms[0]], norms[0], head)


def _is_norm(module: nn.Module, width: int) -> bool:
    """Whether a module is a norm of hidden states, and not one of attention heads or of other widths."""
    shapes = {tuple(parameter.shape) for parameter in module.parameters()}
    return "norm" in type(module).__name__.lower() and shapes == {(width,)}


def shallow(module: M) -> M:
    """A second module object on the same parameters, buffers and children."""
    clone = module.__class__.__new__(module.__class__)
    clone.__dict__ = dict(module.__dict__)
    for registry in _OWN_REGISTRIES:  # copy.copy would share these, and a cut would cut the original too
        clone.__dict__[registry] = copy.copy(module.__dict__[registry])
    return clone


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
