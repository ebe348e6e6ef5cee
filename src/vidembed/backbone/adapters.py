"""Adapters (LoRA and its kin) inside a model, told without importing the library that put them there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

BASE = "base weights"


def active_adapters(model: nn.Module) -> tuple[str, ...]:
    """Names of the adapters that change what the model computes now, sorted.

    An adapter layer of PEFT names the adapters that it applies and says whether they are switched off.
    """
    names: set[str] = set()
    for module in model.modules():
        layer: Any = module
        if not hasattr(layer, "base_layer") or getattr(layer, "disable_adapters", False):
            continue
        active: str | Iterable[str] = getattr(layer, "active_adapters", ())
        names |= {active} if isinstance(active, str) else set(active)
    return tuple(sorted(names))


def describe_weights(model: nn.Module) -> str:
    """Say which weights compute: `BASE`, or those with the adapters that are switched on."""
    names = active_adapters(model)
    return f"base weights with adapter {', '.join(names)}" if names else BASE
