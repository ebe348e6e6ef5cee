"""Captions as they are kept: one JSON object a line, for a video or for one segment of it.

Each kind of text is a key of its own, so that the same file is read as pairs of texts (`read_pairs`) and as captioned
videos (`read_captioned_videos`). The bytes of the video are named by their SHA-256, so that a caption cannot come to
belong to another clip.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vidembed.captions.files import MAX_LINE_BYTES, checked_words, json_rows, shortened
from vidembed.errors import AnnotationError

FIELDS: Final = frozenset(
    {"video", "content", "start_s", "end_s", "problems", "match", "model", "fingerprint", "error"}
)
"""Keys of a line that are no kinds of texts."""

_BEGIN: Final = b'{"video": '  # of each line that is written
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CaptionRecord:
    """What a model says of a video, or of a segment of one.

    Attributes:
        video: Path or URI, as the reader of the file finds it: relative paths are relative to the file's folder.
        content: SHA-256 of the bytes of the video, hex, or None where they were not hashed.
        texts: The text of each kind; empty where there is an error.
        problems: Why the text of a kind is not to be used, by kind.
        match: What the head says to the text of a kind, by kind: a probability, 0 to 1 (`Described.match`).
        start_s: Where the segment starts, in seconds, or None for the whole video.
        end_s: Where it ends.
        model: Name of the model that was asked.
        fingerprint: SHA-256 of all that decides the texts: weights, prompts, settings. Hex.
        error: Why the video could not be described, or None.
    """

    video: str
    content: str | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    match: Mapping[str, float] = field(default_factory=dict)
    start_s: float | None = None
    end_s: float | None = None
    model: str = ""
    fingerprint: str = ""
    error: str | None = None

    def __post_init__(self) -> None:
        """Check what a caller can get wrong."""
        if taken := sorted(FIELDS & set(self.texts)):
            raise ValueError(f"texts: a kind cannot have the name {', '.join(taken)}; these names are keys of a record")

    def usable(self, kind: str) -> bool:
        """Whether there is a text of the kind, and nothing speaks against it."""
        return self.error is None and bool(self.texts.get(kind)) and kind not in self.problems

    def to_json(self) -> str:
        """Return the record as one line of JSON, without a line end."""
        optional = {"start_s": self.start_s, "end_s": self.end_s, "content": self.content, "error": self.error}
        row: dict[str, Any] = {"video": self.video, **self.texts}
        row |= {name: value for name, value in optional.items() if value is not None}
        row |= {name: dict(value) for name, value in (("problems", self.problems), ("match", self.match)) if value}
        row |= {"model": self.model, "fingerprint": self.fingerprint}
        return json.dumps(row, ensure_ascii=True, allow_nan=False)

    @classmethod
    def of(cls, where: str, row: Mapping[str, object]) -> CaptionRecord:
        """Return the record of an object of JSON; AnnotationError, which begins with `where`, for another object."""
        if (video := _words(where, row, "video")) is None:
            raise AnnotationError(f"{where}: no 'video'; each line must name its video")
        start, end = _seconds(where, row, "start_s"), _seconds(where, row, "end_s")
        if (start is None) != (end is None) or (start is not None and end is not None and end <= start):
            raise AnnotationError(
                f"{where}: start_s={start}, end_s={end}: give both, with the end after the start, or neither"
            )
        problems = _by_kind(where, row, "problems")
        return cls(
            video=video,
            content=_words(where, row, "content"),
            texts={
                kind: checked_words(where, kind, value) if value.strip() else ""
                for kind, value in row.items()
                if kind not in FIELDS and isinstance(value, str)
            },
            problems={kind: checked_words(where, f"problems[{kind!r}]", value) for kind, value in problems.items()},
            match={
                kind: _probability(where, f"match[{kind!r}]", value)
                for kind, value in _by_kind(where, row, "match").items()
            },
            start_s=start,
            end_s=end,
            model=_words(where, row, "model") or "",
            fingerprint=_words(where, row, "fingerprint") or "",
            error=_words(where, row, "error"),
        )


def _words(where: str, row: Mapping[str, object], name: str) -> str | None:
    return checked_words(where, name, row[name]) if row.get(name) else None


def _number(value: object) -> float:
    """The value as a number, or NaN where it is none."""
    return math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)


def _seconds(where: str, row: Mapping[str, object], name: str) -> float | None:
    if (value := row.get(name)) is None:
        return None
    if not 0 <= _number(value) < math.inf:
        raise AnnotationError(f"{where}: {name}={shortened(value)}: expected seconds, 0 or more")
    return _number(value)


def _probability(where: str, name: str, value: object) -> float:
    if not 0 <= _number(value) <= 1:
        raise AnnotationError(f"{where}: {name}={shortened(value)}: expected a number from 0 to 1")
    return _number(value)


def _by_kind(where: str, row: Mapping[str, object], name: str) -> dict[str, object]:
    if not isinstance(value := row.get(name, {}), dict):
        raise AnnotationError(f"{where}: {name}={shortened(value)}: expected an object, by kind of text")
    return value


def read_captions(path: str | Path) -> Iterator[CaptionRecord]:
    """Read a file of captions, one record a line, in order.

    Args:
        path: A ``.jsonl`` file in UTF-8, as ``vidembed caption`` writes it; other keys that are strings are texts.

    Raises:
        AnnotationError: The file cannot be read, or a line is damaged; it is named.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() != ".jsonl":
        raise AnnotationError(f"{path}: captions are read from .jsonl, got {path.suffix or 'no suffix'!r}")
    try:
        for where, row in json_rows(path):
            yield CaptionRecord.of(where, row)
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}") from error


def cut_torn_line(path: Path) -> None:
    """Remove the end of a file if it is the beginning of a record, which a kill left; the log says so.

    A whole record gets the line end that it lacks. Anything else stays, and `read_captions` says what is wrong with it.
    """
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MAX_LINE_BYTES))
        tail = file.read().rpartition(b"\n")[2]
        try:
            if tail:
                json.loads(tail)
                file.write(b"\n")
        except ValueError:
            if tail.startswith(_BEGIN[: len(tail)]):
                file.truncate(size - len(tail))
                logger.warning("%s: removed the last line, which was incomplete: %d bytes", path, len(tail))
