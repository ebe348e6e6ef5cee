"""Fetching a video from an http(s) address into memory."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from typing import IO

from vidembed.video.errors import (
    DecodeTimeout,
    EmptyFile,
    InvalidVideoInput,
    VideoNotFound,
    VideoPermission,
    VideoTooLarge,
)

MAX_DOWNLOAD_BYTES = 2 * 2**30
"""Bytes. Default limit of one download (2 GiB; our choice)."""
_CHUNK = 2**20


class _SameSchemes(urllib.request.HTTPRedirectHandler):
    """Follows redirections to http and https only."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Refuse other schemes."""
        if not newurl.lower().startswith(("http://", "https://")):
            raise urllib.error.URLError("redirected to an address that is neither http nor https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(url: str, item: str, *, timeout_s: float | None, max_bytes: int) -> bytes:
    """Fetch ``url`` into memory.

    Args:
        url: An http or https address.
        item: The name to use in messages.
        timeout_s: Limit on the whole download, in seconds; ``None`` for none.
        max_bytes: Limit on its size.

    Raises:
        VideoNotFound: If the address cannot be reached or answers with an error.
        VideoPermission: If it answers 401 or 403.
        VideoTooLarge: If it is above ``max_bytes``.
        DecodeTimeout: If it takes too long.
        EmptyFile: If it holds nothing.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise InvalidVideoInput(item, "only http and https addresses are fetched")
    too_slow = DecodeTimeout(item, f"not fetched within timeout_s={timeout_s}; raise the limit or download it yourself")
    try:
        data = _download(url, item, timeout_s, max_bytes)
    except urllib.error.HTTPError as error:
        error.close()
        kind = VideoPermission if error.code in (401, 403) else VideoNotFound
        raise kind(item, f"the server answered {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise too_slow from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        if isinstance(getattr(error, "reason", None), TimeoutError):
            raise too_slow from error
        raise VideoNotFound(item, f"cannot be fetched ({getattr(error, 'reason', None) or error})") from error
    if not data:
        raise EmptyFile(item, "the server answered with 0 bytes")
    return data


def _download(url: str, item: str, timeout_s: float | None, max_bytes: int) -> bytes:
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    opener = urllib.request.OpenerDirector()  # no ftp, file or data handlers
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SameSchemes(),
    ):
        opener.add_handler(handler)
    data = bytearray()
    with opener.open(url, timeout=timeout_s) as response:
        declared = response.headers.get("Content-Length", "")
        expected = int(declared) if declared.isdigit() else None
        while expected is None or expected <= max_bytes:
            chunk = response.read1(_CHUNK)
            data += chunk
            if len(data) > max_bytes:
                break
            if not chunk:
                if expected is not None and len(data) < expected:
                    raise OSError(f"the connection closed after {len(data)} of {expected} bytes")
                return bytes(data)
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError
    raise VideoTooLarge(item, f"larger than max_bytes={max_bytes}; raise the limit or download it yourself")
