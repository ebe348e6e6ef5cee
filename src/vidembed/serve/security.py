"""What stands before every route: names of the host, the key, sizes of bodies, headers and errors, and figures."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import re
import reprlib
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from http import HTTPMethod
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vidembed.errors import BackendUnavailable, DecoderCrashed, DecodeTimeout, VideoError
from vidembed.text import printable
from vidembed.video.clip import MIN_MEMORY_BYTES

logger = logging.getLogger(__name__)

MAX_MESSAGE = 600  # characters
MAX_PARAM = 100
FORM = "form "  # how the name of a form of a request begins, where one address takes several; no parameter's name does
UPLOAD_PATH = "/v1/embeddings/video"
SEARCH_UPLOAD_PATH = "/search/video"
MIN_BYTES_PER_S = 2**14  # of a body, in the mean (ours): one of 256 MiB takes at most 4 h 33 min
FORM_OVERHEAD = 2**16  # bytes of a form besides the file: its other fields and the lines between
_PLACE = re.compile(r"\s*\(\[Errno.*\)", re.DOTALL)  # the system's message ends in the path of the file
LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of requests; above one, the answer is an error that names it.

    Raises:
        ValueError: One is not positive and finite, or the queue or a decoder's memory is too small to be of use.
    """

    max_items: int = 2048  # inputs of one embeddings request: as many as OpenAI takes; they are run in batches
    max_videos: int = 64  # how many of them may be videos; each is decoded
    max_chars: int = 10_000  # of one text: what vidembed.index.search takes too
    max_documents: int = 64  # of one rerank request; each is decoded and asked about
    max_k: int = 100  # hits of one search
    max_rerank: int = 50  # hits of one search that the reranker is asked about
    max_body_bytes: int = 4 * 2**20  # of JSON
    max_upload_bytes: int = 256 * 2**20  # of an uploaded video
    max_uploads: int = 4  # at once; each takes its bytes on the disk twice while it is read
    max_requests: int = 128  # at once that need the model
    max_thumbnails: int = 64  # that are made at once; browsers ask a server for six
    thumbnail_bytes: int = 64 * 2**20  # of thumbnails kept in memory: some 6,000 of 10 KB
    max_queue: int = 8192  # inputs that wait for the model, at least max_items
    batch_items: int = 32  # inputs of a batch at most; a longer request is run in parts
    batch_wait_ms: float = 5.0  # how long a batch waits for other requests
    decode_workers: int = 2  # processes that decode videos
    decode_timeout_s: float = 30.0  # of a process at work on one video; then it is killed and replaced
    decode_memory_bytes: int = 4 * 2**30  # address space of a process, at least 512 MiB
    timeout_s: float = 60.0  # until a request is given up
    read_timeout_s: float = 30.0  # until the next piece of a body must have come

    def __post_init__(self) -> None:
        """Check the bounds."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{field.name}: got {value!r}; a positive number is needed")
        if self.max_queue < self.max_items:
            raise ValueError(f"max_queue: got {self.max_queue}; at least max_items={self.max_items} is needed")
        if self.decode_memory_bytes < MIN_MEMORY_BYTES:
            got = self.decode_memory_bytes
            raise ValueError(f"decode_memory_bytes: got {got}; at least {MIN_MEMORY_BYTES} are needed")


class ApiError(HTTPException):
    """An error that is sent to the client. It must not reveal internals of the server.

    FastAPI passes only a `HTTPException` on that is raised while a body is read. `code` is its short name, for
    programs, and `param` the part of the request that it is about, such as ``input[3]``.
    """

    def __init__(
        self, status: int, detail: str, *, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, detail, headers)
        self.code = code
        self.param = param

    def response(self) -> JSONResponse:
        """Return the HTTP response, in the form that all errors have."""
        server = "authentication_error" if self.status_code == 401 else "invalid_request_error"
        kind = "server_error" if self.status_code >= 500 else server
        param = None if self.param is None else _short(self.param, MAX_PARAM)  # its names may be the client's own
        body = {"message": _short(str(self.detail), MAX_MESSAGE), "type": kind, "param": param, "code": self.code}
        return JSONResponse({"error": body}, self.status_code, headers=dict(self.headers or {}))


def _short(text: str, most: int) -> str:
    return text if len(text := printable(text)) <= most else f"{text[: most - 4]} ..."


def busy(message: str, *, retry_after_s: int = 1) -> ApiError:
    """Return the error for a server that has too much to do: 503 with ``Retry-After``."""
    return ApiError(503, message, code="overloaded", headers={"Retry-After": str(retry_after_s)})


@contextmanager
def bad_value(param: str) -> Iterator[None]:
    """Answer 400 for a ValueError within the block, with its message."""
    try:
        yield
    except ValueError as error:
        raise ApiError(400, str(error), code="invalid_value", param=param) from error


def unusable(param: str, error: Exception) -> ApiError | RuntimeError:
    """Return the answer to an input that failed, or a RuntimeError if that is the server's fault."""
    if isinstance(error, DecodeTimeout):
        message = "the video was not decoded within the time limit of this server; send a shorter or smaller video"
        headers = {"x-should-retry": "false"}  # OpenAI's client, which would send the video again, obeys
        return ApiError(504, f"{param}: DecodeTimeout: {message}", code="decode_timeout", param=param, headers=headers)
    if isinstance(error, VideoError) and not isinstance(error, BackendUnavailable):
        code = "decoder_crashed" if isinstance(error, DecoderCrashed) else "invalid_video"
        message = f"{param}: {type(error).__name__}: {_PLACE.sub('', error.reason)}"
        return ApiError(400, message, code=code, param=param)
    if isinstance(error, (ValueError, OSError)) and not isinstance(error, VideoError):
        logger.warning("%s: %s", param, error)
        message = "it is too long for the model, or contains a token that is reserved by the model"
        return ApiError(400, f"{param}: {message}", code="invalid_value", param=param)
    return RuntimeError(f"{param}: {error}")


