"""The decoding stage: files become segments with their frames, on CPUs."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from vidembed.errors import VideoError
from vidembed.ray.stores import MAX_FILE_BYTES, Fetched, Fetcher, clean
from vidembed.video.pool import DecodePool
from vidembed.video.process import wire
from vidembed.video.sampling import FileState, Sampling

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from vidembed.video.clip import Clip
    from vidembed.video.segments import Cut


FRAMES: Final = "frames"
CLIP: Final = "clip"
ERROR: Final = "error"


@dataclass(slots=True)
class Row:
    """A segment of a file, or a file of which nothing can be or need be decoded.

    Attributes:
        uri: Of the file.
        content_fingerprint: SHA-256 of its bytes, hex; None where it could not be read.
        size: Bytes; None likewise.
        mtime_ns: Time of the last write, nanoseconds since the epoch; None likewise.
        duration: Length of the video, seconds; None where it is not known.
        segment: Position of the segment in the file, from 0.
        segments: How many the file has; 0 where its content is known and it was not decoded.
        start_s: Where the segment starts, seconds; None where there is none.
        end_s: Where it ends, seconds; None likewise.
        clip: Its frames; None where there is an error or nothing was decoded.
        error: The sort of error and what is wrong, as `Kind: message`; None for none.
    """

    uri: str
    content_fingerprint: str | None = None
    size: int | None = None
    mtime_ns: int | None = None
    duration: float | None = None
    segment: int = 0
    segments: int = 1
    start_s: float | None = None
    end_s: float | None = None
    clip: Clip | None = None
    error: str | None = None


def to_table(row: Row) -> pa.Table:
    """Return a row as a table of one."""
    import pyarrow as pa  # noqa: PLC0415 - it takes a while, which --help need not wait for

    values: dict[str, Any] = {name: getattr(row, name) for name in schema().names if name not in {FRAMES, CLIP}}
    values |= {CLIP: None, FRAMES: None}
    if (clip := row.clip) is not None:
        sampling = None if clip.sampling is None else clip.sampling.as_dict()
        values[CLIP] = json.dumps({**wire.clip_fields(clip), "sampling": sampling})
        values[FRAMES] = b"".join(wire.clip_bytes(clip))
    return pa.table({name: [value] for name, value in values.items()}, schema=schema())


def schema() -> pa.Schema:
    """Return the columns of the decoding stage."""
    import pyarrow as pa  # noqa: PLC0415 - it takes a while

    return pa.schema(
        [
            ("uri", pa.string()),
            ("content_fingerprint", pa.string()),
            ("size", pa.int64()),
            ("mtime_ns", pa.int64()),
            ("duration", pa.float64()),
            ("segment", pa.int32()),
            ("segments", pa.int32()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            (ERROR, pa.string()),
            (CLIP, pa.string()),
            (FRAMES, pa.large_binary()),
        ]
    )


def clip_at(table: pa.Table, place: int) -> Clip | None:
    """Return the clip of a row, or None where it has none.

    Args:
        table: With the columns `CLIP` and `FRAMES`.
        place: Of the row.

    Raises:
        ValueError: The columns are not what `to_table` wrote.
    """
    import pyarrow as pa  # noqa: PLC0415 - it takes a while

    text, frames = table.column(CLIP)[place].as_py(), table.column(FRAMES)[place]
    if text is None or not frames.is_valid:
        return None
    try:
        header = json.loads(text)
        sampling = Sampling(**header["sampling"])
        announced = wire.announced(header, sampling, str)
        return announced.read(pa.BufferReader(frames.as_buffer()), sampling)
    except (ValueError, TypeError, KeyError, EOFError, wire.MalformedError) as error:
        raise ValueError(f"{FRAMES}: not a clip as DecodeVideos hands it over ({error!r})") from error


def as_table(batch: pa.Table | Mapping[str, Any]) -> pa.Table:
    """Return a batch as Ray hands it over (`pyarrow`, `numpy` or `pandas`) as a table."""
    import pyarrow as pa  # noqa: PLC0415 - it takes a while

    if isinstance(batch, pa.Table):
        return batch
    if isinstance(batch, Mapping):
        return pa.table({name: pa.array(list(values)) for name, values in batch.items()})
    return pa.Table.from_pandas(batch, preserve_index=False)


def beside(table: pa.Table, given: pa.Table) -> pa.Table:
    """Return a table of one row with the columns of another of one row in front."""
    for place, name in enumerate(given.column_names):
        table = table.add_column(place, given.schema.field(name), given.column(name))
    return table


def said(error: Exception, at: str = "") -> str:
    """Return what stands in the column `error`.

    Args:
        error: What happened.
        at: Where in the file, with what sets it off.
    """
    text = f"{type(error).__name__}: {at}{getattr(error, 'reason', None) or ' '.join(str(error).split())}"
    return text.encode("utf-8", "backslashreplace").decode()  # a name that is not UTF-8 may be in it


logger = logging.getLogger(__name__)

DEFAULT_SAMPLING: Final = Sampling()


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
        column: Name of the column of absolute paths or URIs. If there are columns `size` and `mtime_ns`, they are what
            a listing said of the file, and it must still be so.
        filesystem: A `pyarrow.fs.FileSystem` or `fsspec.AbstractFileSystem` to use for URIs, with the options and
            credentials that it was made with. Default: by scheme, with what the environment says.
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

    _fetcher: Fetcher | None = None
    _pool: DecodePool | None = None

    def __init__(
        self,
        sampling: Sampling | Mapping[str, Any] = DEFAULT_SAMPLING,
        *,
        cut: Cut | None = None,
        column: str = "uri",
        filesystem: Any = None,
        known: Callable[[str], bool] | None = None,
        max_bytes: int = MAX_FILE_BYTES,
        timeout_s: float | None = 600.0,
        max_memory_bytes: int | None = 8 * 2**30,
        backend: str = "pyav",
    ) -> None:
        self.sampling = sampling if isinstance(sampling, Sampling) else Sampling(**sampling)
        self.cut = cut
        self.column = column
        self._known = known
        self._fetch_options = {"filesystem": filesystem, "max_bytes": max_bytes}
        self._pool_options: dict[str, Any] = {
            "timeout_s": timeout_s,
            "max_memory_bytes": max_memory_bytes,
            "backend": backend,
        }

    def __getstate__(self) -> dict[str, Any]:
        """For the way to a worker: without the process and the folder of this one."""
        return {**self.__dict__, "_fetcher": None, "_pool": None}

    def __call__(self, batch: pa.Table | Mapping[str, Any]) -> Iterator[pa.Table]:
        """Decode the videos of a batch, one after the other, and yield each segment as a table of one row."""
        table = as_table(batch)
        if self.column not in table.column_names:
            raise ValueError(f"column: the batch has no {self.column!r}; it has {', '.join(table.column_names)}")
        listed = {"size", "mtime_ns"} <= set(table.column_names)
        others = _without_own(table)
        for place, name in enumerate(table.column(self.column).to_pylist()):
            state = None
            if listed and (size := table.column("size")[place].as_py()) is not None:
                state = FileState(size, table.column("mtime_ns")[place].as_py())
            for row in self._rows(name, state):
                made, fits = _as_rows(row)
                yield beside(made, others.slice(place, 1))
                if not fits:
                    break

    def empty(self, batch: pa.Table) -> pa.Table:
        """Return what comes of no videos: the columns, and no rows."""
        table = schema().empty_table()
        return beside(table, _without_own(batch).slice(0, 0))

    def close(self) -> None:
        """End the decoding process and remove temporary copies."""
        if self._pool is not None:
            self._pool.close()
        if self._fetcher is not None:
            self._fetcher.close()
        self._pool = self._fetcher = None

    def __del__(self) -> None:
        """Ray deletes the object when its actor ends."""
        self.close()

    def _rows(self, name: Any, listed: FileState | None) -> Iterator[Row]:
        """Yield the rows of one file; the last may be an error."""
        row = Row(uri=clean(name))
        try:
            if not isinstance(name, str):
                raise TypeError(f"{self.column}: got a {type(name).__name__}; a path or URI is needed")  # noqa: TRY301
            row = Row(uri=self._files.uri(name))
            with self._files.fetch(row.uri, listed) as file:
                row.content_fingerprint = file.content
                row.size, row.mtime_ns = file.state.size, file.state.mtime_ns
                if self._known is not None and self._known(file.content):
                    row.segments = 0
                    yield row
                    return
                yield from self._decoded(row, file)
        except VideoError as error:
            row.error = said(error)
            yield row
        except Exception as error:
            # One file must not end the work on all others.
            logger.exception("%s", row.uri)
            row.error = f"InternalError: {type(error).__name__}: {clean(error)}"
            yield row

    def _decoded(self, row: Row, file: Fetched) -> Iterator[Row]:
        """Yield the segments of a file; each but the last once it is clear that the next can be decoded."""
        reading = self._decoder.submit(file.path, self.sampling, cut=self.cut, item=row.uri)
        try:
            layout = reading.layout()
            row.duration, row.segments = layout.duration, len(layout.segments)
            clips = zip(layout.segments, reading, strict=True)
            for row.segment, ((row.start_s, row.end_s), clip) in enumerate(clips):
                if isinstance(clip, VideoError):
                    row.error = said(clip, "" if self.cut is None else f"at {row.start_s:g} to {row.end_s:g} s: ")
                    yield row
                    return
                if row.segment == row.segments - 1:
                    self._files.check_unchanged(row.uri, file)
                yield replace(row, clip=clip)
        finally:
            reading.cancel()

    @property
    def _files(self) -> Fetcher:
        if self._fetcher is None:
            self._fetcher = Fetcher(**self._fetch_options)
        return self._fetcher

    @property
    def _decoder(self) -> DecodePool:
        if self._pool is None:
            self._pool = DecodePool(workers=1, **self._pool_options)
        return self._pool


def _as_rows(row: Row) -> tuple[pa.Table, bool]:
    """Return a row as a table, or one that says why it cannot be one; and whether it can."""
    try:
        return to_table(row), True
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this file's problem
        reason = f"InternalError: its rows cannot be built ({clean(error)})"
        return to_table(Row(uri=row.uri, content_fingerprint=row.content_fingerprint, error=reason)), False


def _without_own(table: pa.Table) -> pa.Table:
    """Leave out the columns that the decoding stage makes."""
    own = set(schema().names)
    return table.drop_columns([name for name in table.column_names if name in own])
