"""The columns that pass from the decoding to the forward stage: one row a segment, its frames as bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vidembed.video.process import wire
from vidembed.video.sampling import Sampling

if TYPE_CHECKING:
    import pyarrow as pa

    from vidembed.video.clip import Clip

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
