"""Vectors made smaller, a byte or a bit for each number or fewer numbers, and the scores to be had from them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_QUERY_BITS = 4  # of a query against binary vectors; as RaBitQ has it (arXiv 2405.12497, section 3.3.1)
_BLOCK_ROWS = 4096  # made float at once
_BLOCK_QUERIES = 64
NAME = re.compile(r"(int8|binary|float32)(?:-([1-9]\d*))?")


@dataclass(frozen=True, slots=True)
class Spec:
    """A kind of copy.

    Attributes:
        precision: `int8` is a byte a dimension, `binary` a bit, `float32` four bytes.
        truncate_dim: Leading dimensions that are kept, or None for all. `float32` needs it.
    """

    precision: Literal["int8", "binary", "float32"]
    truncate_dim: int | None = None

    @classmethod
    def parse(cls, name: str, dimension: int | None = None) -> Spec:
        """Read a name such as `int8`, `binary` or `float32-512`.

        Args:
            name: What to read.
            dimension: Of the vectors, if it is known.

        Raises:
            ValueError: It is none, or keeps as many dimensions as there are.
        """
        match = NAME.fullmatch(name)
        if match is None or name == "float32":
            raise ValueError(
                f"compact: got {name!r}; int8, binary, or one of int8-N, binary-N and float32-N, which keep the first "
                "N dimensions, is needed"
            )
        precision, size = match.groups()
        truncate_dim = int(size) if size else None
        if truncate_dim is not None and dimension is not None and truncate_dim >= dimension:
            raise ValueError(
                f"compact: got {name!r} for vectors of {dimension} dimensions; keep fewer, or leave it out"
            )
        return cls(precision, truncate_dim)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """What the copy is called."""
        return self.precision + (f"-{self.truncate_dim}" if self.truncate_dim else "")

    def shorten(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the vectors cut to their leading dimensions, at length one, shape (N, d); zero stays zero."""
        kept = vectors[:, : self.truncate_dim]
        length = np.sqrt(np.einsum("nd,nd->n", kept, kept))[:, None]  # (N, 1)
        return np.asarray(kept / np.where(length > 0, length, 1), dtype=np.float32)


def best_places(
    spec: Spec, arrays: Mapping[str, NDArray[Any]], queries: NDArray[np.float64], count: int
) -> Iterator[NDArray[np.intp]]:
    """Yield the positions of the `count` rows that seem best for each query, best first.

    Args:
        spec: Kind of the codes.
        arrays: `codes` of the rows, shape (N, W); with int8 the `steps`, shape (d,); with binary the `factors`,
            shape (N,).
        queries: Unit vectors, shape (Q, D).
        count: Rows for each query, at most N.
    """
    codes = arrays["codes"]
    short = spec.shorten(queries.astype(np.float32))  # (Q, d)
    if spec.precision == "binary":
        for query in short:
            yield _greatest(_binary_scores(codes, arrays["factors"], query), count)
        return
    if spec.precision == "int8":
        short = short * arrays["steps"]  # what all rows have in common does not order them
    for first in range(0, len(short), _BLOCK_QUERIES):
        block = short[first : first + _BLOCK_QUERIES].T  # (d, q)
        scores = np.concatenate(
            [
                np.asarray(codes[at : at + _BLOCK_ROWS], dtype=np.float32) @ block
                for at in range(0, len(codes), _BLOCK_ROWS)
            ]
        )  # (N, q)
        for column in scores.T:
            yield _greatest(column, count)


def _binary_scores(
    codes: NDArray[np.uint64], factors: NDArray[np.float32], query: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Estimate the inner product of a query with each row, from the signs of the row about the mean.

    The query is rounded to `_QUERY_BITS` bits a dimension, so that the sum over its bits is of counted bits.

    Args:
        codes: Packed signs, shape (N, W) of 64 each.
        factors: Scale of each row, shape (N,).
        query: Shape (d,).

    Returns:
        Shape (N,).
    """
    least = float(query.min())
    step = (float(query.max()) - least) / (2**_QUERY_BITS - 1) or 1.0
    levels = np.rint((query - least) / step).astype(np.uint8)  # (d,), 0 to 15
    scores = np.empty(len(codes), dtype=np.float32)
    planes = [pack((levels >> bit & 1)[None].astype(np.bool_), codes.shape[1])[0] for bit in range(_QUERY_BITS)]
    total = float(levels.sum()) * step + least * len(query)  # of the rounded query
    for at in range(0, len(codes), _BLOCK_ROWS):
        rows = np.asarray(codes[at : at + _BLOCK_ROWS])  # (n, W)
        ones = np.bitwise_count(rows).sum(axis=1, dtype=np.int64)  # (n,)
        inner = sum(
            (np.bitwise_count(rows & plane).sum(axis=1, dtype=np.int64) << bit for bit, plane in enumerate(planes)),
            start=np.zeros(len(rows), dtype=np.int64),
        )
        scores[at : at + _BLOCK_ROWS] = 2 * (least * ones + step * inner) - total  # query times signs of +-1
    return scores * factors


def pack(bits: NDArray[np.bool_] | NDArray[np.uint8], words: int) -> NDArray[np.uint64]:
    """Return rows of bits, or of bytes packed already, as words of 64, shape (N, words), filled up with zeros."""
    packed = np.packbits(bits, axis=-1) if bits.dtype == np.bool_ else bits
    full = np.zeros((len(packed), words * 8), dtype=np.uint8)
    full[:, : packed.shape[1]] = packed
    return full.view(np.uint64)


def _greatest(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    places = np.argpartition(scores, -count)[-count:] if count < len(scores) else np.arange(len(scores))
    return places[np.argsort(-scores[places], kind="stable")]
