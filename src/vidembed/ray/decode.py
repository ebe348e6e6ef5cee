"""The decoding stage: files become segments with their frames, on CPUs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict

from vidembed.errors import VideoError
from vidembed.index.files import clean
from vidembed.ray.stores import MAX_FILE_BYTES, Fetched, Fetcher, FileSystem
from vidembed.video.clip import DEFAULT_MEMORY_BYTES, DEFAULT_TIMEOUT_S, Clip, DecodeLimits, FileState, Sampling
from vidembed.video.pool import DecodePool
from vidembed.video.segments import Cut
from vidembed.video.worker import clip_message, read_clip

if TYPE_CHECKING:
    import pyarrow as pa

Batch: TypeAlias = "pa.Table | Mapping[str, Iterable[object]]"
"""A batch as Ray Data hands it over, in any of its forms; also a `pandas.DataFrame`."""

CLIP: Final = "clip"
FRAMES: Final = "frames"
ERROR: Final = "error"
DEFAULT_SAMPLING: Final = Sampling()

logger = logging.getLogger(__name__)


class DecodingOptions(TypedDict, total=False):
    """Arguments of `DecodeVideos` on how files are reached and what each may take."""

    filesystem: FileSystem | None
    max_bytes: int
    timeout_s: float | None
    max_memory_bytes: int | None
    backend: str


@dataclass(slots=True)
class _Row:
    """A row of the decoding stage: its columns, and the clip of its segment if it has one."""

    uri: str
    content_fingerprint: str | None = None
    size: int | None = None
    mtime_ns: int | None = None
    duration: float | None = None
    segment: int = 0
    segments: int = 1  # 0 where the content is known and was not decoded
    start_s: float | None = None
    end_s: float | None = None
    error: str | None = None
    clip: Clip | None = None

    def table(self, sampling: Sampling) -> pa.Table:
        """Return it as a table of one row; `sampling` is that of the clip."""
        import pyarrow as pa  # noqa: PLC0415 - it takes a while, which --help need not wait for

        values: dict[str, object] = {field.name: getattr(self, field.name) for field in fields(self)}
        if self.clip is not None:
            message, arrays = clip_message(self.clip)
            values[CLIP] = json.dumps({**message, "sampling": sampling.as_dict()})
            values[FRAMES] = b"".join(arrays)
        return pa.Table.from_pylist([values], schema=_schema())


def _schema() -> pa.Schema:
    import pyarrow as pa  # noqa: PLC0415 - it takes a while

    text, whole, number = pa.string(), pa.int64(), pa.float64()
    kinds = [text, text, whole, whole, number, pa.int32(), pa.int32(), number, number, text, text, pa.large_binary()]
    return pa.schema(list(zip([*(field.name for field in fields(_Row)), FRAMES], kinds, strict=True)))


def clip_at(table: pa.Table, place: int) -> Clip | None:
    """Return the clip of a row, or None where it has none; ValueError if `DecodeVideos` did not write its columns."""
    import pyarrow as pa  # noqa: PLC0415 - it takes a while

    text, frames = table.column(CLIP)[place].as_py(), table.column(FRAMES)[place]
    if text is None or not frames.is_valid:
        return None
    try:
        message = json.loads(text)
        return read_clip(message, pa.BufferReader(frames.as_buffer()), Sampling(**message["sampling"]))
    except (ValueError, TypeError, KeyError, EOFError) as error:
        raise ValueError(f"{FRAMES}: not a clip as DecodeVideos hands it over ({error!r})") from error


def as_table(batch: Batch) -> pa.Table:
    """Return a batch as a table."""
    import pyarrow as pa  # noqa: PLC0415 - it takes a while

    if isinstance(batch, pa.Table):
        return batch
    if isinstance(batch, Mapping):
        return pa.table({name: pa.array(list(values)) for name, values in batch.items()})
    return pa.Table.from_pandas(batch, preserve_index=False)


def _listed(table: pa.Table, place: int) -> FileState | None:
    """Return the state of a file in a listing, or None where the columns do not have it; pandas has floats and NaN."""
    found = [table.column(name)[place].as_py() for name in ("size", "mtime_ns") if name in table.column_names]
    is_known = len(found) == 2 and not any(value is None or math.isnan(value) for value in found)
    return FileState(*map(int, found)) if is_known else None


def _beside(table: pa.Table, given: pa.Table) -> pa.Table:
    """Return a table with the columns of another of as many rows in front."""
    for place, name in enumerate(given.column_names):
        table = table.add_column(place, given.schema.field(name), given.column(name))
    return table


def error_text(error: Exception, at: str = "") -> str:
    """Return what stands in the column `error`, with where in the file it happened."""
    text = f"{type(error).__name__}: {at}{getattr(error, 'reason', None) or ' '.join(str(error).split())}"
    return text.encode("utf-8", "backslashreplace").decode()  # a name that is not UTF-8 may be in it


@dataclass(eq=False)
class DecodeVideos:
    """Callable class for `ray.data.Dataset.map_batches`: a column of videos becomes rows of segments with frames.

    Each file is opened where it lies if it is local, and else copied to a temporary file; hashed; and decoded in one
    pass, in a process that can be killed and takes nobody with it. Clips are handed over one by one, so that only a few
    are in memory. Local files must be there under the same path on every machine.

    Nothing about a file raises: what is wrong with it stands in the column `error`, as `Kind: message`, in a row
    without frames. Such a row ends its file.

    Args:
        sampling: Which frames the model looks at, and how large; it must be the model's.
        cut: How files are cut into segments. None: a file is one segment.
        column: Name of the column of absolute paths or URIs. If there are columns `size` and `mtime_ns`, they are the
            file's in a listing, and must still be.
        filesystem: A `pyarrow.fs.FileSystem` or `fsspec.AbstractFileSystem` to use for URIs, with the options and
            credentials that it was made with. Default: by scheme, with credentials from the environment.
        known: Whether a content (SHA-256, hex) need not be decoded. Default: none.
        max_bytes: Limit on the size of a file that is copied. Default 16 GiB.
        timeout_s: Limit on the time that a file takes to decode, seconds; None for none. Default 600.
        max_memory_bytes: Limit on the memory of the decoding process; None for none. Default 8 GiB.
        backend: Video decoder.

    Returns:
        Of a call, tables with the columns of the batch and: `uri`, `content_fingerprint`, `size`, `mtime_ns`,
        `duration`, `segment` (from 0), `segments` (how many the file has), `start_s`, `end_s`, `error`, `clip` and
        `frames` (what `EmbedVideos` reads). One row a segment.
    """

    sampling: Sampling | Mapping[str, Any] = DEFAULT_SAMPLING
    _: KW_ONLY
    cut: Cut | None = None
    column: str = "uri"
    filesystem: FileSystem | None = None
    known: Callable[[str], bool] | None = None
    max_bytes: int = MAX_FILE_BYTES
    timeout_s: float | None = DEFAULT_TIMEOUT_S
    max_memory_bytes: int | None = DEFAULT_MEMORY_BYTES
    backend: str = "pyav"

    def __post_init__(self) -> None:
        """Refuse a sampling that cannot be."""
        self.sampling = _as_sampling(self.sampling)

    @cached_property
    def _fetcher(self) -> Fetcher:
        return Fetcher(filesystem=self.filesystem, max_bytes=self.max_bytes)

    @cached_property
    def _pool(self) -> DecodePool:
        limits = DecodeLimits(timeout_s=self.timeout_s, max_memory_bytes=self.max_memory_bytes)
        return DecodePool(workers=1, limits=limits, backend=self.backend)

    def __getstate__(self) -> dict[str, object]:
        """For the way to a worker: without the process and the folder of this one."""
        return {name: value for name, value in self.__dict__.items() if name not in {"_fetcher", "_pool"}}

    def __call__(self, batch: Batch) -> Iterator[pa.Table]:
        """Decode the videos of a batch, one after the other, and yield each segment as a table of one row."""
        table = as_table(batch)
        if self.column not in table.column_names:
            raise ValueError(f"column: the batch has no {self.column!r}; it has {', '.join(table.column_names)}")
        others = _without_own(table)
        for place, name in enumerate(table.column(self.column).to_pylist()):
            for row in self._rows(name, _listed(table, place)):
                yield _beside(row.table(_as_sampling(self.sampling)), others.slice(place, 1))

    def empty(self, batch: pa.Table) -> pa.Table:
        """Return the result for a batch of no videos."""
        return _beside(_schema().empty_table(), _without_own(batch).slice(0, 0))

    def close(self) -> None:
        """End the decoding process and remove temporary copies."""
        for name in ("_pool", "_fetcher"):
            if (opened := self.__dict__.pop(name, None)) is not None:
                opened.close()

    def __del__(self) -> None:
        """Ray deletes the object when its actor ends."""
        self.close()

    def _rows(self, name: object, listed: FileState | None) -> Iterator[_Row]:
        """Yield the rows of one file; the last may be an error."""
        row = _Row(clean(name))
        try:
            if not isinstance(name, str):
                raise TypeError(f"{self.column}: got a {type(name).__name__}; expected a path or URI")  # noqa: TRY301
            row = _Row(self._fetcher.uri(name))
            with self._fetcher.fetch(row.uri, listed) as file:
                row.content_fingerprint = file.content
                row.size, row.mtime_ns = file.state.size, file.state.mtime_ns
                if self.known is not None and self.known(file.content):
                    yield replace(row, segments=0)
                else:
                    yield from self._decoded(row, file)
        except VideoError as error:
            yield replace(row, error=error_text(error))
        except Exception as error:
            # One file must not end the work on all others.
            logger.exception("%s", row.uri)
            yield replace(row, error=f"InternalError: {type(error).__name__}: {clean(error)}")

    def _decoded(self, row: _Row, file: Fetched) -> Iterator[_Row]:
        """Yield the segments of a file; the last one once it is clear that the file has not changed."""
        reading = self._pool.submit(file.path, _as_sampling(self.sampling), cut=self.cut, item=row.uri)
        try:
            layout = reading.layout()
            row.duration, row.segments = layout.duration, len(layout.segments)
            for row.segment, (times, clip) in enumerate(zip(layout.segments, reading, strict=True)):
                row.start_s, row.end_s = times
                if isinstance(clip, VideoError):
                    at = "" if self.cut is None else f"at {row.start_s:g} to {row.end_s:g} s: "
                    yield replace(row, error=error_text(clip, at))
                    return
                if row.segment == row.segments - 1:
                    self._fetcher.check_unchanged(row.uri, file)
                yield replace(row, clip=clip)
        finally:
            reading.cancel()


def _as_sampling(given: Sampling | Mapping[str, Any]) -> Sampling:
    return given if isinstance(given, Sampling) else Sampling(**given)


def _without_own(table: pa.Table) -> pa.Table:
    """Leave out the columns that the decoding stage makes."""
    own = set(_schema().names)
    return table.drop_columns([name for name in table.column_names if name in own])
