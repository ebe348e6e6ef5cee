"""How a video looks as a LangChain document."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.prompts import StringPromptTemplate
from vidembed.adapters import VideoFile, stable_id, storable
from vidembed.uri import SCHEMES, parse_video_uri, video_uri


class _VideoPrompt(StringPromptTemplate):
    """Shows a document: a video by its file and times, any other text as it is."""

    def format(self, **fields: Any) -> str:
        text = str(fields["page_content"])
        ref = parse_video_uri(text.strip(), allowed_schemes=SCHEMES)
        if ref is None:
            return text
        return f"Video {storable(ref.source)}, from {ref.start} s to {'its end' if ref.end is None else f'{ref.end} s'}"


VIDEO_PROMPT: Final[Any] = _VideoPrompt(input_variables=["page_content"])
"""How to show a language model a found document, for ``document_prompt``; by default it would be shown the bare URI.
A document that is no video is shown as it is."""


def video_document(path: Path, video: VideoFile, window: tuple[float, float] | None) -> Document:
    """Return the document of a video, or of a window of it.

    Args:
        path: The file, absolute.
        video: What the file holds.
        window: Start and end, seconds on the clock of a player; None for the whole video.

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
    }
    return Document(id=stable_id(uri), page_content=uri, metadata=metadata)


def document_key(document: Document) -> str:
    """Return what tells this version of a document from others, for ``key_encoder`` of `langchain_core.indexing.index`.

    It is a UUID made of text and metadata: the digests that LangChain would take otherwise are no ids for Qdrant.
    """
    content = json.dumps([document.page_content, document.metadata], sort_keys=True, default=str)
    return str(uuid.uuid5(uuid.NAMESPACE_OID, content))
