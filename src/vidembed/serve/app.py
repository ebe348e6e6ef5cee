"""The routes."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError

import vidembed
from vidembed.serve import page, schemas, searching
from vidembed.serve.engine import Engine
from vidembed.serve.errors import ApiError, check_count, check_length, install
from vidembed.serve.guard import UPLOAD_PATH, Guard, check_api_key
from vidembed.serve.metrics import CONTENT_TYPE
from vidembed.serve.openapi import MODEL_ERRORS, document, errors, upload_body
from vidembed.serve.results import Embedded, vector_of
from vidembed.serve.videos import uploaded, video_of
from vidembed.video import VideoSegment

_DESCRIPTION = "Embeds words and videos, reranks videos, and searches an index. Errors have the form of OpenAI's."


def create_app(engine: Engine, *, api_key: str | None = None, hosts: Collection[str] | None = None) -> FastAPI:
    """Return the ASGI application of an engine. It ends the engine's thread when it shuts down.

    Args:
        engine: The models and the index.
        api_key: What requests must bear; None for nothing.
        hosts: Names that the Host header may have; None for any.

    Raises:
        ValueError: The key is empty or cannot stand in a header.
    """
    check_api_key(api_key)

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
    made: list[dict[str, Any]] = []

    def openapi() -> dict[str, Any]:
        if not made:
            names = {"models": [engine.model, *engine.aliases], "rerankers": engine.rerankers}
            made.append(document(app, engine.limits, **names, keyed=api_key is not None))
        return made[0]

    app.openapi = openapi  # type: ignore[method-assign]
    _add_embeddings(app, engine)
    _add_rerank(app, engine)
    searching.add(app, engine)
    _add_operations(app, engine)
    page.add(app)
    return app


# -- OpenAI ------------------------------------------------------------------------------------------------------------


def _add_embeddings(app: FastAPI, engine: Engine) -> None:
    @app.get("/v1/models", response_model=schemas.Models, responses=errors(401))
    async def models() -> schemas.Models:
        """List the names of the served models."""
        names = [engine.model, *engine.aliases, *engine.rerankers]
        return schemas.Models(data=[schemas.Model(id=name) for name in names])

    @app.post("/v1/embeddings", response_model=schemas.EmbeddingsResponse, responses=errors(*MODEL_ERRORS))
    async def embeddings(body: schemas.EmbeddingsRequest) -> JSONResponse:
        """Embed words and videos, as OpenAI's embeddings."""
        items: list[str | VideoSegment] = []
        given = body.input if isinstance(body.input, list) else [body.input]
        check_count("input", len(given), engine.limits.max_items)
        for number, item in enumerate(given):
            param = f"input[{number}]" if isinstance(body.input, list) else "input"
            if isinstance(item, str):
                check_length(param, item, engine.limits.max_chars)
                items.append(item)
            else:
                items.append(video_of(item.video, root=engine.root, param=param))
        _check_model(engine, body)
        with engine.admitted():
            return _embeddings(engine, body, await engine.embed(items))

    @app.post(
        UPLOAD_PATH,
        response_model=schemas.EmbeddingsResponse,
        responses=errors(*MODEL_ERRORS),
        openapi_extra={"requestBody": upload_body()},
    )
    async def embed_upload(request: Request) -> JSONResponse:
        """Embed an uploaded video."""
        with engine.admitted(), engine.admitted_upload():
            async with uploaded(request, max_bytes=engine.limits.max_upload_bytes) as (path, fields):
                body = _upload_options(fields)
                _check_model(engine, body)
                return _embeddings(engine, body, await engine.embed([VideoSegment(path)]), upload=True)


def _upload_options(fields: dict[str, str]) -> schemas.EmbeddingsRequest:
    # A form has no numbers, so they are made of text here.
    values: dict[str, Any] = dict(fields)
    number = values.get("dimensions")
    if number is not None and number.isascii() and number.isdigit() and len(number) < 10:
        values["dimensions"] = int(number)
    try:
        return schemas.EmbeddingsRequest(**{"input": "upload", **values})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ApiError(400, f"{name}: {first['msg']}", code="invalid_value", param=name) from None


def _check_model(engine: Engine, body: schemas.EmbeddingsRequest) -> None:
    if not engine.is_model(body.model):
        raise _no_model(engine.model)
    if body.dimensions is not None and body.dimensions > engine.dimension:
        raise ApiError(
            400,
            f"dimensions: got {body.dimensions}; this model gives vectors of {engine.dimension}",
            code="invalid_value",
            param="dimensions",
        )


def _no_model(served: str) -> ApiError:
    return ApiError(404, f"model: it is not served here; this is {served!r}", code="model_not_found", param="model")


def _embeddings(
    engine: Engine, body: schemas.EmbeddingsRequest, results: Sequence[Embedded], *, upload: bool = False
) -> JSONResponse:
    data = []
    for number, result in enumerate(results):
        param = "file" if upload else f"input[{number}]" if isinstance(body.input, list) else "input"
        vector = vector_of(result, param, body.dimensions)  # (D,)
        value: list[float] | str = (
            base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
            if body.encoding_format == "base64"
            else [float(x) for x in vector]
        )
        data.append({"object": "embedding", "index": number, "embedding": value})
    tokens = sum(result.tokens for result in results)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    # As it is: checking thousands of numbers against the schema would take longer than making them.
    return JSONResponse({"object": "list", "data": data, "model": engine.model, "usage": usage})


# -- Cohere ------------------------------------------------------------------------------------------------------------


def _add_rerank(app: FastAPI, engine: Engine) -> None:
    async def answer(body: schemas.RerankRequest, version: Literal["1", "2"]) -> schemas.RerankResponse:
        check_count("documents", len(body.documents), engine.limits.max_documents)
        check_length("query", body.query, engine.limits.max_chars)
        if engine.reranker_model is None:
            raise ApiError(
                404,
                "model: this server has no reranker; start it with --rerank or --reranker",
                code="model_not_found",
                param="model",
            )
        if body.model != engine.reranker_model:
            raise _no_model(engine.reranker_model)
        uris = [each if isinstance(each, str) else each.video for each in body.documents]
        videos = [video_of(uri, root=engine.root, param=f"documents[{number}]") for number, uri in enumerate(uris)]
        with engine.admitted():
            ranked = await engine.rank(body.query, videos)
        return schemas.RerankResponse(
            id=str(uuid.uuid4()),
            results=[
                schemas.RerankResult(
                    index=each.index,
                    relevance_score=each.score,
                    document=schemas.RerankDocument(text=uris[each.index]) if body.return_documents else None,
                )
                for each in ranked[: body.top_n]
            ],
            meta=schemas.RerankMeta(api_version=schemas.ApiVersion(version=version)),
        )

    options: dict[str, Any] = {
        "response_model": schemas.RerankResponse,
        "response_model_exclude_none": True,
        "responses": errors(*MODEL_ERRORS),
    }

    @app.post("/v1/rerank", **options)
    async def rerank_v1(body: schemas.RerankRequest) -> schemas.RerankResponse:
        """Order videos by the probability that they match words, as Cohere's rerank, version 1."""
        return await answer(body, "1")

    @app.post("/v2/rerank", **options)
    async def rerank_v2(body: schemas.RerankRequest) -> schemas.RerankResponse:
        """The same, as version 2, which Cohere's newer client asks."""
        return await answer(body, "2")


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
