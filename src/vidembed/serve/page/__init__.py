"""The web page: static files, which ask `/search` and play `/media`."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from importlib.resources import files
from typing import TYPE_CHECKING

from fastapi.responses import Response

if TYPE_CHECKING:
    from fastapi import FastAPI

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),  # what browsers ask for where no page names an icon
}


def add(app: FastAPI) -> None:
    """Add the page to an application. The files are read once."""
    for route, (name, kind) in _FILES.items():
        app.add_api_route(route, _answering(files(__name__).joinpath(name).read_bytes(), kind), include_in_schema=False)


def _answering(content: bytes, kind: str) -> Callable[[], Coroutine[None, None, Response]]:
    async def answer() -> Response:
        return Response(content, headers={"Content-Type": kind})

    return answer
