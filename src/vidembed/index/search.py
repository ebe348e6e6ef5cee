"""Words against the vectors of an index: exact cosine similarity, every row looked at."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidembed.index.protocols import QueryEncoder
    from vidembed.index.store import VideoIndex

MAX_QUERY_CHARS = 10_000
_COARSE_ERROR = 1e-4  # well above what float32 can be off in a cosine of some thousand dimensions


@dataclass(frozen=True, slots=True)
class Hit:
    """A segment that a search found.

    Attributes:
        uri: `file://` URI of the video.
        start_s: Where the segment starts, seconds.
        end_s: Where it ends, seconds.
        score: Cosine similarity to the query, -1 to 1, rounded to six decimals.
        probability: That the segment matches the query, 0 to 1, if a reranker was asked about it.
    """

    uri: str
    start_s: float
    end_s: float
    score: float
    probability: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the hit as it stands in JSON; without the probability where there is none."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def search(index: VideoIndex, encoder: QueryEncoder, query: str, *, k: int = 10, name: str = "this model") -> list[Hit]:
    """Return the `k` segments nearest to `query`, best first.

    The order is total: by score as printed, then URI, then start.

    Args:
        index: Where to look.
        encoder: The model that made the index.
        query: Words. Text that looks like a path is still words.
        k: Most hits to return, at least 1.
        name: What the model was loaded as, for messages.

    Raises:
        ValueError: The query is empty or longer than `MAX_QUERY_CHARS`, or `k` is not positive.
        IndexMismatchError: The index was made by another model.
        RuntimeError: The model gave no usable vector for the query.
    """
    check_query(query, k)
    index.meta.require_model(encoder.fingerprint, encoder.fingerprint_fields(), name=name)
    # A dict, since a bare string could be taken for the path of a video.
    vector = np.asarray(encoder.encode_query({"text": query}), dtype=np.float64).reshape(-1)  # (D,)
    return nearest(index, vector, k=k)


def check_query(query: str, k: int) -> None:
    """Refuse what no search can answer; cheap, so it can come before the model is loaded.

    Raises:
        ValueError: The query is empty or longer than `MAX_QUERY_CHARS`, or `k` is not positive.
    """
    if not query.strip():
        raise ValueError(f"query: got {query!r}; some words are needed")
    if len(query) > MAX_QUERY_CHARS:
        raise ValueError(f"query: got {len(query)} characters; at most {MAX_QUERY_CHARS} are taken")
    if k < 1:
        raise ValueError(f"k: got {k}; at least 1 is needed")


def nearest(index: VideoIndex, vector: NDArray[np.float64], *, k: int) -> list[Hit]:
    """Return the `k` segments whose vectors have the highest cosine with `vector`, best first.

    Args:
        index: Where to look.
        vector: Shape (D,).
        k: Most hits to return, at least 1.

    Raises:
        RuntimeError: `vector` is of another length than those of the index, not finite, or zero.
    """
    norm = float(np.linalg.norm(vector))
    if vector.shape != (index.meta.dimension,) or not np.isfinite(norm) or norm == 0:
        raise RuntimeError(
            f"query vector: shape {vector.shape}, norm {norm}; ({index.meta.dimension},), finite, not zero, is needed"
        )
    query = vector / norm
    coarse_query = query.astype(np.float32)
    best: list[Hit] = []
    for batch in index.vectors():
        rows = batch.column("vector").flatten().to_numpy().reshape(len(batch), -1)  # (N, D) float32
        coarse = rows @ coarse_query / np.linalg.norm(rows, axis=1)  # (N,)
        # Whatever may be among the best, ties included, is scored again in float64 and rounded: then the same vector
        # has the same score wherever it lies in a batch.
        least = np.partition(coarse, -k)[-k] - _COARSE_ERROR if k < len(coarse) else -np.inf
        kept = np.flatnonzero(coarse >= least)
        exact = rows[kept].astype(np.float64)  # (M, D)
        scores = np.round(exact @ query / np.linalg.norm(exact, axis=1), 6).clip(-1.0, 1.0)  # (M,)
        places = batch.select(["uri", "start_s", "end_s"]).take(kept).to_pylist()
        best += [Hit(**place, score=float(score)) for place, score in zip(places, scores, strict=True)]
        best = sorted(best, key=lambda hit: (-hit.score, hit.uri, hit.start_s, hit.end_s))[:k]
    return best
