"""The one form of errors: OpenAI's envelope, so that its client reads the message, the parameter and the code."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from vidembed.index.sheet import printable

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
