"""A multimodal language model becomes parts: loading, decoder access, cutting, prompts."""

from __future__ import annotations

from vidembed.backbone.architectures import (
    ARCHITECTURES,
    Architecture,
    Parts,
    architecture_of,
    capture_block,
    check_layer,
    find_parts,
)
from vidembed.backbone.cut import cut
from vidembed.backbone.templates import ZERO_SHOT_PREFIX, eol_template
from vidembed.errors import BackboneError, LayerError, ReadoutMismatchError, TemplateError, UnsupportedBackboneError

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
