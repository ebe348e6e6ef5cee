"""The routes."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.middleware.cors import CORSMiddleware

import vidembed
from vidembed.serve import page, schemas, searching
from vidembed.serve.engine import Engine
from vidembed.serve.media import uploaded, video_of
from vidembed.serve.metrics import CONTENT_TYPE
from vidembed.serve.openapi import MODEL_ERRORS, document, errors, upload_body
from vidembed.serve.searching import Embedded, Ranked, base64_of, numbers_of, vectors_of
from vidembed.serve.security import (
    UPLOAD_PATH,
    ApiError,
    Guard,
    check_api_key,
    check_count,
    check_length,
    check_origins,
    install,
    invalid,
)
from vidembed.video import VideoSegment

_DESCRIPTION = "Embeds words and videos, reranks videos, and searches an index. Errors have the form of OpenAI's."


def create_app(
    engine: Engine,
    *,
    api_key: str | None = None,
    hosts: Collection[str] | None = None,
    cors_origins: Collection[str] = (),
) -> FastAPI:
    """Return the ASGI application of an engine. It ends the engine's thread when it shuts down.

    Args:
        engine: The models and the index.
        api_key: What requests must bear; None for nothing.
        hosts: Names that the Host header may have; None for any.
        cors_origins: Origins of other sites whose scripts may use the server, such as ``https://example.com``, with the
            key if there is one; ``*`` for any.

    Raises:
        ValueError: The key is empty or cannot stand in a header, or an origin is none.
    """
    check_api_key(api_key)
    check_origins(cors_origins)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="vidembed",
        version=vidembed.__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    install(app)
    app.add_middleware(Guard, limits=engine.limits, metrics=engine.metrics, api_key=api_key, hosts=hosts)
    if cors_origins:  # around the guard, since a browser asks beforehand without the key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[*cors_origins],
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "x-should-retry"],
        )
    made: list[dict[str, Any]] = []

    def openapi() -> dict[str, Any]:
        if not made:
            names = {"models": engine.models, "rerankers": engine.rerankers}
            made.append(document(app, engine.limits, **names, keyed=api_key is not None))
        return made[0]

    app.openapi = openapi  # type: ignore[method-assign]
    _add_models(app, engine)
    _add_embeddings(app, engine)
    _add_rerank(app, engine)
    searching.add(app, engine)
    _add_operations(app, engine)
    page.add(app)
    return app


# -- embeddings --------------------------------------------------------------------------------------------------------


def _add_models(app: FastAPI, engine: Engine) -> None:
    names = [*dict.fromkeys([*engine.models, *engine.rerankers])]

    @app.get("/v1/models", response_model=schemas.Models, responses=errors(401))
    async def models() -> schemas.Models:
        """List the names of the served models."""
        return schemas.Models(data=[schemas.Model(id=name) for name in names])

    # A path, since names such as vidembed/shapes have a slash.
    @app.get("/v1/models/{model:path}", response_model=schemas.Model, responses=errors(400, 401, 404))
    async def model(model: str) -> schemas.Model:
        """Describe the served model of this name."""
        _check_model(model, names)
        return schemas.Model(id=model)


def _add_embeddings(app: FastAPI, engine: Engine) -> None:
    @app.post("/v1/embeddings", response_model=schemas.EmbeddingsResponse, responses=errors(*MODEL_ERRORS))
    @app.post("/embeddings", response_model=schemas.EmbeddingsResponse, responses=errors(*MODEL_ERRORS))
    async def embeddings(body: schemas.EmbeddingsRequest) -> Response:
        """Embed words and videos, as OpenAI's embeddings."""
        items = _items(engine, "input", body.input)
        _check_model(body.model, engine.models)
        _check_dimensions(engine, "dimensions", body.dimensions)
        with engine.admitted():
            results = await engine.embed([*items.values()], task=body.prompt)
            return await _json(lambda: _openai(engine, body, dict(zip(items, results, strict=True))))

    @app.post(
        UPLOAD_PATH,
        response_model=schemas.EmbeddingsResponse,
        responses=errors(*MODEL_ERRORS),
        openapi_extra={"requestBody": upload_body()},
    )
    async def embed_upload(request: Request) -> Response:
        """Embed an uploaded video."""
        with engine.admitted(), engine.admitted_upload():
            async with uploaded(request, max_bytes=engine.limits.max_upload_bytes) as (path, fields):
                body = _upload_options(fields)
                _check_model(body.model, engine.models)
                _check_dimensions(engine, "dimensions", body.dimensions)
                (result,) = await engine.embed([VideoSegment(path)])
                return await _json(lambda: _openai(engine, body, {"file": result}))

    @app.post("/embed", response_model=schemas.Vectors, responses=errors(*MODEL_ERRORS))
    async def embed_tei(body: schemas.TeiEmbedRequest) -> Response:
        """Embed words and videos, as text-embeddings-inference."""
        items = _items(engine, "inputs", body.inputs)
        _check_dimensions(engine, "dimensions", body.dimensions)
        with engine.admitted():
            results = await engine.embed([*items.values()], task=body.prompt)
            return await _json(lambda: numbers_of(vectors_of(dict(zip(items, results, strict=True)), body.dimensions)))

    async def embed_cohere(body: schemas.CohereEmbedRequest, version: Literal["1", "2"]) -> Response:
        items = _items(engine, "texts", [*body.texts])
        _check_model(body.model, engine.models)
        _check_dimensions(engine, "output_dimension", body.output_dimension)
        with engine.admitted():
            results = await engine.embed([*items.values()], task=body.prompt)
            return await _json(lambda: _cohere(body, dict(zip(items, results, strict=True)), version))

    @app.post("/v1/embed", response_model=schemas.CohereEmbedResponse, responses=errors(*MODEL_ERRORS))
    async def embed_cohere_v1(body: schemas.CohereEmbedRequest) -> Response:
        """Embed words, as Cohere's embed, version 1."""
        return await embed_cohere(body, "1")

    @app.post("/v2/embed", response_model=schemas.CohereEmbedResponse, responses=errors(*MODEL_ERRORS))
    async def embed_cohere_v2(body: schemas.CohereEmbedRequest) -> Response:
        """The same, as version 2."""
        return await embed_cohere(body, "2")


