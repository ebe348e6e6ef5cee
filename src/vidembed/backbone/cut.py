"""A decoder cut after block `layer`, as a view that shares every weight with the full model.

Reading the output of block l is the same as running a decoder of l blocks whose final norm has unit weight: RMSNorm
with unit weight only rescales a vector, and cosine similarity does not see its scale. The cut model neither runs nor
stores what comes after, and it is an ordinary transformers model.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from vidembed.backbone.errors import UnsupportedBackboneError
from vidembed.backbone.parts import Parts, check_layer, find_parts

M = TypeVar("M", bound=nn.Module)

_OWN_REGISTRIES = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")


def cut(model: nn.Module, layer: int, *, name: str | None = None) -> nn.Module:
    """Cut a model after decoder block `layer`.

    Args:
        model: A supported transformers model, with or without its head. It is left as it was.
        layer: 1-based decoder block, or -1 for all blocks with the trained final norm.
        name: How to name the model in an error.

    Returns:
        The base model (no head) of `layer` blocks, on the same parameters: only the final norm's unit weight is new.
        With ``layer=-1`` nothing is new.

    Raises:
        LayerError: `layer` is not a block of the model.
        UnsupportedBackboneError: The architecture or its final norm is not supported.
    """
    name = name or type(model).__name__
    parts = find_parts(model, name=name)
    blocks = check_layer(layer, parts.depth, name=name)
    # transformers hooks the blocks once per decoder object: were the view first to ask for hidden states, the full
    # decoder would hook the shared blocks again and every index would be off.
    maybe_install_capturing_hooks(cast("Any", parts.decoder))

    decoder = _shallow(parts.decoder)
    decoder.layers = nn.ModuleList(list(parts.blocks)[:blocks])
    if layer != -1:
        decoder.norm = _unit_norm(parts, name=name)
    view = _shallow(parts.base)
    config: Any = copy.deepcopy(parts.base.config)
    text_config = config.get_text_config()
    text_config.num_hidden_layers = blocks
    if getattr(text_config, "layer_types", None):
        text_config.layer_types = list(text_config.layer_types)[:blocks]
    decoder.config = text_config
    view.config = config
    setattr(view, parts.decoder_name, decoder)
    return view


def _shallow(module: M) -> M:
    """A second module object on the same parameters, buffers and children."""
    clone = module.__class__.__new__(module.__class__)
    clone.__dict__ = dict(module.__dict__)
    for registry in _OWN_REGISTRIES:  # copy.copy would share these, and a cut would cut the original too
        clone.__dict__[registry] = copy.copy(module.__dict__[registry])
    return clone


def without_hooks(module: M) -> M:
    """A second tree of module objects on the same parameters, without forward hooks, so that it can be pickled.

    transformers' capturing hooks are local functions, which no process pool can send to a worker.
    """
    clone = _shallow(module)
    clone._forward_hooks.clear()
    clone.__dict__.pop("_output_capturing_hooks_installed", None)
    for name, child in module._modules.items():
        clone._modules[name] = None if child is None else without_hooks(child)
    return clone


def _unit_norm(parts: Parts, *, name: str) -> nn.Module:
    norm = parts.norm
    weights = dict(norm.named_parameters())
    if "RMSNorm" not in type(norm).__name__ or set(weights) != {"weight"} or not _weight_is_plain_factor(norm):
        raise UnsupportedBackboneError(
            f"{name}: its final norm {type(norm).__name__} is not a plain RMSNorm (y = weight * x / rms(x)), so a unit "
            "weight would change the direction of the vector. Such norms need their own treatment in "
            "vidembed.backbone.cut."
        )
    unit = _shallow(norm)
    unit.weight = nn.Parameter(torch.ones_like(weights["weight"]), requires_grad=False)
    return unit


@torch.no_grad()
def _weight_is_plain_factor(norm: nn.Module) -> bool:
    """Whether the norm multiplies by `weight`, not by ``1 + weight``, and subtracts no mean."""
    probe = _shallow(norm)
    weight = cast("torch.Tensor", norm.weight)
    if weight.is_meta:
        return True  # nothing to compute on; the build verifies the saved model anyway
    probe.weight = nn.Parameter(torch.ones_like(weight), requires_grad=False)
    x = torch.linspace(-1.0, 2.0, weight.shape[0], device=weight.device, dtype=weight.dtype)  # (D,)
    return torch.nn.functional.cosine_similarity(probe(x).float(), x.float(), dim=0).item() > 0.9999
