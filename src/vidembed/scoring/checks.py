"""What the scoring functions share: checks of arrays and numbers, and numbers kept as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, ClassVar, Self, TypeAlias, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray: TypeAlias = NDArray[np.float64]


def as_array(name: str, value: ArrayLike) -> NDArray[Any]:
    """Return ``value`` as the array that numpy makes of it, or raise a ValueError that names the argument."""
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on a device or of bfloat16
        raise ValueError(f"{name}: expected an array of numbers, got {type(value).__name__}: {error}") from error


def finite(
    name: str, value: ArrayLike, layout: str = "(...)", *, ndim: int | None = None, least: str = ""
) -> FloatArray:
    """Return ``value`` as a finite float64 array, by default of any shape; errors as for `matrix`.

    With `ndim`, it has so many axes, at least one value, and `layout` and `least` say so in the error.
    """
    array = as_array(name, value)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected a numeric array of shape {layout}, got dtype {array.dtype}")
    if ndim is not None and (array.ndim != ndim or array.size == 0):
        raise ValueError(f"{name}: expected shape {layout} with at least one {least}, got {array.shape}")
    if (bad := ~np.isfinite(array)).any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: {int(bad.sum())} of {array.size} values are not finite, the first is {array[first]} at "
            f"{list(first)}; leave out pairs without a score"
        )
    return np.asarray(array, dtype=np.float64)


def matrix(name: str, value: ArrayLike, *, rows: str = "Q", columns: str = "N", width: int | None = None) -> FloatArray:
    """Return ``value`` as a finite, non-empty float64 matrix, of `width` columns if given; else a ValueError."""
    layout = f"({rows}, {columns})"
    array = finite(name, value, layout, ndim=2, least="row and one column")
    if width is not None and array.shape[1] != width:
        raise ValueError(f"{name}: expected shape {layout} with {columns} = {width}, got {array.shape}")
    return array


def vector(name: str, value: ArrayLike, *, axis: str = "N", length: int | None = None) -> FloatArray:
    """Return ``value`` as a finite, non-empty float64 vector; arguments and errors as for `matrix`."""
    array = finite(name, value, f"({axis},)", ndim=1, least="value")
    if length is not None and array.size != length:
        raise ValueError(f"{name}: expected shape ({axis},) with {axis} = {length}, got {array.shape}")
    return array


def in_unit_interval(name: str, array: FloatArray) -> FloatArray:
    """Return ``array`` if every value is a probability, else raise a ValueError."""
    if array.size and (array.min() < 0 or array.max() > 1):
        raise ValueError(f"{name}: expected probabilities from 0 to 1, got values from {array.min()} to {array.max()}")
    return array


def labels(name: str, value: ArrayLike, length: int) -> NDArray[np.bool_]:
    """Return ``(P,)`` labels, booleans or 0 and 1, as booleans; a ValueError for another length or value."""
    array = as_array(name, value)
    if array.shape != (length,):
        raise ValueError(f"{name}: expected shape ({length},), one label per pair, got {array.shape}")
    wrong = ~np.isin(array, (0, 1)) if array.dtype.kind in "biuf" else np.ones(length, dtype=np.bool_)
    if wrong.any():
        raise ValueError(f"{name}: expected only 0 and 1 (or False and True), got {array[wrong][0]!r}")
    return array.astype(np.bool_)


def whole_number(name: str, value: int, *, least: int = 1) -> int:
    """Return ``value`` as an int; a ValueError if it is not a whole number of at least `least`."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number of at least {least}")
    return int(value)


def number(name: str, value: float, *, above_zero: bool = False) -> float:
    """Return ``value`` as a float; a ValueError if it is not a finite number, or not above zero where it has to be."""
    right = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, (bool, np.bool_))
    if not right or not math.isfinite(value) or (above_zero and value <= 0):
        raise ValueError(f"{name}={value!r}: expected a finite number{' above 0' if above_zero else ''}")
    return float(value)


def positive_mask(name: str, value: ArrayLike, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which columns answer which row ``(Q, N)``, of ``(Q,)`` integers, one a row, or of such booleans."""
    array = as_array(name, value)
    rows, columns = shape
    if array.shape == (rows,) and array.dtype.kind in "iu":
        if (outside := (array < 0) | (array >= columns)).any():
            row = int(np.flatnonzero(outside)[0])
            raise ValueError(f"{name}[{row}]={int(array[row])}: expected a column from 0 to {columns - 1}")
        mask = np.zeros(shape, dtype=np.bool_)
        mask[np.arange(rows), array] = True
        return mask
    if array.shape == shape and array.dtype.kind == "b":
        if (empty := ~array.any(axis=1)).any():
            raise ValueError(f"{name}[{int(np.flatnonzero(empty)[0])}]: it has no matching column; leave out such rows")
        return array
    raise ValueError(
        f"{name}: expected ({rows},) integers, the matching column of each row, or ({rows}, {columns}) booleans; got "
        f"shape "
        f"{array.shape} of {array.dtype}"
    )


FORMAT_VERSION = 1


def from_json(kind: Any, value: Any) -> Any:
    """Make a dataclass of what `asdict` and JSON gave; a KeyError or TypeError if its fields are others."""
    if isinstance(kind, type) and is_dataclass(kind):
        types = get_type_hints(kind)
        return kind(**{name: from_json(types[name], item) for name, item in dict(value).items()})
    arguments = get_args(kind)
    if get_origin(kind) is tuple:
        return tuple(from_json(arguments[0], item) for item in value)
    if get_origin(kind) is dict:
        return {name: from_json(arguments[1], item) for name, item in value.items()}
    if get_origin(kind) is UnionType:  # with None
        return None if value is None else from_json(arguments[0], value)
    return value


def read_object(file: str | Path) -> dict[str, Any]:
    """Read a JSON object; a ValueError if the file holds none."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(content).__name__}")  # noqa: TRY004 - of the file
    return content


def check_header(
    kind: str, content: Mapping[str, object], *, file: str | Path = "", remedy: str = "fit and save it again"
) -> None:
    """Raise a ValueError if the content of a file is of another kind or format than ours."""
    found, version = content.get("kind"), content.get("format_version")
    if found != kind or str(version) != str(FORMAT_VERSION):
        raise ValueError(
            f"{file}{': ' if file else ''}expected kind {kind!r} of format_version {FORMAT_VERSION}, got kind "
            f"{found!r} of format_version {version!r}; {remedy}"
        )


@dataclass(frozen=True)
class SavedNumbers:
    """Base of frozen dataclasses whose fields are finite numbers (above 0 with `above_zero`), kept as a JSON file."""

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
        """Read a file that `save` wrote; a FileNotFoundError if there is none, and a ValueError if it is another."""
        return cls(**cls.read(file, [field.name for field in fields(cls)]))

    @classmethod
    def read(cls, file: str | Path, names: Sequence[str]) -> dict[str, float]:
        """Return the named numbers of a file; errors as for `load`."""
        content = read_object(file)
        check_header(cls.kind, content, file=file)
        if missing := [name for name in names if name not in content]:
            raise ValueError(f"{file}: {', '.join(missing)} missing; fit and save it again")
        return {name: number(f"{file}: {name}", content[name]) for name in names}
