"""What the scoring functions share: checks of arrays and numbers, and numbers kept as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray: TypeAlias = NDArray[np.float64]


def as_array(name: str, value: ArrayLike) -> NDArray[Any]:
    """Return ``value`` as the array that numpy makes of it, or raise a ValueError that names the argument."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on a device or of bfloat16
        raise ValueError(f"{name}: expected an array of numbers, got {type(value).__name__}: {error}") from error


def _floats(name: str, value: ArrayLike, layout: str) -> FloatArray:
    array = as_array(name, value)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected a numeric array of shape {layout}, got dtype {array.dtype}")
    return np.asarray(array, dtype=np.float64)


def _check_finite(name: str, array: FloatArray) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: {int(bad.sum())} of {array.size} values are not finite, the first is {array[first]} at "
            f"{list(first)}; leave out what has no score"
        )


def matrix(name: str, value: ArrayLike, *, rows: str = "Q", columns: str = "N", width: int | None = None) -> FloatArray:
    """Return ``value`` as a finite, non-empty float64 matrix.

    Args:
        name: The argument's name, for the error.
        value: Anything numpy reads as numbers; int, uint or float.
        rows: What the first axis is called in the error.
        columns: What the second axis is called in the error.
        width: The number of columns that it must have; None for any.

    Raises:
        ValueError: It has another shape, another type, no entries, or a value that is not finite.
    """
    layout = f"({rows}, {columns})"
    array = _floats(name, value, layout)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name}: expected shape {layout} with at least one row and one column, got {array.shape}")
    if width is not None and array.shape[1] != width:
        raise ValueError(f"{name}: expected shape {layout} with {columns} = {width}, got {array.shape}")
    _check_finite(name, array)
    return array


def vector(name: str, value: ArrayLike, *, axis: str = "N", length: int | None = None) -> FloatArray:
    """Return ``value`` as a finite, non-empty float64 vector; arguments and errors as for `matrix`."""
    array = _floats(name, value, f"({axis},)")
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: expected shape ({axis},) with at least one value, got {array.shape}")
    if length is not None and array.size != length:
        raise ValueError(f"{name}: expected shape ({axis},) with {axis} = {length}, got {array.shape}")
    _check_finite(name, array)
    return array


def finite(name: str, value: ArrayLike) -> FloatArray:
    """Return ``value`` as a finite float64 array of any shape; errors as for `matrix`."""
    array = _floats(name, value, "(...)")
    _check_finite(name, array)
    return array


def in_unit_interval(name: str, array: FloatArray) -> FloatArray:
    """Return ``array`` if every value is a probability.

    Raises:
        ValueError: A value is under 0 or over 1.
    """
    if array.size and (array.min() < 0 or array.max() > 1):
        raise ValueError(f"{name}: expected probabilities from 0 to 1, got values from {array.min()} to {array.max()}")
    return array


def labels(name: str, value: ArrayLike, length: int) -> NDArray[np.bool_]:
    """Return ``(P,)`` labels, given as booleans or as 0 and 1, as booleans.

    Raises:
        ValueError: They are of another length or hold another value.
    """
    array = as_array(name, value)
    if array.shape != (length,):
        raise ValueError(f"{name}: expected shape ({length},), one label a pair, got {array.shape}")
    wrong = ~np.isin(array, (0, 1)) if array.dtype.kind in "biuf" else np.ones(length, dtype=np.bool_)
    if wrong.any():
        raise ValueError(f"{name}: expected only 0 and 1 (or False and True), got {array[wrong][0]!r}")
    return array.astype(np.bool_)


def number(name: str, value: float, *, above_zero: bool = False) -> float:
    """Return ``value`` as a finite float.

    Raises:
        ValueError: It is not a finite number, or not above zero where it has to be.
    """
    allowed = "a finite number above 0" if above_zero else "a finite number"
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise ValueError(f"{name}={value!r}: expected {allowed}")  # noqa: TRY004 - one kind of error for bad arguments
    if not math.isfinite(value) or (above_zero and value <= 0):
        raise ValueError(f"{name}={value!r}: expected {allowed}")
    return float(value)


def positive_mask(name: str, value: ArrayLike, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which columns answer which row as a ``(Q, N)`` boolean matrix.

    Args:
        name: The argument's name, for the error.
        value: ``(Q,)`` integers, the one right column of each row; or ``(Q, N)`` booleans, where any number is right.
        shape: ``(Q, N)``.

    Raises:
        ValueError: It is neither, an index is out of range, or a row has no right column.
    """
    array = as_array(name, value)
    rows, columns = shape
    if array.shape == (rows,) and array.dtype.kind in "iu":
        outside = (array < 0) | (array >= columns)
        if outside.any():
            row = int(np.flatnonzero(outside)[0])
            raise ValueError(f"{name}[{row}]={int(array[row])}: expected a column from 0 to {columns - 1}")
        mask = np.zeros(shape, dtype=np.bool_)
        mask[np.arange(rows), array] = True
        return mask
    if array.shape == shape and array.dtype.kind == "b":
        empty = ~array.any(axis=1)
        if empty.any():
            raise ValueError(f"{name}[{int(np.flatnonzero(empty)[0])}]: no column is right; leave such rows out")
        return array
    raise ValueError(
        f"{name}: expected ({rows},) integers, one right column a row, or ({rows}, {columns}) booleans; got shape "
        f"{array.shape} of {array.dtype}"
    )


FORMAT_VERSION = 1


def check_header(file: str | Path, kind: str, content: Mapping[str, object]) -> None:
    """Raise a ValueError if a file is of another kind or format than ours."""
    if content.get("kind") != kind or str(content.get("format_version")) != str(FORMAT_VERSION):
        raise ValueError(
            f"{file}: expected kind {kind!r} of format_version {FORMAT_VERSION}, got kind {content.get('kind')!r} of "
            f"format_version {content.get('format_version')!r}; fit and save it again"
        )


@dataclass(frozen=True)
class SavedNumbers:
    """Base of frozen dataclasses whose fields are finite numbers, kept as a JSON file.

    Raises:
        ValueError: A field is not a finite number, or not above 0 where `above_zero` asks for it.
    """

    kind: ClassVar[str]
    above_zero: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the fields and make them floats."""
        for name in asdict(self):
            value = number(f"{type(self).__name__}: {name}", getattr(self, name), above_zero=self.above_zero)
            object.__setattr__(self, name, value)

    def save(self, file: str | Path) -> None:
        """Write the numbers to a JSON file."""
        content = {"kind": self.kind, "format_version": FORMAT_VERSION, **asdict(self)}
        Path(file).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not JSON, of another kind or format, or a number is missing or not finite.
        """
        return cls(**cls.read(file, [field.name for field in fields(cls)]))

    @classmethod
    def read(cls, file: str | Path, names: Sequence[str]) -> dict[str, float]:
        """Return the named numbers of a file; errors as for `load`."""
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file}: not a JSON file: {error}") from error
        if not isinstance(content, dict):
            raise ValueError(f"{file}: expected a JSON object, got {type(content).__name__}")  # noqa: TRY004 - a file's
        check_header(file, cls.kind, content)
        if missing := [name for name in names if name not in content]:
            raise ValueError(f"{file}: {', '.join(missing)} missing; fit and save it again")
        return {name: number(f"{file}: {name}", content[name]) for name in names}
