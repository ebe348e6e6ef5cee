"""LoRA on the language model of an encoder, by PEFT: inject, save, restore, merge."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from vidembed.backbone.architectures import find_parts
from vidembed.backbone.load import Features
from vidembed.building import MIN_COSINE, checked_target, drafted, probe_inputs, saved_cosines, write_recipe
from vidembed.card import render
from vidembed.checkpoint import ADAPTER_FILES, FILE_NAME, CheckpointConfig
from vidembed.encoder import VideoEncoder
from vidembed.errors import ReadoutMismatchError
from vidembed.inputs import Input
from vidembed.registry import loading_name
from vidembed.text import require_train_extra
from vidembed.video import Sampling

ALIGNMENT_FILE: Final = "alignment.json"
# least cosine between a vector before and after merging (ours). In float32 it is 1 but for 1e-6; rounding the sums to
# bfloat16 costs more, and under this something is wrong
MIN_MERGE_COSINE: Final = 0.99


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """Settings of a LoRA, of VidVec (arXiv 2602.08099, section 3.5) by default; a ValueError if one is out of range."""

    rank: int = 64  # of each update
    alpha: float = 128  # an update is scaled by ``alpha / rank``
    dropout: float = (
        0.05  # share of a layer's input dropped before its update, in training only (ours: the paper is silent)
    )

    def __post_init__(self) -> None:
        """Raise ValueError for a value that is out of range."""
        if self.rank < 1:
            raise ValueError(f"rank={self.rank!r}: expected at least 1.")
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha!r}: expected a number above 0.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r}: expected a share from 0 to below 1.")


def target_modules(model: nn.Module) -> str:
    """A pattern for PEFT: all linear layers of the decoder's blocks (ours: the paper names none) and nothing else."""
    parts = find_parts(model)
    names = (name for name, module in parts.blocks.named_modules() if isinstance(module, nn.Linear))
    leaves = sorted({name.rpartition(".")[2] for name in names})
    return rf"{re.escape(parts.decoder_name)}\.{parts.blocks_name}\.\d+\.(?:\w+\.)*(?:{'|'.join(leaves)})"


