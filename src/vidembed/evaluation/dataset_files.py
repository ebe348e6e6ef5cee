"""Annotation files of benchmarks: found in a folder, bounded, read as JSON, CSV or lines, with errors that say where.

Nothing here runs what it reads: pickles are refused, and ids are names that never become paths.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidembed.captions import checked_words, csv_rows, numbered_lines, shortened
from vidembed.errors import AnnotationError

MAX_ANNOTATION_BYTES = 64 << 20
"""Largest annotation file read, in bytes (ours). Those of the benchmarks have at most some 10 MB."""

MAX_ID_LENGTH = 255
"""Longest id of a video, in characters (ours): file systems allow names of 255 bytes."""

PICKLES = (".pkl", ".pickle", ".p")

_SHOWN = 5  # names in an error

CONVERT = """\
import json, pickle

class Plain(pickle.Unpickler):
    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"{module}.{name}: only dicts, lists and text are expected")

with open("raw-captions.pkl", "rb") as source, open("raw-captions.json", "w", encoding="utf-8") as target:
    json.dump(Plain(source).load(), target)
"""
"""A script that turns the pickle of captions into JSON, and stops where the pickle asks for code."""


def some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(shortened(name) for name in names[:_SHOWN]) + more


def annotation_file(given: Path, names: Sequence[str], what: str) -> Path:
    """Return the file that holds `what`: `given` itself, or the one of `names` that lies in the folder `given`.

    Raises:
        AnnotationError: There is none, there are several, it is a pickle, or it is larger than `MAX_ANNOTATION_BYTES`.
    """
    path = given
    if given.is_dir():
        found = [given / name for name in names if (given / name).is_file()]
        if len(found) > 1:
            raise AnnotationError(
                f"{given}: {what} can be {some([one.name for one in found])}, all of which are there; give the path of "
                "one instead"
            )
        if not found:
            there = some(sorted(one.name for one in given.iterdir())) or "an empty folder"
            raise AnnotationError(f"{given}: does not hold {what}; expected {' or '.join(names)}, found {there}")
        path = found[0]
    if not path.is_file():
        raise AnnotationError(f"{path}: {'not a file' if path.exists() else 'no such file'}; expected {what}")
    if path.suffix.lower() in PICKLES:
        raise AnnotationError(
            f"{path}: is a pickle, and reading a pickle can run any code that is in it; it is not read. This script "
            f"makes a JSON file of it, and refuses code:\n\n{CONVERT}"
        )
    size = path.stat().st_size
    if size > MAX_ANNOTATION_BYTES:
        raise AnnotationError(f"{path}: {size} bytes, more than {MAX_ANNOTATION_BYTES}; is this the right file?")
    if size == 0:
        raise AnnotationError(f"{path}: is empty; expected {what}")
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file in UTF-8.

    Raises:
        AnnotationError: It cannot be read, is not UTF-8 or not JSON, or an object in it has a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        whole = dict(pairs)
        if len(whole) < len(pairs):
            first: dict[str, int] = {}
            for place, (key, _) in enumerate(pairs, start=1):
                if key in first:
                    raise AnnotationError(f"{path}: {shortened(key)} is there twice, as entry {first[key]} and {place}")
                first[key] = place
        return whole

    try:
        raw = path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise AnnotationError(f"{path}, line {line}: not UTF-8 ({error.reason}); is this the right file?") from error
    except AnnotationError:
        raise
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: not JSON ({error}); is this the right file?") from error


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield each row of a CSV file in UTF-8 and where it is; columns other than `columns` are there too.

    Raises:
        AnnotationError: It cannot be read, is not UTF-8 or not CSV, lacks a column, or has no rows.
    """
    rows = 0
    try:
        with path.open("rb") as handle:
            for line, row in csv_rows(path, handle):
                rows += 1
                if lacking := [name for name in columns if name not in row]:
                    raise AnnotationError(
                        f"{path}: no column {' and '.join(map(repr, lacking))} in the header; expected "
                        f"{', '.join(columns)} with commas between them, got {shortened(','.join(row))}"
                    )
                yield f"{path}, line {line}", row
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not rows:
        raise AnnotationError(f"{path}: there are no rows under a header of {', '.join(columns)}")


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each line of a text file in UTF-8, without the white space around it, and where it is; none is blank.

    Raises:
        AnnotationError: It cannot be read or is not UTF-8, or a line is too long.
    """
    try:
        with path.open("rb") as handle:
            yield from ((f"{path}, line {n}", line.strip()) for n, line in numbered_lines(path, handle) if line.strip())
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_ids(path: Path) -> list[str]:
    """Read a list of video ids: text with one a line, a JSON list (``.json``), or a numpy array of strings (``.npy``).

    Raises:
        AnnotationError: It is none of these, is empty, or has an id twice or one that cannot be a name.
    """
    ids: dict[str, str] = {}
    for where, value in _id_entries(path):
        name = video_id(where, value)
        if name in ids:
            raise AnnotationError(f"{where}: {shortened(name)} is already at {ids[name]}; an id may stand there once")
        ids[name] = where.removeprefix(f"{path}, ")
    if not ids:
        raise AnnotationError(f"{path}: there are no ids; expected one a line")
    return list(ids)


def _id_entries(path: Path) -> Iterator[tuple[str, Any]]:
    suffix = path.suffix.lower()
    if suffix not in (".json", ".npy"):
        yield from read_lines(path)
        return
    values = _strings(path) if suffix == ".npy" else read_json(path)
    if not isinstance(values, list):
        raise AnnotationError(f"{path}: expected a list of video ids, got {type(values).__name__}")
    for place, value in enumerate(values, start=1):
        yield f"{path}, entry {place}", value


def _strings(path: Path) -> list[Any]:
    try:
        # mapped, so that a header that claims more than the file holds is an error and not a large allocation
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise AnnotationError(f"{path}: not a numpy array of strings ({error}); write one id a line instead") from error
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind != "U":
        got = f"shape {array.shape} of {array.dtype}" if isinstance(array, np.ndarray) else "an archive"
        raise AnnotationError(f"{path}: expected a numpy array of strings, one axis, got {got}")
    return [str(value) for value in array.tolist()]


def video_id(where: str, value: Any) -> str:
    """Return an id if it can be the name of a file, without the white space around it.

    Raises:
        AnnotationError: It is not a string, is empty or too long, or is a path rather than a name.
    """
    name = checked_words(where, "video id", value)
    if any(mark in name for mark in ("/", "\\", "..")) or name == "." or not name.isprintable():
        raise AnnotationError(
            f"{where}: video id {shortened(name)} is not a name; expected one without '/', '\\' and '..'"
        )
    if len(name) > MAX_ID_LENGTH:
        raise AnnotationError(
            f"{where}: video id {shortened(name)} has {len(name)} characters, more than {MAX_ID_LENGTH}"
        )
    return name


def caption(where: str, name: str, value: Any) -> str:
    """Return a caption without the white space around it; "" if it is blank, which the caller has to deal with.

    Raises:
        AnnotationError: It is not a string, or not valid Unicode.
    """
    return "" if isinstance(value, str) and not value.strip() else checked_words(where, name, value)


def captions(where: str, name: str, value: Any) -> list[str]:
    """Return a list of captions, as `caption` returns each.

    Raises:
        AnnotationError: It is not a list, is empty, or has an entry that is not a string.
    """
    if not isinstance(value, list) or not value:
        raise AnnotationError(f"{where}: {name}={shortened(value)}: expected a list of at least one string")
    return [caption(where, f"{name}[{place}]", one) for place, one in enumerate(value)]


def entries(path: Path, value: Any, keys: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the objects of a JSON list and where each is.

    Raises:
        AnnotationError: It is not a list of objects, is empty, or an object lacks one of `keys`.
    """
    wanted = f"expected a list of objects with {' and '.join(map(repr, keys))}"
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else type(value).__name__
        raise AnnotationError(f"{path}: {wanted}, got {got}")
    for place, entry in enumerate(value, start=1):
        if not isinstance(entry, dict) or any(key not in entry for key in keys):
            raise AnnotationError(f"{path}, entry {place}: {wanted}, got {shortened(entry)}")
        yield f"{path}, entry {place}", entry


def items(path: Path, value: Any, what: str) -> Iterator[tuple[str, str, Any]]:
    """Yield where each entry of a JSON object is, its key as a video's id, and its value.

    Raises:
        AnnotationError: It is not an object, is empty, or a key cannot be a name.
    """
    if not isinstance(value, dict) or not value:
        got = "an empty one" if value == {} else type(value).__name__
        raise AnnotationError(f"{path}: expected an object of {what}, got {got}")
    for place, (key, entry) in enumerate(value.items(), start=1):
        where = f"{path}, entry {place}"
        name = video_id(where, key)
        if name != key:
            raise AnnotationError(f"{where}: video id {shortened(key)} has white space around it")
        yield f"{path}, {shortened(name)}", name, entry
