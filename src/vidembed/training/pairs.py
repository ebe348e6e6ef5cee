"""Pairs of texts from files: readers that say which line is wrong, and sampling that a seed decides."""

from __future__ import annotations

import csv
import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

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


class PairsError(ValueError):
    """A file of pairs cannot be used; the message names file and line, and says what to do."""


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
    readers: dict[str, Callable[[Path], Iterator[tuple[int, Any]]]] = {".csv": _csv_rows, ".jsonl": _json_rows}
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


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
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
