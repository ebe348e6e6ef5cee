"""Files of captioned videos: one row names a video and what is said of it, with or without a label.

JSONL holds one object a line, CSV a header and rows; the suffix of the file says which. Columns: ``video``, one of
``caption``, ``text`` and ``sentence``, and where it is needed ``label`` (0, 1, true or false: whether the text is true
of the video). A JSONL row may hold ``captions``, a list, instead. Other columns are ignored.
"""

from __future__ import annotations

import csv
import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from vidembed.errors import AnnotationError, PairsError

TEXT_COLUMNS = ("caption", "text", "sentence")
"""The names that the column of the text may have."""

MAX_LINE_BYTES = 1 << 20
"""Longest line read, in bytes (ours): a caption is some hundred, and a file without line ends is no such file."""

_SHOWN = 5  # missing videos named in an error
_LABELS = {"0": False, "1": True, "false": False, "true": True}


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


def read_captioned_videos(file: str | Path, *, videos: str | Path | None = None) -> list[CaptionedVideo]:
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


logger = logging.getLogger(__name__)

SAMPLE: Final = 60_000
"""Pairs that the paper samples from VideoUFO (VidVec, arXiv 2602.08099, section 3.5)."""

OnError = Literal["raise", "skip"]

KINDS: Final[dict[str, tuple[str, str]]] = {
    "plain": ("dense", "summary"),
    "videoufo": ("Detailed Caption", "Brief Caption"),
    "nli": ("anchor", "positive"),
    "short": ("first", "second"),
}
"""Columns of the caption and of the summary. "plain" and "short" are ours; "videoufo" are the published columns of
VideoUFO (arXiv 2503.01739), "nli" those of ``sentence-transformers/all-nli``. "nli" and "short", two short captions of
one video, are the arms that the paper compares with (section D)."""


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two texts that mean the same.

    Attributes:
        dense: The long caption. It stands in for the video.
        summary: The short text. It stands for the query.
    """

    dense: str
    summary: str


def read_pairs(path: str | Path, *, kind: str = "auto", on_error: OnError = "raise") -> Iterator[TextPair]:
    """Read pairs from a file, one row at a time.

    Args:
        path: A ``.csv`` file with a header, or a ``.jsonl`` file with one object a line, in UTF-8. Further columns
            are ignored.
        kind: One of `KINDS`, or "auto" for the kind whose columns the file has.
        on_error: "raise" raises at the first row that cannot be used. "skip" leaves such rows out and logs how many.

    Yields:
        Pairs in the order of the file, without space around the texts.

    Raises:
        PairsError: The file is of another kind, has other columns or no rows, or a row is empty, one-sided or damaged.
        FileNotFoundError: There is no such file.
        ValueError: `kind` or `on_error` is not known.
    """
    path = Path(path)
    if kind != "auto" and kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not known. Allowed: auto, {', '.join(KINDS)}.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r} is not known. Allowed: 'raise', 'skip'.")
    readers: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {".csv": _csv_rows, ".jsonl": _pair_rows}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise PairsError(
            f"{path}: pairs are read from .csv or .jsonl, not from {path.suffix or 'a file without suffix'}."
        )
    found = skipped = 0
    columns = None if kind == "auto" else KINDS[kind]
    for line, row in reader(path):
        try:
            columns = columns or _columns_of(row, path, line)
            pair = _pair_of(row, columns, path, line)
        except PairsError as error:
            if on_error == "raise":
                raise
            skipped += 1
            logger.debug("skipped %s", error)
            continue
        found += 1
        yield pair
    if skipped:
        logger.warning("%s: skipped %d of %d rows that are empty, one-sided or damaged", path, skipped, found + skipped)
    if not found:
        raise PairsError(f"{path}: no pairs in it. Expected rows with {_wanted(kind)}.")


def sample_pairs(
    path: str | Path, n: int | None = SAMPLE, *, seed: int = 0, kind: str = "auto", on_error: OnError = "raise"
) -> list[TextPair]:
    """Sample pairs from a file of any length, without repetition.

    The file is read once and only the sample is held (reservoir sampling), so all of its rows are checked.

    Args:
        path: As `read_pairs` takes.
        n: How many, at least 1; None for all. Default `SAMPLE`. A file with fewer gives all, and the log says so.
        seed: Decides which: the same file, number and seed give the same pairs in the same order.
        kind: As `read_pairs` takes.
        on_error: As `read_pairs` takes.

    Returns:
        The pairs, in the order of the file.

    Raises:
        PairsError: As `read_pairs`.
        ValueError: `n` is under 1.
    """
    if n is not None and n < 1:
        raise ValueError(f"n={n!r}: expected at least 1 pair, or None for all of them.")
    rng = random.Random(seed)  # noqa: S311 - a sample, not a secret
    kept: list[tuple[int, TextPair]] = []
    index = -1
    for index, pair in enumerate(read_pairs(path, kind=kind, on_error=on_error)):
        if n is None or index < n:
            kept.append((index, pair))
        elif (place := rng.randrange(index + 1)) < n:
            kept[place] = (index, pair)
    if n is not None and index + 1 < n:
        logger.warning("%s: %d pairs, fewer than the %d asked for; taking all", path, index + 1, n)
    return [pair for _, pair in sorted(kept, key=lambda entry: entry[0])]


def _wanted(kind: str) -> str:
    kinds = KINDS if kind == "auto" else {kind: KINDS[kind]}
    return ", or ".join(f"{dense!r} and {summary!r} ({name})" for name, (dense, summary) in kinds.items())


def _csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Rows of a CSV file with the line that each begins on; a damaged row as its error."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        line = 1
        try:
            for row in reader:
                line = reader.line_num
                if row.pop(None, None) is not None:
                    yield line, ValueError("the row has more fields than the header. Is a comma or quote missing?")
                else:
                    yield line, row
        except (csv.Error, UnicodeDecodeError) as error:  # the reader cannot go on: its place in the file is lost
            raise PairsError(f"{path}:{max(line, reader.line_num) + 1}: {error}. Expected CSV in UTF-8.") from error


def _pair_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Objects of a JSONL file with their line; a damaged line as its error. Empty lines are passed over."""
    with path.open("rb") as file:
        for line, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                row = json.loads(raw.decode("utf-8-sig" if line == 1 else "utf-8"))
            except ValueError as error:
                yield line, ValueError(f"no JSON in UTF-8 ({error}). Expected one object a line.")
                continue
            yield line, row if isinstance(row, dict) else ValueError(f"expected an object, got {type(row).__name__}.")


