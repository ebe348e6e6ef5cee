"""How a video looks as a LlamaIndex document or node.

Its text is its URI: LlamaIndex hands embeddings, caches and stores nothing but text, and stores give every class of
nodes but `Node` back as `TextNode`. ``video_resource`` is for what shows the video to a model.
"""

from __future__ import annotations

import mimetypes
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from llama_index.core.schema import MediaResource

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
        "video_uri": ref.uri,
        "start_s": start,
        "end_s": end,
        "duration_s": duration,
    }
    if fingerprint is not None:
        ours["content_fingerprint"] = fingerprint
    whole = {**{key: _storable(value) for key, value in metadata.items()}, **ours}
    return {
        "text_resource": MediaResource(text=ref.uri),
        "video_resource": _media(ref.source),
        "metadata": whole,
        "excluded_embed_metadata_keys": list(whole),  # what leaks into the text would stand before the URI
        "excluded_llm_metadata_keys": [key for key in whole if key in HIDDEN_FROM_LLM],
    }


def stable_id(*parts: str) -> str:
    """Return a UUID made of text: Qdrant takes no other strings for ids, and the same video keeps its id."""
    namespace = uuid.NAMESPACE_URL
    for part in parts:
        namespace = uuid.uuid5(namespace, part)
    return str(namespace)


def merged(*keys: Iterable[str]) -> list[str]:
    """Return all keys, each once, in order."""
    return list(dict.fromkeys(key for some in keys for key in some))


def _media(source: Path | str) -> MediaResource | None:
    if isinstance(source, str):
        return MediaResource(url=source)
    if _storable(str(source)) != str(source):
        return None
    return MediaResource(path=source, mimetype=mimetypes.guess_type(f"video{source.suffix.lower()}")[0])


def _storable(value: Any) -> Any:
    """Stores take no name that is not UTF-8; the URI keeps its bytes."""
    return os.fsencode(value).decode("utf-8", "backslashreplace") if isinstance(value, str) else value
