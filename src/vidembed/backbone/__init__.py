"""A multimodal language model becomes parts: loading, decoder access, cutting, prompts."""

from __future__ import annotations

from vidembed.backbone.architectures import ARCHITECTURES, Architecture, architecture_of
from vidembed.backbone.cut import cut
from vidembed.backbone.errors import (
    BackboneError,
    LayerError,
    ReadoutMismatchError,
    TemplateError,
    UnsupportedBackboneError,
)
from vidembed.backbone.parts import Parts, capture_block, check_layer, find_parts
from vidembed.backbone.templates import ZERO_SHOT_PREFIX, eol_template

__all__ = [
    "ARCHITECTURES",
    "ZERO_SHOT_PREFIX",
    "Architecture",
    "BackboneError",
    "LayerError",
    "Parts",
    "ReadoutMismatchError",
    "TemplateError",
    "UnsupportedBackboneError",
    "architecture_of",
    "capture_block",
    "check_layer",
    "cut",
    "eol_template",
    "find_parts",
]
