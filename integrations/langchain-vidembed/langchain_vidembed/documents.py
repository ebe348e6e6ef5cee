"""How a video looks as a LangChain document."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.prompts import StringPromptTemplate
from vidembed.adapters import VideoFile, stable_id, storable
from vidembed.captions import caption_line
from vidembed.uri import SCHEMES, parse_video_uri, video_uri


class _VideoPrompt(StringPromptTemplate):
    """Shows a document: a video by its file, its times and its caption if there is one, any other text as it is."""

    def format(self, **fields: Any) -> str:
        text = str(fields["page_content"])
        ref = parse_video_uri(text.strip(), allowed_schemes=SCHEMES)
        if ref is None:
            return text
        end = "its end" if ref.end is None else f"{ref.end} s"
        caption = caption_line(str(fields.get("caption") or ""))  # on one line, so that it passes for no other document
        return f"Video {storable(ref.source)}, from {ref.start} s to {end}" + (f": {caption}" if caption else "")


VIDEO_PROMPT: Final[Any] = _VideoPrompt(input_variables=["page_content"])
"""How to show a language model a found document, for ``document_prompt``; by default it would be shown the bare URI.
A document that is no video is shown as it is."""

CAPTION_PROMPT: Final[Any] = _VideoPrompt(input_variables=["page_content", "caption"])
"""As `VIDEO_PROMPT`, with the caption after file and times, where it is not empty. LangChain gives a prompt only such
metadata as all documents have, and those of a `VideoLoader` with captions all have a caption."""


def video_document(
    path: Path, video: VideoFile, window: tuple[float, float] | None, caption: str | None = None
) -> Document:
    """Return the document of a video, or of a window of it.

    Args:
        path: The file, absolute.
        video: What the file holds.
        window: Start and end, seconds on the clock of a player; None for the whole video.
        caption: What is said of it, empty if nothing; None for documents without captions.

    Returns:
        A document with the URI for its text, and plain values for metadata, which all stores take.
    """
    uri = video_uri(path, *window) if window else video_uri(path)
    start, end = window or (video.start, video.duration)
    metadata = {
        "kind": "video",
        "source": storable(path),
        "start_s": start,
        "end_s": end,
        "duration_s": video.duration,
        "content_fingerprint": video.fingerprint,
        **({} if caption is None else {"caption": caption}),
    }
    return Document(id=stable_id(uri), page_content=uri, metadata=metadata)


def document_key(document: Document) -> str:
    """Return a key of this version of a document, for ``key_encoder`` of `langchain_core.indexing.index`.

    It is a UUID made of text and metadata: the digests that LangChain would take otherwise are no ids for Qdrant.
    """
    content = json.dumps([document.page_content, document.metadata], sort_keys=True, default=str)
    return str(uuid.uuid5(uuid.NAMESPACE_OID, content))
