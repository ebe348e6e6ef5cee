"""The table of segments: LanceDB in a folder, one row for each segment, written file by file.

A file's rows arrive in one commit and are replaced in one commit, so a run that is killed leaves each file as it was or
as it became, never in between.

The user may add columns to the table. They are the user's: a row keeps its values while it keeps its id, a moved file
takes them along, and a new file, even a copy of another, has none (null).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidembed.errors import IndexDamagedError, IndexMismatchError
from vidembed.index.files import IndexedFile
from vidembed.index.meta import IndexMeta
from vidembed.text import require_index_extra, write_atomically
from vidembed.video.clip import FileState

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.index import IndexConfig, IvfRq, IvfSq
    from lancedb.table import LanceTable
    from numpy.typing import NDArray

TABLE = "segments"
TABLE_FOLDER = f"{TABLE}.lance"
DERIVED_FOLDER = "derived"  # of what is made from the rows: settings, measurements, the query bank
FORMAT_VERSION = 1  # of the files in it
ROW_ID = "_rowid"  # LanceDB's name of the column; a row keeps its id within a version of the table
ANN_NAME = "ann"
RANKED = ("uri", "start_s", "end_s", "duration", "vector")  # what a ranking needs of a row, with its id
_META_KEY = b"vidembed"
_COMPACT_EVERY = 512  # commits; each adds a fragment, and lists all of them anew
_KEEP_VERSIONS = timedelta(minutes=5)  # a search reads one version, for seconds
_COPY = re.compile(r"compact-(int8|binary|float32)(-[1-9]\d*)?(-[0-9a-f]{32}-\w+\.npy|\.json)")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a video, seconds on the clock of a player, and its vector."""

    start_s: float
    end_s: float
    vector: NDArray[np.float32]  # (D,)


@dataclass(frozen=True, slots=True)
class FileRows:
    """All rows of one file."""

    uri: str
    segments: Sequence[Segment]  # all of them, at least one
    duration: float  # where the video ends, seconds on the clock of a player
    content_fingerprint: str  # SHA-256 of its bytes, hex
    state: FileState  # size and time of last write
    table: pa.Table | None = None  # the rows as `own_rows` returns them, where they were built before


def segment_id(uri: str, start_s: float, end_s: float) -> str:
    """Return the id of a row: the UUID version 5 of the segment's media fragment URI, the same in every run."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{uri}#t={start_s:.6f},{end_s:.6f}"))


def own_schema(dimension: int) -> pa.Schema:
    """Return the columns of vidembed, for vectors of `dimension` numbers."""
    _, pa = require_index_extra()
    types = {
        "id": pa.string(),
        "uri": pa.string(),
        "start_s": pa.float64(),
        "end_s": pa.float64(),
        "duration": pa.float64(),
        "content_fingerprint": pa.string(),
        "size": pa.int64(),
        "mtime_ns": pa.int64(),
        "model_fingerprint": pa.string(),
        "vector": pa.list_(pa.float32(), dimension),
    }
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in types.items()])


def user_fields(schema: pa.Schema, dimension: int) -> list[pa.Field]:
    """Return the columns of a table that are not vidembed's.

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
    """Refuse columns of the user that must have a value, since a new row has none for them.

    Raises:
        IndexMismatchError: There is one. The message names it and says how to change it.
    """
    if strict := [field.name for field in fields if not field.nullable]:
        raise IndexMismatchError(
            f"index: the column {strict[0]!r}, which was added to the table, must have a value in every row, and new "
            f'rows have none. Allow it to be empty, with table.alter_columns({{"path": "{strict[0]}", "nullable": '
            "True}) of LanceDB, or drop it"
        )


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