class LanguageAdapter:
    """A LoRA in the language model of an encoder (extra ``train``).

    The encoder's model gets the layers in place, so `encode` runs with them; the full MLLM (`VideoEncoder.backbone`),
    which has the same weights, does not. All weights are frozen but the adapter's, which are float32.

    Raises:
        MissingExtraError: A package of the extra ``train`` is not installed.
        UnsupportedBackboneError: The decoder of the encoder's model was not found.
    """

    def __init__(self, encoder: VideoEncoder, settings: LoraSettings | None = None) -> None:
        require_train_extra()
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - of the extra

        self.encoder = encoder
        self.settings = settings or LoraSettings()
        model = encoder.transformers_model
        assert model is not None  # noqa: S101 - an encoder always has one
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
            FileNotFoundError: There is none in `folder`.
            ValueError: It is of another model, layer or rank.
        """
        from peft import set_peft_model_state_dict  # noqa: PLC0415 - of the extra
        from safetensors.torch import load_file  # noqa: PLC0415 - with it

        file = Path(folder, ADAPTER_FILES[0])
        if not file.is_file():
            raise FileNotFoundError(f"{folder}: no {file.name} in it, so it is not an adapter.")
        weights = load_file(file)
        own = self._peft.base_model.model.named_parameters()
        wanted = {name.replace(".default.", "."): tuple(value.shape) for name, value in own if "lora_" in name}
        found = {name.removeprefix("base_model.model."): tuple(value.shape) for name, value in weights.items()}
        if wanted != found:
            differing = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
            one = differing[0]
            raise ValueError(
                f"{folder}: the adapter is of another model, layer or rank. {len(differing)} weights differ, for "
                f"example {one}: {found.get(one)} in the file, {wanted.get(one)} here."
            )
        set_peft_model_state_dict(self._peft, weights)

    def merge(self) -> VideoEncoder:
        """Add the updates to the weights, take the LoRA layers out again, and return the encoder.

        Sums are rounded to the dtype of the weights. A ValueError (from PEFT) if an update is not finite.
        """
        self._peft.merge_and_unload(safe_merge=True)
        if hasattr(self.encoder.transformers_model, "peft_config"):
            delattr(self.encoder.transformers_model, "peft_config")
        return self.encoder


@dataclass(frozen=True, eq=False)
class Probes:
    """The vectors that a saved model must give, of one video and one text."""

    features: list[Features]  # as the model takes them
    vectors: torch.Tensor  # (2, D)
    device: str  # where they were made
    merge_cosine: float  # least cosine between the model with its adapter and the merged one


def write_merged(adapter: LanguageAdapter, folder: Path) -> Probes:
    """Merge an adapter into its encoder and write a plain checkpoint; returns what `check_saved` compares."""
    encoder, inputs = adapter.encoder.eval(), probe_inputs()
    before = _embed_each(encoder, inputs)
    adapter.merge()
    merged = _embed_each(encoder, inputs)
    cosine = torch.nn.functional.cosine_similarity(before, merged).min().item()
    if not cosine >= MIN_MERGE_COSINE:
        raise ReadoutMismatchError(
            f"after merging, a vector has cosine {cosine:.6f}; at least {MIN_MERGE_COSINE} is required. Nothing was "
            "written. Train in float32 (dtype='float32'), or write the adapter alone."
        )
    encoder.save_pretrained(str(folder), create_model_card=False)
    return Probes([encoder.preprocess([item]) for item in inputs], merged, str(encoder.device), cosine)


def _embed_each(encoder: VideoEncoder, inputs: list[Input]) -> torch.Tensor:
    """Vectors (N, D) float64 of inputs one by one, since padding changes them in half precision."""
    return torch.from_numpy(np.stack([encoder.encode(item) for item in inputs])).double()


def check_saved(folder: Path, probes: Probes) -> None:
    """Load a checkpoint with sentence-transformers and compare its vectors; a ReadoutMismatchError if they differ."""
    _check(*saved_cosines(folder, probes.features, probes.vectors, device=probes.device))


def _check(video: float, text: float) -> None:
    if not min(video, text) >= MIN_COSINE:
        raise ReadoutMismatchError(
            f"loaded again, the checkpoint gives cosine {video:.6f} (video) and {text:.6f} (text) with the trained "
            f"model; at least {MIN_COSINE} is required. Nothing was written. Please report it with the model's "
            "config.json."
        )


def write_adapter(adapter: LanguageAdapter, folder: Path, target: Path) -> None:
    """Write the adapter alone into `folder`, which `target` will be, with what it is to be put into.

    Trained on an MLLM, the result is a recipe, which is loaded back and must give the same vectors
    (ReadoutMismatchError). Trained on a checkpoint, it is to be merged into that.
    """
    adapter.save(folder)
    encoder = adapter.encoder.eval()
    config, backbone = encoder.checkpoint_config, encoder.backbone
    if config is None:
        return
    if backbone is None or backbone.folder is None:
        replace(config, sampling=encoder.sampling.as_dict()).write(folder)
        return
    write_recipe(encoder, folder, target, adapter=True)
    inputs = probe_inputs()
    loaded = VideoEncoder(folder, device=str(encoder.device))
    cosines = torch.nn.functional.cosine_similarity(_embed_each(encoder, inputs), _embed_each(loaded, inputs))
    _check(*cosines.tolist())


def merge_adapter(
    mllm: str | Path, adapter: str | Path, out: str | Path, *, overwrite: bool = False, **how: Any
) -> Path:
    """Merge an adapter that `align` wrote alone into its model, as a plain sentence-transformers checkpoint.

    Args:
        mllm: The model that it was trained on: a video MLLM, or a checkpoint of this layer.
        adapter: The folder of the adapter.
        out: Folder to write, which is returned.
        overwrite: Replace `out` if it exists.
        **how: As `VideoEncoder` takes, for example ``device`` or ``model_kwargs``.

    Raises:
        FileExistsError: `out` exists and is not empty, and `overwrite` is False.
        FileNotFoundError: `adapter` holds no adapter; a ValueError if it is of another model.
        ReadoutMismatchError: The checkpoint does not give the model's vectors; nothing is written.
    """
    target = checked_target(out, overwrite=overwrite)
    settings_file = Path(adapter, "adapter_config.json")
    if not settings_file.is_file():
        raise FileNotFoundError(f"{adapter}: no adapter_config.json in it, so it is not an adapter.")
    lora = json.loads(settings_file.read_text(encoding="utf-8"))
    config = CheckpointConfig.read(Path(adapter, FILE_NAME))
    encoder = VideoEncoder(mllm, layer=config.layer, prefix=config.prefix, sampling=Sampling(**config.sampling), **how)
    loaded = LanguageAdapter(encoder, LoraSettings(lora["r"], lora["lora_alpha"], lora["lora_dropout"]))
    loaded.load(adapter)
    with drafted(target) as draft:
        probes = write_merged(loaded, draft)
        del encoder, loaded
        check_saved(draft, probes)
        facts = Path(adapter, ALIGNMENT_FILE)
        alignment = json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {}
        write_facts(draft, loading_name(out), alignment)
    return target


def write_facts(folder: Path, name: str, alignment: Mapping[str, object]) -> None:
    """Write ``alignment.json``, and the card of a checkpoint that is loaded by `name`."""
    (folder / ALIGNMENT_FILE).write_text(json.dumps(alignment, indent=2) + "\n", encoding="utf-8")
    file = folder / FILE_NAME
    if file.is_file():
        (folder / "README.md").write_text(_card(name, CheckpointConfig.read(file), alignment), encoding="utf-8")


def _card(name: str, config: CheckpointConfig, alignment: Mapping[str, object]) -> str:
    merged = alignment.get("output", "merged") == "merged"
    library = "sentence-transformers" if merged else "peft"
    return render("aligned.md", name, library=library, config=config, merged=merged, alignment=alignment)
