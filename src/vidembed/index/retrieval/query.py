"""Queries: what is taken, and their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidembed.index.protocols import QueryEncoder

MAX_QUERY_CHARS = 10_000


def check_query(query: str, k: int = 1, *, name: str = "query") -> None:
    """Refuse what no search can answer; cheap, so it can come before the model is loaded.

    Args:
        query: Words.
        k: Most hits to return.
        name: What to call the query in messages.

    Raises:
        ValueError: The query is empty or longer than `MAX_QUERY_CHARS`, or `k` is not positive.
    """
    if not query.strip():
        raise ValueError(f"{name}: got {query!r}; some words are needed")
    if len(query) > MAX_QUERY_CHARS:
        raise ValueError(f"{name}: got {len(query)} characters; at most {MAX_QUERY_CHARS} are taken")
    if k < 1:
        raise ValueError(f"k: got {k}; at least 1 is needed")


def encode_queries(encoder: QueryEncoder, queries: Sequence[str], *, dimension: int | None) -> NDArray[np.float64]:
    """Return the unit vectors of queries, shape (Q, D), encoded in one call.

    Raises:
        RuntimeError: A vector is of another length than `dimension`, not finite, or zero.
    """
    # Dicts, since a bare string could be taken for the path of a video.
    vectors = np.asarray(encoder.encode_query([{"text": query} for query in queries]), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(queries):
        raise RuntimeError(f"queries: the model gave an array of shape {vectors.shape} for {len(queries)} queries")
    return unit_queries(vectors, vectors.shape[1] if dimension is None else dimension)


def unit_queries(vectors: NDArray[np.float64], dimension: int) -> NDArray[np.float64]:
    """Return vectors at length one, shape (Q, D).

    Raises:
        RuntimeError: One is of another length than `dimension`, not finite, or zero. The message says which.
    """
    norms = np.linalg.norm(vectors, axis=1)  # (Q,)
    for number, norm in enumerate(norms):
        if vectors.shape[1] != dimension or not np.isfinite(norm) or norm == 0:
            which = "query vector" if len(vectors) == 1 else f"query vector {number + 1} of {len(vectors)}"
            raise RuntimeError(
                f"{which}: shape ({vectors.shape[1]},), norm {norm}; ({dimension},), finite, not zero, is needed"
            )
    return np.asarray(vectors / norms[:, None])
