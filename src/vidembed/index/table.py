"""The table of segments: LanceDB in a folder, one row for each segment, written file by file.

A file's rows arrive in one commit and are replaced in one commit, so a run that is killed leaves each file as it was or
as it became, never in between.

The user may add columns to the table. They are the user's: a row keeps its values while it keeps its id, a moved file
takes them along, and a new file, even a copy of another, has none (null).
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidembed.errors import IndexDamagedError, IndexMismatchError
from vidembed.index.files import IndexedFile
from vidembed.index.meta import IndexMeta
from vidembed.text import require_index_extra
from vidembed.video.sampling import FileState

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

    from vidembed.index.meta import IndexMeta

__all__ = ["ANN_NAME", "PLACE", "ROW_ID", "TABLE", "TABLE_FOLDER", "FileRows", "Segment", "VideoIndex", "segment_id"]


def segment_id(uri: str, start_s: float, end_s: float) -> str:
    """Return the id of a row: the UUID version 5 of the segment's media fragment URI, the same in every run."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{uri}#t={start_s:.6f},{end_s:.6f}"))


def own_schema(dimension: int) -> pa.Schema:
    """Return the columns of vidembed, for vectors of `dimension` numbers."""
    _, pa = require_index_extra()
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
    _, pa = require_index_extra()
    return pa.array([None] * count, field.type)  # pa.nulls refuses a struct whose fields must have a value


def own_rows(file: FileRows, meta: IndexMeta) -> pa.Table:
    """Return the rows of a file in the columns of vidembed: those built before, or new ones.

    Raises:
        RuntimeError: Its vectors are not of the length that the index has.
    """
    if file.table is not None:
        return file.table
    _, pa = require_index_extra()
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


