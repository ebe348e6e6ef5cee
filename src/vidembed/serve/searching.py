"""The routes that search the index and hand out its videos."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, Response

from vidembed.index import Condition, Filter
from vidembed.index.files import file_name_of
from vidembed.index.sheet import printable
from vidembed.serve import schemas
from vidembed.serve.errors import ApiError, check_count, check_length
from vidembed.serve.media import ID_PATTERN, keep_one_range, media_type
from vidembed.serve.openapi import MODEL_ERRORS, errors

if TYPE_CHECKING:
    from vidembed.index import Hit
    from vidembed.serve.engine import Engine

USUAL_K = 10


def add(app: FastAPI, engine: Engine) -> None:
    """Add the routes to an application."""
    _add_search(app, engine)
    _add_media(app, engine)


def filter_of(asked: schemas.SearchOptions) -> Filter:
    """Return which rows may be hits.

    Raises:
        ApiError: 400, a condition or a time cannot be.
    """
    conditions = []
    for number, text in enumerate(asked.where):
        try:
            conditions.append(Condition.parse(text))
        except ValueError as error:
            raise ApiError(400, str(error), code="invalid_value", param=f"where[{number}]") from error
    try:
        return Filter(asked.path, asked.after, asked.before, tuple(conditions))
    except ValueError as error:
        raise ApiError(400, str(error), code="invalid_value", param=str(error).partition(":")[0]) from error


def _add_search(app: FastAPI, engine: Engine) -> None:
    limits = engine.limits

    async def answer(asked: schemas.SearchOptions) -> schemas.SearchResponse:
        k = min(USUAL_K, limits.max_k) if asked.k is None else asked.k
        check_length("q", asked.q, limits.max_chars)
        check_count("k", k, limits.max_k)
        check_count("rerank", asked.rerank, limits.max_rerank)
        keep = filter_of(asked)
        with engine.admitted():
            hits = await engine.search(
                asked.q, k=k, count=asked.rerank, keep=keep, merge=asked.merge, around=asked.around
            )
        return schemas.SearchResponse(
            query=asked.q,
            approximate=hits.method.approximate,
            method=hits.method.to_dict(),
            hits=[_hit(hit, engine.media_id(hit)) for hit in hits],
        )

    options: dict[str, Any] = {
        "response_model": schemas.SearchResponse,
        "response_model_exclude_none": True,
        "responses": errors(*MODEL_ERRORS),
    }

    @app.get("/search", **options)
    async def search(asked: Annotated[schemas.SearchOptions, Query()]) -> schemas.SearchResponse:
        """Search the index."""
        return await answer(asked)

    @app.post("/search", **options)
    async def search_by_body(body: schemas.SearchRequest) -> schemas.SearchResponse:
        """Search the index; for words that are too long for an address, or not to be logged by a proxy."""
        return await answer(body)


def _hit(hit: Hit, media_id: str | None) -> schemas.SearchHit:
    return schemas.SearchHit(
        uri=hit.uri,
        name=printable(file_name_of(hit.uri)),
        start_s=hit.start_s,
        end_s=hit.end_s,
        score=hit.score,
        probability=hit.probability,
        segments=hit.segments,
        context_start_s=hit.context_start_s,
        context_end_s=hit.context_end_s,
        media=None if media_id is None else f"/media/{media_id}",
    )


def _add_media(app: FastAPI, engine: Engine) -> None:
    @app.head("/media/{media_id}", include_in_schema=False)
    @app.get(
        "/media/{media_id}",
        response_class=Response,
        responses={
            200: {"description": "The video.", "content": {"video/*": {}, "application/octet-stream": {}}},
            206: {"description": "A range of it.", "content": {"video/*": {}, "application/octet-stream": {}}},
            **errors(400, 404, 416),
        },
    )
    async def media(request: Request, media_id: Annotated[str, PathParameter(pattern=ID_PATTERN)]) -> FileResponse:
        """Return the bytes of a video of the index, or a range of them."""
        path = await _media_path(engine, media_id)
        keep_one_range(request.scope, path.stat().st_size)
        return FileResponse(path, media_type=media_type(path))


async def _media_path(engine: Engine, media_id: str) -> Path:
    if engine.media is None:
        raise ApiError(404, "media: this server has no index", code="not_found")
    try:
        return await asyncio.to_thread(engine.media.find, media_id)
    except LookupError as error:
        raise ApiError(404, str(error.args[0]), code="not_found") from None