def check_count(param: str, count: int, most: int, *, of: str = "") -> None:
    """Raise a 400 for more than the most; `of` is what is counted, such as `` videos``."""
    if count > most:
        raise ApiError(
            400, f"{param}: got {count}{of}; at most {most} are allowed per request", code="too_many", param=param
        )


def check_length(param: str, text: str, most: int) -> None:
    """Raise a 400 for a text of more characters than the most."""
    if len(text) > most:
        message = f"{param}: got {len(text)} characters; at most {most} are allowed"
        raise ApiError(400, message, code="too_long", param=param)


def install(app: FastAPI) -> None:
    """Have `app` answer all errors in one form."""
    # Starlette calls each with the class it is registered for; its type asks for any Exception.
    app.add_exception_handler(HTTPException, _http_error)  # type: ignore[arg-type]
    app.add_exception_handler(RequestValidationError, _validation_error)  # type: ignore[arg-type]


def _http_error(_: Request, error: HTTPException) -> JSONResponse:
    if isinstance(error, ApiError):
        return error.response()
    codes = {404: "not_found", 405: "method_not_allowed", 416: "range_not_satisfiable"}
    code = codes.get(error.status_code, "bad_request")
    return ApiError(error.status_code, str(error.detail), code=code, headers=error.headers).response()


def _validation_error(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not JSON", code="invalid_json").response()
    return invalid({**first, "loc": first["loc"][1:]}).response()  # without the part of the request, such as the body


def invalid(first: Mapping[str, Any]) -> ApiError:
    """Return the answer to a request that does not fit its schema, by the first of pydantic's errors."""
    location = [*first["loc"], *([first["ctx"]["param"]] if first["type"] == "unknown_parameter" else [])]
    parts = (part for part in location if not (isinstance(part, str) and part.startswith(FORM)))
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)  # as .documents[2].video
    param = _short(path.removeprefix("."), MAX_PARAM)
    message = str(first["msg"]).removeprefix("Value error, ")
    has_value = first["type"] != "missing" and "got " not in message
    got = f"; got {reprlib.repr(first['input'])}" if has_value else ""
    codes = {"missing": "missing_required_parameter", "unknown_parameter": "unknown_parameter"}
    code = codes.get(first["type"], "invalid_value")
    return ApiError(400, f"{param}: {message}{got}" if param else message, code=code, param=param or None)


class Metrics:
    """Counts and times, for Prometheus. Each server has its own registry, so two in one process do not mix."""

    CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, *, waiting: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        labels = ("route", "method", "status")
        self.requests = Counter("vidembed_requests", "Requests answered.", labels, registry=registry)
        seconds = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
        text = "Time to the end of the answer."
        self.seconds = Histogram("vidembed_request_seconds", text, ("route",), buckets=seconds, registry=registry)
        self.active = Gauge("vidembed_requests_active", "Requests being answered.", registry=registry)
        items = (1, 2, 4, 8, 16, 32, 64, 128)
        text = "Inputs of a batch for the model."
        self.batch_items = Histogram("vidembed_batch_items", text, buckets=items, registry=registry)
        Gauge("vidembed_queue_items", "Inputs that wait for the model.", registry=registry).set_function(waiting)

    def text(self) -> bytes:
        """Return all of them."""
        return generate_latest(self._registry)


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
# The page holds nothing; a media id is given out by a search alone, and neither <video> nor <img> can send a key.
OPEN = re.compile(
    r"/|/(page|hits|player|server)\.js|/page\.css|/icon\.svg|/favicon\.ico|/health(/live|/ready)?|/openapi\.json"
    r"|/media/[^/]*(/thumbnail)?"
)

