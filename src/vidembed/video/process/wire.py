"""What goes between a pool and its decoding processes: lines of JSON, and after that of a clip its arrays as bytes.

A request (one line): ``path``, ``is_path`` (given as a path object), ``cwd``, ``sampling``, and ``cut`` or
``segments``. The answer: a line ``begun``, a line ``layout``, then for each segment ``clip`` (the fields of a `Clip`,
and ``shape``) followed by the bytes of ``timestamps``, ``frames_indices`` and ``frames``, or ``error``. An error with
``rest`` holds for all segments that are still to come, or for the file if it comes in place of the layout; one with
``spent``, for a process that is to be replaced. Each line carries the ``notes`` (log entries and warnings) that came up
before it.

Nothing is believed that a decoder broken by its input could say: lines are bounded, and the shapes and values of what
they announce are checked.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from vidembed import errors
from vidembed.video.clip import Clip
from vidembed.video.picture import MAX_AREA, MAX_SIDE
from vidembed.video.segments import MAX_WINDOWS, Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import BinaryIO

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from vidembed.video.sampling import Sampling

MAX_LINE: Final = 2**24
"""Bytes of one line. `MAX_WINDOWS` segments of two numbers take under a half of that."""
MAX_NOTES: Final = 100
"""Log entries and warnings with one line; what comes after is counted."""
MAX_TEXT: Final = 2000
"""Characters of a note or reason."""
_LARGEST: Final = 1e15  # of any number; above all that this package lets a video have
_FIELDS: Final = ("fps", "duration", "total_num_frames", "damaged", "truncated", "item", "start_s", "video_backend")
_ERRORS: Final = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.VideoError)
}


class MalformedError(Exception):
    """The other end said what makes no sense."""


@dataclass(frozen=True, slots=True)
class Note:
    """A log entry or a warning.

    Attributes:
        source: Name of the logger, or of the warning's class.
        level: Of the log entry; 0 for a warning.
        text: The message.
    """

    source: str
    level: int
    text: str

    def emit(self) -> None:
        """Log it or warn here, as the other process would have."""
        if self.level:
            logging.getLogger(self.source).log(self.level, "%s", self.text)
            return
        kind = errors.VideoTruncated if self.source == "VideoTruncated" else RuntimeWarning
        errors.warn(kind(self.text))


def clip_fields(clip: Clip) -> dict[str, Any]:
    """Return what the line of a clip says of it."""
    return {"clip": {name: getattr(clip, name) for name in _FIELDS}, "shape": list(clip.frames.shape)}


def clip_bytes(clip: Clip) -> list[memoryview]:
    """Return its arrays, in the order in which they are sent."""
    arrays = (clip.timestamps.astype("<f8"), clip.frames_indices.astype("<i8"), np.ascontiguousarray(clip.frames))
    return [_bytes_of(array) for array in arrays]


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return memoryview(cast("Buffer", array)).cast("B")


def send(stream: BinaryIO, line: dict[str, Any], arrays: Sequence[memoryview] = ()) -> None:
    """Write a line and the arrays that follow it."""
    stream.write(json.dumps(line).encode() + b"\n")
    for array in arrays:
        stream.write(array)
    stream.flush()


def receive(stream: BinaryIO) -> dict[str, Any]:
    """Read a line.

    Raises:
        EOFError: The other end is gone.
        MalformedError: It is too long, or not a JSON object.
    """
    line = stream.readline(MAX_LINE)
    if not line.endswith(b"\n"):
        if len(line) == MAX_LINE:
            raise MalformedError(f"a line of over {MAX_LINE} bytes")
        raise EOFError
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"a line that is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise MalformedError("a line that is no JSON object")
    return value


def notes_of(line: dict[str, Any], rename: Callable[[str], str]) -> list[Note]:
    """Return the notes of a line.

    Args:
        line: As received.
        rename: Gives the name that the user knows the item by, where a text begins with another.

    Raises:
        MalformedError: They are not of their form.
    """
    notes = []
    for value in _list(line.get("notes", []), MAX_NOTES + 1, "notes"):
        match value:
            case [str(source), int(level), str(text)] if 0 <= level <= logging.CRITICAL and len(source) <= 100:
                notes.append(Note(source, level, rename(text[:MAX_TEXT])))
            case _:
                raise MalformedError("a malformed note")
    return notes


def error_of(line: dict[str, Any], rename: Callable[[str], str]) -> errors.VideoError:
    """Return the error that a line holds.

    Args:
        line: As received.
        rename: Gives the name that the user knows the item by.

    Raises:
        MalformedError: It is not of its form.
    """
    match line["error"]:
        case [str(name), str(item), str(reason)] if name in _ERRORS:
            return _ERRORS[name](rename(item), rename(reason[: 2 * MAX_TEXT]))
    raise MalformedError("a malformed error")


def layout_of(line: dict[str, Any]) -> Layout:
    """Return the layout that a line holds.

    Raises:
        MalformedError: It is not of its form.
    """
    match line.get("layout"):
        case [float() | int() as duration, list() as segments]:
            pairs = [(_time(pair[0]), _time(pair[1])) for pair in _pairs(segments)]
            return Layout(_time(duration), pairs)
    raise MalformedError("a malformed layout")


def _pairs(value: list[Any]) -> list[Any]:
    pairs = _list(value, MAX_WINDOWS + 1, "segments")
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise MalformedError("a malformed layout")
    return pairs


def _list(value: Any, limit: int, what: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > limit:
        raise MalformedError(f"{what} that are no list of at most {limit}")
    return value


def _time(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _LARGEST:
        raise MalformedError(f"{str(value)[:40]} for a time")
    return float(value)


@dataclass(frozen=True, slots=True)
class Announced:
    """A clip whose arrays are to follow.

    Attributes:
        fields: Of the `Clip`, but for the arrays.
        shape: ``(T, H, W, 3)``.
    """

    fields: dict[str, Any]
    shape: tuple[int, int, int, int]

    def read(self, stream: BinaryIO, sampling: Sampling) -> Clip:
        """Read the arrays.

        Raises:
            EOFError: They break off.
            MalformedError: They are none that a clip has.
            MemoryError: There is no room for them.
        """
        times = np.frombuffer(_exactly(stream, 8 * self.shape[0]), dtype="<f8").astype(np.float64)  # (T,)
        indices = np.frombuffer(_exactly(stream, 8 * self.shape[0]), dtype="<i8").astype(np.int64)  # (T,)
        frames = np.empty(self.shape, dtype=np.uint8)  # (T, H, W, 3)
        _fill(stream, _bytes_of(frames))
        if not (np.isfinite(times).all() and (np.diff(times) >= 0).all() and times[0] >= 0 and indices.min() >= 0):
            raise MalformedError("times or places that no frames have")
        return Clip(frames=frames, timestamps=times, frames_indices=indices, sampling=sampling, **self.fields)


def announced(line: dict[str, Any], sampling: Sampling, rename: Callable[[str], str]) -> Announced:
    """Return what a line says of a clip.

    Args:
        line: As received.
        sampling: That was asked for: it bounds the shape.
        rename: Gives the name that the user knows the item by.

    Raises:
        MalformedError: It is not of its form, or not what such a sampling gives.
    """
    match line:
        case {
            "shape": [int(count), int(height), int(width), 3],
            "clip": {
                "fps": float() | int() as fps,
                "duration": float() | int() as duration,
                "total_num_frames": int(total),
                "damaged": bool(damaged),
                "truncated": bool(truncated),
                "item": str(item),
                "start_s": float() | int() as start,
                "video_backend": str(backend),
            },
        }:
            pass
        case _:
            raise MalformedError("a malformed clip")
    largest = MAX_AREA if sampling.max_pixels is None else sampling.max_pixels
    fits = 1 <= count <= sampling.max_frames and min(height, width) >= 1 and height * width <= largest
    if not fits or max(height, width) > MAX_SIDE:
        raise MalformedError(f"a clip of shape {(count, height, width, 3)}, for {sampling}")
    if not 0 < fps <= _LARGEST or not 1 <= total <= _LARGEST:
        raise MalformedError("a clip without a rate or frames")
    fields = {
        "fps": float(fps),
        "duration": _time(duration),
        "total_num_frames": total,
        "damaged": damaged,
        "truncated": truncated,
        "item": rename(item),
        "start_s": _time(start),
        "video_backend": backend[:20],
    }
    return Announced(fields, (count, height, width, 3))


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise EOFError
    return data


def _fill(stream: Any, view: memoryview) -> None:
    done = 0
    while done < len(view):
        count = stream.readinto(view[done:])
        if not count:
            raise EOFError
        done += count
