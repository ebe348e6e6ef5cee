"""Rows of an index: which may be hits, and which have the highest cosines with a query."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidembed.index import mirror
from vidembed.index.schema import QueryEncoder, require_index_extra
from vidembed.index.table import (
    PLACE,
    ROW_ID,
    Block,
    VideoIndex,
    among,
    file_name_of,
    is_local,
    name_of,
    path_of,
    quoted,
)

if TYPE_CHECKING:
    import pyarrow as pa

MAX_QUERY_CHARS = 10_000
MAX_PATTERN_CHARS = 4096  # the longest path of Linux (PATH_MAX)
_COMPARES = ("<", "<=", "=", "!=", ">=", ">")
_CONDITION = re.compile(r"\s*(\w+)\s*(<=|>=|!=|=|<|>)\s*(.*?)\s*", re.DOTALL)
_COARSE_ERROR = 1e-4  # well above what float32 can be off in a cosine of some thousand dimensions
COARSE_BYTES = 2**25  # of cosines in float32 at once
EXACT_ROWS = 512  # compared in float64 at once: at 3584 dimensions 15 MB
TIES = 4096  # rows that may share the score of the k-th until their names decide
_KEPT = np.dtype([("order", np.float64), ("score", np.float64), ("row_id", np.uint64)])  # the names are those of `Row`


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
        """Read `COLUMN COMPARE VALUE`; ValueError for a text of another form."""
        if (match := _CONDITION.fullmatch(text)) is None:
            raise ValueError(f"where: got {text!r}; COLUMN, one of {', '.join(_COMPARES)}, and a value are needed")
        return cls(*match.groups())

    def sql(self, columns: Mapping[str, pa.DataType]) -> str:
        """Return the condition as LanceDB takes it; ValueError if there is no such column, or no such value in it."""
        if self.column not in columns or "`" in self.column:
            raise ValueError(f"where: the index has no column {self.column!r}; it has {', '.join(columns)}")
        if self.compare not in _COMPARES:
            raise ValueError(f"where: got {self.compare!r}; one of {', '.join(_COMPARES)} is needed")
        _, pa = require_index_extra()
        name, kind = f"`{self.column}`", columns[self.column]
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return f"{name} {self.compare} {quoted(self.value)}"
        if pa.types.is_boolean(kind) and self.value in {"true", "false"} and self.compare in {"=", "!="}:
            return f"{name} {self.compare} {self.value}"
        if pa.types.is_integer(kind):
            return self._integer_sql(name, kind.bit_width, signed=pa.types.is_signed_integer(kind))
        if pa.types.is_floating(kind):
            no_nan = f" AND NOT isnan({name})" if ">" in self.compare else ""  # SQL has NaN above all numbers
            return f"{name} {self.compare} {self._number(whole=False)!r}{no_nan}"
        raise ValueError(f"where: column {self.column!r} is of type {kind}; it cannot be compared with {self.value!r}")

    def _integer_sql(self, name: str, bits: int, *, signed: bool) -> str:
        """Return the condition on a column of integers; LanceDB refuses numbers that the column cannot hold."""
        number, compare = self._number(), self.compare
        if (whole := math.floor(number)) != number:
            if compare in {"=", "!="}:
                return "false" if compare == "=" else f"{name} IS NOT NULL"
            compare = "<=" if "<" in compare else ">"
        least = -(2 ** (bits - 1)) if signed else 0
        if least <= whole < least + 2**bits:
            return f"{name} {compare} {whole}"
        fits_all = compare == "!=" or ("<" if whole > least else ">") in compare
        return f"{name} IS NOT NULL" if fits_all else "false"

    def _number(self, *, whole: bool = True) -> int | float:
        if whole and re.fullmatch(r"\s*[+-]?\d{1,4000}\s*", self.value):
            return int(self.value)  # exact, where a float would round a large one
        try:
            number = float(self.value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(f"where: got {self.value!r} for a column of numbers; a finite number is needed")
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
        """Refuse, with ValueError, conditions that do not fit the columns of the index."""
        for condition in self.where:
            condition.sql(index.columns)

    def sql(self, index: VideoIndex) -> str | None:
        """Return the filter for the version at hand as LanceDB takes it, or None where every row fits."""
        parts = [condition.sql(index.columns) for condition in self.where]
        if self.after is not None:
            parts.append(f"end_s > {float(self.after)!r}")
        if self.before is not None:
            parts.append(f"start_s < {float(self.before)!r}")
        if self.path is not None:  # a glob is matched on names with nothing encoded, which SQL does not see
            fits = {uri: self._fits_path(uri) for uri in index.files()}
            chosen = [uri for uri, fit in fits.items() if fit]
            if not chosen:
                parts.append("false")
            elif 2 * len(chosen) <= len(fits):
                parts.append(among(chosen))
            elif len(chosen) < len(fits):
                parts.append(f"NOT ({among(uri for uri, fit in fits.items() if not fit)})")
        return " AND ".join(f"({part})" for part in parts) or None

    def _fits_path(self, uri: str) -> bool:
        pattern = str(self.path)
        if "/" not in pattern:
            return fnmatchcase(file_name_of(uri), pattern)
        whole = path_of(uri).as_posix() if is_local(uri) else name_of(uri)
        return fnmatchcase(whole, pattern) or (not pattern.startswith("/") and fnmatchcase(whole, f"*/{pattern}"))


def check_query(query: str, k: int = 1, *, name: str = "query") -> None:
    """Refuse, with ValueError, what no search can answer. Messages call the query `name`."""
    if not query.strip():
        raise ValueError(f"{name}: got {query!r}; give some words")
    if len(query) > MAX_QUERY_CHARS:
        raise ValueError(f"{name}: got {len(query)} characters; at most {MAX_QUERY_CHARS} are allowed")
    if k < 1:
        raise ValueError(f"k: got {k}; at least 1 is needed")


def encode_queries(encoder: QueryEncoder, queries: Sequence[str], *, dimension: int | None) -> NDArray[np.float64]:
    """Return the unit vectors of queries, shape (Q, D), encoded in one call. Raises as `unit_queries`."""
    # Dicts, since a bare string could be taken for the path of a video.
    vectors = np.asarray(encoder.encode_query([{"text": query} for query in queries]), dtype=np.float64)
    if vectors.ndim != 2 or len(vectors) != len(queries):
        raise RuntimeError(f"queries: the model gave an array of shape {vectors.shape} for {len(queries)} queries")
    return unit_queries(vectors, vectors.shape[1] if dimension is None else dimension)


def unit_queries(vectors: NDArray[np.float64], dimension: int) -> NDArray[np.float64]:
    """Return vectors at length one, shape (Q, D); RuntimeError for one of another length, not finite or zero."""
    norms = np.linalg.norm(vectors, axis=1)  # (Q,)
    for number, norm in enumerate(norms):
        if vectors.shape[1] != dimension or not np.isfinite(norm) or norm == 0:
            which = "query vector" if len(vectors) == 1 else f"query vector {number + 1} of {len(vectors)}"
            raise RuntimeError(
                f"{which}: shape ({vectors.shape[1]},), norm {norm}; ({dimension},), finite, not zero, is needed"
            )
    return np.asarray(vectors / norms[:, None])


def cosines(vectors: NDArray[np.float32], query: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scores (M,) of vectors (M, D), none of them zero, for a unit vector (D,): rounded to six decimals."""
    exact = vectors.astype(np.float64)  # (M, D)
    return np.asarray(np.round(exact @ query / np.linalg.norm(exact, axis=1), 6).clip(-1.0, 1.0))


