"""Opening the bytes of a source: what is refused is refused before a decoder sees it."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from vidembed.video.download import MAX_DOWNLOAD_BYTES, UrlAccess, fetch
from vidembed.video.errors import EmptyFile, InvalidVideoInput, VideoError, VideoNotFound, VideoPermission
from vidembed.video.source import check_regular, is_url

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]+):")  # two characters or more: "C:" is a drive


def _check_scheme(source: str, item: str) -> None:
    match = _SCHEME.match(source)
    if match and not os.path.lexists(source):
        raise InvalidVideoInput(
            item,
            f"no file has this name, and the scheme {match[1]!r} is not read; "
            "give a path, or an http(s) address with allow_url=True",
        )


def _check_file_object(handle: BinaryIO, item: str) -> None:
    try:
        seekable = handle.seekable()
        if seekable:
            handle.seek(0)
            head: object = handle.read(1)
            handle.seek(0)
    except (OSError, AttributeError, ValueError) as error:
        raise InvalidVideoInput(item, f"not a readable file object ({error}); open it with mode 'rb'") from error
    if not seekable:
        raise InvalidVideoInput(item, "the file object cannot seek; read it into bytes first")
    if not isinstance(head, bytes):
        raise InvalidVideoInput(item, "the file object gives text; open it with mode 'rb'")
    if not head:
        raise EmptyFile(item, "empty (0 bytes)")


@contextmanager
def open_source(
    source: object,
    item: str,
    *,
    allow_url: UrlAccess = False,
    timeout_s: float | None = None,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
) -> Iterator[BinaryIO]:
    """Open the bytes of a path, URL, ``bytes`` or file object, and close what was opened here.

    Args:
        source: What to open. A file object is read from its beginning and left open.
        item: Its name, for messages.
        allow_url: Whether http and https addresses may be fetched: ``True`` from public addresses, or names of hosts
            (see :data:`vidembed.video.download.UrlAccess`).
        timeout_s: Limit on a download, in seconds.
        max_bytes: Limit on the size of a download.

    Yields:
        A seekable binary handle at its beginning.

    Raises:
        VideoError: Of the kind that fits, before any decoder sees the bytes.
    """
    with ExitStack() as stack:
        if isinstance(source, bytes):
            handle: BinaryIO = io.BytesIO(source)
        elif isinstance(source, str) and is_url(source):
            if not allow_url:
                raise InvalidVideoInput(item, "a web address; pass allow_url=True to have it fetched")
            fetched = fetch(source, item, timeout_s=timeout_s, max_bytes=max_bytes, allow=allow_url)
            handle = cast("BinaryIO", stack.enter_context(fetched))
        elif isinstance(source, (str, os.PathLike)):
            handle = stack.enter_context(_open_path(source, item))
        elif hasattr(source, "read"):
            handle = cast("BinaryIO", source)
        else:
            found = type(source).__name__
            raise InvalidVideoInput(
                item, f"a {found}; expected a path, bytes, binary file, VideoSegment or VideoFrames"
            )
        _check_file_object(handle, item)
        try:
            yield handle
        except OSError as error:  # of the handle: FFmpeg's own are turned into errors where they occur
            raise VideoError(item, f"reading failed ({error}); check the disk or connection it comes from") from error


def _open_path(source: str | os.PathLike[str], item: str) -> BinaryIO:
    path = os.fsdecode(os.fspath(source))
    if not path:
        raise InvalidVideoInput(item, "the path is empty")
    if isinstance(source, str):
        _check_scheme(source, item)
    check_regular(path, item)
    try:
        return Path(path).open("rb")
    except PermissionError as error:
        raise VideoPermission(item, "permission denied to read it; check its access rights") from error
    except OSError as error:
        raise VideoNotFound(item, f"cannot be opened ({error.strerror})") from error
