"""The application and its routes."""

from __future__ import annotations

import asyncio
import base64
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from numpy.typing import NDArray
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.middleware.cors import CORSMiddleware

import vidembed
from vidembed.serve import answers, schemas, security
from vidembed.serve.engine import Embedded, Engine, vector_of
from vidembed.serve.media import FIELDS, add_page, uploaded, video_of
from vidembed.serve.openapi import MODEL_ERRORS, document, errors, upload_body
from vidembed.serve.searching import add_media, add_search
from vidembed.serve.security import UPLOAD_PATH, ApiError, check_count, check_length
from vidembed.video import VideoSegment

Version = Literal["1", "2"]  # of Cohere's API


def create_app(
    engine: Engine, *, api_key: str | None = None, hosts: Sequence[str] | None = None, cors_origins: Sequence[str] = ()
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
    security.check_api_key(api_key)
    security.check_origins(cors_origins)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(
        title="vidembed",
        version=vidembed.__version__,
        description="Embeds words and videos, reranks videos, and searches an index. Errors have the form of OpenAI's.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    security.install(app)
    app.add_middleware(security.Guard, limits=engine.limits, metrics=engine.metrics, api_key=api_key, hosts=hosts)
    if cors_origins:  # around the guard, since a browser asks beforehand without the key
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[*cors_origins],
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "x-should-retry"],
        )

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = document(app, engine, keyed=api_key is not None)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    for add in (_add_models, _add_embeddings, _add_rerank, add_search, add_media, _add_operations):
        add(app, engine)
    add_page(app)
    return app


def _add_models(app: FastAPI, engine: Engine) -> None:
    names = [*dict.fromkeys([*engine.models, *engine.rerankers])]

    @app.get("/v1/models", responses=errors(401))
    async def models() -> answers.Models:
        """List the names of the served models."""
        return answers.Models(data=[answers.Model(id=name) for name in names])

    # A path, since names such as vidembed/shapes have a slash.
    @app.get("/v1/models/{model:path}", responses=errors(400, 401, 404))
    async def model(model: str) -> answers.Model:
        """Describe the served model of this name."""
        _check_model(model, names)
        return answers.Model(id=model)


def _add_embeddings(app: FastAPI, engine: Engine) -> None:
    options: dict[str, Any] = {"responses": errors(*MODEL_ERRORS)}
    openai: dict[str, Any] = {**options, "response_model": answers.EmbeddingsResponse}

    def check(model: str | None, dimensions: int | None, *, name: str = "dimensions") -> None:
        _check_model(model, engine.models)
        if dimensions is not None and dimensions > engine.dimension:
            message = f"{name}: got {dimensions}; this model gives vectors of {engine.dimension}"
            raise ApiError(400, message, code="invalid_value", param=name)

    async def embed(
        items: Mapping[str, str | VideoSegment], task: schemas.Task, write: Callable[[dict[str, Embedded]], object]
    ) -> Response:
        results = dict(zip(items, await engine.embed([*items.values()], task=task), strict=True))
        # in a thread, since thousands of vectors take seconds, which other requests should not wait
        content = await asyncio.to_thread(lambda: to_json(write(results)))
        return Response(content, media_type="application/json")

    @app.post("/v1/embeddings", **openai)
    @app.post("/embeddings", **openai)
    async def embeddings(body: schemas.EmbeddingsRequest) -> Response:
        """Embed words and videos, as OpenAI's embeddings."""
        items = _items(engine, "input", body.input)
        check(body.model, body.dimensions)
        with engine.admitted():
            task = schemas.task_of(body.task or body.input_type)
            return await embed(items, task, lambda found: _openai(engine, body, found))

    @app.post(UPLOAD_PATH, openapi_extra={"requestBody": upload_body()}, **openai)
    async def embed_upload(request: Request) -> Response:
        """Embed an uploaded video."""
        with engine.admitted(upload=True):
            async with uploaded(request, max_bytes=engine.limits.max_upload_bytes, allowed=FIELDS) as (path, fields):
                body = _upload_options(fields)
                check(body.model, body.dimensions)
                return await embed({"file": VideoSegment(path)}, "query", lambda found: _openai(engine, body, found))

    @app.post("/embed", response_model=answers.Vectors, **options)
    async def embed_tei(body: schemas.TeiEmbedRequest) -> Response:
        """Embed words and videos, as text-embeddings-inference."""
        items = _items(engine, "inputs", body.inputs)
        check(None, body.dimensions)
        with engine.admitted():
            task = schemas.task_of(body.prompt_name)
            return await embed(items, task, lambda found: [v.tolist() for v in _vectors(found, body.dimensions)])

    async def embed_cohere(body: schemas.CohereEmbedRequest, version: Version) -> Response:
        items = _items(engine, "texts", body.texts)
        check(body.model, body.output_dimension, name="output_dimension")
        with engine.admitted():
            return await embed(items, schemas.task_of(body.input_type), lambda found: _cohere(body, found, version))

    @app.post("/v1/embed", response_model=answers.CohereEmbedResponse, **options)
    async def embed_cohere_v1(body: schemas.CohereEmbedRequest) -> Response:
        """Embed words, as Cohere's embed, version 1."""
        return await embed_cohere(body, "1")

    @app.post("/v2/embed", response_model=answers.CohereEmbedResponse, **options)
    async def embed_cohere_v2(body: schemas.CohereEmbedRequest) -> Response:
        """The same, as version 2."""
        return await embed_cohere(body, "2")


