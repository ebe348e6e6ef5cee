"""The table of segments: LanceDB in a folder, one row for each segment, written file by file.

A file's rows arrive in one commit and are replaced in one commit, so a run that is killed leaves each file as it was or
as it became, never in between. The table holds its own description, `IndexMeta`: the model that made the vectors, and
how files were cut.

The user may add columns to the table. They are the user's: a row keeps its values while it keeps its id, a moved file
takes them along, and a new file, even a copy of another, has none (null).
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from urllib.request import url2pathname

import numpy as np
from numpy.typing import NDArray

from vidembed.errors import IndexDamagedError
from vidembed.index.schema import (
    FileRows,
    IndexedFile,
    IndexMeta,
    Segment,
    own_rows,
    own_schema,
    require_index_extra,
    segment_id,
    user_columns,
)
from vidembed.video.clip import FileState

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.index import IndexConfig, IvfRq, IvfSq
    from lancedb.table import LanceTable

TABLE = "segments"
TABLE_FOLDER = f"{TABLE}.lance"
CAPTIONS = "captions"
CAPTIONS_FOLDER = f"{CAPTIONS}.lance"  # of the table of captions, where there are any (`vidembed.index.captions`)
DERIVED_FOLDER = "derived"  # of what is made from the rows: settings, measurements, the query bank
ROW_ID = "_rowid"  # LanceDB's name of the column; a row keeps its id within a version of the table
ANN_NAME = "ann"
PLACE = ("uri", "start_s", "end_s", "duration")  # what a hit says of a row
AT_ONCE = 500  # values of an SQL list
COMPACT_EVERY = 512  # commits; each adds a fragment, and lists all of them anew
_META_KEY = b"vidembed"
KEEP_VERSIONS = timedelta(minutes=5)  # a search reads one version, for seconds
_COPY = re.compile(r"compact-(int8|binary|float32)(-[1-9]\d*)?(-[0-9a-f]{32}-\w+\.npy|\.json)")

logger = logging.getLogger(__name__)


def canonical(path: str | os.PathLike[str]) -> Path:
    """Return `path` absolute, with links resolved in its folders but not in its last part."""
    # The last part keeps the name the user gave: git-annex, say, links `holiday.mp4` to a hash without a suffix.
    absolute = Path(path).expanduser().absolute()
    if absolute.name in {"", ".."}:
        return Path(os.path.realpath(absolute))
    return Path(os.path.realpath(absolute.parent)) / absolute.name  # Path.resolve() raises on a link to itself


def uri_of(path: Path) -> str:
    """Return the percent-encoded `file://` URI of an absolute path; names that are not UTF-8 keep their bytes."""
    return path.as_uri()


def is_local(uri: str) -> bool:
    """Whether a URI of the index is one of `uri_of`, and not of an object store or another file system."""
    return uri.startswith("file://")


def name_of(uri: str) -> str:
    """Return how a file of the index is shown: its path if it is a local one, else its URI with nothing encoded."""
    return str(path_of(uri)) if is_local(uri) else unquote(uri)


def file_name_of(uri: str) -> str:
    """Return the last part of the name of a file of the index, such as `holiday.mp4`."""
    return path_of(uri).name if is_local(uri) else unquote(uri.rpartition("/")[2])


def path_of(uri: str) -> Path:
    """Return the path of a URI made by `uri_of`; ValueError for one of another scheme (see `is_local`)."""
    parts = urlsplit(uri)
    if parts.scheme != "file":
        raise ValueError(f"uri: got {uri!r}; a file:// URI is needed")
    if os.name == "nt":
        return Path(url2pathname(f"//{parts.netloc}{parts.path}" if parts.netloc else parts.path))
    return Path(os.fsdecode(unquote_to_bytes(parts.path)))


def quoted(text: str) -> str:
    """Return a text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def among(uris: Iterable[str]) -> str:
    """Return the SQL condition that a row is of one of these files."""
    return f"uri IN ({', '.join(map(quoted, uris))})"


def stamp_of(folder: Path, version: int) -> str:
    """Return the SHA-256 of the manifest of a version of the table in a folder; IndexDamagedError if it is gone."""
    # LanceDB has two ways to name manifests: counting down from 2^64 - 1 in new tables, and up in old ones.
    for name in (f"{2**64 - 1 - version:020d}.manifest", f"{version}.manifest"):
        file = folder / "_versions" / name
        if file.is_file():
            return hashlib.sha256(file.read_bytes()).hexdigest()
    raise IndexDamagedError(f"index: version {version} in {str(folder.parent)!r} is gone; open the index again")


class Block(NamedTuple):
    """Rows of an index, and what compares them with queries."""

    row_ids: NDArray[np.uint64]  # (N,)
    vectors: NDArray[np.float32]  # (N, D)
    lengths: NDArray[np.float32]  # (N,), of the vectors

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> Block:
        """Return the rows of a batch of `vector` and `ROW_ID`; it may not be empty."""
        vectors = np.asarray(batch.column("vector").flatten().to_numpy().reshape(len(batch), -1))
        return cls(batch.column(ROW_ID).to_numpy(), vectors, np.sqrt(np.einsum("nd,nd->n", vectors, vectors)))


