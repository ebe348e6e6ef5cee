"""`VideoLoader`: files become documents, one a video or one a segment."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from langchain_core.document_loaders import BaseLoader
from langchain_core.documents import Document
from vidembed.adapters import OnError, read_video_file
from vidembed.captions import CaptionLookup, CaptionMatches, CaptionRecord
from vidembed.index.files import find_videos
from vidembed.index.table import canonical, path_of
from vidembed.uri import VIDEO_SUFFIXES
from vidembed.video import VideoError, item_name
from vidembed.video.segments import Windows

from langchain_vidembed.documents import video_document

logger = logging.getLogger(__name__)


class VideoLoader(BaseLoader):
    """Lists videos as documents, without embedding them.

    A document's text is the URI of the video, or of a segment of it. Its metadata: ``kind`` (always ``"video"``, to
    filter by), ``source`` (the file, which `langchain_core.indexing.index` groups by), ``start_s``, ``end_s`` and
    ``duration_s`` (where the video ends), in seconds as a player shows them, and ``content_fingerprint`` (SHA-256 of
    the file, which is read whole). Its id is a UUID made of the URI.

    Args:
        path: A file, or a folder, in which files are found by suffix, in either case, but for hidden ones.
        glob: Only files of the folder that match this, such as ``"2024/**/*.mp4"``. Default all.
        recursive: Whether folders in the folder are walked. Default True.
        segment_s: Cut videos into segments of this many seconds; the last is moved back to end with the video. Default
            whole videos.
        overlap_s: What a segment shares with the next, seconds. Default 0.
        on_error: "raise" at the first file that cannot be read, or "skip" to log it, note it in `skipped` and go on.
            What can be seen without decoding a file to its end is found here, the rest when it is embedded.
        captions: What is said of the videos, for language models: a file that ``vidembed caption`` wrote, which is read
            now, records, or a `vidembed.captions.CaptionLookup`, which can take another kind of text. Each document
            then has ``caption`` in its metadata, of the same bytes and the same times; it is empty where there is none.
            It is not embedded. The log says how many captions belong to other bytes or other times.

    Attributes:
        skipped: Of the last load: files that were left out, with the reason.

    Raises:
        ValueError: An argument is out of range; when loading: the path does not exist or holds no video.
        AnnotationError: The captions cannot be read.
        VideoError: When loading, with ``on_error="raise"``: a file cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        glob: str | None = None,
        *,
        recursive: bool = True,
        segment_s: float | None = None,
        overlap_s: float = 0.0,
        on_error: OnError = "raise",
        captions: CaptionLookup | str | os.PathLike[str] | Iterable[CaptionRecord] | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: expected 'raise' or 'skip'")
        if segment_s is None and overlap_s:
            raise ValueError(f"overlap_s={overlap_s!r}: it needs segment_s; give both")
        self.path = Path(path)
        self.glob = glob
        self.recursive = recursive
        self.windows = None if segment_s is None else Windows(segment_s, overlap_s)
        self.on_error = on_error
        self.captions = None if captions is None else CaptionLookup.of(captions)
        self.skipped: dict[str, Exception] = {}

    def lazy_load(self) -> Iterator[Document]:
        """Yield the documents, in the order of the files' names and of time.

        Raises:
            ValueError: The path does not exist or holds no video.
            VideoError: A file cannot be read, with ``on_error="raise"``.
        """
        self.skipped = {}
        matches = CaptionMatches(self.captions)
        for file in self._files():
            try:
                documents = self._documents(file, matches)
            except (VideoError, OSError, ValueError) as error:
                if self.on_error == "raise":
                    raise
                self.skipped[str(file)] = error
                logger.warning("skipped %s: %s", item_name(file), error)
            else:
                yield from documents
        matches.log()

    def _files(self) -> list[Path]:
        listing = find_videos([self.path], VIDEO_SUFFIXES)
        for uri, error in listing.unreadable.items():
            if self.on_error == "raise":
                raise error
            folder = path_of(uri)
            self.skipped[str(folder)] = error
            logger.warning("skipped %s: %s", folder, error)
        files = [path_of(uri) for uri in listing.files]
        root = path_of(listing.roots[0]) if listing.roots else None
        if root is not None and not self.recursive:
            files = [file for file in files if file.parent == root]
        if root is not None and self.glob is not None:
            wanted = {canonical(file) for file in root.glob(self.glob)}
            files = [file for file in files if file in wanted]
        if not files:
            raise ValueError(
                f"path: no video in {str(self.path)!r} matches glob={self.glob!r}, recursive={self.recursive}"
            )
        return files

    def _documents(self, file: Path, matches: CaptionMatches) -> list[Document]:
        video = read_video_file(file, self.windows)
        whole = (video.start, video.duration)
        captions = matches.of_video(file, video.fingerprint, *whole)

        def document(window: tuple[float, float] | None) -> Document:
            caption = None if self.captions is None else matches.at(captions, *(window or whole)) or ""
            return video_document(file, video, window, caption)

        return [document(window) for window in (video.segments if self.windows else [None])]
