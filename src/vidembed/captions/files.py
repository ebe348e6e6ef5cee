"""Files of texts, JSONL (one object a line) or CSV (a header and rows): captioned videos, and pairs of texts.

`read_captioned_videos` reads the columns ``video``, one of ``caption``, ``text`` and ``sentence`` (in JSONL also
``captions``, a list; ``dense`` where there is none of these), and where needed ``label`` (0, 1, true or false).
`read_pairs` reads those of one of `KINDS`.
"""

from __future__ import annotations

import csv
import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, TypeAlias

from vidembed.errors import AnnotationError

TEXT_COLUMNS = ("caption", "text", "sentence")  # the names that the column of the text may have
# longest line read, in bytes (ours): a caption is some hundred, and a file without line ends is no such file
MAX_LINE_BYTES = 1 << 20
SAMPLE: Final = 60_000  # pairs that the paper samples from VideoUFO (VidVec, arXiv 2602.08099, section 3.5)

# columns of the caption and of the summary. "plain" and "short" are ours; "videoufo" are the published columns of
# VideoUFO (arXiv 2503.01739), "nli" those of ``sentence-transformers/all-nli``. "nli" and "short", two short captions
# of one video, are the arms that the paper compares with (section D). "own" is what a model says of videos (`describe`)
KINDS: Final[dict[str, tuple[str, str]]] = {
    "plain": ("dense", "summary"),
    "own": ("dense", "short"),
    "videoufo": ("Detailed Caption", "Brief Caption"),
    "nli": ("anchor", "positive"),
    "short": ("first", "second"),
}

OnError = Literal["raise", "skip"]
Row: TypeAlias = Mapping[str, object]
Damaged: TypeAlias = Callable[[AnnotationError], None]  # what is done with a row that cannot be used
_SHOWN = 5  # missing videos named in an error
_LABELS = {"0": False, "1": True, "false": False, "true": True}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaptionedVideo:
    """A video file and a text about it."""

    video: Path
    text: str
    label: bool | None = None  # whether the text is true of the video; None, where the file is silent, for true


@dataclass(frozen=True, slots=True)
class TextPair:
    """Two texts that mean the same: a long caption, which stands in for the video, and a short one, for the query."""

    dense: str
    summary: str