def _upload_options(fields: Mapping[str, str]) -> schemas.EmbeddingsRequest:
    # A form has no numbers, so they are made of text here.
    values: dict[str, str | int] = {"input": "upload", **fields}
    number = fields.get("dimensions", "")
    if number.isascii() and number.isdigit() and len(number) < 10:
        values["dimensions"] = int(number)
    try:
        return schemas.EmbeddingsRequest.model_validate(values)
    except ValidationError as error:
        raise security.invalid(error.errors()[0]) from None


def _items(engine: Engine, param: str, given: schemas.Entry | Sequence[schemas.Entry]) -> dict[str, str | VideoSegment]:
    """Return the words and videos of a request, each under the name that errors give it."""
    if isinstance(given, (str, schemas.Video, schemas.TextObject)):
        entries: dict[str, schemas.Entry] = {param: given}
    else:
        entries = {f"{param}[{number}]": each for number, each in enumerate(given)}
    check_count(param, len(entries), engine.limits.max_items)
    videos = sum(isinstance(each, schemas.Video) for each in entries.values())
    check_count(param, videos, engine.limits.max_videos, of=" videos")
    items: dict[str, str | VideoSegment] = {}
    for name, each in entries.items():
        if isinstance(each, schemas.Video):
            items[name] = video_of(each.video, root=engine.root, param=name)
        else:
            items[name] = text = schemas.text_of(each)
            check_length(name, text, engine.limits.max_chars)
    return items


def _check_model(name: str | None, served: Sequence[str]) -> None:
    if name is not None and name not in served:
        message = f"model: {name!r} is not available; this server has {', '.join(map(repr, served))}"
        raise ApiError(404, message, code="model_not_found", param="model")


def _vectors(results: Mapping[str, Embedded], dimensions: int | None) -> list[NDArray[np.float32]]:
    return [vector_of(result, param, dimensions) for param, result in results.items()]


