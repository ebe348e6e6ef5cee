"""What stands before every route: names of the host, the key, sizes of bodies, headers of answers, and figures."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections.abc import Collection, MutableMapping
from http import HTTPMethod
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect

from vidembed.serve.errors import ApiError, error_response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from vidembed.serve.limits import Limits
    from vidembed.serve.metrics import Metrics

logger = logging.getLogger(__name__)

UPLOAD_PATH = "/v1/embeddings/video"
FORM_OVERHEAD = 2**16  # bytes of a form besides the file: its other fields and the lines between
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})

# Nothing of the page comes from elsewhere, and nothing of it is inline.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_POLICY = "default-src 'none'; frame-ancestors 'none'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
# The page holds nothing; a media id is given out by a search alone, and a <video> cannot send a key.
_OPEN = re.compile(r"/|/page\.(js|css)|/icon\.svg|/favicon\.ico|/health(/live|/ready)?|/openapi\.json|/media/[^/]*")

# As browsers write it: https://fetch.spec.whatwg.org/#origin-header
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:]+\]|[^\s/:?#@\[\]A-Z]+)(:[0-9]{1,5})?")


def is_open(path: str) -> bool:
    """Whether no key is asked for at this path."""
    return _OPEN.fullmatch(path) is not None


class Guard:
    """ASGI middleware. It also keeps errors inside: a client gets an id, the log has the traceback.

    Args:
        app: What it stands before.
        limits: Sizes of bodies, and the time to wait for them.
        metrics: Where requests are counted.
        api_key: What ``Authorization: Bearer`` must hold; None asks for nothing.
        hosts: Names that ``Host`` may have, without the port; None for any. It keeps a page of another site from
            reaching a server on the loopback address through a name of its own (DNS rebinding).
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        metrics: Metrics,
        api_key: str | None = None,
        hosts: Collection[str] | None = None,
    ) -> None:
        self.app = app
        self._limits = limits
        self._metrics = metrics
        self._key = None if api_key is None else api_key.encode()
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers["Content-Security-Policy"] = _PAGE_POLICY if scope["path"] == "/" else _POLICY
                if not scope["path"].startswith("/media/") or status >= 400:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        with self._metrics.active.track_inprogress():
            try:
                await self._answer(scope, self._bounded(scope, receive), send_guarded)
            except ClientDisconnect:
                status = status or 499  # nobody is there to read an answer
            except Exception:
                number = secrets.token_hex(6)
                logger.exception("error %s in %s %r", number, scope["method"], scope["path"])
                if status:
                    raise  # the answer had begun; the server closes the connection
                response = error_response(500, f"the server failed; its log says why at {number}", code="server_error")
                await response(scope, receive, send_guarded)
        route = getattr(scope.get("route"), "path", "other")
        # Any word can stand for a method; a label for each would fill the memory.
        method = scope["method"] if scope["method"] in HTTPMethod.__members__ else "other"
        self._metrics.requests.labels(route, method, str(status)).inc()
        self._metrics.seconds.labels(route).observe(time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
        except ApiError as error:
            await error_response(
                error.status_code, str(error.detail), code=error.code, param=error.param, headers=error.headers
            )(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._hosts is not None and _host(headers.get("host", "")) not in self._hosts:
            raise ApiError(
                421,
                "Host: this server answers only under the names it was told; add one with --allow-host",
                code="wrong_host",
            )
        if self._key is not None and not is_open(scope["path"]):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self._key):
                raise ApiError(
                    401,
                    "Authorization: the key is missing or wrong; send 'Authorization: Bearer KEY'",
                    code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )
        declared = headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > self._most(scope):
            raise self._too_large(scope)

    def _most(self, scope: MutableMapping[str, Any]) -> int:
        upload = scope["path"] == UPLOAD_PATH
        return self._limits.max_upload_bytes + FORM_OVERHEAD if upload else self._limits.max_body_bytes

    def _too_large(self, scope: MutableMapping[str, Any]) -> ApiError:
        return ApiError(413, f"the body is larger than {self._most(scope)} bytes", code="body_too_large")

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Wrap `receive`: a body must not be longer than it may, nor take for ever."""
        read, more = 0, True

        async def receive_bounded() -> Message:
            nonlocal read, more
            if not more:
                return await receive()  # waits for the client to go
            try:
                message = await asyncio.wait_for(receive(), self._limits.read_timeout_s)
            except TimeoutError as error:
                raise ApiError(
                    408, f"no more of the body came for {self._limits.read_timeout_s:g} s", code="body_timeout"
                ) from error
            read += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
            if read > self._most(scope):
                raise self._too_large(scope)
            return message

        return receive_bounded


def check_api_key(api_key: str | None) -> None:
    """Refuse a key that no header can hold.

    Raises:
        ValueError: It is empty, or holds other than printable ASCII.
    """
    if api_key is not None and (not api_key.strip() or not api_key.isascii() or not api_key.isprintable()):
        raise ValueError("api_key: it is empty or holds other than printable ASCII; give another one")


def check_origins(origins: Collection[str]) -> None:
    """Refuse what no browser sends as the origin of a page.

    Raises:
        ValueError: One is neither ``*`` nor a scheme and a host, with a port if it is not the scheme's own.
    """
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(
                f"cors-origin: got {origin!r}; an origin is https://HOST, with :PORT unless it is the usual one, in "
                "small letters and without a path, or * for any site"
            )


def _host(header: str) -> str:
    """Return a Host header without its port, in lower case."""
    return re.sub(r":\d*$", "", header.strip().lower())
