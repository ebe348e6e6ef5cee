"""Adapters (LoRA and its kin) inside a model, told without importing the library that put them there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from vidembed.backbone.errors import BackboneError

BASE = "base weights"


WRAPPED = "base_layer"
"""Where an adapter layer of PEFT keeps the layer that it wraps."""


def applied_adapters(model: nn.Module) -> dict[str, dict[str, float | None]]:
    """The adapters that each adapter layer applies now, and the scale of each.

    Args:
        model: With adapter layers of PEFT or without.

    Returns:
        By the name of the layer. Empty for a layer that computes what it wraps and nothing else: its adapters are
        switched off, or already added to its weights.
    """
    found: dict[str, dict[str, float | None]] = {}
    for name, module in model.named_modules():
        layer: Any = module
        if not hasattr(layer, WRAPPED):
            continue
        merged = list(getattr(layer, "merged_adapters", ()))
        if getattr(layer, "disable_adapters", False):
            # its next forward pass takes a merged adapter out again
            found[name] = {f"{adapter} (merged, switched off)": None for adapter in merged}
        elif merged:
            found[name] = {}
        else:
            active: str | Iterable[str] = getattr(layer, "active_adapters", ())
            scales = getattr(layer, "scaling", {})
            found[name] = {
                adapter: scales.get(adapter) for adapter in ([active] if isinstance(active, str) else active)
            }
    return found


def active_adapters(model: nn.Module) -> tuple[str, ...]:
    """Names of the adapters that change what the model computes now, sorted."""
    return tuple(sorted({adapter for applied in applied_adapters(model).values() for adapter in applied}))


def check_saveable(model: nn.Module) -> None:
    """Refuse to save adapter layers that no model class would read back: their blocks would be random after loading.

    Raises:
        BackboneError: `model` has adapter layers that transformers does not know of.
    """
    layer = next(iter(applied_adapters(model)), None)
    known = getattr(model, "_hf_peft_config_loaded", False) or type(model).__module__.startswith("peft.")
    if layer is not None and not known:
        raise BackboneError(
            f"{layer} is an adapter layer that was put into the model without transformers' knowledge, so no "
            "checkpoint can hold it. Merge the adapter first (LanguageAdapter.merge), or save the adapter alone."
        )


def describe_weights(model: nn.Module) -> str:
    """Say which weights compute: `BASE`, or those with the adapters that are switched on."""
    names = active_adapters(model)
    return f"base weights with adapter {', '.join(names)}" if names else BASE
