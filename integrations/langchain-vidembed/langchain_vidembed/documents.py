"""How a video looks as a LangChain document."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from langchain_core.documents import Document
from langchain_core.prompts import StringPromptTemplate
from vidembed.uri import SCHEMES, VideoRef, parse_video_uri, video_uri


class _VideoPrompt(StringPromptTemplate):
    """Shows a document: a video by its file and times, any other text as it is."""

    def format(self, **fields: Any) -> str:
        text = str(fields["page_content"])
        ref = video_of(text, allowed_schemes=SCHEMES, root=None)
        if ref is None:
            return text
        shown = os.fsencode(ref.source).decode("utf-8", "backslashreplace")
        return f"Video {shown}, from {ref.start} s to {'its end' if ref.end is None else f'{ref.end} s'}"


VIDEO_PROMPT: Final[Any] = _VideoPrompt(input_variables=["page_content"])
"""How to show a language model a found document, for ``document_prompt``; by default it would be shown the bare URI.
A document that is no video is shown as it is."""


class NotAVideoError(ValueError):
    """A document or text that should name a video does not."""


def video_document(
    path: Path,
    window: tuple[float, float] | None,
    *,
    duration: float,
    content_fingerprint: str,
    start: float = 0.0,
) -> Document:
    """Return the document of a video, or of a window of it.

    Args:
        path: The file, absolute.
        window: Start and end, seconds on the clock of a player; None for the whole video.
        duration: Where the whole video ends, seconds likewise.
        content_fingerprint: Of the file's bytes. With it in the metadata, a changed file is another document.
        start: Where the first frame of the whole video comes on show, seconds likewise. Default 0.

    Returns:
        A document with the URI for its text, and plain values for metadata, which all stores take. Its id is a UUID
        made of the URI, since Qdrant takes no other strings.
    """
    uri = video_uri(path, *window) if window else video_uri(path)
    start, end = window or (start, duration)
    metadata = {
        "kind": "video",
        "source": os.fsencode(path).decode("utf-8", "backslashreplace"),  # stores take no name that is not UTF-8
        "start_s": start,
        "end_s": end,
        "duration_s": duration,
        "content_fingerprint": content_fingerprint,
    }
    return Document(id=str(uuid.uuid5(uuid.NAMESPACE_URL, uri)), page_content=uri, metadata=metadata)


def document_key(document: Document) -> str:
    """Return what tells this version of a document from others, for ``key_encoder`` of `langchain_core.indexing.index`.

    It is a UUID made of text and metadata: the digests that LangChain would take otherwise are no ids for Qdrant.
    """
    content = json.dumps([document.page_content, document.metadata], sort_keys=True, default=str)
    return str(uuid.uuid5(uuid.NAMESPACE_OID, content))


def video_of(text: str, *, allowed_schemes: Collection[str], root: str | os.PathLike[str] | None) -> VideoRef | None:
    """Return the video that a text names, or None for a text that is anything but one video URI.

    Args:
        text: White space around it is left out: loaders and splitters of LangChain add line breaks.
        allowed_schemes: As `vidembed.uri.parse_video_uri` takes.
        root: As `vidembed.uri.parse_video_uri` takes.

    Raises:
        VideoUriError: It names one that is not allowed.
    """
    return parse_video_uri(text.strip(), allowed_schemes=allowed_schemes, root=root)


def reference_of(
    document: Document, place: int, *, allowed_schemes: Collection[str], root: str | os.PathLike[str] | None
) -> VideoRef:
    """Return the video that a document names.

    Args:
        document: With a video URI for its text.
        place: Its position among the documents, for the message.
        allowed_schemes: As `vidembed.uri.parse_video_uri` takes.
        root: As `vidembed.uri.parse_video_uri` takes.

    Raises:
        NotAVideoError: It names none.
        VideoUriError: It names one that is not allowed.
    """
    found = video_of(document.page_content, allowed_schemes=allowed_schemes, root=root)
    if found is None:
        shown = document.page_content[:80] + ("..." if len(document.page_content) > 80 else "")
        named = f" (id {document.id!r})" if document.id else ""
        raise NotAVideoError(
            f"documents[{place}]{named} is no video: its text is {shown!r}, and a video URI such as "
            "video+file:///abs/a.mp4#t=10,20 is needed. Make documents with VideoLoader, and rerank texts elsewhere."
        )
    return found
