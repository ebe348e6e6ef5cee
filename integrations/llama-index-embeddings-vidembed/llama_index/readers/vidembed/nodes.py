"""How a video looks as a LlamaIndex document or node.

Its text is its URI: LlamaIndex hands embeddings, caches and stores nothing but text. Nodes are `TextNode`s, which all
stores and all parts of LlamaIndex take; stores give every other class but `Node` back as one.
"""

from __future__ import annotations

import json
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from llama_index.core.schema import BaseNode, MediaResource

from vidembed.adapters import storable
from vidembed.captions import TimedCaption
from vidembed.uri import VideoRef

CAPTIONS: Final = "vidembed_captions"
"""Metadata of a document: all captions of its file, from which `VideoNodeParser` gives each node its own. It is text,
since stores take no lists, and part of the document, so that a document is another when its captions are."""

HIDDEN_FROM_LLM: Final = ("video_uri", "content_fingerprint", CAPTIONS)
"""Metadata that says nothing to a language model, which sees the other: where in the video, how long it is, what is
said of it."""


def video_fields(
    ref: VideoRef,
    *,
    start: float,
    end: float,
    duration: float,
    fingerprint: str | None,
    metadata: Mapping[str, Any],
    caption: str | None = None,
) -> dict[str, Any]:
    """Return the fields that a document and a node of a video have in common.

    Args:
        ref: The video, or the part of it.
        start: Where it starts, seconds on the clock of a player.
        end: Where it ends, seconds likewise.
        duration: Where the whole video ends, seconds likewise.
        fingerprint: Of the file's bytes. With it in the metadata, a file that was replaced is another document.
        metadata: More of it, such as where the file was found.
        caption: What is said of it, for language models only, if anything is.
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
    if caption is not None:
        ours["caption"] = caption
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


def written_captions(captions: Sequence[TimedCaption]) -> str:
    """Return captions as text for `CAPTIONS`."""
    return json.dumps(captions)


def captions_of(node: BaseNode) -> list[TimedCaption]:
    """Return the captions that a document read with captions, or a node made of one, brings along."""
    if CAPTIONS in node.metadata:
        return [TimedCaption(*caption) for caption in json.loads(node.metadata[CAPTIONS])]
    if CAPTIONS in node.excluded_llm_metadata_keys and "caption" in node.metadata:  # else "caption" is the user's own
        return [TimedCaption(node.metadata["start_s"], node.metadata["end_s"], node.metadata["caption"])]
    return []
