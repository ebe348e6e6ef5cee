"""The OpenAPI document: FastAPI's, with this server's limits, and its errors in place of FastAPI's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastapi.openapi.utils import get_openapi

from vidembed.serve.guard import UPLOAD_PATH
from vidembed.serve.limits import Limits
from vidembed.serve.schemas import ErrorResponse

if TYPE_CHECKING:
    from fastapi import FastAPI

_ERRORS = {
    400: "The request cannot be answered as it is; `param` names the part.",
    401: "The key is missing or wrong.",
    404: "There is no such model, media or index.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    416: "The file has no such bytes.",
    421: "The Host header names another server.",
    500: "The server failed; its log says why.",
    503: "Too much to do; try again after Retry-After seconds.",
    504: "The model took too long.",
}
_ANYWHERE = (421, 500)
MODEL_ERRORS = (400, 401, 404, 408, 413, 503, 504)
"""Of the routes that ask the model."""


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that can answer with these errors, and those that any can."""
    return {status: {"model": ErrorResponse, "description": _ERRORS[status]} for status in (*statuses, *_ANYWHERE)}


def upload_body() -> dict[str, Any]:
    """Return the description of an upload, which is read by hand: after the key is checked, and into one file."""
    properties = {
        "file": {"type": "string", "format": "binary"},
        "model": {"type": "string"},
        "encoding_format": {"type": "string", "enum": ["float", "base64"]},
        "dimensions": {"type": "integer", "minimum": 1},
        "user": {"type": "string"},
    }
    form = {
        "type": "object",
        "required": ["file", "model"],
        "additionalProperties": False,
        "properties": properties,
    }
    return {"required": True, "content": {"multipart/form-data": {"schema": form}}}


def document(
    app: FastAPI, limits: Limits, *, models: Sequence[str], rerankers: Sequence[str], keyed: bool
) -> dict[str, Any]:
    """Return the OpenAPI document.

    Args:
        app: With all routes.
        limits: Of requests.
        models: Names of the encoder.
        rerankers: Names of the reranker; none if there is none.
        keyed: Whether a key is asked for.
    """
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's; here invalid requests are 400
            if keyed and path.startswith(("/v", "/search", "/metrics")):
                operation["security"] = [{"key": []}]
    components = schema["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    if keyed:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    _bound(components, limits)
    parameters = schema["paths"]["/search"]["get"]["parameters"]
    _bound_search({each["name"]: each["schema"] for each in parameters}, limits)
    components["EmbeddingsRequest"]["properties"]["model"]["enum"] = list(models)
    form = schema["paths"][UPLOAD_PATH]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    form["properties"]["model"]["enum"] = list(models)
    if rerankers:
        components["RerankRequest"]["properties"]["model"]["enum"] = list(rerankers)
    return schema


def _bound(components: dict[str, Any], limits: Limits) -> None:
    embeddings = components["EmbeddingsRequest"]["properties"]["input"]
    for form in embeddings["anyOf"]:
        if form.get("type") == "array":
            form["maxItems"] = limits.max_items
            texts = form["items"]["anyOf"]
        elif form.get("type") == "string":
            form["maxLength"] = limits.max_chars
    for form in texts:
        if form.get("type") == "string":
            form["maxLength"] = limits.max_chars
    rerank = components["RerankRequest"]["properties"]
    rerank["documents"]["maxItems"] = limits.max_documents
    rerank["query"]["maxLength"] = limits.max_chars
    _bound_search(components["SearchRequest"]["properties"], limits)


def _bound_search(search: dict[str, Any], limits: Limits) -> None:
    search["q"]["maxLength"] = limits.max_chars
    next(form for form in search["k"]["anyOf"] if form["type"] == "integer")["maximum"] = limits.max_k
    search["rerank"]["maximum"] = limits.max_rerank
