"""Search video by text with the multimodal language models people already have.

Importing this package is quick and takes no torch: names are loaded when they are used. It installs the hook that
lets ``SentenceTransformer("vidembed/<name>")`` find bundled and locally built models (`vidembed.registry`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vidembed import registry as _hook

if TYPE_CHECKING:
    from vidembed.analysis import analyze_layers
    from vidembed.backbone.options import ModelOptions
    from vidembed.building import build
    from vidembed.check import ModelCheck, check_model
    from vidembed.encoder import EncodedItem, VideoEncoder
    from vidembed.registry import model_names, model_path
    from vidembed.reranker import VideoReranker
    from vidembed.video import Clip, DecodeLimits, Sampling, VideoError, VideoFrames, VideoSegment, load_video, probe
    from vidembed.visual_cache import VisualTokenCache

__version__ = "0.2.0"

__all__ = [
    "Clip",
    "DecodeLimits",
    "EncodedItem",
    "ModelCheck",
    "ModelOptions",
    "Sampling",
    "VideoEncoder",
    "VideoError",
    "VideoFrames",
    "VideoReranker",
    "VideoSegment",
    "VisualTokenCache",
    "analyze_layers",
    "build",
    "check_model",
    "load_video",
    "model_names",
    "model_path",
    "probe",
]

_MODULES = {
    "vidembed.analysis": ("analyze_layers",),
    "vidembed.backbone.options": ("ModelOptions",),
    "vidembed.building": ("build",),
    "vidembed.check": ("ModelCheck", "check_model"),
    "vidembed.encoder": ("EncodedItem", "VideoEncoder"),
    "vidembed.reranker": ("VideoReranker",),
    "vidembed.visual_cache": ("VisualTokenCache",),
    "vidembed.registry": ("model_names", "model_path"),
    "vidembed.video": (
        *("Clip", "DecodeLimits", "Sampling", "VideoError", "VideoFrames", "VideoSegment", "load_video", "probe"),
    ),
}


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


_hook.install()
