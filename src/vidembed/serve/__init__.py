"""`vidembed serve`: one model and one index behind HTTP, with the requests that clients of OpenAI and Cohere send.

`create_app` makes the ASGI application of an `Engine`. Importing this package needs the `serve` extra, and no torch.
"""

from __future__ import annotations

from vidembed.serve.app import create_app
from vidembed.serve.engine import Engine
from vidembed.serve.security import ApiError, Limits

__all__ = ["ApiError", "Engine", "Limits", "create_app"]
