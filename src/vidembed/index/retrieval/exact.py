"""The exact ranking: every row looked at, cosines in float64, an order that is total."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vidembed.index.store import PLACE, ROW_ID

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

_COARSE_ERROR = 1e-4  # well above what float32 can be off in a cosine of some thousand dimensions


class Row(NamedTuple):
    """A row that was ranked; rows compare in the order of a ranking.

    Attributes:
        order: What it is ordered by, negated: the score, less the offset where there are offsets.
        uri: URI of the video.
        start_s: Start of the segment, seconds.
        end_s: End of the segment, seconds.
        score: Cosine similarity to the query, rounded to six decimals.
        row_id: Its id in this version of the table.
    """

    order: float
    uri: str
    start_s: float
    end_s: float
    score: float
    row_id: int


class Ranking:
    """The best rows of each query, kept while batches go by.

    Args:
        queries: Unit vectors, float64, shape (Q, D).
        k: Rows to keep of each query.
        offset: From row ids, shape (N,), to what is subtracted from each row's cosine to order by, shape (N,).
    """

    def __init__(
        self,
        queries: NDArray[np.float64],
        k: int,
        *,
        offset: Callable[[NDArray[np.uint64]], NDArray[np.float64]] | None = None,
    ) -> None:
        self._kept: list[list[Row]] = [[] for _ in queries]
        self._queries = queries
        self._coarse_queries = queries.T.astype(np.float32)  # (D, Q)
        self._k = k
        self._offset = offset
        self._least = np.full(len(queries), -np.inf)  # (Q,), what a row must reach

    def add(self, batch: pa.RecordBatch) -> None:
        """Take a batch of place, vector and row id into account."""
        if not len(batch):
            return
        rows = matrix(batch)  # (N, D) float32
        coarse = rows @ self._coarse_queries / np.sqrt(np.einsum("nd,nd->n", rows, rows))[:, None]  # (N, Q)
        ids = batch.column(ROW_ID).to_numpy()
        offset = None if self._offset is None else self._offset(ids)  # (N,)
        if offset is not None:
            coarse = coarse - offset[:, None]
        for number in np.flatnonzero((coarse >= self._least).any(axis=0)):
            column = coarse[:, number]  # (N,)
            # Whatever may be among the best, ties included, is scored again in float64 and rounded: then the same
            # vector has the same score wherever it lies in a batch.
            least = self._least[number]
            if self._k < len(column):
                least = max(least, np.partition(column, -self._k)[-self._k] - _COARSE_ERROR)
            near = np.flatnonzero(column >= least)
            scores = cosines(rows[near], self._queries[number])  # (M,)
            order = -scores if offset is None else offset[near] - scores
            places = [batch.column(name).take(near).to_pylist() for name in PLACE]
            found = zip(order.tolist(), *places, scores.tolist(), ids[near].tolist(), strict=True)
            kept = self._kept[number]
            kept += map(Row._make, found)
            if len(kept) > 2 * self._k:  # not at every batch, so that a deep ranking is sorted a few times only
                kept.sort()
                del kept[self._k :]
                self._least[number] = -kept[-1].order - _COARSE_ERROR

    @property
    def best(self) -> list[list[Row]]:
        """The best rows of each query so far, best first."""
        return [sorted(kept)[: self._k] for kept in self._kept]


def rank(batches: Iterable[pa.RecordBatch], queries: NDArray[np.float64], *, k: int) -> list[list[Row]]:
    """Return the `k` best rows of each query, best first: by score, then URI, then start, then end.

    Args:
        batches: Of place, vector and row id.
        queries: Unit vectors, shape (Q, D).
        k: Most rows of each query.
    """
    ranking = Ranking(queries, k)
    for batch in batches:
        ranking.add(batch)
    return ranking.best


def cosines(rows: NDArray[np.float32], query: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the cosine of each row with a unit vector, in float64, rounded to six decimals.

    Args:
        rows: Shape (N, D).
        query: Shape (D,).

    Returns:
        Shape (N,).
    """
    exact = rows.astype(np.float64)
    return np.asarray(np.round(exact @ query / np.linalg.norm(exact, axis=1), 6).clip(-1.0, 1.0))


def matrix(batch: pa.RecordBatch) -> NDArray[np.float32]:
    """Return the vectors of a batch, shape (N, D)."""
    return np.asarray(batch.column("vector").flatten().to_numpy().reshape(len(batch), -1))


def unit(vectors: Sequence[NDArray[np.float64]] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return vectors at length one, in float64, shape (N, D). None may be zero."""
    array = np.asarray(vectors, dtype=np.float64)
    return np.asarray(array / np.linalg.norm(array, axis=1, keepdims=True))