class VideoIndex:
    """An index on disk, in `folder`, with its description `meta`. Open one with `open`, make one with `create`.

    Attributes:
        mirror: Whether exact searches by this object use a mirror of the vectors, and write it where there is none
            (`vidembed.index.mirror`). Hits are the same either way.
    """

    def __init__(self, folder: Path, table: LanceTable, meta: IndexMeta, *, mirror: bool = True) -> None:
        self.folder = folder
        self.meta = meta
        self.mirror = mirror
        self._table = table
        self._commits = 0

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether there is an index in `folder`, whole or begun. Makes nothing."""
        versions = folder / TABLE_FOLDER / "_versions"
        return versions.is_dir() and any(versions.iterdir())

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, mirror: bool = True) -> VideoIndex:
        """Open the index in `folder`. Compact copies of vectors, as earlier versions made them, are not used.

        Args:
            folder: Of the index.
            mirror: Whether exact searches use a mirror of the vectors, a file of their size that the first one writes
                to the folder. Hits are the same either way.

        Raises:
            ValueError: There is none.
            IndexDamagedError: There is one that cannot be read.
            MissingExtraError: LanceDB is not installed.
        """
        path = Path(folder)
        if not cls.exists(path):
            raise ValueError(
                f"index: no vidembed index in {str(path)!r}; make one with `vidembed index VIDEOS --to {path}`"
            )
        lancedb, _ = require_index_extra()
        try:
            table = lancedb.connect(path).open_table(TABLE)
            description = (table.schema.metadata or {}).get(_META_KEY)
        except (RuntimeError, OSError, ValueError) as error:
            raise IndexDamagedError(
                f"index: {str(path)!r} cannot be read; remove it and index again. Error of LanceDB: {error}"
            ) from error
        if description is None:
            raise IndexDamagedError(
                f"index: the table in {str(path)!r} was not made by vidembed; choose another folder"
            )
        index = cls(path, table, IndexMeta.from_json(description), mirror=mirror)
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
        """Make an empty index in `folder`, in one commit; MissingExtraError if LanceDB is not installed."""
        lancedb, _ = require_index_extra()
        schema = own_schema(meta.dimension).with_metadata({_META_KEY: meta.to_json().encode()})
        return cls(Path(folder), lancedb.connect(folder).create_table(TABLE, schema=schema), meta)

    def __len__(self) -> int:
        """Return the number of segments."""
        return int(self._table.count_rows())

    def files(self) -> dict[str, IndexedFile]:
        """Return the files in the index, by URI."""
        keys = ["uri", "content_fingerprint", "size", "mtime_ns"]
        found = self._table.search().select(keys).to_arrow()
        grouped = found.group_by(keys).aggregate([([], "count_all")]).select([*keys, "count_all"])
        rows = zip(*(column.to_pylist() for column in grouped.columns), strict=True)
        return {uri: IndexedFile(uri, content, FileState(*state), count) for uri, content, *state, count in rows}

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

    def put(self, files: Sequence[FileRows], *, replace: bool) -> None:
        """Store files in one commit; with `replace` they must be in the index, and their rows are updated, else not.

        Rows that are replaced keep the values of columns that the user added where their id stays, which is to say the
        name of the file, start and end. New rows have none (null).

        Raises:
            IndexMismatchError: A column that the user added must have a value, which new rows do not have.
            IndexDamagedError: A column of vidembed is gone, or is of another type.
        """
        if not files:
            return
        _, pa = require_index_extra()
        rows = self._rows_of(files)
        added = self._user_columns(nullable=True)
        if replace:
            self._merge(rows, {file.uri for file in files})  # of our columns alone, so that it updates no others
            return
        for column in added:
            # pa.nulls refuses a struct whose fields must have a value
            rows = rows.append_column(column, pa.array([None] * len(rows), column.type))
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
            IndexDamagedError: As for `put`.
        """
        if len(files) != len(from_uris):
            raise ValueError(f"from_uris: got {len(from_uris)} for {len(files)} files; one for each is needed")
        if not files:
            return
        uris = [file.uri for file in files]
        if twice := next((uri for uri, count in Counter(uris).items() if count > 1), None):
            raise ValueError(f"files: got {twice!r} twice; each file must have a name of its own")
        _, pa = require_index_extra()
        rows = self._rows_of(files)
        added = self._user_columns(nullable=False)
        names = [column.name for column in added]
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
            self._user_columns(nullable=True)
        for column in added:
            rows = rows.append_column(column, old.column(column.name).take(pa.array(taken, pa.int64())))
        self._merge(rows, {*uris, *from_uris})

    def remove(self, uris: Sequence[str]) -> None:
        """Remove all rows of these files, `AT_ONCE` files to a commit."""
        for first in range(0, len(uris), AT_ONCE):
            self._table.delete(among(uris[first : first + AT_ONCE]))

    def latest(self) -> None:
        """Read the last commit from now on. The version at opening may be old, and its files removed."""
        self._table.checkout_latest()  # type: ignore[no-untyped-call]

    def scan(self, columns: Sequence[str], where: str | None = None) -> Iterator[pa.RecordBatch]:
        """Yield columns and `ROW_ID` of all rows of the version at hand, or those that `where` names (`Filter.sql`)."""
        query = self._table.search().select(list(columns)).with_row_id(True)
        yield from (query if where is None else query.where(where)).to_batches()

    def row_ids(self, where: str | None = None) -> NDArray[np.uint64]:
        """Return the ids (N,) of all rows of the version at hand, or of those that `where` names (`Filter.sql`)."""
        found = [batch.column(ROW_ID).to_numpy() for batch in self.scan(["start_s"], where)]
        return np.concatenate([np.empty(0, np.uint64), *found])

    def of_files(self, uris: Iterable[str], column: str) -> dict[str, Any]:
        """Return a column's value for each of these files, by URI; it is to be the same in all rows of a file."""
        wanted = list(dict.fromkeys(uris))
        found: dict[str, Any] = {}
        for first in range(0, len(wanted), AT_ONCE):
            for batch in self.scan(["uri", column], among(wanted[first : first + AT_ONCE])):
                found |= zip(*(batch.column(name).to_pylist() for name in ("uri", column)), strict=True)
        return found

    def blocks(self, where: str | None = None) -> Iterator[Block]:
        """Yield vectors of all rows of the version at hand, or of those that `where` names (`Filter.sql`)."""
        return (Block.of(batch) for batch in self.scan(["vector"], where) if len(batch))

    def take(self, row_ids: Iterable[int], columns: Sequence[str]) -> pa.Table:
        """Return these columns and `ROW_ID` of these rows of the version at hand, in the order of their ids."""
        return self._table.take_row_ids([int(row) for row in row_ids]).select(list(columns)).with_row_id().to_arrow()

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """The columns of the table but the vector, with their types."""
        return {column.name: column.type for column in self._table.schema if column.name != "vector"}

    def stamp(self) -> str:
        """Return the SHA-256 of the manifest of the version at hand, hex: it names all data files and the model.

        IndexDamagedError if the manifest is gone, since the version is old and another run removed it.
        """
        return stamp_of(self.folder / TABLE_FOLDER, int(self._table.version))

    @property
    def updated(self) -> datetime:
        """When the last commit was made, in UTC. A run of `vidembed index` that finds nothing to do makes none."""
        last: datetime = max(version["timestamp"] for version in self._table.list_versions())  # local time
        return last.astimezone(UTC)

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

    def nearest(self, query: NDArray[np.float64], *, limit: int, effort: tuple[int, int]) -> pa.Table:
        """Return `PLACE`, vector and row id of the rows that the ANN index finds nearest by cosine.

        Args:
            query: Unit vector, shape (D,).
            limit: Most rows.
            effort: Partitions looked into, and times `limit` rows that are compared by their full vectors. LanceDB
                looks at rows that were added since the index was built one by one.
        """
        found = self._table.search(query.astype(np.float32), vector_column_name="vector").distance_type("cosine")
        found = found.nprobes(effort[0]).refine_factor(effort[1]).limit(limit)
        return found.select([*PLACE, "vector"]).with_row_id(True).to_arrow().combine_chunks()

    @property
    def has_captions(self) -> bool:
        """Whether captions were ever added to it."""
        return (self.folder / CAPTIONS_FOLDER).is_dir()

    def derived(self, name: str) -> Path:
        """Return where a file that is made from the rows is, or shall be."""
        return self.folder / DERIVED_FOLDER / name

    def compact_copies(self) -> list[Path]:
        """Return the files of compact copies, which earlier versions made."""
        return sorted(file for file in self.derived("").glob("compact-*") if _COPY.fullmatch(file.name))

    def compact(self) -> None:
        """Join the small fragments that single commits leave, and drop old versions of the table."""
        self._table.optimize(cleanup_older_than=KEEP_VERSIONS)

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

    def _rows_of(self, files: Sequence[FileRows]) -> pa.Table:
        _, pa = require_index_extra()
        self.latest()
        return pa.concat_tables([own_rows(file, self.meta) for file in files])

    def _user_columns(self, *, nullable: bool) -> list[pa.Field]:
        return user_columns(self._table.schema, self.meta.dimension, nullable=nullable)

    def _merge(self, rows: pa.Table, uris: Iterable[str]) -> None:
        """Make `rows` all that there is of these files; columns that it lacks keep their values."""
        merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merge.when_not_matched_by_source_delete(among(uris)).execute(rows)
        self._committed()

    def _committed(self) -> None:
        self._commits += 1
        if self._commits % COMPACT_EVERY == 0:
            self.compact()
