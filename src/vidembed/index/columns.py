"""The columns of the table: those of vidembed, and those that the user added, which are never written over."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vidembed.index.errors import IndexDamagedError, IndexMismatchError
from vidembed.index.packages import require_packages

if TYPE_CHECKING:
    import pyarrow as pa

    from vidembed.index.meta import IndexMeta
    from vidembed.index.store import FileRows


def segment_id(uri: str, start_s: float, end_s: float) -> str:
    """Return the id of a row: the UUID version 5 of the segment's media fragment URI, the same in every run."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{uri}#t={start_s:.6f},{end_s:.6f}"))


def own_schema(dimension: int) -> pa.Schema:
    """Return the columns of vidembed, for vectors of `dimension` numbers."""
    _, pa = require_packages()
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("start_s", pa.float64(), nullable=False),
            pa.field("end_s", pa.float64(), nullable=False),
            pa.field("duration", pa.float64(), nullable=False),
            pa.field("content_fingerprint", pa.string(), nullable=False),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("mtime_ns", pa.int64(), nullable=False),
            pa.field("model_fingerprint", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dimension), nullable=False),
        ]
    )


def user_fields(schema: pa.Schema, dimension: int) -> list[pa.Field]:
    """Return the columns of a table that are not vidembed's.

    Args:
        schema: Of the table.
        dimension: Of the vectors.

    Raises:
        IndexDamagedError: A column of vidembed is gone, or is of another type.
    """
    own = own_schema(dimension)
    for field in own:
        found = schema.field(field.name) if field.name in schema.names else None
        if found is None or found.type != field.type:
            state = "is gone" if found is None else f"is of type {found.type} and not {field.type}"
            raise IndexDamagedError(f"index: its column {field.name!r} {state}; remove the folder and index again")
    return [field for field in schema if field.name not in own.names]


def check_nullable(fields: Sequence[pa.Field]) -> None:
    """Refuse columns of the user that must have a value: a new row has none for them.

    Raises:
        IndexMismatchError: There is one. The message names it and says how to change it.
    """
    if strict := [field.name for field in fields if not field.nullable]:
        raise IndexMismatchError(
            f"index: the column {strict[0]!r}, which was added to the table, must have a value in every row, and new "
            f'rows have none. Allow it to be empty, with table.alter_columns({{"path": "{strict[0]}", "nullable": '
            "True}) of LanceDB, or drop it"
        )


def empty(field: pa.Field, count: int) -> pa.Array:
    """Return `count` empty cells (null) of a column."""
    _, pa = require_packages()
    return pa.array([None] * count, field.type)  # pa.nulls refuses a struct whose fields must have a value


def own_rows(file: FileRows, meta: IndexMeta) -> pa.Table:
    """Return the rows of a file in the columns of vidembed: those built before, or new ones.

    Raises:
        RuntimeError: Its vectors are not of the length that the index has.
    """
    if file.table is not None:
        return file.table
    _, pa = require_packages()
    vectors = np.stack([segment.vector for segment in file.segments]).astype(np.float32, copy=False)  # (S, D)
    if vectors.shape[1] != meta.dimension:
        raise RuntimeError(f"{file.uri}: vectors of length {vectors.shape[1]} for an index of {meta.dimension}")
    count = len(file.segments)
    columns = {
        "id": [segment_id(file.uri, segment.start_s, segment.end_s) for segment in file.segments],
        "uri": [file.uri] * count,
        "start_s": [segment.start_s for segment in file.segments],
        "end_s": [segment.end_s for segment in file.segments],
        "duration": [file.duration] * count,
        "content_fingerprint": [file.content_fingerprint] * count,
        "size": [file.state.size] * count,
        "mtime_ns": [file.state.mtime_ns] * count,
        "model_fingerprint": [meta.model_fingerprint] * count,
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), meta.dimension),
    }
    return pa.table(columns, schema=own_schema(meta.dimension))
