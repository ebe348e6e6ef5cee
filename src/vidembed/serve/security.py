"""What stands before every route: names of the host, the key, sizes of bodies, headers of answers, and figures."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import re
import reprlib
import secrets
import time
from collections.abc import Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields
from http import HTTPMethod
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from vidembed.text import printable
from vidembed.video.pool import MIN_MEMORY_BYTES

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from vidembed.serve.metrics import Metrics


MAX_MESSAGE = 600  # characters
MAX_PARAM = 100
FORM = "form "
"""How the name of a form of a request begins, where one address takes several; it is not part of a parameter's name."""
_TYPES = {401: "authentication_error"}
_CODES = {404: "not_found", 405: "method_not_allowed", 416: "range_not_satisfiable"}


class ApiError(HTTPException):
    """An error that the client is told.

    It is a `HTTPException`, since FastAPI passes only those on when they are raised while a body is read.

    Args:
        status: HTTP status.
        message: What was got, what is allowed, what to do. It must hold nothing of the server's inside.
        code: Short name of the error, for programs.
        param: The part of the request that it is about, such as ``input[3]``.
        headers: HTTP headers to add.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.code = code
        self.param = param


def busy(message: str, *, retry_after_s: int = 1) -> ApiError:
    """Return the error for a server that has too much to do: 503 with ``Retry-After``."""
    return ApiError(503, message, code="overloaded", headers={"Retry-After": str(retry_after_s)})


def check_count(param: str, count: int, most: int, *, of: str = "") -> None:
    """Refuse more than the most.

    Args:
        param: Part of the request.
        count: What it has.
        most: What it may have.
        of: What is counted, such as `` videos``.

    Raises:
        ApiError: 400.
    """
    if count > most:
        raise ApiError(400, f"{param}: got {count}{of}; at most {most} are taken at once", code="too_many", param=param)


def check_length(param: str, text: str, most: int) -> None:
    """Refuse a text of more characters than the most.

    Raises:
        ApiError: 400.
    """
    if len(text) > most:
        raise ApiError(
            400, f"{param}: got {len(text)} characters; at most {most} are taken", code="too_long", param=param
        )


def error_response(
    status: int, message: str, *, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return an error in the envelope."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = None if param is None else _short(param, MAX_PARAM)  # its names may be the client's own
    body = {"error": {"message": _short(message, MAX_MESSAGE), "type": kind, "param": param, "code": code}}
    return JSONResponse(body, status, headers=dict(headers or {}))


def _short(text: str, most: int) -> str:
    text = printable(text)
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def install(app: FastAPI) -> None:
    """Have `app` answer all errors in the envelope."""
    # Starlette calls each with the class it is registered for; its type asks for any Exception.
    app.add_exception_handler(HTTPException, _http_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _validation_error)  # type: ignore[arg-type]


def _http_error(_: Request, error: HTTPException) -> JSONResponse:
    if isinstance(error, ApiError):
        code, param = error.code, error.param
    else:
        code, param = _CODES.get(error.status_code, "bad_request"), None
    return error_response(error.status_code, str(error.detail), code=code, param=param, headers=error.headers)


def _validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
    first: Mapping[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        return error_response(400, "the body is not JSON", code="invalid_json")
    told = invalid({**first, "loc": first["loc"][1:]})  # without the part of the request, such as the body
    return error_response(400, str(told.detail), code=told.code, param=told.param)


def invalid(first: Mapping[str, Any]) -> ApiError:
    """Return what a client is told of a request that does not fit its schema.

    Args:
        first: The first of pydantic's errors.
    """
    location = [*first["loc"], *([first["ctx"]["param"]] if first["type"] == "unknown_parameter" else [])]
    param = _short(_param(location), MAX_PARAM)
    message = str(first["msg"]).removeprefix("Value error, ")
    has_value = first["type"] != "missing" and "got " not in message
    got = f"; got {reprlib.repr(first['input'])}" if has_value else ""
    return ApiError(
        400, f"{param}: {message}{got}" if param else message, code=_code_of(first["type"]), param=param or None
    )


def _code_of(kind: str) -> str:
    codes = {"missing": "missing_required_parameter", "unknown_parameter": "unknown_parameter"}
    return codes.get(kind, "invalid_value")


def _param(location: Sequence[str | int]) -> str:
    """Return where an error is, as ``documents[2].video``."""
    text = ""
    for part in location:
        if isinstance(part, str) and part.startswith(FORM):
            continue
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


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


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of requests; above one, the answer is an error that names it. All must be positive.

    Attributes:
        max_items: Inputs of one embeddings request: as many as OpenAI takes. They are run in batches.
        max_videos: How many of them may be videos. Each is decoded.
        max_chars: Characters of one text: what `vidembed.index.search` takes too.
        max_documents: Documents of one rerank request. Each is decoded and asked about.
        max_k: Hits of one search.
        max_rerank: Hits of one search that the reranker is asked about.
        max_body_bytes: Bytes of a JSON body.
        max_upload_bytes: Bytes of an uploaded video.
        max_uploads: Uploads at once; each takes its bytes on the disk twice while it is read.
        max_requests: Requests at once that need the model.
        max_queue: Inputs that wait for the model, at least `max_items`.
        batch_items: Most inputs of a batch; a longer request is run in parts.
        batch_wait_ms: How long a batch waits for other requests, milliseconds.
        decode_workers: Processes that decode videos.
        decode_timeout_s: How long a process may work on one video, seconds; then it is killed and replaced.
        decode_memory_bytes: Address space of a process, at least 512 MiB.
        timeout_s: How long a request waits for its answer, seconds.
        read_timeout_s: How long the server waits for the next piece of a body, seconds.
    """

    max_items: int = 2048
    max_videos: int = 64
    max_chars: int = 10_000
    max_documents: int = 64
    max_k: int = 100
    max_rerank: int = 50
    max_body_bytes: int = 4 * 2**20
    max_upload_bytes: int = 256 * 2**20
    max_uploads: int = 4
    max_requests: int = 128
    max_queue: int = 8192
    batch_items: int = 32
    batch_wait_ms: float = 5.0
    decode_workers: int = 2
    decode_timeout_s: float = 30.0
    decode_memory_bytes: int = 4 * 2**30
    timeout_s: float = 60.0
    read_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            ValueError: One is not a positive finite number, the queue could never take the longest request, or a
                decoder could not start in its memory.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field.name}: got {value!r}; a positive number is needed")
        if self.max_queue < self.max_items:
            raise ValueError(f"max_queue: got {self.max_queue}; at least max_items={self.max_items} is needed")
        if self.decode_memory_bytes < MIN_MEMORY_BYTES:
            raise ValueError(
                f"decode_memory_bytes: got {self.decode_memory_bytes}; at least {MIN_MEMORY_BYTES} are needed"
            )