def quoted(text: str) -> str:
    """Return a text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def among(uris: Iterable[str]) -> str:
    """Return the SQL condition that a row is of one of these files."""
    return f"uri IN ({', '.join(map(quoted, uris))})"


class VideoIndex:
    """An index on disk, in `folder`, with its description `meta`. Open one with `open`, make one with `create`."""

    def __init__(self, folder: Path, table: LanceTable, meta: IndexMeta) -> None:
        self.folder = folder
        self.meta = meta
        self._table = table
        self._commits = 0

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether there is an index in `folder`, whole or begun. Makes nothing."""
        versions = folder / TABLE_FOLDER / "_versions"
        return versions.is_dir() and any(versions.iterdir())

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> VideoIndex:
        """Open the index in `folder`. Compact copies of vectors, as earlier versions made them, are not used.

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
        index = cls(path, table, IndexMeta.from_json(description))
        if copies := index.compact_copies():
            logger.warning(
                "%s holds compact copies of an earlier version (%s, ...), which are not used; the next run of "
                "`vidembed index` removes them, and with --quantize makes a quantized index in their place",
                path,
                copies[0].name,
            )
        return index

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
        where = f"content_fingerprint = {quoted(content_fingerprint)}"
        found = self._table.search().where(where).to_arrow().to_pylist()
        if not found:
            return None
        uri = min(row["uri"] for row in found)
        rows = sorted((row for row in found if row["uri"] == uri), key=lambda row: (row["start_s"], row["end_s"]))
        return rows[0]["duration"], [
            Segment(row["start_s"], row["end_s"], np.asarray(row["vector"], dtype=np.float32)) for row in rows
        ]

    def check_columns(self) -> None:
        """Refuse a table to which no file can be added.

        Raises:
            IndexMismatchError: A column that the user added must have a value, which new rows do not have.
            IndexDamagedError: A column of vidembed is gone, or is of another type.
        """
        self.latest()
        check_nullable(user_fields(self._table.schema, self.meta.dimension))

    def put(self, files: Sequence[FileRows], *, replace: bool) -> None:
        """Store files in one commit; with `replace` they must be in the index, and their rows are updated, else not.

        Rows that are replaced keep the values of columns that the user added where their id stays, which is to say the
        name of the file, start and end. New rows have none (null).

        Raises:
            IndexMismatchError, IndexDamagedError: As for `check_columns`.
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
            # pa.nulls refuses a struct whose fields must have a value
            rows = rows.append_column(field, pa.array([None] * len(rows), field.type))
        self._table.add(rows)
        self._committed()

    def move(self, files: Sequence[FileRows], from_uris: Sequence[str]) -> None:
        """Store files under new names and remove the rows of their old ones, `from_uris`, in one commit.

        Values of columns that the user added go along, from the segment at the same start and end; where there was none
        they are null. A file that is in the index under a new name is replaced, its values with it.

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
        old = self._table.search().where(among(set(from_uris))).select(["id", "uri", *names]).to_arrow()
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
            self._table.delete(among(uris[first : first + 500]))

    def latest(self) -> None:
        """Read the last commit from now on. The version at opening may be old, and its files removed."""
        self._table.checkout_latest()  # type: ignore[no-untyped-call]

    def scan(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """Yield columns and `ROW_ID` of all rows of the version at hand, or those that `where` names (`Filter.sql`)."""
        query = self._table.search().select(list(columns)).with_row_id(True)
        yield from (query if where is None else query.where(where)).to_batches()

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
    def ann(self) -> IndexConfig | None:
        """LanceDB's description of the ANN index in the version at hand, or None."""
        return next((each for each in self._table.list_indices() if each.name == ANN_NAME), None)

    def build_ann(self, config: IvfRq | IvfSq) -> None:
        """Build the ANN index anew, in one commit."""
        self._table.create_index("vector", config=config, name=ANN_NAME)
        self.latest()

    def drop_ann(self) -> None:
        """Remove the ANN index if there is one."""
        self.latest()
        if self.ann is not None:
            self._table.drop_index(ANN_NAME)

    def nearest(
        self,
        query: NDArray[np.float64],
        *,
        limit: int,
        effort: tuple[int, int] | None = None,
        where: str | None = None,
    ) -> pa.Table:
        """Return `RANKED`, row id and `_distance` of the rows that LanceDB finds nearest by cosine, best first.

        Args:
            query: Unit vector, shape (D,).
            limit: Most rows.
            effort: Of the ANN index, partitions looked into and times `limit` rows that are compared by their full
                vectors; LanceDB looks at rows that were added since it was built one by one. None: every row.
            where: Which rows, as `Filter.sql` returns it. Default: all.
        """
        found = self._table.search(query.astype(np.float32), vector_column_name="vector").distance_type("cosine")
        found = found.bypass_vector_index() if effort is None else found.nprobes(effort[0]).refine_factor(effort[1])
        if where is not None:
            found = found.where(where, prefilter=True)
        return found.limit(limit).select([*RANKED, "_distance"]).with_row_id(True).to_arrow().combine_chunks()

    def derived(self, name: str) -> Path:
        """Return where a file that is made from the rows is, or shall be."""
        return self.folder / DERIVED_FOLDER / name

    def compact_copies(self) -> list[Path]:
        """Return the files of compact copies, which earlier versions made."""
        return sorted(file for file in self.derived("").glob("compact-*") if _COPY.fullmatch(file.name))

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
        merge.when_not_matched_by_source_delete(among(uris)).execute(rows)
        self._committed()

    def _committed(self) -> None:
        self._commits += 1
        if self._commits % _COMPACT_EVERY == 0:
            self.compact()


def write_record(file: Path, record: Mapping[str, object]) -> None:
    """Write a JSON object beside the table."""
    content = {"format_version": FORMAT_VERSION, **record}
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_record(file: Path) -> dict[str, Any] | None:
    """Read what `write_record` wrote, or return None where there is no such file or it is not that.

    What is made from the rows is never needed to answer: without it, searches are exact.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format_version") == FORMAT_VERSION else None