def _base64(vector: NDArray[np.float32]) -> str:
    """Return base64 of little-endian float32, as OpenAI and Cohere send it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")


def _openai(engine: Engine, body: schemas.EmbeddingsRequest, results: Mapping[str, Embedded]) -> dict[str, object]:
    vectors = _vectors(results, body.dimensions)
    as_base64 = "base64" in (body.encoding_format, body.embedding_type)
    values = (_base64(vector) if as_base64 else vector.tolist() for vector in vectors)
    tokens = sum(result.tokens for result in results.values())
    return {
        "object": "list",
        "data": ({"object": "embedding", "index": n, "embedding": value} for n, value in enumerate(values)),
        "model": engine.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _cohere(body: schemas.CohereEmbedRequest, results: Mapping[str, Embedded], version: Version) -> dict[str, object]:
    vectors = _vectors(results, body.output_dimension)
    floats = (vector.tolist() for vector in vectors)
    by_type = {"float": floats, "base64": map(_base64, vectors)}
    plain = version == "1" and body.embedding_types is None
    return {
        "id": str(uuid.uuid4()),
        "response_type": "embeddings_floats" if plain else "embeddings_by_type",
        "embeddings": floats if plain else {kind: by_type[kind] for kind in body.embedding_types or ["float"]},
        "texts": body.texts,
        "meta": {
            "api_version": {"version": version},
            "billed_units": {"input_tokens": sum(result.tokens for result in results.values())},
        },
    }


def _add_rerank(app: FastAPI, engine: Engine) -> None:
    async def rank(
        query: str, documents: Sequence[schemas.Entry], *, param: str, model: str | None
    ) -> list[tuple[int, float, str]]:  # place, probability and URI of each
        check_count(param, len(documents), engine.limits.max_documents)
        check_length("query", query, engine.limits.max_chars)
        if not engine.rerankers:
            message = "model: this server has no reranker; start it with --rerank or --reranker"
            raise ApiError(404, message, code="model_not_found", param="model")
        _check_model(model, engine.rerankers)
        uris = [schemas.text_of(each) for each in documents]
        videos = [video_of(uri, root=engine.root, param=f"{param}[{number}]") for number, uri in enumerate(uris)]
        with engine.admitted():
            return [(place, score, uris[place]) for place, score in await engine.rank(query, videos, param=param)]

    async def answer(body: schemas.RerankRequest, version: Version | None) -> answers.RerankResponse:
        ranked = await rank(body.query, body.documents, param="documents", model=body.model)
        results = []
        for place, score, uri in ranked[: body.top_n or None]:
            document = answers.RerankDocument(text=uri) if body.return_documents else None
            results.append(answers.RerankResult(index=place, relevance_score=score, document=document))
        units = answers.BilledUnits(search_units=1)
        meta = version and answers.Meta(api_version=answers.ApiVersion(version=version), billed_units=units)
        model = engine.reranker_model or ""
        return answers.RerankResponse(id=str(uuid.uuid4()), model=model, results=results, meta=meta)

    options: dict[str, Any] = {"response_model_exclude_none": True, "responses": errors(*MODEL_ERRORS)}

    @app.post("/v1/rerank", **options)
    async def rerank_v1(body: schemas.RerankRequest) -> answers.RerankResponse:
        """Order videos by the probability that they match words, as Cohere's rerank, version 1, or Jina's."""
        return await answer(body, "1")

    @app.post("/v2/rerank", **options)
    async def rerank_v2(body: schemas.RerankRequest) -> answers.RerankResponse:
        """The same, as version 2, which Cohere's newer client asks."""
        return await answer(body, "2")

    @app.post("/rerank", response_model=answers.RerankResponse | list[answers.TeiRank], **options)
    async def rerank_any(body: schemas.AnyRerankRequest) -> answers.RerankResponse | list[answers.TeiRank]:
        """The same, as vLLM's with `documents`, or as text-embeddings-inference's with `texts`."""
        if isinstance(body, schemas.RerankRequest):
            return await answer(body, None)
        ranked = await rank(body.query, body.texts, param="texts", model=None)
        keep = body.return_text
        return [answers.TeiRank(index=place, score=score, text=uri if keep else None) for place, score, uri in ranked]


def _add_operations(app: FastAPI, engine: Engine) -> None:
    stopping: dict[int | str, dict[str, Any]] = {503: {"model": answers.Health, "description": "It is stopping."}}

    @app.get("/health/live", responses=errors())
    async def live() -> answers.Live:
        """Whether the process answers."""
        return answers.Live()

    @app.get("/health", response_model=answers.Health, responses={**stopping, **errors()})
    @app.get("/health/ready", response_model=answers.Health, responses={**stopping, **errors()})
    async def ready() -> JSONResponse:
        """Whether requests for the model are answered."""
        alive = engine.batcher.alive
        health = answers.Health(
            status="ok" if alive else "stopping",
            model=engine.model,
            reranker=engine.reranker_model,
            index=engine.index is not None,
            captions=engine.has_captions,
        )
        return JSONResponse(health.model_dump(), 200 if alive else 503)

    text = {"content": {"text/plain": {"schema": {"type": "string"}}}}

    @app.get("/metrics", response_class=Response, responses={200: text, **errors(401)})
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(engine.metrics.text(), headers={"Content-Type": security.Metrics.CONTENT_TYPE})
