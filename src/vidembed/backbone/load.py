"""Loading a video MLLM with transformers' own classes: safetensors only, no remote code."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoProcessor, PretrainedConfig

from vidembed.backbone import remap
from vidembed.backbone.architectures import REMOTE_CODE_TYPES, architecture_of
from vidembed.backbone.errors import BackboneError, UnsupportedBackboneError

logger = logging.getLogger(__name__)

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Backbone:
    """A loaded model and its processor.

    Attributes:
        model: The model with its language model head.
        processor: Its processor, with the model's own chat template.
        name: What it was loaded from.
    """

    model: nn.Module
    processor: Any
    name: str


def check_dtype(dtype: Any) -> Any:
    """Refuse a dtype name that torch does not know before any weight is read.

    Raises:
        BackboneError: `dtype` is a string that is not in `DTYPES`.
    """
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise BackboneError(f"dtype={dtype!r} is not known. Allowed: {', '.join(DTYPES)}, or a torch.dtype.")
    return dtype


def check_device(device: str | None) -> None:
    """Refuse a device that is not there before any weight is read.

    Raises:
        ValueError: torch cannot use it.
    """
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device={device!r} is not to be had here ({reason}); leave it out for the best there is."
        ) from error


def load_backbone(
    name_or_path: str | Path,
    *,
    model_kwargs: dict[str, Any] | None = None,
    processor_kwargs: dict[str, Any] | None = None,
    config_kwargs: dict[str, Any] | None = None,
    **hub_kwargs: Any,
) -> Backbone:
    """Load a video MLLM and its processor.

    Args:
        name_or_path: Directory or Hub name of a model of a supported architecture, or of an original remote-code
            VideoLLaMA3 checkpoint, which is remapped onto the native class.
        model_kwargs: For ``from_pretrained`` of the model, for example ``{"dtype": "bfloat16"}``.
        processor_kwargs: For ``AutoProcessor.from_pretrained``.
        config_kwargs: For ``AutoConfig.from_pretrained``.
        **hub_kwargs: ``revision``, ``token``, ``cache_dir``, ``local_files_only``.

    Raises:
        UnsupportedBackboneError: The architecture is not in the table or has no video support.
        BackboneError: The processor is missing or incomplete, or the dtype is unknown.
        OSError: The files cannot be found or read (from transformers).
    """
    name = str(name_or_path)
    path = Path(name)
    if path.exists() and not (path.is_dir() and (path / "config.json").is_file()):
        raise BackboneError(f"{name}: not a model directory; it must hold config.json and safetensors weights.")
    model_kwargs = {"dtype": "auto", **(model_kwargs or {})}
    check_dtype(model_kwargs["dtype"])
    model_kwargs.pop("use_safetensors", None)  # it is always asked for
    if model_kwargs.pop("trust_remote_code", False):
        raise BackboneError("trust_remote_code=True is refused: supported models load with transformers' own classes.")
    hub_kwargs = {key: value for key, value in hub_kwargs.items() if value is not None}

    raw, _ = PretrainedConfig.get_config_dict(name, **hub_kwargs)
    model_type = raw.get("model_type")
    if model_type in REMOTE_CODE_TYPES:
        logger.info("%s: remote-code layout %s, remapped onto %s", name, model_type, REMOTE_CODE_TYPES[model_type])
        config: Any = remap.native_config(raw, name=name)
        processor: Any = remap.native_processor(name, config, **hub_kwargs)
        model_kwargs["key_mapping"] = remap.KEY_MAPPING
    else:
        architecture_of(SimpleNamespace(model_type=model_type), name=name)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub_kwargs, **(config_kwargs or {}))
        processor = _load_processor(name, **hub_kwargs, **(processor_kwargs or {}))

    model_class = getattr(transformers, architecture_of(config, name=name).conditional_class)
    model, info = model_class.from_pretrained(
        name, config=config, use_safetensors=True, output_loading_info=True, **hub_kwargs, **model_kwargs
    )
    missing = sorted(info["missing_keys"])
    if missing == ["lm_head.weight"]:
        raise BackboneError(
            f"{name}: it holds no language model head; checkpoints that vidembed.build cut do not. Give the full MLLM "
            "that it was built from."
        )
    if missing:
        raise BackboneError(
            f"{name}: {len(missing)} weights of {model_class.__name__} are missing from the checkpoint, for example "
            f"{missing[:3]}; transformers would fill them with random numbers. Is the checkpoint complete, and does "
            "its config.json belong to it?"
        )
    model.eval()
    return Backbone(model, processor, name)


def _load_processor(name: str, **kwargs: Any) -> Any:
    try:
        auto: Any = AutoProcessor
        processor = auto.from_pretrained(name, trust_remote_code=False, **kwargs)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"{name}: no processor could be loaded ({error}). Save it beside the model: processor_config.json (or "
            "preprocessor_config.json and video_preprocessor_config.json) and the tokenizer files."
        ) from error
    missing = [part for part in ("tokenizer", "image_processor", "video_processor") if not hasattr(processor, part)]
    if missing:
        raise UnsupportedBackboneError(
            f"{name}: its processor {type(processor).__name__} has no {', '.join(missing)}, so it cannot take videos. "
            "Use a checkpoint of a video model with its full processor."
        )
    return processor
