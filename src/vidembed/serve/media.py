"""Files: videos of the index by id, of the server by URI, uploads, and those of the search page."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import mimetypes
import re
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from vidembed.errors import VideoUriError
from vidembed.index.schema import IndexedFile
from vidembed.index.table import is_local, path_of
from vidembed.pages import render
from vidembed.serve.security import ApiError
from vidembed.uri import parse_video_uri
from vidembed.video import VideoSegment
from vidembed.video.clip import FileState

ID_PATTERN = "^[0-9a-f]{32}$"
FRESH_S = 30.0  # after so long the list of files is read anew
MISSED_S = 1.0  # or after so long, for an id that is not in it
MAX_FIELD_BYTES = 2**12
FIELDS = frozenset({"model", "encoding_format", "dimensions", "user"})
SCRIPTS = ("page", "hits", "player", "server")
PAGE = {  # files of the search page by route, with their media types; "/" is the template `pages/search.html`
    **{f"/{name}.js": ("text/javascript; charset=utf-8", f"serve/page/{name}.js") for name in SCRIPTS},
    "/page.css": ("text/css; charset=utf-8", "pages/looks.css", "serve/page/page.css"),
    "/icon.svg": ("image/svg+xml", "pages/icon.svg"),
    "/favicon.ico": ("image/svg+xml", "pages/icon.svg"),  # what browsers ask for where no page names an icon
}
_RANGE = re.compile(rb"bytes=([0-9]{0,18})-([0-9]{0,18})")


class MediaLibrary:
    """Finds a file of the index, which `files` returns by URI, by its id; no client's path reaches the file system.

    An id is a hash under a key of this process: it cannot be guessed, so whoever has it was given it by a search.
    """

    def __init__(self, files: Callable[[], Mapping[str, IndexedFile]]) -> None:
        self._files = files
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._known: dict[str, IndexedFile] = {}
        self._read_at = -math.inf

    def id_of(self, uri: str) -> str:
        """Return the id of a file of the index: 32 hexadecimal digits."""
        return hmac.new(self._key, uri.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]

    def find(self, media_id: str) -> Path:
        """Return the file with an id, as it was indexed, or raise LookupError. Blocks while the index is read."""
        with self._lock:
            age = time.monotonic() - self._read_at
            if age > FRESH_S or (media_id not in self._known and age > MISSED_S):
                self._known = {self.id_of(uri): file for uri, file in self._files().items()}
                self._read_at = time.monotonic()
            file = self._known.get(media_id)
        if file is None or not is_local(file.uri):
            raise LookupError("media: no file of the index has this id; search again")
        path = path_of(file.uri)
        try:
            is_same = stat.S_ISREG(path.stat().st_mode) and FileState.of(path) == file.state
        except OSError as error:
            raise LookupError("media: the file is gone or cannot be read; index its folder again") from error
        if not is_same:
            raise LookupError("media: the file has changed since it was indexed; index its folder again")
        return path


def media_type(path: Path) -> str:
    """Return the MIME type of a video by its suffix; never one that a browser would run or show as a page."""
    kind, _ = mimetypes.guess_type(path.name)
    return kind if kind is not None and kind.startswith("video/") else "application/octet-stream"


def keep_one_range(scope: MutableMapping[str, Any], size: int) -> None:
    """Ignore, as a server may (RFC 9110, section 14.2), a ``Range`` header that is not one range of bytes."""
    ranges = [value.strip() for name, value in scope["headers"] if name == b"range"]
    found = _RANGE.fullmatch(ranges[0]) if len(ranges) == 1 else None
    first, last = found.groups() if found else (b"", b"")
    if not (first or last) or (first and last and int(last) < int(first)):
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"range"]
    elif (first and int(first) >= size) or (not first and int(last) == 0) or size == 0:
        headers = {"Content-Range": f"bytes */{size}"}
        raise ApiError(416, f"Range: the file has {size} bytes", code="range_not_satisfiable", headers=headers)


def video_of(uri: str, *, root: Path | None, param: str) -> VideoSegment:
    """Return the video that a URI names, if it is a file inside `root`; or raise a 400. No address is ever fetched."""
    if root is None and uri.startswith("video+"):
        message = f"{param}: this server reads no files; start it with --root FOLDER, or upload the video"
        raise ApiError(400, message, code="files_not_allowed", param=param)
    try:
        found = parse_video_uri(uri, allowed_schemes=("file",), root=root)
    except VideoUriError:
        # The parser's own message names the root, which is not the client's to know.
        form = "video+file:///..., in the folder that the server allows, optionally with times such as #t=10,20"
        message = f"{param}: not an allowed video URI; it must be {form}"
        raise ApiError(400, message, code="video_uri_not_allowed", param=param) from None
    if found is None:
        message = f"{param}: got words, not a video URI; write it as video+file:///folder/video.mp4"
        raise ApiError(400, message, code="not_a_video_uri", param=param)
    return found.segment()


@asynccontextmanager
async def uploaded(
    request: Request, *, max_bytes: int, allowed: frozenset[str] = frozenset()
) -> AsyncIterator[tuple[Path, dict[str, str]]]:
    """Yield the ``file`` of a form as a temporary file, and the other fields of the form, of the names allowed."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(400, "Content-Type: multipart/form-data is needed, with the video as 'file'", code="bad_form")
    with tempfile.TemporaryDirectory(prefix="vidembed-upload-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "upload")  # the client's name for it is never used
        try:
            async with request.form(max_files=1, max_fields=len(FIELDS), max_part_size=MAX_FIELD_BYTES) as form:
                file, fields = _parts(form, allowed)
                if (file.size or 0) > max_bytes:
                    message = f"file: got {file.size} bytes; at most {max_bytes} are allowed"
                    raise ApiError(413, message, code="body_too_large", param="file")
                with path.open("wb") as out:
                    await asyncio.to_thread(shutil.copyfileobj, file.file, out, 2**20)
        except HTTPException as error:
            if isinstance(error, ApiError):
                raise
            raise ApiError(400, f"the form cannot be read: {error.detail}", code="bad_form") from error
        yield path, fields


def _parts(form: FormData, allowed: frozenset[str]) -> tuple[UploadFile, dict[str, str]]:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise ApiError(400, "file: missing; send the video as a file", code="bad_form", param="file")
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if name == "file":
            continue
        if name not in allowed or not isinstance(value, str) or name in fields:
            message = f"the form has a part that is not allowed; allowed are {', '.join(['file', *sorted(allowed)])}"
            raise ApiError(400, message, code="bad_form")
        fields[name] = value
    return file, fields


def add_page(app: FastAPI) -> None:
    """Add the search page to an application. Its files are read once."""

    def add(route: str, content: bytes, kind: str) -> None:
        @app.get(route, include_in_schema=False)
        async def answer() -> Response:
            return Response(content, headers={"Content-Type": kind})

    add("/", render("search.html").encode(), "text/html; charset=utf-8")
    for route, (kind, *names) in PAGE.items():
        add(route, b"".join(files("vidembed").joinpath(name).read_bytes() for name in names), kind)
