"""`vidembed serve`: one model and one index behind HTTP, for clients of OpenAI and Cohere. Needs the `serve` extra."""

from __future__ import annotations

from vidembed.serve.app import create_app
from vidembed.serve.engine import Engine
from vidembed.serve.security import ApiError, Limits

__all__ = ["ApiError", "Engine", "Limits", "create_app"]
