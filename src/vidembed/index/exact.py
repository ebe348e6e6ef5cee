"""The exact ranking: every row looked at, cosines in float64, an order that is total."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vidembed.index.files import file_name_of, is_local, name_of, path_of
from vidembed.index.table import PLACE, ROW_ID, VideoIndex
from vidembed.text import require_index_extra

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


MAX_PATTERN_CHARS = 4096  # the longest path of Linux (PATH_MAX)
_TAKE_UP_TO = 0.25  # of the rows; above it, reading all of them in order is quicker than picking
_TAKE_ROWS = 2048
_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", re.DOTALL)
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A column compared with a value, such as `duration < 60`. An empty cell (null) never fits.

    Attributes:
        column: Name of a column.
        compare: One of `<`, `<=`, `=`, `!=`, `>=`, `>`.
        value: What to compare with, as text.
    """

    column: str
    compare: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read `COLUMN COMPARE VALUE`.

        Raises:
            ValueError: `text` is not of that form.
        """
        if (match := _CONDITION.fullmatch(text)) is None:
            raise ValueError(f"where: got {text!r}; COLUMN, one of {', '.join(_COMPARE)}, and a value are needed")
        return cls(*match.groups())

    def fits(self, cells: pa.Array) -> NDArray[np.bool_]:
        """Return which cells satisfy the condition, shape (N,)."""
        found = np.zeros(len(cells), dtype=np.bool_)
        kept = np.asarray(cells.is_valid())  # (N,)
        values = np.asarray(cells.filter(cells.is_valid()).to_pylist(), dtype=object)
        found[kept] = _COMPARE[self.compare](values, self._typed(cells.type)).astype(np.bool_)
        return found

    def _typed(self, kind: pa.DataType) -> Any:
        _, pa = require_index_extra()
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return self.value
        if pa.types.is_boolean(kind) and self.value in {"true", "false"} and self.compare in {"=", "!="}:
            return self.value == "true"
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            try:
                number = int(self.value)  # exact, where a float would round a large one
            except ValueError:
                number = _number(self.value)  # type: ignore[assignment]
            return number
        raise ValueError(f"where: column {self.column!r} is of type {kind}; it cannot be compared with {self.value!r}")


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"where: got {text!r} for a column of numbers; a finite number is needed")
    return number


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows may be hits: those that satisfy all that is given.

    Attributes:
        path: Glob on the path of the file, or on the URI of one that is elsewhere, case-sensitive; `*` also stands for
            `/`. Without a `/` it is matched on the name of the file; with one on the whole path, or on the end of it
            that begins with a folder.
        after: Keep segments that end after so many seconds of their video.
        before: Keep segments that start before so many seconds.
        where: Conditions on columns.

    Raises:
        ValueError: A value is out of range.
    """

    path: str | None = None
    after: float | None = None
    before: float | None = None
    where: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        """Check the values."""
        if self.path is not None and not 0 < len(self.path) <= MAX_PATTERN_CHARS:
            raise ValueError(f"path: got a glob of {len(self.path)} characters; 1 to {MAX_PATTERN_CHARS} are allowed")
        for name, value in (("after", self.after), ("before", self.before)):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: got {value}; seconds from the start of the video are needed, 0 or more")
        if self.after is not None and self.before is not None and self.before <= self.after:
            raise ValueError(f"before: got {self.before}, which is not after {self.after}; give a later time")

    @property
    def any(self) -> bool:
        """Whether anything is asked for."""
        return self != Filter()

    def check(self, index: VideoIndex) -> None:
        """Refuse conditions on columns that the index does not have, or values that do not fit them.

        Raises:
            ValueError: There is such a condition.
        """
        _, pa = require_index_extra()
        for condition in self.where:
            if condition.column not in index.columns:
                raise ValueError(
                    f"where: the index has no column {condition.column!r}; it has {', '.join(index.columns)}"
                )
            condition.fits(pa.array([], type=index.columns[condition.column]))

    def fits(self, batch: pa.RecordBatch) -> NDArray[np.bool_]:
        """Return which rows of a batch may be hits, shape (N,)."""
        kept = np.ones(len(batch), dtype=np.bool_)
        if self.after is not None:
            kept &= batch.column("end_s").to_numpy() > self.after
        if self.before is not None:
            kept &= batch.column("start_s").to_numpy() < self.before
        for condition in self.where:
            kept &= condition.fits(batch.column(condition.column))
        if self.path is not None:
            coded = batch.column("uri").dictionary_encode()  # a video has many rows
            each = np.array([self._fits_path(uri) for uri in coded.dictionary.to_pylist()], dtype=np.bool_)
            kept &= each[coded.indices.to_numpy()] if len(each) else False
        return kept

    def _fits_path(self, uri: str) -> bool:
        pattern = str(self.path)
        if "/" not in pattern:
            return fnmatchcase(file_name_of(uri), pattern)
        whole = path_of(uri).as_posix() if is_local(uri) else name_of(uri)
        return fnmatchcase(whole, pattern) or (not pattern.startswith("/") and fnmatchcase(whole, f"*/{pattern}"))


def batches(index: VideoIndex, keep: Filter | None = None) -> Iterator[pa.RecordBatch]:
    """Yield place, vector and row id of the rows of the version at hand that satisfy `keep`.

    Where few rows do, the vectors of the others are not read.
    """
    if keep is None or not keep.any:
        yield from index.scan([*PLACE, "vector"])
        return
    keep.check(index)
    columns = list(dict.fromkeys([*PLACE, *(condition.column for condition in keep.where)]))
    found = [batch.column(ROW_ID).to_numpy()[keep.fits(batch)] for batch in index.scan(columns)]
    rows = np.concatenate([np.zeros(0, dtype=np.uint64), *found])  # (M,)
    if len(rows) > _TAKE_UP_TO * len(index):
        for batch in index.scan([*PLACE, "vector"]):
            part = batch.filter(_mask(np.isin(batch.column(ROW_ID).to_numpy(), rows)))
            if len(part):
                yield part
        return
    for first in range(0, len(rows), _TAKE_ROWS):
        yield from index.take(rows[first : first + _TAKE_ROWS], [*PLACE, "vector"]).combine_chunks().to_batches()


def _mask(kept: NDArray[np.bool_]) -> pa.Array:
    _, pa = require_index_extra()
    return pa.array(kept)