def numbered_lines(path: Path, handle: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yield the number and text of each line of an opened file; an AnnotationError names one not UTF-8 or too long."""
    return ((number, _decoded(path, number, raw)) for number, raw in _raw_lines(path, handle))


def _raw_lines(path: Path, handle: BinaryIO) -> Iterator[tuple[int, bytes]]:
    number = 0
    while raw := handle.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(raw) > MAX_LINE_BYTES:
            raise AnnotationError(f"{path}, line {number}: longer than {MAX_LINE_BYTES} bytes; is this the right file?")
        yield number, raw


def _decoded(path: Path, number: int, raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}, line {number}: not UTF-8 ({error.reason}); save it as UTF-8") from error


def _stop(error: AnnotationError) -> None:
    raise error


def _rows(path: Path, damaged: Damaged = _stop) -> Iterator[tuple[str, int, Row]]:
    """Where each row of a file begins, in words and as a line, and the row; bad ones go to `damaged`."""
    with path.open("rb") as handle:
        rows = _json_rows if path.suffix.lower() == ".jsonl" else csv_rows
        yield from ((f"{path}, line {line}", line, row) for line, row in rows(path, handle, damaged))


def _json_rows(path: Path, handle: BinaryIO, damaged: Damaged) -> Iterator[tuple[int, Row]]:
    for number, raw in _raw_lines(path, handle):
        if not raw.strip(b"\xef\xbb\xbf \t\r\n"):
            continue
        try:
            row = json.loads(_decoded(path, number, raw))
        except AnnotationError as error:
            damaged(error)
        except (ValueError, RecursionError) as error:
            damaged(AnnotationError(f"{path}, line {number}: not JSON ({error}); write one object a line"))
        else:
            if isinstance(row, dict):
                yield number, row
            else:
                damaged(AnnotationError(f"{path}, line {number}: expected an object, got {type(row).__name__}"))


def _unmarked_rows(path: Path, damaged: Damaged = _stop) -> Iterator[tuple[str, int, Row]]:
    """Rows as of `_rows`, without those that a model wrote and marked as not to be used; the log says how many."""
    marked = 0
    for where, line, row in _rows(path, damaged):
        if row.get("problems") or row.get("error"):
            marked += 1
        else:
            yield where, line, row
    if marked:
        logger.warning("%s: left out %d rows that are marked as doubtful", path, marked)


def json_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield where each object of a JSONL file is, in words, and the object; AnnotationError for a damaged line."""
    return ((where, row) for where, _, row in _rows(path))


def csv_rows(path: Path, handle: BinaryIO, damaged: Damaged = _stop) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line that each row of a CSV file begins on, and the row by header; bad rows go to `damaged`."""
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
                raise AnnotationError(f"{path}, line {number}: the header has a column twice: {', '.join(header)}")
        elif len(cells) != len(header):
            found = f"{path}, line {number}: {len(cells)} cells under a header of {len(header)}"
            damaged(AnnotationError(f"{found}; put a caption that holds a comma in double quotes"))
        else:
            row = dict(zip(header, cells, strict=True))
            if not row.get("label", "-").strip():
                del row["label"]
            yield number, row


def checked_words(where: str, name: str, value: object) -> str:
    """Return a string without the white space around it; an AnnotationError if it is empty or not valid Unicode."""
    if not isinstance(value, str):
        raise AnnotationError(f"{where}: {name}={shortened(value)}: expected a string, got {type(value).__name__}")
    if not value.strip():
        raise AnnotationError(f"{where}: {name} is empty")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can write and no tokenizer reads
        raise AnnotationError(f"{where}: {name}={shortened(value)}: not valid Unicode ({error.reason})") from error
    return value.strip()


def shortened(value: object) -> str:
    """Show a value in a message, cut where it is long."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_captioned_videos(file: str | Path, *, videos: str | Path | None = None) -> list[CaptionedVideo]:
    """Read a file of captioned videos: one entry a text, in the order of the file, without white space around texts.

    Args:
        file: A ``.jsonl`` or ``.csv`` file in UTF-8; a byte order mark is tolerated. Blank lines
            and other columns are skipped.
        videos: Folder that relative video paths are taken from. Default: the folder of `file`.

    Rows that a model wrote and marked (``problems``, ``error``; `describe`) are left out.

    Raises:
        AnnotationError: The file cannot be read or is of another kind; a row lacks a column or holds a value of the
            wrong type; some rows have a label and some not; there are no rows; or video files are missing.
    """
    path = Path(file).expanduser()
    if path.suffix.lower() not in (".jsonl", ".csv"):
        got = path.suffix or "no suffix"
        raise AnnotationError(f"{path}: expected a name that ends in .jsonl or .csv, got {got!r}")
    if not path.is_file():
        raise AnnotationError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    base = path.parent if videos is None else Path(videos).expanduser()
    if not base.is_dir():
        raise AnnotationError(f"videos={str(base)!r}: no such folder; paths in {path} are relative to it")
    found: list[tuple[int, CaptionedVideo]] = []
    try:
        for where, line, row in _unmarked_rows(path):
            found += [(line, video) for video in _videos_of(where, row, base)]
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not found:
        raise AnnotationError(f"{path}: no usable rows; give at least one video with a caption")
    labelled = next((line for line, video in found if video.label is not None), None)
    bare = next((line for line, video in found if video.label is None), None)
    if labelled is not None and bare is not None:
        mixed = f"line {labelled} has a label and line {bare} has none; label every row or no row"
        raise AnnotationError(f"{path}: {mixed}")
    first = {video.video: line for line, video in reversed(found)}
    if missing := sorted((line, video) for video, line in first.items() if not video.is_file()):
        named = ", ".join(f"{video} (line {line})" for line, video in missing[:_SHOWN])
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise AnnotationError(
            f"{path}: {len(missing)} of {len(first)} video files are missing: {named}{more}. Relative paths start at "
            f"{base}; give videos=FOLDER if the videos are elsewhere."
        )
    return [video for _, video in found]


def _videos_of(where: str, row: Row, base: Path) -> list[CaptionedVideo]:
    video = checked_words(where, "video", row["video"]) if "video" in row else None
    named = [name for name in (*TEXT_COLUMNS, "captions") if name in row] or [
        name for name in ("dense",) if name in row
    ]
    if video is None or not named:
        missing = "no 'video'" if video is None else "none of 'caption', 'text' and 'sentence'"
        columns = shortened(", ".join(row)) if row else "none"
        raise AnnotationError(f"{where}: there is {missing}; the columns are {columns}")
    if len(named) > 1:
        raise AnnotationError(f"{where}: has {' and '.join(map(repr, named))}; keep only the column with the caption")
    value = row[named[0]]
    if named[0] != "captions":
        texts = [checked_words(where, named[0], value)]
    elif isinstance(value, list) and value:
        texts = [checked_words(where, f"captions[{index}]", text) for index, text in enumerate(value)]
    else:
        raise AnnotationError(f"{where}: captions={shortened(value)}: expected a list of at least one caption")
    label = row.get("label")
    truth = None if label is None else _LABELS.get(str(label).strip().lower())
    if label is not None and truth is None:
        raise AnnotationError(f"{where}: label={shortened(label)}: expected 0, 1, true or false")
    return [CaptionedVideo(base / video, text, truth) for text in texts]


def read_pairs(path: str | Path, *, kind: str = "auto", on_error: OnError = "raise") -> Iterator[TextPair]:
    """Read pairs from a file, one row at a time, in order and without space around the texts.

    Rows that a model wrote and marked (``problems``, ``error``; `describe`) are left out, and the log says how many.

    Args:
        path: A ``.csv`` file with a header, or a ``.jsonl`` file with one object a line, in UTF-8.
        kind: One of `KINDS`, or "auto" for the kind whose columns the file has. Further columns are ignored.
        on_error: "raise" raises at the first row that cannot be used. "skip" leaves such rows out and logs how many.

    Raises:
        AnnotationError: The file is of another kind, has other columns or no rows, or a row is empty or damaged.
        FileNotFoundError: There is no such file.
        ValueError: `kind` or `on_error` is not known.
    """
    path = Path(path)
    if kind != "auto" and kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not known. Allowed: auto, {', '.join(KINDS)}.")
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r} is not known. Allowed: 'raise', 'skip'.")
    if path.suffix.lower() not in (".csv", ".jsonl"):
        got = path.suffix or "a file without suffix"
        raise AnnotationError(f"{path}: pairs are read from .csv or .jsonl, not from {got}.")
    kinds = KINDS if kind == "auto" else {kind: KINDS[kind]}
    wanted = ", or ".join(f"{dense!r} and {summary!r} ({name})" for name, (dense, summary) in kinds.items())
    columns = None if kind == "auto" else KINDS[kind]
    found = skipped = 0

    def skip(error: AnnotationError) -> None:
        nonlocal skipped
        if on_error == "raise":
            raise error
        skipped += 1
        logger.debug("skipped %s", error)

    for where, _, row in _unmarked_rows(path, skip):
        try:
            columns = columns or _columns_of(where, row, wanted)
            pair = _pair_of(where, row, columns)
        except AnnotationError as error:
            skip(error)
            continue
        found += 1
        yield pair
    if skipped:
        logger.warning(
            "%s: skipped %d of %d rows that are empty, incomplete or damaged", path, skipped, found + skipped
        )
    if not found:
        raise AnnotationError(f"{path}: no pairs found. Expected rows with {wanted}.")


