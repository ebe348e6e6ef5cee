"""Routes of the index: searches by words, by a file and by a segment, what it holds, its videos and their pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import FileResponse, Response

from vidembed.index import Condition, Filter, Hit, SearchOptions
from vidembed.index.schema import segment_id
from vidembed.index.table import file_name_of
from vidembed.serve import answers, schemas
from vidembed.serve.contents import Place
from vidembed.serve.engine import Engine, Found
from vidembed.serve.media import ID_PATTERN, keep_one_range, media_type, uploaded
from vidembed.serve.openapi import MODEL_ERRORS, errors, upload_body
from vidembed.serve.security import SEARCH_UPLOAD_PATH, ApiError, bad_value, check_count, check_length
from vidembed.text import printable

_USUAL_K = 10


def add_search(app: FastAPI, engine: Engine) -> None:
    """Add searches and what the index holds to an application."""
    options: dict[str, Any] = {"response_model_exclude_none": True, "responses": errors(*MODEL_ERRORS)}

    async def answer(what: schemas.SearchOptions) -> answers.SearchResponse:
        asked = replace(_options(engine, what), by=what.by)
        check_length("q", what.q, engine.limits.max_chars)
        check_count("rerank", what.rerank, engine.limits.max_rerank)
        with engine.admitted():
            found = await engine.search(what.q, asked, count=what.rerank)
        return answers.SearchResponse(query=what.q, **_told(engine, found))

    @app.get("/search", **options)
    async def search(asked: Annotated[schemas.SearchOptions, Query()]) -> answers.SearchResponse:
        """Search the index."""
        return await answer(asked)

    @app.post("/search", **options)
    async def search_by_body(body: schemas.SearchRequest) -> answers.SearchResponse:
        """Search the index; for words that are too long for an address, or not to be logged by a proxy."""
        return await answer(body)

    @app.get("/search/like", **options)
    async def search_like(asked: Annotated[schemas.LikeOptions, Query()]) -> answers.LikeResponse:
        """Search the index for what is like one of its segments, by the stored vector; the segment itself is no hit."""
        with engine.admitted():
            found = await engine.search_like(asked.segment, _options(engine, asked))
        like = None if found.like is None else answers.IndexSegment(**_segment(engine, found.like))
        return answers.LikeResponse(like=like, **_told(engine, found))

    form = {"requestBody": upload_body(file_only=True)}

    @app.post(SEARCH_UPLOAD_PATH, openapi_extra=form, **options)
    async def search_by_upload(request: Request, asked: Annotated[schemas.HitOptions, Query()]) -> answers.LikeResponse:
        """Search the index for what is like an uploaded clip or picture."""
        how = _options(engine, asked)
        engine.require_index()
        with engine.admitted(upload=True):
            async with uploaded(request, max_bytes=engine.limits.max_upload_bytes) as (path, _):
                return answers.LikeResponse(**_told(engine, await engine.search_file(path, how)))

    @app.get("/index", **{**options, "responses": errors(401, 404, 504)})
    async def contents() -> answers.IndexContents:
        """Tell what the index holds, as of the last minute."""
        held = await engine.contents()
        samples = [answers.IndexSegment(**_segment(engine, place)) for place in held.samples]
        return answers.IndexContents(**{**asdict(held), "samples": samples}, model=engine.model)


def add_media(app: FastAPI, engine: Engine) -> None:
    """Add the videos of the index and their thumbnails to an application."""
    ranges: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "content": {"video/*": {}, "application/octet-stream": {}}}
        for status, text in ((200, "The video."), (206, "A range of it."))
    }

    @app.head("/media/{media_id}", include_in_schema=False)
    @app.get("/media/{media_id}", response_class=Response, responses={**ranges, **errors(400, 404, 416)})
    async def media(request: Request, media_id: Annotated[str, Path(pattern=ID_PATTERN)]) -> FileResponse:
        """Return the bytes of a video of the index, or a range of them."""
        path = await engine.find_media(media_id)
        keep_one_range(request.scope, path.stat().st_size)
        return FileResponse(path, media_type=media_type(path))

    pictures: dict[int | str, dict[str, Any]] = {
        200: {"description": "The picture.", "content": {"image/jpeg": {}}},
        304: {"description": "It is the one of If-None-Match."},
    }

    @app.get(
        "/media/{media_id}/thumbnail",
        response_class=Response,
        responses={**pictures, **errors(400, 404, 503, 504)},
    )
    async def thumbnail(
        request: Request,
        media_id: Annotated[str, Path(pattern=ID_PATTERN)],
        t: Annotated[schemas.Seconds, Query(le=schemas.MAX_TIME_S, description="Seconds of the video.")] = 0.0,
    ) -> Response:
        """Return the frame of a video of the index that is on show at a time, as JPEG at most 320 pixels wide."""
        moment, make = await engine.thumbnail(media_id, t)
        # For minutes, since the video behind an id can be replaced and indexed again.
        headers = {"ETag": moment.etag, "Cache-Control": "private, max-age=300"}
        if request.headers.get("if-none-match") == moment.etag:
            return Response(status_code=304, headers=headers)
        return Response(await make(), media_type="image/jpeg", headers=headers)


def _options(engine: Engine, asked: schemas.HitOptions) -> SearchOptions:
    k = min(_USUAL_K, engine.limits.max_k) if asked.k is None else asked.k
    check_count("k", k, engine.limits.max_k)
    conditions = []
    for number, text in enumerate(asked.where):
        with bad_value(f"where[{number}]"):
            conditions.append(Condition.parse(text))
    try:
        keep = Filter(asked.path, asked.after, asked.before, tuple(conditions))
    except ValueError as error:
        raise ApiError(400, str(error), code="invalid_value", param=str(error).partition(":")[0]) from error
    return SearchOptions(k=k, keep=keep, merge=asked.merge, around=asked.around)


def _told(engine: Engine, found: Found) -> dict[str, Any]:
    """Return hits and how they were found, as answers have them."""
    how = found.hits.method
    hits = [answers.SearchHit(**_hit(engine, hit, found.durations)) for hit in found.hits]
    return {"approximate": how.approximate, "method": how.to_dict(), "hits": hits}


def _hit(engine: Engine, hit: Hit, durations: Mapping[str, float]) -> dict[str, Any]:
    place = Place(hit.uri, hit.start_s, hit.end_s, durations[hit.uri], hit.caption)
    return asdict(hit) | _segment(engine, place)


def _segment(engine: Engine, place: Place) -> dict[str, Any]:
    uri, start_s, end_s, duration, caption = place
    media_id = engine.media_id(uri)
    media = None if media_id is None else f"/media/{media_id}"
    return {
        "id": segment_id(uri, start_s, end_s),
        "uri": uri,
        "name": printable(file_name_of(uri)),
        "start_s": start_s,
        "end_s": end_s,
        "duration": duration,
        "media": media,
        "thumbnail": media and f"{media}/thumbnail?t={(start_s + end_s) / 2:.3f}",
        "caption": caption,
    }