# As browsers write it: https://fetch.spec.whatwg.org/#origin-header
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:]+\]|[^\s/:?#@\[\]A-Z]+)(:[0-9]{1,5})?")


def check_api_key(api_key: str | None) -> None:
    """Raise ValueError for a key that no header can hold: it is empty, or holds other than printable ASCII."""
    if api_key is not None and (not api_key.strip() or not api_key.isascii() or not api_key.isprintable()):
        raise ValueError("api_key: it must be printable ASCII and not empty; give another key")


def check_origins(origins: Collection[str]) -> None:
    """Raise ValueError for what no browser sends as the origin of a page, and that is not ``*``."""
    form = "https://HOST, with :PORT unless it is the default port, in lower case and without a path; or * for any site"
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"cors-origin: got {origin!r}; an origin is {form}")


@dataclass(eq=False, repr=False)  # the key is in no log
class Guard:
    """ASGI middleware. It also keeps errors inside: a client gets an id, the log has the traceback.

    starlette's `TrustedHostMiddleware` answers 400, and FastAPI's `HTTPBearer` runs after the body is read. `hosts`
    keep a page of another site from reaching a loopback address through a name of its own (DNS rebinding).
    """

    app: ASGIApp
    limits: Limits
    metrics: Metrics
    api_key: str | None
    hosts: Collection[str] | None

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
                headers.update(_HEADERS)
                headers["Content-Security-Policy"] = _PAGE_POLICY if scope["path"] == "/" else _POLICY
                if not scope["path"].startswith("/media/") or status >= 400:
                    headers["Cache-Control"] = "no-store"
            await send(message)

        with self.metrics.active.track_inprogress():
            try:
                self._check(scope)
                await self.app(scope, self._bounded(scope, receive), send_guarded)
            except ApiError as error:
                await error.response()(scope, receive, send_guarded)
            except ClientDisconnect:
                status = status or 499  # nobody is there to read an answer
            except Exception:
                number = secrets.token_hex(6)
                logger.exception("error %s in %s %r", number, scope["method"], scope["path"])
                if status:
                    raise  # the answer had begun; the server closes the connection
                failed = ApiError(500, f"the server failed; its log says why at {number}", code="server_error")
                await failed.response()(scope, receive, send_guarded)
        route = getattr(scope.get("route"), "path", "other")
        # Any word can stand for a method; a label for each would fill the memory.
        method = scope["method"] if scope["method"] in HTTPMethod.__members__ else "other"
        self.metrics.requests.labels(route, method, str(status)).inc()
        self.metrics.seconds.labels(route).observe(time.perf_counter() - began)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = re.sub(r":\d*$", "", headers.get("host", "").strip().lower())
        if self.hosts is not None and host not in map(str.lower, self.hosts):
            message = "Host: this server answers only under its own names; add one with --allow-host"
            raise ApiError(421, message, code="wrong_host")
        if self.api_key is not None and not OPEN.fullmatch(scope["path"]):
            key = self.api_key.encode()
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), key):
                message = "Authorization: the key is missing or wrong; send 'Authorization: Bearer KEY'"
                raise ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        declared = headers.get("content-length", "")
        if declared.isascii() and declared.isdigit():
            self._check_size(scope, int(declared[:20]))

    def _check_size(self, scope: Scope, size: int) -> None:
        is_upload = scope["path"] in {UPLOAD_PATH, SEARCH_UPLOAD_PATH}
        most = self.limits.max_upload_bytes + FORM_OVERHEAD if is_upload else self.limits.max_body_bytes
        if size > most:
            raise ApiError(413, f"the body is larger than {most} bytes", code="body_too_large")

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Wrap `receive`: a body must not be longer than it may, nor take for ever."""
        read, more, began = 0, True, time.monotonic()

        async def receive_bounded() -> Message:
            nonlocal read, more
            if not more:
                return await receive()  # waits for the client to go
            patience = self.limits.read_timeout_s
            left = began + patience + read / MIN_BYTES_PER_S - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), min(left, patience))
            except TimeoutError as error:
                slow = f"the body comes at less than {MIN_BYTES_PER_S} bytes a second"
                reason = slow if read and left < patience else f"nothing was received of the body for {patience:g} s"
                raise ApiError(408, reason, code="body_timeout") from error
            read += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
            self._check_size(scope, read)
            return message

        return receive_bounded
