"""Original remote-code VideoLLaMA3 checkpoints onto the native `video_llama_3` class, without running their code.

DAMO-NLP-SG/VideoLLaMA3-7B and what was trained from it (iyttor/VidVec-7B) carry ``model_type: videollama3_qwen2`` and
the parameter names of their own modeling file: the decoder directly under ``model.``, the vision encoder under
``model.vision_encoder.`` (its config key: ``vision_encoder_config``), the projector under ``model.mm_projector.``.
Source of the names: the modeling files published with VideoLLaMA3 (arXiv 2501.13106).
"""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer, VideoLlama3Config, VideoLlama3ImageProcessor, VideoLlama3Processor
from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor

from vidembed.backbone.errors import UnsupportedBackboneError

KEY_MAPPING: dict[str, str] = {
    r"^model\.vision_encoder\.(?:vision_tower\.)?": "model.vision_model.",
    r"^model\.mm_projector\.": "model.projector.",
    r"^model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
}
"""Regular expressions over parameter names, in the form of transformers' ``from_pretrained(key_mapping=...)``."""

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


def native_config(original: dict[str, Any], *, name: str) -> VideoLlama3Config:
    """Translate the original ``config.json``.

    Args:
        original: The parsed ``config.json`` of a ``videollama3_qwen2`` checkpoint.
        name: How to name the model in an error.

    Raises:
        UnsupportedBackboneError: The projector is of another kind, or the vision encoder's config is missing.
    """
    projector = original.get("mm_projector_type", "mlp2x_gelu")
    if projector != "mlp2x_gelu":
        raise UnsupportedBackboneError(
            f"{name}: mm_projector_type {projector!r} has no native counterpart; only 'mlp2x_gelu' does."
        )
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


def native_processor(name_or_path: str, config: VideoLlama3Config, **hub_kwargs: Any) -> Any:
    """Build the native processor around the original tokenizer, and set the placeholder ids in `config`.

    Raises:
        UnsupportedBackboneError: The tokenizer lacks Qwen2's image and video placeholders.
    """
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False, **hub_kwargs)
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (_IMAGE_TOKEN, _VIDEO_TOKEN) if token not in vocabulary]
    if missing:
        raise UnsupportedBackboneError(
            f"{name_or_path}: its tokenizer has no {missing}; the native model needs one placeholder token for images "
            "and one for videos, as in the Qwen2.5 tokenizer."
        )
    config.image_token_id = vocabulary[_IMAGE_TOKEN]
    config.video_token_id = vocabulary[_VIDEO_TOKEN]
    vision: Any = config.vision_config
    patch_size = vision.patch_size
    build: Any = VideoLlama3Processor
    return build(
        image_processor=VideoLlama3ImageProcessor(patch_size=patch_size),
        tokenizer=tokenizer,
        video_processor=VideoLlama3VideoProcessor(patch_size=patch_size),
        chat_template=CHAT_TEMPLATE,
    )
