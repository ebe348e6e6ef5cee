"""Which rows a search may return: by path, by time within the video, by a column of the table.

Nothing here becomes SQL: conditions are compared in memory, so a name can hold whatever a name can hold.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from vidembed.index.files import file_name_of, is_local, name_of, path_of
from vidembed.index.store import PLACE, ROW_ID, VideoIndex, require_packages

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

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
        _, pa = require_packages()
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
        _, pa = require_packages()
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
    _, pa = require_packages()
    return pa.array(kept)