def _upload_options(fields: dict[str, str]) -> schemas.EmbeddingsRequest:
    # A form has no numbers, so they are made of text here.
    values: dict[str, Any] = dict(fields)
    number = values.get("dimensions")
    if number is not None and number.isascii() and number.isdigit() and len(number) < 10:
        values["dimensions"] = int(number)
    try:
        return schemas.EmbeddingsRequest(**{"input": "upload", **values})
    except ValidationError as error:
        raise invalid(error.errors()[0]) from None


def _items(engine: Engine, param: str, given: Any) -> dict[str, str | VideoSegment]:
    """Return the words and videos of a request, each under the name that errors give it."""
    entries: list[str | schemas.Video | schemas.TextObject] = given if isinstance(given, list) else [given]
    limits = engine.limits
    check_count(param, len(entries), limits.max_items)
    videos = sum(isinstance(each, schemas.Video) for each in entries)
    check_count(param, videos, limits.max_videos, of=" videos")
    items: dict[str, str | VideoSegment] = {}
    for number, each in enumerate(entries):
        name = f"{param}[{number}]" if isinstance(given, list) else param
        if isinstance(each, schemas.Video):
            items[name] = video_of(each.video, root=engine.root, param=name)
        else:
            text = each if isinstance(each, str) else each.text
            check_length(name, text, limits.max_chars)
            items[name] = text
    return items


def _check_model(name: str | None, served: Sequence[str]) -> None:
    if name is not None and name not in served:
        names = ", ".join(map(repr, served))
        raise ApiError(
            404, f"model: {name!r} is not served here; served is {names}", code="model_not_found", param="model"
        )


def _check_dimensions(engine: Engine, param: str, dimensions: int | None) -> None:
    if dimensions is not None and dimensions > engine.dimension:
        raise ApiError(
            400,
            f"{param}: got {dimensions}; this model gives vectors of {engine.dimension}",
            code="invalid_value",
            param=param,
        )


async def _json(make: Callable[[], Any]) -> Response:
    """Write an answer. In a thread, since thousands of vectors take seconds, which other requests should not wait."""
    content = await asyncio.to_thread(lambda: to_json(make()))
    return Response(content, media_type="application/json")


