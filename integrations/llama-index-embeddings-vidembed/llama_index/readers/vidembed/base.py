"""`VideoReader`: files become documents, one a video."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from llama_index.core.bridge.pydantic import ConfigDict, Field, field_serializer, field_validator
from llama_index.core.readers.base import BasePydanticReader, BaseReader
from llama_index.core.schema import Document

from llama_index.readers.vidembed.nodes import CAPTIONS, video_fields, video_resource, written_captions
from vidembed.adapters import OnError, read_video_file, stable_id
from vidembed.captions import CaptionLookup, CaptionMatches, caption_at
from vidembed.index.files import find_videos
from vidembed.index.table import path_of
from vidembed.uri import VIDEO_SUFFIXES, VideoRef
from vidembed.video import VideoError, item_name

logger = logging.getLogger(__name__)

UNSTABLE: Final = frozenset({"creation_date", "last_modified_date", "last_accessed_date"})
"""Metadata of `SimpleDirectoryReader` that changes while a file stays the same: with it, reading a file on another day
would make it another document, to be embedded again."""


class VideoReader(BasePydanticReader):
    """Makes a document of each video, without embedding it.

    Its text is the URI of the video, and its id is made of that. Its metadata, beside what `SimpleDirectoryReader`
    gives but for dates: ``kind`` (always ``"video"``, to filter by), ``video_uri``, ``start_s``, ``end_s`` and
    ``duration_s`` (seconds), and ``content_fingerprint`` (SHA-256 of the file, which is read whole).

    Args:
        on_error: "raise" at a file that cannot be read, or "skip" to log it and go on. What can be seen without
            decoding a file to its end is found here, the rest when it is embedded.
        captions: What is said of the videos, for language models: a file that ``vidembed caption`` wrote, which is read
            now, records, or a `vidembed.captions.CaptionLookup`, which can take another kind of text. A document has
            ``caption`` in its metadata where there is one of the same bytes; `VideoNodeParser` gives each node that of
            its own times. It is never embedded. The log says how many videos have other bytes now. Default none.

    Raises:
        ValueError: An option is unknown, or the captions cannot be read (pydantic's `ValidationError`).
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    on_error: OnError = Field(default="raise", description="What happens if a file cannot be read.")
    captions: Any = Field(default=None, description="File or records of captions.")

    @field_validator("captions")
    @classmethod
    def _read_captions(cls, captions: Any) -> CaptionLookup | None:
        return None if captions is None else CaptionLookup.of(captions)

    @field_serializer("captions")
    def _saved_captions(self, captions: CaptionLookup | None) -> str | None:
        if captions is not None and captions.saved_name is None:
            raise ValueError(
                "captions: a reader can be saved only with captions from a file; pass captions again after loading"
            )
        return None if captions is None else captions.saved_name

    @classmethod
    def class_name(cls) -> str:
        """Name that this is saved under."""
        return "VideoReader"

    def lazy_load_data(
        self,
        file: str | os.PathLike[str],
        extra_info: Mapping[str, Any] | None = None,
        fs: Any = None,
    ) -> Iterable[Document]:
        """Yield the documents of a file, or of the videos in a folder and its folders, in the order of their names.

        Args:
            file: A file, whatever it is called, or a folder, in which files are found by suffix, in either case.
            extra_info: More metadata.
            fs: Must be None: files of this machine are read.

        Raises:
            ValueError: The path does not exist or holds no video, or `fs` is given.
            VideoError: A file cannot be read, with ``on_error="raise"``.
        """
        if fs is not None:
            raise ValueError(
                f"fs: got {type(fs).__name__}; videos are read from files on this machine. Copy them here, or use "
                f"video URIs with http(s) addresses and allowed_schemes."
            )
        return self._documents(Path(file), dict(extra_info or {}))

    def _documents(self, path: Path, extra_info: dict[str, Any]) -> Iterator[Document]:
        matches = CaptionMatches(self.captions)
        for file in map(path_of, find_videos([path], VIDEO_SUFFIXES).files):
            try:
                document = self._document(file, extra_info, matches)
            except (VideoError, OSError) as error:
                if self.on_error == "raise":
                    raise
                logger.warning("skipped %s: %s", item_name(file), error)
            else:
                yield document
        matches.log()

    @staticmethod
    def _document(file: Path, extra_info: dict[str, Any], matches: CaptionMatches) -> Document:
        ref = VideoRef(file)
        video = read_video_file(file)
        whole = (video.start, video.duration)
        captions = matches.of_video(file, video.fingerprint, *whole)
        metadata = {key: value for key, value in extra_info.items() if key not in UNSTABLE}
        if captions:
            metadata[CAPTIONS] = written_captions(captions)
        own = caption_at(captions, *whole)  # those of its segments are for the parser
        fields = video_fields(
            ref,
            start=video.start,
            end=video.duration,
            duration=video.duration,
            fingerprint=video.fingerprint,
            metadata=metadata,
            caption=own.text if own else None,
        )
        return Document(id_=stable_id(ref.uri), video_resource=video_resource(file), **fields)


def video_extractor(reader: VideoReader | None = None) -> dict[str, BaseReader]:
    """Return ``file_extractor`` for `SimpleDirectoryReader`, which reads videos as text where it has none.

    Args:
        reader: Default ``VideoReader()``.

    Returns:
        The reader for every video suffix, in lower and upper case; its keys are what to pass as ``required_exts``,
        which tells cases apart.
    """
    reader = reader or VideoReader()
    return {spelt: reader for suffix in sorted(VIDEO_SUFFIXES) for spelt in (suffix, suffix.upper())}
