"""Files of captioned videos: one row names a video and what is said of it, with or without a label.

JSONL holds one object a line, CSV a header and rows; the suffix of the file says which. Columns: ``video``, one of
``caption``, ``text`` and ``sentence``, and where it is needed ``label`` (0, 1, true or false: whether the text is true
of the video). A JSONL row may hold ``captions``, a list, instead. Other columns are ignored.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

TEXT_COLUMNS = ("caption", "text", "sentence")
"""The names that the column of the text may have."""

MAX_LINE_BYTES = 1 << 20
"""Longest line read, in bytes (ours): a caption is some hundred, and a file without line ends is no such file."""

_SHOWN = 5  # missing videos named in an error
_LABELS = {"0": False, "1": True, "false": False, "true": True}


class AnnotationError(ValueError):
    """A file of captioned videos cannot be used; the message names the file and the line."""


@dataclass(frozen=True)
class CaptionedVideo:
    """A video and a text about it.

    Attributes:
        video: The video file.
        text: What is said of it.
        label: Whether the text is true of the video; None where nothing is said, which is to be taken for true.
    """

    video: Path
    text: str
    label: bool | None = None


def read_pairs(file: str | Path, *, videos: str | Path | None = None) -> list[CaptionedVideo]:
    """Read a file of captioned videos.

    Args:
        file: A ``.jsonl`` or ``.csv`` file in UTF-8; a byte order mark is tolerated. Blank lines are skipped.
        videos: Folder that relative video paths are taken from. Default: the folder of `file`.

    Returns:
        One entry a text, in the order of the file. Texts come without the white space around them.

    Raises:
        AnnotationError: The file cannot be read or is of another kind; a row lacks a column or holds a value of the
            wrong type; some rows have a label and some not; there are no rows; or video files are missing.
    """
    path, base = _located(file, videos)
    pairs: list[CaptionedVideo] = []
    lines: list[int] = []  # of each pair
    try:
        with path.open("rb") as handle:
            rows = _json_rows(path, handle) if path.suffix.lower() == ".jsonl" else csv_rows(path, handle)
            for line, row in rows:
                found = _pairs_of(f"{path}, line {line}", row, base)
                pairs += found
                lines += [line] * len(found)
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not pairs:
        raise AnnotationError(f"{path}: there are no rows; give at least one video with a caption")
    _check_labels(path, pairs, lines)
    _check_videos(path, pairs, lines, base)
    return pairs


def _located(file: str | Path, videos: str | Path | None) -> tuple[Path, Path]:
    path = Path(file).expanduser()
    if path.suffix.lower() not in (".jsonl", ".csv"):
        suffix = path.suffix or "no suffix"
        raise AnnotationError(f"{path}: expected a name that ends in .jsonl or .csv, got {suffix!r}")
    if not path.is_file():
        raise AnnotationError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    base = path.parent if videos is None else Path(videos).expanduser()
    if not base.is_dir():
        raise AnnotationError(f"videos={str(base)!r}: no such folder; it is what the paths in {path} are taken from")
    return path, base


# -- rows ------------------------------------------------------------------------------------------------------------


def numbered_lines(path: Path, handle: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line, decoded one by one so that an error can name its line.

    Args:
        path: Of the file, for messages.
        handle: The file, opened for reading bytes.

    Raises:
        AnnotationError: A line is not UTF-8 or longer than `MAX_LINE_BYTES`.
    """
    number = 0
    while raw := handle.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise AnnotationError(f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes; is this the right file?")
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise AnnotationError(f"{path}, line {number}: not UTF-8 ({error.reason}); save it as UTF-8") from error


def _json_rows(path: Path, handle: BinaryIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in numbered_lines(path, handle):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise AnnotationError(f"{path}, line {number}: not JSON ({error}); write one object a line") from error
        if not isinstance(row, dict):
            raise AnnotationError(f"{path}, line {number}: expected an object, got {type(row).__name__}")
        yield number, row


def csv_rows(path: Path, handle: BinaryIO) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield each row of a CSV file by the names of its header, and the number of the line that it begins on.

    Args:
        path: Of the file, for messages.
        handle: The file, opened for reading bytes.

    Raises:
        AnnotationError: It is not CSV, the header names a column twice, or a row has another number of cells.
    """
    reader = csv.reader((line for _, line in numbered_lines(path, handle)), strict=True)
    header: list[str] | None = None
    while True:
        number = reader.line_num + 1  # where the row begins: a quoted caption may go over several lines
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise AnnotationError(f"{path}, line {number}: not CSV ({error})") from error
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if len(set(header)) < len(header):
                raise AnnotationError(f"{path}, line {number}: the header names a column twice: {', '.join(header)}")
            continue
        if len(cells) != len(header):
            raise AnnotationError(
                f"{path}, line {number}: {len(cells)} cells under a header of {len(header)}; put a caption that holds "
                "a comma in double quotes"
            )
        row: dict[str, Any] = dict(zip(header, cells, strict=True))
        if not (row.get("label") or "").strip():
            row.pop("label", None)
        yield number, row


# -- one row ---------------------------------------------------------------------------------------------------------


def _pairs_of(where: str, row: Mapping[str, Any], base: Path) -> list[CaptionedVideo]:
    video = checked_words(where, "video", row["video"]) if "video" in row else None
    named = [name for name in (*TEXT_COLUMNS, "captions") if name in row]
    if video is None or not named:
        missing = "no 'video'" if video is None else "none of 'caption', 'text' and 'sentence'"
        raise AnnotationError(f"{where}: there is {missing}; the columns are {_listed(row)}")
    if len(named) > 1:
        raise AnnotationError(f"{where}: has {' and '.join(map(repr, named))}; keep the one that holds the caption")
    value = row[named[0]]
    if named[0] == "captions":
        if not isinstance(value, list) or not value:
            raise AnnotationError(f"{where}: captions={shortened(value)}: expected a list of at least one caption")
        texts = [checked_words(where, f"captions[{index}]", text) for index, text in enumerate(value)]
    else:
        texts = [checked_words(where, named[0], value)]
    label = _label(where, row.get("label"))
    return [CaptionedVideo(base / video, text, label) for text in texts]


def checked_words(where: str, name: str, value: Any) -> str:
    """Return a string without the white space around it.

    Args:
        where: File and line, for messages.
        name: What the value is called there.
        value: The value.

    Raises:
        AnnotationError: It is not a string, is empty, or is not valid Unicode.
    """
    if not isinstance(value, str):
        raise AnnotationError(f"{where}: {name}={shortened(value)}: expected a string, got {type(value).__name__}")
    if not value.strip():
        raise AnnotationError(f"{where}: {name} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can write and no tokenizer reads
        raise AnnotationError(f"{where}: {name}={shortened(value)}: not valid Unicode ({error.reason})") from error
    return value.strip()


def _label(where: str, value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and (known := _LABELS.get(value.strip().lower())) is not None:
        return known
    raise AnnotationError(f"{where}: label={shortened(value)}: expected 0, 1, true or false")


def shortened(value: Any) -> str:
    """Show a value in a message, cut where it is long."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _listed(row: Mapping[str, Any]) -> str:
    return shortened(", ".join(row)) if row else "none"


# -- the whole file --------------------------------------------------------------------------------------------------


def _check_labels(path: Path, pairs: list[CaptionedVideo], lines: list[int]) -> None:
    with_label = [line for pair, line in zip(pairs, lines, strict=True) if pair.label is not None]
    without = [line for pair, line in zip(pairs, lines, strict=True) if pair.label is None]
    if with_label and without:
        raise AnnotationError(
            f"{path}: line {with_label[0]} has a label and line {without[0]} has none; label every row or no row"
        )


def _check_videos(path: Path, pairs: list[CaptionedVideo], lines: list[int], base: Path) -> None:
    first = {pair.video: line for pair, line in zip(reversed(pairs), reversed(lines), strict=True)}
    missing = sorted((line, video) for video, line in first.items() if not video.is_file())
    if missing:
        named = ", ".join(f"{video} (line {line})" for line, video in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise AnnotationError(
            f"{path}: {len(missing)} of {len(first)} video files are missing: {named}{more}. Relative paths are taken "
            f"from {base}; give videos=FOLDER where they lie elsewhere."
        )