def _columns_of(row: Mapping[str, Any] | Exception, path: Path, line: int) -> tuple[str, str] | None:
    """The columns of the kind that a row is of; None for a damaged row."""
    if isinstance(row, Exception):
        return None
    for columns in KINDS.values():
        if set(columns) <= set(row):
            return columns
    raise PairsError(f"{path}:{line}: columns {sorted(map(str, row))}. Expected {_wanted('auto')}.")


def _pair_of(row: Mapping[str, Any] | Exception, columns: tuple[str, str] | None, path: Path, line: int) -> TextPair:
    if isinstance(row, Exception) or columns is None:
        raise PairsError(f"{path}:{line}: {row}")
    texts = []
    for column in columns:
        if column not in row:
            raise PairsError(
                f"{path}:{line}: no column {column!r} among {sorted(map(str, row))}. Is it of another kind?"
            )
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise PairsError(f"{path}:{line}: {column!r} is {type(text).__name__}, expected text.")
        texts.append((text or "").strip())
    empty = [column for column, text in zip(columns, texts, strict=True) if not text]
    if empty:
        what = "both sides are" if len(empty) == 2 else f"{empty[0]!r} is"
        raise PairsError(f"{path}:{line}: {what} empty. Remove the row, or pass on_error='skip'.")
    return TextPair(*texts)
