"""LoRA on the language model of an encoder, by PEFT: inject, save, restore, merge."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from torch import nn

from vidembed.backbone import find_parts
from vidembed.training.extras import require_extra

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder

WEIGHTS_FILE: Final = "adapter_model.safetensors"  # PEFT's name for it


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What a LoRA is.

    Attributes:
        rank: Rank of each update. Default 64 (VidVec, arXiv 2602.08099, section 3.5).
        alpha: An update is scaled by ``alpha / rank``. Default 128 (same place).
        dropout: Share of a layer's input dropped before its update, in training only. Default 0.05 (ours: the paper
            is silent).

    Raises:
        ValueError: A value is out of range.
    """

    rank: int = 64
    alpha: float = 128
    dropout: float = 0.05

    def __post_init__(self) -> None:
        """Check the values."""
        if self.rank < 1:
            raise ValueError(f"rank={self.rank!r}: expected at least 1.")
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha!r}: expected a number above 0.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r}: expected a share from 0 to below 1.")

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


def target_modules(model: nn.Module) -> str:
    """A pattern that matches every linear layer of the decoder's blocks and nothing else.

    Args:
        model: The base model of a supported architecture (vision tower and decoder).

    Returns:
        For ``target_modules`` of PEFT, which matches it against whole module names. The paper does not name the
        layers; all of them is ours, and what PEFT calls "all-linear" less the vision tower and its projector.
    """
    parts = find_parts(model)
    names = {name for name, module in parts.blocks.named_modules() if isinstance(module, nn.Linear)}
    leaves = sorted({name.rpartition(".")[2] for name in names})
    return rf"{re.escape(parts.decoder_name)}\.layers\.\d+\.(?:\w+\.)*(?:{'|'.join(leaves)})"


class LanguageAdapter:
    """A LoRA in the language model of an encoder.

    The encoder's model gets the layers in place, so `encode` runs with them. Blocks that it shares with the full MLLM
    (`VideoEncoder.backbone`) have them there too.

    Args:
        encoder: The encoder to train. All of its weights are frozen; those of the adapter are float32.
        settings: Of the LoRA.

    Attributes:
        encoder: The encoder.
        settings: Of the LoRA.

    Raises:
        MissingExtraError: PEFT is not installed.
    """

    def __init__(self, encoder: VideoEncoder, settings: LoraSettings | None = None) -> None:
        require_extra()
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - of the extra

        self.encoder = encoder
        self.settings = settings or LoraSettings()
        model: Any = encoder[0].model
        config = LoraConfig(
            r=self.settings.rank,
            lora_alpha=self.settings.alpha,  # type: ignore[arg-type]  # PEFT divides it; fractions are fine
            lora_dropout=self.settings.dropout,
            target_modules=target_modules(model),
            bias="none",
        )
        encoder.requires_grad_(requires_grad=False)
        self._peft: Any = get_peft_model(model, config)
        source = encoder.checkpoint_config.source if encoder.checkpoint_config else None
        self._peft.peft_config["default"].base_model_name_or_path = source  # never a path of this machine

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The trained parameters by name, none of them outside the decoder's blocks."""
        return {name: value for name, value in self.encoder.named_parameters() if value.requires_grad}

    @property
    def size(self) -> int:
        """Number of trained values."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    def save(self, folder: str | Path) -> None:
        """Write a PEFT adapter, its weights named as in the base model (the class without the head)."""
        self._peft.save_pretrained(str(folder), save_embedding_layers=False)  # "auto" would ask the Hub
        Path(folder, "README.md").unlink(missing_ok=True)  # PEFT's empty form of a card

    def load(self, folder: str | Path) -> None:
        """Put the weights of an adapter that `save` wrote into this one.

        Raises:
            FileNotFoundError: There is no adapter in the folder.
            ValueError: It is of another model, layer or rank.
        """
        from peft import set_peft_model_state_dict  # noqa: PLC0415 - of the extra
        from safetensors.torch import load_file  # noqa: PLC0415 - with it

        file = Path(folder, WEIGHTS_FILE)
        if not file.is_file():
            raise FileNotFoundError(f"{folder}: no {WEIGHTS_FILE} in it, so it holds no adapter.")
        weights = load_file(file)
        prefix = "base_model.model."
        wanted = {
            name.replace(".default.", "."): tuple(value.shape)
            for name, value in self._peft.base_model.model.named_parameters()
            if "lora_" in name
        }
        found = {name.removeprefix(prefix): tuple(value.shape) for name, value in weights.items()}
        if wanted != found:
            differing = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
            name = differing[0]
            raise ValueError(
                f"{folder}: the adapter is of another model, layer or rank. {len(differing)} weights differ, for "
                f"example {name}: {found.get(name)} in the file, {wanted.get(name)} here."
            )
        set_peft_model_state_dict(self._peft, weights)

    def merge(self) -> VideoEncoder:
        """Add the updates to the weights and take the LoRA layers out again.

        Returns:
            The encoder, now without an adapter. Where its weights are half precision, the sums are rounded to it.

        Raises:
            ValueError: An update is not finite (from PEFT).
        """
        self._peft.merge_and_unload(safe_merge=True)
        model: Any = self.encoder[0].model
        if hasattr(model, "peft_config"):
            del model.peft_config
        return self.encoder
