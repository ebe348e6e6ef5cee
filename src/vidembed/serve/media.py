"""The files of an index, named by ids that say nothing: no path from a client ever reaches the file system."""

from __future__ import annotations

import hashlib
import hmac
import mimetypes
import re
import secrets
import stat
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidembed.index.files import is_local, path_of
from vidembed.serve.errors import ApiError
from vidembed.video.fingerprint import FileState

if TYPE_CHECKING:
    from vidembed.index.files import IndexedFile

ID_PATTERN = "^[0-9a-f]{32}$"
FRESH_S = 30.0  # after so long the list of files is read anew
_RANGE = re.compile(rb"bytes=([0-9]{0,18})-([0-9]{0,18})")
MISSED_S = 1.0  # or after so long, for an id that is not in it


class MediaLibrary:
    """Finds a file of the index by its id.

    An id is the keyed hash of the file's URI under a key of this process: it cannot be guessed, so whoever has it was
    given it by a search. Every id is looked up among the files of the index, and the file must still be in the state
    in which it was indexed.

    Args:
        files: Returns the files of the index by URI.
        key: Of the hash; default a new one.
    """

    def __init__(self, files: Callable[[], Mapping[str, IndexedFile]], *, key: bytes | None = None) -> None:
        self._files = files
        self._key = secrets.token_bytes(32) if key is None else key
        self._lock = threading.Lock()
        self._known: dict[str, IndexedFile] = {}
        self._read_at: float | None = None

    def id_of(self, uri: str) -> str:
        """Return the id of a file of the index: 32 hexadecimal digits."""
        return hmac.new(self._key, uri.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]

    def find(self, media_id: str) -> Path:
        """Return the file with an id. Blocks while the index is read.

        Raises:
            LookupError: There is none, or it is gone, no regular file, or was changed since it was indexed.
        """
        file = self._look_up(media_id)
        if file is None or not is_local(file.uri):
            raise LookupError("media: no file of the index has this id; search again")
        path = path_of(file.uri)
        try:
            mode = path.stat().st_mode
            state = FileState.of(path)
        except OSError as error:
            raise LookupError("media: the file is gone or cannot be read; index its folder again") from error
        if not stat.S_ISREG(mode) or state != file.state:
            raise LookupError("media: the file was changed since it was indexed; index its folder again")
        return path

    def _look_up(self, media_id: str) -> IndexedFile | None:
        with self._lock:
            age = float("inf") if self._read_at is None else time.monotonic() - self._read_at
            if age > FRESH_S or (media_id not in self._known and age > MISSED_S):
                self._known = {self.id_of(uri): file for uri, file in self._files().items()}
                self._read_at = time.monotonic()
            return self._known.get(media_id)


def media_type(path: Path) -> str:
    """Return the MIME type of a video by its suffix; never one that a browser would run or show as a page."""
    kind, _ = mimetypes.guess_type(path.name)
    return kind if kind is not None and kind.startswith("video/") else "application/octet-stream"


def keep_one_range(scope: MutableMapping[str, Any], size: int) -> None:
    """Take a ``Range`` header out of a request unless it is one range of bytes, which is all that players ask for.

    A server may ignore the header (RFC 9110, section 14.2); then the whole file is the answer.

    Args:
        scope: ASGI scope of the request.
        size: Of the file, bytes.

    Raises:
        ApiError: 416, the file has no such bytes.
    """
    ranges = [value.strip() for name, value in scope["headers"] if name == b"range"]
    found = _RANGE.fullmatch(ranges[0]) if len(ranges) == 1 else None
    first, last = found.groups() if found else (b"", b"")
    if not (first or last) or (first and last and int(last) < int(first)):
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
    elif (first and int(first) >= size) or (not first and int(last) == 0) or size == 0:
        raise ApiError(
            416,
            f"Range: the file has {size} bytes",
            code="range_not_satisfiable",
            headers={"Content-Range": f"bytes */{size}"},
        )
