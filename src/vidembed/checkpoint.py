"""``vidembed_config.json``: of a checkpoint with weights of its own, or of a recipe, which names a video MLLM."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn
from transformers import PreTrainedModel

from vidembed.backbone.load import Backbone, files_digest, load_backbone
from vidembed.errors import BackboneError
from vidembed.registry import CONFIG_FILE, NAMESPACE, find_model, own_name
from vidembed.text import require

FILE_NAME: Final = CONFIG_FILE
ADAPTER_FILES: Final = ("adapter_model.safetensors", "adapter_config.json")  # PEFT's names for them
LAYER_DEFINITION: Final = (
    "layer l is the output of decoder block l (1-based, before any norm), scaled by an RMSNorm with unit weight; "
    "layer -1 is the output of the last block through the trained final norm"
)
_READOUT: Final = ("chat_template", "video_processor", "image_processor")  # what of a fingerprint the processor decides


@dataclass(frozen=True)
class Recipe:
    """What a model is made of whenever it is loaded."""

    mllm: str  # the video MLLM: an absolute path, or a name under ``vidembed/`` or on the Hub
    beside: str | None  # where it is from the folder of the recipe, for two folders that are moved together
    revision: str | None  # commit on the Hub
    dtype: str  # of the weights, unless another one is asked for
    weights: str  # `files_digest` of the MLLM
    readout: dict[str, Any]  # fields of the fingerprint that the MLLM's processor decides
    adapter: bool = False  # whether a LoRA is beside it, which is put into the cut model

    @classmethod
    def of(cls, backbone: Backbone, made: Mapping[str, Any], folder: Path, *, adapter: bool = False) -> Recipe:
        """Describe how to make, from `folder`, the encoder with the fingerprint fields `made` of a loaded MLLM."""
        if backbone.folder is None:
            raise BackboneError(f"{backbone.name}: it was not loaded from files, so a recipe cannot refer to it.")
        mllm, beside = own_name(backbone.folder) or backbone.name, None
        if not mllm.startswith(NAMESPACE) and Path(mllm).exists():
            mllm = str(Path(mllm).absolute())
            with suppress(ValueError):  # on another drive of Windows
                beside = os.path.relpath(mllm, folder)
        readout = json.loads(json.dumps({key: made[key] for key in _READOUT}))
        digest = files_digest(backbone.folder)
        return cls(mllm, beside, backbone.revision, made["dtype"], digest, readout, adapter)

    def find(self, folder: Path) -> str:
        """What loads the MLLM, from the recipe in `folder`; BackboneError if it is a folder that is gone."""
        if self.mllm.startswith(NAMESPACE):
            found = find_model(self.mllm)
        elif Path(self.mllm).is_absolute():
            places = [Path(self.mllm), *([folder / self.beside] if self.beside else [])]
            found = next((place for place in places if place.is_dir()), None)
        else:
            return self.mllm
        if found is None:
            raise BackboneError(
                f"{folder}: this model is a recipe, and the video MLLM that it refers to is missing: {self.mllm}. "
                f"Restore it, or build the model again from its new place (vidembed build, with --overwrite)."
            )
        return str(found)

    def check(self, made: Mapping[str, Any], folder: Path) -> None:
        """Raise BackboneError if the fields of a fingerprint that are in `made` are not those of the build."""
        now = json.loads(json.dumps({key: made[key] for key in _READOUT if key in made}))
        differing = [key for key in now if now[key] != self.readout.get(key)]
        if made.get("weights", self.weights) != self.weights:
            differing.insert(0, "weights")
        if differing:
            raise BackboneError(
                f"{folder}: this model is a recipe, and the video MLLM that it refers to, {self.mllm}, has changed "
                f"since the recipe was built: different {', '.join(differing)}. Its vectors would differ. Build the "
                f"model again "
                "(vidembed build, with --overwrite) and index the videos again, or restore the MLLM."
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """Settings that the vectors of a checkpoint depend on, beside those that sentence-transformers keeps."""

    layer: int  # decoder block that is read, or -1 (see `LAYER_DEFINITION`)
    depth: int  # decoder blocks of the model that it was cut from
    model_type: str  # architecture, as transformers names it
    source: str  # what it was built from
    prefix: str | None  # what stands before the content in the prompt, None for nothing
    sampling: dict[str, Any]  # the frame grid, as `Sampling.as_dict`
    fingerprint: str = ""  # `VideoEncoder.fingerprint` when it was saved; empty before
    recipe: Recipe | None = None  # where the weights come from, if they are not beside it (format_version 2)

    def write(self, folder: str | Path) -> None:
        """Write the file into a checkpoint folder."""
        content = {"format_version": 1, "layer_definition": LAYER_DEFINITION, **asdict(self)}
        if self.recipe is None:
            del content["recipe"]
        else:
            content["format_version"] = 2
        Path(folder, FILE_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, file: str | Path) -> CheckpointConfig:
        """Read a file that `write` wrote; BackboneError if it is of a newer format, or not such a file."""
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        version = content.pop("format_version", None)
        content.pop("layer_definition", None)
        if version not in (1, 2):
            raise BackboneError(
                f"{file}: format_version {version!r}; this vidembed reads 1 and 2. Upgrade vidembed, or build "
                "the checkpoint again."
            )
        try:
            if "recipe" in content:
                content["recipe"] = Recipe(**content["recipe"])
            return cls(**content)
        except TypeError as error:
            raise BackboneError(f"{file}: {error}. Build the checkpoint again.") from error


def open_recipe(folder: Path, config: CheckpointConfig, *, model_kwargs: Any = None, **how: Any) -> Backbone:
    """Load the MLLM of the recipe in `folder`, once in a process; `how` as `load_backbone` takes.

    Raises:
        BackboneError: It is no recipe, or its MLLM is gone, cannot be loaded or has changed.
    """
    recipe = config.recipe
    if recipe is None:
        raise BackboneError(f"{folder}: a checkpoint whose weights are missing. Build it again.")
    name, given = recipe.find(folder), dict(model_kwargs or {})
    if "torch_dtype" not in given:
        given = {"dtype": recipe.dtype, **given}
    try:
        backbone = load_backbone(name, model_kwargs=given, **{**how, "revision": recipe.revision})
    except OSError as error:
        raise BackboneError(
            f"{folder}: this model is a recipe, and the video MLLM that it refers to, {name}, cannot be loaded "
            f"({error}). Make it available, or build the model again from its new place (vidembed build)."
        ) from error
    if backbone.folder is not None:
        recipe.check({"weights": files_digest(backbone.folder)}, folder)
    return backbone


def put_adapter(model: nn.Module, folder: Path) -> None:
    """Put the LoRA in `folder` into a cut model, in the dtype that it was trained in.

    Raises:
        MissingExtraError: PEFT is not installed.
        BackboneError: The adapter is not of this model.
    """
    require("train", "peft", purpose=f"the adapter in {folder}")
    from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - of the extra
    from safetensors.torch import load_file  # noqa: PLC0415 - only here

    weights = load_file(folder / ADAPTER_FILES[0])
    given = json.loads((folder / ADAPTER_FILES[1]).read_text(encoding="utf-8"))
    kept = {name: given[name] for name in ("r", "lora_alpha", "lora_dropout", "target_modules")}
    inject_adapter_in_model(LoraConfig(**kept, bias="none"), model)
    own = {name.replace(".default.", "."): value for name, value in model.named_parameters() if "lora_" in name}
    found = {name.removeprefix("base_model.model."): value for name, value in weights.items()}
    if differing := sorted(name for name in {*own, *found} if name not in own or name not in found):
        raise BackboneError(f"{folder}: its adapter is of another model or layer; {differing[0]} is in one only.")
    for name, parameter in own.items():
        if parameter.shape != found[name].shape:
            raise BackboneError(
                f"{folder}: its adapter is of another model or rank; {name} is {tuple(found[name].shape)} in it and "
                f"{tuple(parameter.shape)} here."
            )
        parameter.data = found[name]
    model.eval()


@torch.no_grad()
def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A second model, with the updates of its LoRA added to the weights that it has; the first one keeps its own."""
    plain = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    for name, layer in list(plain.named_modules()):
        if hasattr(layer, "base_layer") and hasattr(layer, "get_delta_weight"):
            base, delta = layer.base_layer, layer.get_delta_weight("default")
            base.weight = nn.Parameter(base.weight + delta.to(base.weight.dtype), requires_grad=False)
            plain.set_submodule(name, base)
    vars(plain).pop("peft_config", None)
    return plain