def _columns_of(where: str, row: Row, wanted: str) -> tuple[str, str]:
    for columns in KINDS.values():
        if set(columns) <= set(row):
            return columns
    raise AnnotationError(f"{where}: columns {sorted(row)}. Expected {wanted}.")


def _pair_of(where: str, row: Row, columns: tuple[str, str]) -> TextPair:
    texts = []
    for column in columns:
        if column not in row:
            raise AnnotationError(f"{where}: no column {column!r} among {sorted(row)}. Check the kind of the file.")
        text = row[column]
        if text is not None and not isinstance(text, str):
            raise AnnotationError(f"{where}: {column!r} is {type(text).__name__}, expected text.")
        texts.append((text or "").strip())
    if empty := [column for column, text in zip(columns, texts, strict=True) if not text]:
        what = "both sides are" if len(empty) == 2 else f"{empty[0]!r} is"
        raise AnnotationError(f"{where}: {what} empty. Remove the row, or pass on_error='skip'.")
    return TextPair(*texts)


def sample_pairs(
    path: str | Path, n: int | None = SAMPLE, *, seed: int = 0, kind: str = "auto", on_error: OnError = "raise"
) -> list[TextPair]:
    """Sample `n` pairs from a file of any length, without repetition; None for all of them.

    The file is read once and only the sample is held (reservoir sampling), so all of its rows are checked; `kind`,
    `on_error` and errors are those of `read_pairs`, and a ValueError if `n` is under 1. A file with fewer pairs gives
    all, and the log says so. The same file, number and seed give the same pairs, in the order of the file.
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
        logger.warning("%s: %d pairs, fewer than the %d requested; using all", path, index + 1, n)
    return [pair for _, pair in sorted(kept, key=lambda entry: entry[0])]
