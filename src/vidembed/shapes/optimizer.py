"""The optimizer of the embedded model, its learning rate, and its state as plain tensors.

Muon (https://kellerjordan.github.io/posts/muon/) for the matrices of the blocks, AdamW for everything else: side by
side on this model, Muon was ahead of AdamW alone at equal time within the first few hundred steps.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import nn

PEAK_RATE: Final = 2e-3
WEIGHT_DECAY: Final = 0.02
BETAS: Final = (0.9, 0.98)
MOMENTUM: Final = 0.95
WARMUP_STEPS: Final = 60
DECAY_SHARE: Final = 0.4
"""Share of the run over which the learning rate falls linearly to 2 % of its peak."""


def learning_rate(step: int, total: int, peak: float = PEAK_RATE) -> float:
    """Rate of a step: linear warm-up, constant, then a linear fall.

    Args:
        step: From 0.
        total: Steps of the whole run.
        peak: The highest rate.

    Returns:
        The rate.
    """
    fall = total * DECAY_SHARE
    return peak * min((step + 1) / WARMUP_STEPS, 1.0, max((total - step) / fall, 0.02))


class SplitOptimizer:
    """Muon on the blocks' matrices and AdamW on the rest, stepped together.

    Raises:
        RuntimeError: When torch has no Muon (it came with 2.9).
    """

    def __init__(self, model: nn.Module) -> None:
        if not hasattr(torch.optim, "Muon"):
            raise RuntimeError(f"training needs torch 2.9 or newer for torch.optim.Muon, this is {torch.__version__}")
        named = dict(model.named_parameters())
        blocks = (".layers.", ".blocks.", ".merger.mlp.")
        matrices = {n: p for n, p in named.items() if p.ndim == 2 and any(block in n for block in blocks)}
        rest = {n: p for n, p in named.items() if n not in matrices}
        self._parts: dict[str, tuple[torch.optim.Optimizer, list[str]]] = {
            "muon": (
                torch.optim.Muon(
                    matrices.values(),
                    lr=PEAK_RATE,
                    weight_decay=WEIGHT_DECAY,
                    momentum=MOMENTUM,
                    adjust_lr_fn="match_rms_adamw",
                ),
                list(matrices),
            ),
            "adamw": (
                torch.optim.AdamW(rest.values(), lr=PEAK_RATE, betas=BETAS, weight_decay=WEIGHT_DECAY, foreach=True),
                list(rest),
            ),
        }

    def step(self, rate: float) -> None:
        """Updates every parameter at this learning rate, and zeroes the gradients."""
        for optimizer, _ in self._parts.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """The whole state as named tensors, fit for safetensors."""
        found: dict[str, torch.Tensor] = {}
        for part, (optimizer, names) in self._parts.items():
            for index, state in optimizer.state_dict()["state"].items():
                for key, value in state.items():
                    found[f"{part}/{names[index]}/{key}"] = torch.as_tensor(value).detach().clone().contiguous()
        return found

    def load_state_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Takes over a state that ``state_tensors`` gave.

        Raises:
            ValueError: When it names a parameter that the model lacks.
        """
        for part, (optimizer, names) in self._parts.items():
            index = {name: i for i, name in enumerate(names)}
            state: dict[int, dict[str, Any]] = {}
            for key, value in tensors.items():
                owner, name, slot = key.split("/")
                if owner == part:
                    if name not in index:
                        raise ValueError(f"optimizer state holds {name!r}, which is not among this model's parameters")
                    state.setdefault(index[name], {})[slot] = value.clone()
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
