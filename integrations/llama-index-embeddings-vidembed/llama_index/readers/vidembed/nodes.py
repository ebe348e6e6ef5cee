"""How a video looks as a LlamaIndex document or node.

Its text is its URI: LlamaIndex hands embeddings, caches and stores nothing but text. Nodes are `TextNode`s, which all
stores and all parts of LlamaIndex take; stores give every other class but `Node` back as one.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from llama_index.core.schema import MediaResource

from vidembed.adapters import storable
from vidembed.uri import VideoRef

HIDDEN_FROM_LLM: Final = ("video_uri", "content_fingerprint")
"""Metadata that says nothing to a language model, which sees the other: where in the video, and how long it is."""


def video_fields(
    ref: VideoRef,
    *,
    start: float,
    end: float,
    duration: float,
    fingerprint: str | None,
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the fields that a document and a node of a video have in common.

    Args:
        ref: The video, or the part of it.
        start: Where it starts, seconds on the clock of a player.
        end: Where it ends, seconds likewise.
        duration: Where the whole video ends, seconds likewise.
        fingerprint: Of the file's bytes. With it in the metadata, a file that was replaced is another document.
        metadata: More of it, such as where the file was found.
    """
    ours: dict[str, Any] = {
        "kind": "video",
        "video_uri": ref.uri,
        "start_s": start,
        "end_s": end,
        "duration_s": duration,
    }
    if fingerprint is not None:
        ours["content_fingerprint"] = fingerprint
    whole = {**{key: storable(value) if isinstance(value, str) else value for key, value in metadata.items()}, **ours}
    return {
        "text": ref.uri,
        "metadata": whole,
        "excluded_embed_metadata_keys": list(whole),  # what leaks into the text would stand before the URI
        "excluded_llm_metadata_keys": [key for key in whole if key in HIDDEN_FROM_LLM],
    }


def video_resource(file: Path) -> MediaResource | None:
    """Return the whole file as LlamaIndex shows it to a model, or None if its name cannot be written as UTF-8."""
    if storable(file) != str(file):
        return None
    return MediaResource(path=file, mimetype=mimetypes.guess_type(f"video{file.suffix.lower()}")[0])
