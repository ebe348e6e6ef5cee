"""Loading a video MLLM with transformers' own classes: safetensors only, no remote code."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin, VideoLlama3Config, VideoLlama3Processor
from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor

from vidembed.backbone.architectures import REMOTE_CODE_TYPES, TESTED_TYPES, conditional_class
from vidembed.errors import BackboneError, UnsupportedBackboneError

logger = logging.getLogger(__name__)

# what a processor gives a model: tensors by name, and what sentence-transformers adds (``modality``, a string)
Features: TypeAlias = dict[str, Any]
DTYPES = ("auto", "float32", "bfloat16", "float16")

# names of the original VideoLLaMA3 to native ones: transformers' ``from_pretrained(key_mapping=...)``
KEY_MAPPING: dict[str, str] = {
    r"^model\.vision_encoder\.(?:vision_tower\.)?": "model.vision_model.",
    r"^model\.mm_projector\.": "model.projector.",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
}

_IMAGE_TOKEN, _VIDEO_TOKEN = "<|image_pad|>", "<|video_pad|>"
_NOT_TEXT = frozenset(
    {"model_type", "architectures", "auto_map", "transformers_version", "vision_encoder", "vision_encoder_config"}
)

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}{%- else -%}"
    "{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'video' -%}{{- '<|video_pad|>\\n' -}}"
    "{%- elif item['type'] == 'image' -%}{{- '<|image_pad|>\\n' -}}"
    "{%- else -%}{{- item['text'] -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""The message format of the original checkpoints, with the native processor's placeholders (it writes the times)."""


@dataclass(frozen=True)
class Backbone:
    """A loaded model and its processor."""

    model: PreTrainedModel  # with its language model head
    processor: ProcessorMixin  # with the model's own chat template
    name: str  # what it was loaded from


def check_dtype(dtype: object) -> None:
    """Raise BackboneError, before any weight is read, for the name of a dtype that is not in `DTYPES`."""
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise BackboneError(f"dtype={dtype!r} is not known. Allowed: {', '.join(DTYPES)}, or a torch.dtype.")


def check_device(device: str | None) -> None:
    """Raise ValueError, before any weight is read, for a device that torch cannot use."""
    try:
        torch.empty(0, device=device)  # None is always to be had
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        advice = "leave it out for the best there is."
        raise ValueError(f"device={device!r} is not to be had here ({reason}); {advice}") from error


def load_backbone(
    name_or_path: str | Path,
    *,
    model_kwargs: dict[str, Any] | None = None,
    processor_kwargs: dict[str, Any] | None = None,
    config_kwargs: dict[str, Any] | None = None,
    **hub_kwargs: Any,
) -> Backbone:
    """Load a video MLLM of a supported architecture, or an original remote-code VideoLLaMA3, and its processor.

    The three dicts are for ``from_pretrained`` of model, ``AutoProcessor`` and ``AutoConfig``; `hub_kwargs` are
    ``revision``, ``token``, ``cache_dir`` and ``local_files_only``. UnsupportedBackboneError for another architecture,
    BackboneError for what is missing or refused, OSError of transformers for files that cannot be read.
    """
    name = str(name_or_path)
    path = Path(name)
    if path.exists() and not (path.is_dir() and (path / "config.json").is_file()):
        raise BackboneError(f"{name}: not a model directory; it must hold config.json and safetensors weights.")
    model_kwargs = {"dtype": "auto", **(model_kwargs or {})}
    check_dtype(model_kwargs["dtype"])
    if any([model_kwargs.pop("trust_remote_code", False), hub_kwargs.pop("trust_remote_code", False)]):
        raise BackboneError("trust_remote_code=True is refused: supported models load with transformers' own classes.")
    hub_kwargs = {key: value for key, value in hub_kwargs.items() if value is not None}

    raw, _ = PretrainedConfig.get_config_dict(name, **hub_kwargs)
    model_type = raw.get("model_type")
    config: PretrainedConfig
    processor: ProcessorMixin
    if model_type in REMOTE_CODE_TYPES:
        logger.info("%s: remote-code layout %s, remapped onto %s", name, model_type, REMOTE_CODE_TYPES[model_type])
        config = _native_config(raw, name=name)
        processor = _native_processor(name, config, **hub_kwargs)
        model_kwargs["key_mapping"] = KEY_MAPPING
    else:
        conditional_class(model_type, name=name)  # before the processor is read
        config_kwargs = {**hub_kwargs, **(config_kwargs or {})}
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **config_kwargs)
        processor = _load_processor(name, **hub_kwargs, **(processor_kwargs or {}))

    model_class = conditional_class(config.model_type, name=name)
    if config.model_type not in TESTED_TYPES:
        logger.warning(
            "%s: model_type %r is not tested here. Its parts are looked for in the model; run `vidembed check` on it.",
            name,
            config.model_type,
        )
    options = {**hub_kwargs, **model_kwargs, "use_safetensors": True, "output_loading_info": True}
    loaded: Any = model_class.from_pretrained(name, config=config, **options)
    model, info = loaded
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


