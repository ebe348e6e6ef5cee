"""What became of the inputs of a request, and what its client is told of those that failed."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vidembed.serve.errors import ApiError
from vidembed.video import BackendUnavailable, DecoderCrashed, DecodeTimeout, VideoError

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