TABLE = "segments"
TABLE_FOLDER = f"{TABLE}.lance"
ROW_ID = "_rowid"  # LanceDB's name of the column; a row keeps its id within a version of the table
ANN_NAME = "ann"
PLACE = ("uri", "start_s", "end_s")
_META_KEY = b"vidembed"
_COMPACT_EVERY = 512  # commits; each adds a fragment, and lists all of them anew
_KEEP_VERSIONS = timedelta(minutes=5)  # a search reads one version, for seconds


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a video and its vector.

    Attributes:
        start_s: Where it starts, seconds on the clock of a player.
        end_s: Where it ends, seconds.
        vector: Its embedding, float32, shape (D,).
    """

    start_s: float
    end_s: float
    vector: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FileRows:
    """All rows of one file.

    Attributes:
        uri: Its `file://` URI.
        segments: All of its segments, at least one.
        duration: Where the video ends, seconds on the clock of a player.
        content_fingerprint: SHA-256 of its bytes, hex.
        state: Size and time of last write.
        table: The rows as `vidembed.index.table.own_rows` returns them, where they were built before.
    """

    uri: str
    segments: Sequence[Segment]
    duration: float
    content_fingerprint: str
    state: FileState
    table: pa.Table | None = None


class VideoIndex:
    """An index on disk. Open one with `open`, make one with `create`.

    Attributes:
        folder: Where it is.
        meta: What it says of itself.
    """

    def __init__(self, folder: Path, table: Any, meta: IndexMeta) -> None:
        """Wrap an open table; use `open` or `create`."""
        self.folder = folder
        self.meta = meta
        self._table = table
        self._commits = 0

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether there is an index in `folder`, whole or begun. Looks only; makes nothing."""
        versions = folder / TABLE_FOLDER / "_versions"
        return versions.is_dir() and any(versions.iterdir())

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> VideoIndex:
        """Open the index in `folder`.

        Raises:
            ValueError: There is none.
            IndexDamagedError: There is one that cannot be read.
            MissingExtraError: LanceDB is not installed.
        """
        path = Path(folder)
        if not cls.exists(path):
            raise ValueError(
                f"index: no vidembed index in {str(path)!r}; make one with `vidembed index PATH --to {path}`"
            )
        lancedb, _ = require_index_extra()
        try:
            table = lancedb.connect(path).open_table(TABLE)
            description = (table.schema.metadata or {}).get(_META_KEY)
        except (RuntimeError, OSError, ValueError) as error:
            raise IndexDamagedError(
                f"index: {str(path)!r} cannot be read; remove it and index again. LanceDB says: {error}"
            ) from error
        if description is None:
            raise IndexDamagedError(
                f"index: the table in {str(path)!r} was not made by vidembed; choose another folder"
            )
        return cls(path, table, IndexMeta.from_json(description))

    @classmethod
    def create(cls, folder: str | os.PathLike[str], meta: IndexMeta) -> VideoIndex:
        """Make an empty index in `folder`, in one commit.

        Raises:
            MissingExtraError: LanceDB is not installed.
        """
        lancedb, _ = require_index_extra()
        schema = own_schema(meta.dimension).with_metadata({_META_KEY: meta.to_json().encode()})
        return cls(Path(folder), lancedb.connect(folder).create_table(TABLE, schema=schema), meta)

    def __len__(self) -> int:
        """Return the number of segments."""
        return int(self._table.count_rows())

    def files(self) -> dict[str, IndexedFile]:
        """Return the files in the index, by URI."""
        _, pa = require_index_extra()
        keys = ["uri", "content_fingerprint", "size", "mtime_ns"]
        batches = list(self._table.search().select(keys).to_batches())
        if not batches:
            return {}
        grouped = pa.Table.from_batches(batches).group_by(keys).aggregate([([], "count_all")]).to_pylist()
        return {
            row["uri"]: IndexedFile(
                row["uri"], row["content_fingerprint"], FileState(row["size"], row["mtime_ns"]), row["count_all"]
            )
            for row in grouped
        }

    def segments(self, *, content_fingerprint: str) -> tuple[float, list[Segment]] | None:
        """Return duration and segments of a file with that content, or None where the index has none."""
        found = (
            self._table.search().where(f"content_fingerprint = {_quoted(content_fingerprint)}").to_arrow().to_pylist()
        )
        if not found:
            return None
        uri = min(row["uri"] for row in found)
        rows = sorted((row for row in found if row["uri"] == uri), key=lambda row: (row["start_s"], row["end_s"]))
        return rows[0]["duration"], [
            Segment(row["start_s"], row["end_s"], np.asarray(row["vector"], dtype=np.float32)) for row in rows
        ]

    def check_columns(self) -> None:
        """Refuse a table to which no file can be added; cheap, so it can come before files are embedded.

        Raises:
            IndexMismatchError: A column that the user added must have a value, which new rows do not have.
            IndexDamagedError: A column of vidembed is gone, or is of another type.
        """
        self.latest()
        check_nullable(user_fields(self._table.schema, self.meta.dimension))

    def put(self, files: Sequence[FileRows], *, replace: bool) -> None:
        """Store files in one commit.

        Rows that are replaced keep the values of columns that the user added where their id stays, which is to say the
        name of the file, start and end. New rows have none (null).

        Args:
            files: Each with all of its segments.
            replace: Whether the files are in the index: then their rows are updated, and those that are no more are
                removed. Otherwise they must not be.

        Raises:
            IndexMismatchError: As for `check_columns`.
            IndexDamagedError: As for `check_columns`.
        """
        if not files:
            return
        _, pa = require_index_extra()
        rows = pa.concat_tables([own_rows(file, self.meta) for file in files])
        self.check_columns()
        if replace:
            self._merge(rows, {file.uri for file in files})  # of our columns alone, so that it updates no others
            return
        for field in user_fields(self._table.schema, self.meta.dimension):
            rows = rows.append_column(field, empty(field, len(rows)))
        self._table.add(rows)
        self._committed()

    def move(self, files: Sequence[FileRows], from_uris: Sequence[str]) -> None:
        """Store files under new names and remove the rows of their old ones, in one commit.

        Values of columns that the user added go along, from the segment at the same start and end; where there was none
        they are null. A file that is in the index under a new name is replaced, its values with it.

        Args:
            files: Each with all of its segments and its new name, each name once.
            from_uris: The old name of each, in the same order.

        Raises:
            ValueError: There are more of one than of the other, a new name comes twice, or an old one is not in the
                index.
            IndexMismatchError: A column that the user added must have a value, and a segment has none to take along.
            IndexDamagedError: As for `check_columns`.
        """
        if len(files) != len(from_uris):
            raise ValueError(f"from_uris: got {len(from_uris)} for {len(files)} files; one for each is needed")
        if not files:
            return
        uris = [file.uri for file in files]
        if twice := next((uri for uri, count in Counter(uris).items() if count > 1), None):
            raise ValueError(f"files: got {twice!r} twice; each file must have a name of its own")
        _, pa = require_index_extra()
        rows = pa.concat_tables([own_rows(file, self.meta) for file in files])
        self.latest()
        added = user_fields(self._table.schema, self.meta.dimension)
        names = [field.name for field in added]
        old = self._table.search().where(_among(set(from_uris))).select(["id", "uri", *names]).to_arrow()
        if missing := set(from_uris).difference(old.column("uri").to_pylist()):
            raise ValueError(f"from_uris: {min(missing)!r} is not in the index; store the file with put()")
        row_of = {row_id: row for row, row_id in enumerate(old.column("id").to_pylist())}
        taken = [
            row_of.get(segment_id(from_uri, segment.start_s, segment.end_s))
            for file, from_uri in zip(files, from_uris, strict=True)
            for segment in file.segments
        ]
        if None in taken:
            check_nullable(added)
        if added:
            for field, column in zip(added, old.select(names).take(pa.array(taken, pa.int64())).columns, strict=True):
                rows = rows.append_column(field, column)
        self._merge(rows, {*uris, *from_uris})

    def remove(self, uris: Sequence[str]) -> None:
        """Remove all rows of these files, 500 files to a commit."""
        for first in range(0, len(uris), 500):
            self._table.delete(_among(uris[first : first + 500]))

    def latest(self) -> None:
        """Read the last commit from now on. The version at opening may be old, and its files removed."""
        self._table.checkout_latest()

    def vectors(self) -> Iterator[pa.RecordBatch]:
        """Yield place, vector and row id of every row of the last commit, some thousands of rows at a time."""
        self.latest()
        yield from self.scan([*PLACE, "vector"])

    def scan(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield these columns and `ROW_ID` of every row of the version at hand, in the order of the table."""
        yield from self._table.search().select(list(columns)).with_row_id(True).to_batches()

    def take(self, row_ids: Iterable[int], columns: Sequence[str]) -> pa.Table:
        """Return these columns and `ROW_ID` of these rows of the version at hand, in the order of their ids."""
        return self._table.take_row_ids([int(row) for row in row_ids]).select(list(columns)).with_row_id().to_arrow()

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The columns of the table but the vector, with their types."""
        return {field.name: field.type for field in self._table.schema if field.name != "vector"}

    def stamp(self) -> str:
        """Return the SHA-256 of the manifest of the version at hand, hex: it names all data files and the model.

        What is derived from the rows is good for the version with the same stamp, and for no other.

        Raises:
            IndexDamagedError: The manifest is gone, since the version is old and another run removed it.
        """
        version = int(self._table.version)
        # LanceDB has two ways to name manifests: counting down from 2^64 - 1 in new tables, and up in old ones.
        for name in (f"{2**64 - 1 - version:020d}.manifest", f"{version}.manifest"):
            file = self.folder / TABLE_FOLDER / "_versions" / name
            if file.is_file():
                return hashlib.sha256(file.read_bytes()).hexdigest()
        raise IndexDamagedError(f"index: version {version} in {str(self.folder)!r} is gone; open the index again")

    @property
    def ann(self) -> Any:
        """LanceDB's description of the ANN index (`lancedb.index.IndexConfig`) in the version at hand, or None."""
        return next((each for each in self._table.list_indices() if each.name == ANN_NAME), None)

    def build_ann(self, config: Any) -> None:
        """Build the ANN index anew, in one commit."""
        self._table.create_index("vector", config=config, name=ANN_NAME)
        self.latest()

    def drop_ann(self) -> None:
        """Remove the ANN index if there is one."""
        self.latest()
        if self.ann is not None:
            self._table.drop_index(ANN_NAME)

    def ann_candidates(self, query: NDArray[np.float64], *, limit: int, nprobes: int, refine: int) -> pa.Table:
        """Return place, vector and row id of the rows that the ANN index finds, best first.

        LanceDB looks at rows that were added since the index was built one by one, and merges them in.

        Args:
            query: Unit vector, shape (D,).
            limit: Most rows.
            nprobes: Partitions looked into.
            refine: `limit` times so many rows are compared by their full vectors.
        """
        found = self._table.search(query.astype(np.float32), vector_column_name="vector").distance_type("cosine")
        found = found.nprobes(nprobes).refine_factor(refine).limit(limit)
        return found.select([*PLACE, "vector", "_distance"]).with_row_id(True).to_arrow()

    def compact(self) -> None:
        """Join the small fragments that single commits leave, and drop old versions of the table."""
        self._table.optimize(cleanup_older_than=_KEEP_VERSIONS)

    def flush(self) -> None:
        """Have the system write the index to the disk; LanceDB leaves that for later, when power may be off."""
        for path in [*self.folder.rglob("*"), self.folder]:
            if os.name == "nt" and path.is_dir():
                continue  # Windows cannot open a folder
            handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def size_on_disk(self) -> int:
        """Return the bytes that the index takes, old versions included."""
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def _merge(self, rows: pa.Table, uris: Iterable[str]) -> None:
        """Make `rows` all that there is of these files; columns that it lacks keep their values."""
        merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.when_not_matched_by_source_delete(_among(uris)).execute(rows)
        self._committed()

    def _committed(self) -> None:
        self._commits += 1
        if self._commits % _COMPACT_EVERY == 0:
            self.compact()


def _among(uris: Iterable[str]) -> str:
    return f"uri IN ({', '.join(_quoted(uri) for uri in uris)})"


def _quoted(text: str) -> str:
    """Return `text` as an SQL string. URIs are percent-encoded and fingerprints hex: neither has a quote to double."""
    return "'" + text.replace("'", "''") + "'"