def _openai(engine: Engine, body: schemas.EmbeddingsRequest, results: Mapping[str, Embedded]) -> dict[str, Any]:
    vectors = vectors_of(results, body.dimensions)
    values = base64_of(vectors) if body.as_base64 else numbers_of(vectors)
    tokens = sum(result.tokens for result in results.values())
    return {
        "object": "list",
        "data": ({"object": "embedding", "index": n, "embedding": value} for n, value in enumerate(values)),
        "model": engine.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _cohere(
    body: schemas.CohereEmbedRequest, results: Mapping[str, Embedded], version: Literal["1", "2"]
) -> dict[str, Any]:
    vectors = vectors_of(results, body.output_dimension)
    make = {"float": numbers_of, "base64": base64_of}
    types = body.embedding_types or ["float"]
    plain = version == "1" and body.embedding_types is None
    return {
        "id": str(uuid.uuid4()),
        "response_type": "embeddings_floats" if plain else "embeddings_by_type",
        "embeddings": numbers_of(vectors) if plain else {each: make[each](vectors) for each in types},
        "texts": body.texts,
        "meta": {
            "api_version": {"version": version},
            "billed_units": {"input_tokens": sum(result.tokens for result in results.values())},
        },
    }


# -- reranking ---------------------------------------------------------------------------------------------------------


def _add_rerank(app: FastAPI, engine: Engine) -> None:
    async def rank(
        query: str, documents: Sequence[str | schemas.Video | schemas.TextObject], *, param: str, model: str | None
    ) -> tuple[list[Ranked], list[str]]:
        check_count(param, len(documents), engine.limits.max_documents)
        check_length("query", query, engine.limits.max_chars)
        if not engine.rerankers:
            raise ApiError(
                404,
                "model: this server has no reranker; start it with --rerank or --reranker",
                code="model_not_found",
                param="model",
            )
        _check_model(model, engine.rerankers)
        uris = [
            each if isinstance(each, str) else each.video if isinstance(each, schemas.Video) else each.text
            for each in documents
        ]
        videos = [video_of(uri, root=engine.root, param=f"{param}[{number}]") for number, uri in enumerate(uris)]
        with engine.admitted():
            return await engine.rank(query, videos, param=param), uris

    async def answer(body: schemas.RerankRequest, version: Literal["1", "2"] | None) -> schemas.RerankResponse:
        ranked, uris = await rank(body.query, body.documents, param="documents", model=body.model)
        units = schemas.BilledUnits(search_units=1)
        return schemas.RerankResponse(
            id=str(uuid.uuid4()),
            model=engine.reranker_model or "",
            results=[
                schemas.RerankResult(
                    index=each.index,
                    relevance_score=each.score,
                    document=schemas.RerankDocument(text=uris[each.index]) if body.return_documents else None,
                )
                for each in ranked[: body.top_n or None]
            ],
            meta=version and schemas.Meta(api_version=schemas.ApiVersion(version=version), billed_units=units),
        )

    options: dict[str, Any] = {
        "response_model": schemas.RerankResponse,
        "response_model_exclude_none": True,
        "responses": errors(*MODEL_ERRORS),
    }

    @app.post("/v1/rerank", **options)
    async def rerank_v1(body: schemas.RerankRequest) -> schemas.RerankResponse:
        """Order videos by the probability that they match words, as Cohere's rerank, version 1, or Jina's."""
        return await answer(body, "1")

    @app.post("/v2/rerank", **options)
    async def rerank_v2(body: schemas.RerankRequest) -> schemas.RerankResponse:
        """The same, as version 2, which Cohere's newer client asks."""
        return await answer(body, "2")

    @app.post("/rerank", **{**options, "response_model": schemas.RerankResponse | list[schemas.TeiRank]})
    async def rerank_any(body: schemas.AnyRerankRequest) -> schemas.RerankResponse | list[schemas.TeiRank]:
        """The same, as vLLM's with `documents`, or as text-embeddings-inference's with `texts`."""
        if isinstance(body, schemas.RerankRequest):
            return await answer(body, None)
        ranked, uris = await rank(body.query, body.texts, param="texts", model=None)
        return [
            schemas.TeiRank(index=each.index, score=each.score, text=uris[each.index] if body.return_text else None)
            for each in ranked
        ]


# -- operations --------------------------------------------------------------------------------------------------------


def _add_operations(app: FastAPI, engine: Engine) -> None:
    def health() -> schemas.Health:
        status: Literal["ok", "stopping"] = "ok" if engine.ready else "stopping"
        return schemas.Health(
            status=status, model=engine.model, reranker=engine.reranker_model, index=engine.index is not None
        )

    stopping: dict[int | str, dict[str, Any]] = {503: {"model": schemas.Health, "description": "It is stopping."}}

    @app.get("/health/live", response_model=schemas.Live, responses=errors())
    async def live() -> schemas.Live:
        """Whether the process answers."""
        return schemas.Live()

    @app.get("/health", response_model=schemas.Health, responses={**stopping, **errors()})
    @app.get("/health/ready", response_model=schemas.Health, responses={**stopping, **errors()})
    async def ready() -> JSONResponse:
        """Whether requests for the model are answered."""
        return JSONResponse(health().model_dump(), 200 if engine.ready else 503)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors(401)},
    )
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(engine.metrics.text(), headers={"Content-Type": CONTENT_TYPE})
