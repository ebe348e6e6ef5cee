"""The routes that search the index and hand out its videos."""

from __future__ import annotations

import asyncio
import base64
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, Response

from vidembed.index import Condition, Filter
from vidembed.index.files import file_name_of
from vidembed.serve import schemas
from vidembed.serve.media import ID_PATTERN, keep_one_range, media_type
from vidembed.serve.openapi import MODEL_ERRORS, errors
from vidembed.serve.security import ApiError, check_count, check_length
from vidembed.text import printable
from vidembed.video import BackendUnavailable, DecoderCrashed, DecodeTimeout, VideoError

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


logger = logging.getLogger(__name__)

_PLACE = re.compile(r"\s*\(\[Errno.*\)", re.DOTALL)  # the system's words end in the path of the file


@dataclass(frozen=True, slots=True)
class Embedded:
    """What became of one input.

    Attributes:
        vector: Float32, shape (D,), of length 1; None if it failed.
        tokens: Tokens of the words; 0 for a video.
        error: Why it failed.
    """

    vector: NDArray[np.float32] | None
    tokens: int = 0
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document of a rerank request.

    Attributes:
        index: Its place in the request.
        score: Probability that it matches the query.
    """

    index: int
    score: float


def vector_of(embedded: Embedded, param: str, dimensions: int | None = None) -> NDArray[np.float32]:
    """Return the vector of an input, cut to its first numbers and scaled to length 1, shape (dimensions,).

    Args:
        embedded: What became of it.
        param: What to call it in errors.
        dimensions: How many numbers to keep; None for all.

    Raises:
        ApiError: As `unusable`.
        RuntimeError: The model gave no usable vector.
    """
    if embedded.error is not None:
        raise unusable(param, embedded.error)
    if embedded.vector is None:
        raise RuntimeError(f"{param}: the model gave neither a vector nor an error")
    vector = np.asarray(embedded.vector, dtype=np.float64)[:dimensions]  # (dimensions,)
    norm = np.linalg.norm(vector)
    if not np.isfinite(norm) or norm == 0:
        raise RuntimeError(f"{param}: the vector has length {norm}; finite and above 0 is needed")
    return np.asarray(vector / norm, dtype=np.float32)


def vectors_of(results: Mapping[str, Embedded], dimensions: int | None = None) -> list[NDArray[np.float32]]:
    """Return the vector of each input, as `vector_of`.

    Args:
        results: What became of each input, by what to call it in errors.
        dimensions: How many numbers to keep; None for all.
    """
    return [vector_of(result, param, dimensions) for param, result in results.items()]


def numbers_of(vectors: Iterable[NDArray[np.float32]]) -> Iterator[list[float]]:
    """Yield each vector as JSON numbers."""
    return (vector.tolist() for vector in vectors)


def base64_of(vectors: Iterable[NDArray[np.float32]]) -> Iterator[str]:
    """Yield each vector as base64 of little-endian float32, as OpenAI and Cohere send it."""
    return (base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii") for vector in vectors)


def unusable(param: str, error: Exception) -> ApiError | RuntimeError:
    """Return what a client is told of an input that failed: the reason, without the name of a file of the server.

    Args:
        param: What to call the input.
        error: Why it failed.

    Returns:
        400 for a video that cannot be read or that crashed its decoder, or an input that cannot be prepared; 504 for a
        video that was not read in time; a RuntimeError for what is the server's fault.
    """
    if isinstance(error, DecodeTimeout):
        return ApiError(
            504,
            f"{param}: DecodeTimeout: the video was not read within the time that this server gives one; send a "
            "shorter or smaller one",
            code="decode_timeout",
            param=param,
            headers={"x-should-retry": "false"},  # OpenAI's client, which would send the video again, obeys
        )
    if isinstance(error, VideoError) and not isinstance(error, BackendUnavailable):
        code = "decoder_crashed" if isinstance(error, DecoderCrashed) else "invalid_video"
        reason = _PLACE.sub("", error.reason)
        return ApiError(400, f"{param}: {type(error).__name__}: {reason}", code=code, param=param)
    if isinstance(error, (ValueError, OSError)) and not isinstance(error, VideoError):
        logger.warning("%s: %s", param, error)
        return ApiError(
            400,
            f"{param}: the model cannot take it; it is too long, or holds a marker that the model keeps for itself",
            code="invalid_value",
            param=param,
        )
    return RuntimeError(f"{param}: {error}")
