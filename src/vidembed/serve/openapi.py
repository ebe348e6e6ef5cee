"""The OpenAPI document: FastAPI's, with this server's limits, and its errors in place of FastAPI's."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from vidembed.serve.answers import ErrorResponse
from vidembed.serve.engine import Engine
from vidembed.serve.security import OPEN, SEARCH_UPLOAD_PATH, UPLOAD_PATH

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
MODEL_ERRORS = (400, 401, 404, 408, 413, 503, 504)  # of the routes that ask the model


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that can answer with these errors, and those that any can."""
    return {status: {"model": ErrorResponse, "description": _ERRORS[status]} for status in (*statuses, 421, 500)}


def upload_body(*, file_only: bool = False) -> dict[str, Any]:
    """Return the description of an upload, which is read by hand: after the key is checked, and into one file."""
    file = {"file": {"type": "string", "format": "binary"}}
    properties = {
        **file,
        "model": {"type": "string"},
        "encoding_format": {"type": "string", "enum": ["float", "base64"]},
        "dimensions": {"type": "integer", "minimum": 1},
        "user": {"type": "string"},
    }
    form: dict[str, Any] = {"type": "object", "required": ["file"], "additionalProperties": False}
    form["properties"] = file if file_only else properties
    return {"required": True, "content": {"multipart/form-data": {"schema": form}}}


def document(app: FastAPI, engine: Engine, *, keyed: bool) -> dict[str, Any]:
    """Return FastAPI's document with this server's limits, names of models and errors, and the key if it is `keyed`."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # FastAPI's; here invalid requests are 400
            if keyed and not OPEN.fullmatch(path):
                operation["security"] = [{"key": []}]
    components = schema["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    if keyed:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    _set_limits(schema, engine)
    return schema


def _set_limits(schema: dict[str, Any], engine: Engine) -> None:
    limits, models, rerankers = engine.limits, engine.models, engine.rerankers
    form = schema["paths"][UPLOAD_PATH]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    searches = [schema["paths"]["/search"]["get"], schema["paths"]["/search/like"]["get"]]
    searches.append(schema["paths"][SEARCH_UPLOAD_PATH]["post"])
    asked_by_address = [{each["name"]: each["schema"] for each in one["parameters"]} for one in searches]
    (asked,) = schema["paths"]["/v1/models/{model}"]["get"]["parameters"]
    _set(asked["schema"], "string", enum=[*models, *rerankers])
    components = schema["components"]["schemas"].items()
    bodies = {name: each["properties"] for name, each in components if name.endswith("Request")}
    for fields in (form["properties"], bodies["EmbeddingsRequest"], bodies["CohereEmbedRequest"]):
        _set(fields["model"], "string", enum=models)
    if rerankers:
        _set(bodies["RerankRequest"]["model"], "string", enum=rerankers)
    for body, name in (("EmbeddingsRequest", "input"), ("TeiEmbedRequest", "inputs"), ("CohereEmbedRequest", "texts")):
        _set(bodies[body][name], "array", maxItems=limits.max_items)
        _set(bodies[body][name], "string", maxLength=limits.max_chars)
    for body, name in (("RerankRequest", "documents"), ("TeiRerankRequest", "texts")):
        _set(bodies[body][name], "array", maxItems=limits.max_documents)
        _set(bodies[body]["query"], "string", maxLength=limits.max_chars)
    for fields in (*asked_by_address, bodies["SearchRequest"]):
        _set(fields["k"], "integer", maximum=limits.max_k)
        if "q" in fields:
            _set(fields["q"], "string", maxLength=limits.max_chars)
            _set(fields["rerank"], "integer", maximum=limits.max_rerank)


def _set(schema: dict[str, Any], kind: str, **keywords: object) -> None:
    """Add keywords to each form of a schema that is of a type, and to those of its items."""
    for form in schema.get("anyOf", [schema]):
        if form.get("type") == kind:
            form.update(keywords)
        if "items" in form:
            _set(form["items"], kind, **keywords)