class Row(NamedTuple):
    """A row that was ranked; rows compare in the order of a ranking."""

    order: float  # what it is ordered by, negated: the score, less the offset where there are offsets
    uri: str
    start_s: float
    end_s: float
    score: float  # cosine similarity to the query, rounded to six decimals
    row_id: int  # in this version of the table
    duration: float  # of the video, seconds


@dataclass(slots=True)
class Ranking:
    """The `k` best rows of each query, kept while blocks of rows go by."""

    queries: NDArray[np.float64]  # (Q, D), of length one
    k: int
    # From row ids, shape (N,), to a table of `PLACE` and `ROW_ID` of at least these rows.
    places: Callable[[NDArray[np.uint64]], pa.Table]
    # From row ids, shape (N,), to what is subtracted from each row's cosine to order by, shape (N,).
    offset: Callable[[NDArray[np.uint64]], NDArray[np.float64]] | None = None
    _coarse_queries: NDArray[np.float32] = field(init=False)  # (D, Q)
    _kept: list[NDArray[np.void]] = field(init=False)  # of each query, `_KEPT`
    _least: NDArray[np.float64] = field(init=False)  # (Q,), what a row must reach

    def __post_init__(self) -> None:
        """Begin with no rows."""
        self._coarse_queries = self.queries.T.astype(np.float32)
        self._kept = [np.empty(0, _KEPT) for _ in self.queries]
        self._least = np.full(len(self.queries), -np.inf)

    def add(self, block: Block) -> None:
        """Take rows into account."""
        step = max(1, COARSE_BYTES // (4 * len(self.queries)))
        for first in range(0, len(block.row_ids), step):
            part = slice(first, first + step)
            self._add(Block(block.row_ids[part], block.vectors[part], block.lengths[part]))

    def _add(self, block: Block) -> None:
        coarse = block.vectors @ self._coarse_queries  # (N, Q)
        coarse /= block.lengths[:, None]
        offset = None if self.offset is None else self.offset(block.row_ids)  # (N,)
        if offset is not None:
            coarse = coarse - offset[:, None]
        for number in np.flatnonzero((coarse >= self._least).any(axis=0)):
            column = coarse[:, number]  # (N,)
            # Whatever may be among the best, ties included, is scored again in float64 and rounded: then the same
            # vector has the same score wherever it lies in a block.
            least = self._least[number]
            if self.k < len(column):
                least = max(least, np.partition(column, -self.k)[-self.k] - _COARSE_ERROR)
            near = np.flatnonzero(column >= least)
            found = np.empty(len(near), _KEPT)
            found["row_id"] = block.row_ids[near]
            for first in range(0, len(near), EXACT_ROWS):
                part = slice(first, first + EXACT_ROWS)
                found["score"][part] = cosines(block.vectors[near[part]], self.queries[number])
            found["order"] = -found["score"] if offset is None else offset[near] - found["score"]
            kept = self._kept[number] = np.concatenate([self._kept[number], found])
            if len(kept) > 2 * self.k:  # not at every block, so that a deep ranking is cut a few times only
                last = np.partition(kept["order"], self.k - 1)[self.k - 1]
                kept = kept[kept["order"] <= last]
                if len(kept) > 2 * self.k + TIES:  # else names decide at the end, when few rows are left
                    kept = kept[self._sorted([kept])[0][1]]
                self._kept[number] = kept
                self._least[number] = -last - _COARSE_ERROR

    @property
    def best(self) -> list[list[Row]]:
        """The best rows of each query so far, best first."""
        return [rows for rows, _ in self._sorted(self._kept)]

    def _sorted(self, kept: Sequence[NDArray[np.void]]) -> list[tuple[list[Row], list[int]]]:
        """Return the `k` best rows of each, best first, and where they are in it."""
        ids = np.unique(np.concatenate([each["row_id"] for each in kept]))
        if not len(ids):
            return [([], []) for _ in kept]
        table = self.places(ids)
        at = np.argsort(table.column(ROW_ID).to_numpy())
        at = at[np.searchsorted(table.column(ROW_ID).to_numpy(), ids, sorter=at)]
        uris, starts, ends, durations = (table.column(name).take(at).to_pylist() for name in PLACE)
        result = []
        for each in kept:
            rows = [
                Row(order, uris[place], starts[place], ends[place], score, row_id, durations[place])
                for place, (order, score, row_id) in zip(
                    np.searchsorted(ids, each["row_id"]).tolist(), each.tolist(), strict=True
                )
            ]
            best = sorted(range(len(rows)), key=rows.__getitem__)[: self.k]
            result.append(([rows[place] for place in best], best))
        return result


def blocks(index: VideoIndex, where: str | None = None) -> Iterator[Block]:
    """Yield vectors of all rows, or of those that `where` names: of the mirror, where there is or can be one."""
    is_large = len(index) > mirror.MIRROR_ABOVE
    copy = mirror.open_mirror(index) if index.mirror and is_large else None
    if copy is None:
        yield from index.blocks(where)
    elif where is None:
        yield from copy.blocks()
    else:
        yield from copy.blocks(index.row_ids(where))


def rank_all(index: VideoIndex, queries: NDArray[np.float64], *, k: int, where: str | None = None) -> list[list[Row]]:
    """Return the `k` best rows of each query, of all rows or those that `where` names, in one pass over the vectors.

    The order is by score, then URI, then start, then end. Queries are unit vectors, shape (Q, D).
    """
    return rank_blocks(index, blocks(index, where), queries, k=k)


def rank_blocks(index: VideoIndex, found: Iterable[Block], queries: NDArray[np.float64], *, k: int) -> list[list[Row]]:
    """Rank as `rank_all` does, but these blocks of vectors, which may be of captions."""
    ranking = Ranking(queries, k, partial(index.take, columns=PLACE))
    for block in found:
        ranking.add(block)
    return ranking.best


def unit(vectors: Sequence[NDArray[np.float64]] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Return vectors at length one, in float64, shape (N, D). No vector may be zero."""
    array = np.asarray(vectors, dtype=np.float64)
    return np.asarray(array / np.linalg.norm(array, axis=1, keepdims=True))
