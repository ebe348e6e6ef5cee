"""The table of what differs between the supported video architectures, and nothing else.

Everything the rest of the package needs to know about an architecture is a field of `Architecture`. A new one is
added by a row here and by a random small model of it in ``tests/backbone/tiny.py``, whose tests then all run on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vidembed.backbone.errors import UnsupportedBackboneError


@dataclass(frozen=True)
class Architecture:
    """What differs per architecture.

    Attributes:
        model_type: `config.model_type` of transformers.
        conditional_class: The transformers class that carries the language model head.
        base_class: The transformers class without the head; cut checkpoints are of this class.
        vision: Names of the submodules of the base model that turn pixels into visual tokens.
        position_dims: Rows of ``position_ids``: 3 for multimodal RoPE (time, height, width), 1 for a plain range.
        published_depth: Decoder depth and layer that the paper reads without training (section 4), where it names one.
        min_frames: Fewest frames that the processor takes; a shorter video is extended by its last frame.
    """

    model_type: str
    conditional_class: str
    base_class: str
    vision: tuple[str, ...]
    position_dims: int
    published_depth: tuple[int, int] | None = None
    min_frames: int = 1


ARCHITECTURES: dict[str, Architecture] = {
    row.model_type: row
    for row in (
        Architecture("qwen2_vl", "Qwen2VLForConditionalGeneration", "Qwen2VLModel", ("visual",), 3),
        Architecture("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel", ("visual",), 3),
        Architecture("qwen3_vl", "Qwen3VLForConditionalGeneration", "Qwen3VLModel", ("visual",), 3, min_frames=2),
        Architecture(
            "video_llama_3",
            "VideoLlama3ForConditionalGeneration",
            "VideoLlama3Model",
            ("vision_model", "projector"),
            1,
            published_depth=(28, 24),
        ),
    )
}

REMOTE_CODE_TYPES: dict[str, str] = {"videollama3_qwen2": "video_llama_3"}
"""Model types of remote-code checkpoints, and the native type that `vidembed.backbone.remap` turns them into."""


def architecture_of(config: Any, *, name: str) -> Architecture:
    """Look the architecture of a transformers config up in the table.

    Args:
        config: A transformers config, or anything with ``model_type``.
        name: How to name the model in an error.

    Raises:
        UnsupportedBackboneError: The model type is not in the table.
    """
    model_type = getattr(config, "model_type", None)
    if model_type in ARCHITECTURES:
        return ARCHITECTURES[model_type]
    raise UnsupportedBackboneError(
        f"{name}: model_type {model_type!r} is not a supported video backbone. Supported: {sorted(ARCHITECTURES)}, and "
        f"remote-code checkpoints of type {sorted(REMOTE_CODE_TYPES)}. To add one, write a row of "
        "vidembed.backbone.architectures.ARCHITECTURES and a small model of it in tests/backbone/tiny.py."
    )