def _load_processor(name: str, **kwargs: Any) -> ProcessorMixin:
    auto: Any = transformers.AutoProcessor  # untyped
    try:
        processor: ProcessorMixin = auto.from_pretrained(name, trust_remote_code=False, **kwargs)
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


def _native_config(original: dict[str, Any], *, name: str) -> VideoLlama3Config:
    """Translate the ``config.json`` of an original VideoLLaMA3 checkpoint."""
    projector = original.get("mm_projector_type", "mlp2x_gelu")
    if projector != "mlp2x_gelu":
        reason = f"mm_projector_type {projector!r} has no native counterpart; only 'mlp2x_gelu' does."
        raise UnsupportedBackboneError(f"{name}: {reason}")
    vision = original.get("vision_encoder_config")
    if not isinstance(vision, dict):
        raise UnsupportedBackboneError(
            f"{name}: config.json has no 'vision_encoder_config', so the size of the vision encoder is unknown. "
            "Checkpoints of the finished model have it; stage checkpoints with an external 'vision_encoder' do not."
        )
    text = {key: value for key, value in original.items() if key not in _NOT_TEXT}
    dtype = text.pop("torch_dtype", text.pop("dtype", None))
    config = VideoLlama3Config(
        text_config={**text, "model_type": "qwen2"},
        vision_config={key: value for key, value in vision.items() if key not in _NOT_TEXT},
        tie_word_embeddings=bool(original.get("tie_word_embeddings", False)),
    )
    config.architectures = ["VideoLlama3ForConditionalGeneration"]
    config.dtype = dtype
    return config


def _native_processor(name: str, config: VideoLlama3Config, **hub_kwargs: Any) -> VideoLlama3Processor:
    """Build the native processor around the original tokenizer, and set the placeholder ids in `config`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False, **hub_kwargs)
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (_IMAGE_TOKEN, _VIDEO_TOKEN) if token not in vocabulary]
    if missing:
        raise UnsupportedBackboneError(
            f"{name}: its tokenizer has no {missing}; the native model needs one placeholder token for images "
            "and one for videos, as in the Qwen2.5 tokenizer."
        )
    config.image_token_id = vocabulary[_IMAGE_TOKEN]
    config.video_token_id = vocabulary[_VIDEO_TOKEN]
    vision_config: Any = config.vision_config
    image_processor = transformers.VideoLlama3ImageProcessor(patch_size=vision_config.patch_size)
    video_processor = VideoLlama3VideoProcessor(patch_size=vision_config.patch_size)
    processor_class: Any = VideoLlama3Processor  # untyped
    processor: VideoLlama3Processor = processor_class(image_processor, tokenizer, video_processor, CHAT_TEMPLATE)
    return processor
