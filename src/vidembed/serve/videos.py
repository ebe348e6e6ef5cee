"""Videos that requests bring: by URI inside the allowed folder, or uploaded into a file that is removed after."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from vidembed.serve.errors import ApiError
from vidembed.uri import VideoUriError, parse_video_uri
from vidembed.video import VideoSegment

if TYPE_CHECKING:
    from starlette.datastructures import FormData
    from starlette.requests import Request

logger = logging.getLogger(__name__)

MAX_FIELD_BYTES = 2**12
FIELDS = frozenset({"model", "encoding_format", "dimensions", "user"})


def video_of(uri: str, *, root: Path | None, param: str) -> VideoSegment:
    """Return the video that a URI names, if it is a file inside `root`. No address is ever fetched.

    Raises:
        ApiError: 400, it is no video URI, its scheme is not `file`, it is outside `root`, or there is no `root`.
    """
    if root is None and uri.startswith("video+"):
        raise ApiError(
            400,
            f"{param}: this server reads no files; start it with --root FOLDER, or upload the video",
            code="files_not_allowed",
            param=param,
        )
    try:
        found = parse_video_uri(uri, allowed_schemes=("file",), root=root)
    except VideoUriError:
        # The parser's own message names the root, which is not the client's to know.
        raise ApiError(
            400,
            f"{param}: not an allowed video URI; it must be video+file:///..., inside the folder that the server "
            "allows, with times as #t=10,20 if any",
            code="video_uri_not_allowed",
            param=param,
        ) from None
    if found is None:
        raise ApiError(
            400,
            f"{param}: words, and no video URI; write it as video+file:///folder/video.mp4",
            code="not_a_video_uri",
            param=param,
        )
    return found.segment()


@asynccontextmanager
async def uploaded(request: Request, *, max_bytes: int) -> AsyncIterator[tuple[Path, dict[str, str]]]:
    """Read a form of one file, ``file``, and some short fields, into a temporary file that is removed after.

    Args:
        request: Whose body has not been read.
        max_bytes: Of the file.

    Yields:
        The file, and the other fields.

    Raises:
        ApiError: 400, the form is another one or has an empty file; 413 or 408 as the body is read.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(400, "Content-Type: multipart/form-data is needed, with the video as 'file'", code="bad_form")
    with tempfile.TemporaryDirectory(prefix="vidembed-upload-", ignore_cleanup_errors=True) as folder:
        path = Path(folder, "upload")  # the client's name for it is never used
        try:
            async with request.form(max_files=1, max_fields=len(FIELDS), max_part_size=MAX_FIELD_BYTES) as form:
                file, fields = _parts(form)
                if (file.size or 0) > max_bytes:
                    raise ApiError(
                        413,
                        f"file: got {file.size} bytes; at most {max_bytes} are taken",
                        code="body_too_large",
                        param="file",
                    )
                await asyncio.to_thread(_copy, file, path)
        except HTTPException as error:
            if isinstance(error, ApiError):
                raise
            raise ApiError(400, f"the form cannot be read: {error.detail}", code="bad_form") from error
        yield path, fields


def _parts(form: FormData) -> tuple[UploadFile, dict[str, str]]:
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise ApiError(400, "file: it is missing; send the video as a file", code="bad_form", param="file")
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if name == "file":
            continue
        if name not in FIELDS or not isinstance(value, str) or name in fields:
            allowed = ", ".join(sorted(FIELDS))
            raise ApiError(
                400, f"the form has a part that is not allowed; allowed are file, {allowed}", code="bad_form"
            )
        fields[name] = value
    return file, fields


def _copy(file: UploadFile, path: Path) -> None:
    with path.open("wb") as out:
        shutil.copyfileobj(file.file, out, 2**20)
