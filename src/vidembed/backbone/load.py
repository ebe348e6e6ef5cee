"""Loading a video MLLM with transformers' own classes: safetensors only, no remote code."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin, VideoLlama3Config, VideoLlama3Processor
from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor
from transformers.utils.hub import cached_file, extract_commit_hash

from vidembed.backbone.architectures import REMOTE_CODE_TYPES, TESTED_TYPES, conditional_class
from vidembed.backbone.options import DTYPES
from vidembed.backbone.sharing import load_once
from vidembed.errors import BackboneError, UnsupportedBackboneError

logger = logging.getLogger(__name__)

# what a processor gives a model: tensors by name, and what sentence-transformers adds (``modality``, a string)
Features: TypeAlias = dict[str, Any]
_SAMPLED_BYTES = 64  # at each of four places of a tensor in a file

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
    """A loaded model and its processor. Whoever runs it does so by modules of its own (`vidembed.backbone.sharing`)."""

    model: PreTrainedModel  # with its language model head
    processor: ProcessorMixin  # with the model's own chat template
    name: str  # what it was loaded from
    folder: Path | None = None  # that its files lie in; None for one that was not read from files
    revision: str | None = None  # commit on the Hub; None for a folder


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
        advice = "leave it out for the default device."
        raise ValueError(f"device={device!r} is not available ({reason}); {advice}") from error


def load_backbone(
    name_or_path: str | Path,
    *,
    model_kwargs: dict[str, Any] | None = None,
    processor_kwargs: dict[str, Any] | None = None,
    config_kwargs: dict[str, Any] | None = None,
    **hub_kwargs: Any,
) -> Backbone:
    """Load a video MLLM of a supported architecture, or an original remote-code VideoLLaMA3, and its processor.

    Weights that are in memory already, of the same files by the same `model_kwargs`, are not loaded again; the
    processor is always a new one.

    The three dicts are for ``from_pretrained`` of model, ``AutoProcessor`` and ``AutoConfig``; `hub_kwargs` are
    ``revision``, ``token``, ``cache_dir`` and ``local_files_only``. UnsupportedBackboneError for another architecture,
    BackboneError for what is missing or refused, OSError of transformers for files that cannot be read.
    """
    name = str(name_or_path)
    path = Path(name)
    if path.exists() and not (path.is_dir() and (path / "config.json").is_file()):
        raise BackboneError(f"{name}: not a model folder; it must contain config.json and safetensors weights.")
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
            "%s: model_type %r is not tested here. Its parts are detected; run `vidembed check` on it.",
            name,
            config.model_type,
        )
    found = str(cached_file(name, "config.json", **hub_kwargs))
    folder, revision = Path(found).parent, None if path.exists() else extract_commit_hash(found, None)
    at_commit = {**hub_kwargs, **({"revision": revision} if revision else {})}
    options = {**at_commit, **model_kwargs, "use_safetensors": True}

    def load() -> PreTrainedModel:
        return load_weights(name, model_class, config, options)

    dtype = model_kwargs["dtype"]
    dtype = config.dtype if dtype == "auto" and config.dtype is not None else dtype  # which may be given by name, too
    given = {**(config_kwargs or {}), **options, "dtype": dtype, "token": None, "local_files_only": None}
    key = _hashable([str(folder.resolve()), file_states(folder), model_class.__name__, given])
    return Backbone(load() if key is None else load_once(key, load), processor, name, folder, revision)


def load_weights(name: str, model_class: Any, config: PretrainedConfig, options: dict[str, Any]) -> PreTrainedModel:
    """Load a model with its head, all weights of which are in the files; BackboneError if not."""
    loaded: tuple[PreTrainedModel, Any] = model_class.from_pretrained(
        name, config=config, output_loading_info=True, **options
    )
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing == ["lm_head.weight"]:
        raise BackboneError(
            f"{name}: it has no language model head, because vidembed.build cut it. Give the full MLLM that it was "
            f"cut from."
        )
    if missing:
        raise BackboneError(
            f"{name}: {len(missing)} weights of {model_class.__name__} are missing from the checkpoint, for example "
            f"{missing[:3]}; they would be random. Check that the checkpoint is complete, and that config.json "
            f"belongs to it."
        )
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _hashable(value: object) -> Hashable:
    """A value of options as one that can be compared, or None if it is of an unknown kind."""
    if isinstance(value, dict):
        value = [[key, each] for key, each in sorted(value.items())]
    if isinstance(value, (list, tuple)):
        parts = [_hashable(each) for each in value]
        return None if None in parts else tuple(parts)
    if value is None or isinstance(value, (str, int, float, torch.dtype, torch.device)):
        return (str(value).removeprefix("torch."),)
    settings = getattr(value, "to_dict", None)  # of a quantization
    return None if settings is None else (type(value).__name__, json.dumps(settings(), sort_keys=True, default=str))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the model in a folder, sorted."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [folder / name for name in sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))]
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))


def file_states(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of change of the files that weights are read from, to see that they are others now."""
    files = [folder / "config.json", *weight_files(folder)]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


def files_digest(folder: Path) -> str:
    """SHA-256 hex digest of name, dtype, shape and some bytes of every tensor in the safetensors files of a folder.

    It does not depend on how a model is loaded (dtype, device, attention, quantization), nor on how the tensors are
    dealt to files. An edit that touches none of the bytes, such as one row of an embedding table, it does not see.
    """
    tensors: dict[str, bytes] = {}
    for file in weight_files(folder):
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(size))
            header.pop("__metadata__", None)
            for name, entry in sorted(header.items(), key=lambda item: int(item[1]["data_offsets"][0])):
                start, end = entry["data_offsets"]
                last = max(start, end - _SAMPLED_BYTES)
                picked = [f"{entry['dtype']}{entry['shape']}".encode()]
                for place in sorted({start + (last - start) * part // 3 for part in range(4)}):
                    opened.seek(8 + size + place)
                    picked.append(opened.read(min(_SAMPLED_BYTES, end - place)))
                tensors[name] = b"".join(picked)
    digest = hashlib.sha256()
    for name, content in sorted(tensors.items()):
        digest.update(name.encode() + content)
    return digest.hexdigest()


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
