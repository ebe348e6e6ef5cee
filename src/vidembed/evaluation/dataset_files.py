"""Files of a data set: annotations, read with an `AnnotationError` that says where, and videos, found by their id."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from vidembed.captions import checked_words, csv_rows, numbered_lines, shortened
from vidembed.errors import AnnotationError
from vidembed.video import VIDEO_SUFFIXES

# largest annotation file read, in bytes (ours). Those of the benchmarks have at most some 10 MB
MAX_ANNOTATION_BYTES = 64 << 20
MAX_ID_LENGTH = 255  # longest id of a video, in characters (ours): file systems allow names of 255 bytes
# most files looked at in a folder of videos (ours): more is another folder, such as the root of a disk
MAX_FILES = 2_000_000
_SHOWN = 5  # names in an error
T = TypeVar("T")

_CONVERT = """\
import json, pickle

class Plain(pickle.Unpickler):
    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"{module}.{name}: only dicts, lists and text are expected")

with open("raw-captions.pkl", "rb") as source, open("raw-captions.json", "w", encoding="utf-8") as target:
    json.dump(Plain(source).load(), target)
"""  # turns the pickle of captions into JSON, and stops where the pickle asks for code


def some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(shortened(name) for name in names[:_SHOWN]) + more


def annotation_file(given: Path, names: Sequence[str], what: str) -> Path:
    """Return the file that holds `what`: `given` itself, or the one of `names` that lies in the folder `given`."""
    path = given
    if given.is_dir():
        found = [given / name for name in names if (given / name).is_file()]
        if len(found) > 1:
            names_there = f"{some([one.name for one in found])}, all of which are there"
            raise AnnotationError(f"{given}: {what} can be {names_there}; give the path of one file")
        if not found:
            there = some(sorted(one.name for one in given.iterdir())) or "an empty folder"
            raise AnnotationError(f"{given}: does not contain {what}; expected {' or '.join(names)}, found {there}")
        path = found[0]
    if not path.is_file():
        raise AnnotationError(f"{path}: {'not a file' if path.exists() else 'no such file'}; expected {what}")
    if path.suffix.lower() in (".pkl", ".pickle", ".p"):
        raise AnnotationError(
            f"{path}: is a pickle, which is not read, because reading a pickle can run code. This script converts it "
            f"to JSON without running code:\n\n{_CONVERT}"
        )
    if (size := path.stat().st_size) > MAX_ANNOTATION_BYTES:
        raise AnnotationError(f"{path}: {size} bytes, more than {MAX_ANNOTATION_BYTES}; is this the right file?")
    if size == 0:
        raise AnnotationError(f"{path}: is empty; expected {what}")
    return path


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_json(path: Path) -> object:
    """Read a JSON file in UTF-8."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        first: dict[str, int] = {}
        for place, (key, _) in enumerate(pairs, start=1):
            if (other := first.setdefault(key, place)) != place:
                raise AnnotationError(f"{path}: {shortened(key)} is there twice, as entries {other} and {place}")
        return dict(pairs)

    raw = _content(path)
    try:
        value: object = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=unique)
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise AnnotationError(f"{path}, line {line}: not UTF-8 ({error.reason}); is this the right file?") from error
    except AnnotationError:
        raise
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path}: not JSON ({error}); is this the right file?") from error
    return value


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Yield where each row of a CSV file in UTF-8 is, and the row; columns other than `columns` are there too."""
    line = 0
    for line, row in csv_rows(path, io.BytesIO(_content(path))):
        if lacking := [name for name in columns if name not in row]:
            expected = f"{', '.join(columns)} with commas between them, got {shortened(','.join(row))}"
            raise AnnotationError(
                f"{path}: no column {' and '.join(map(repr, lacking))} in the header; expected {expected}"
            )
        yield f"{path}, line {line}", row
    if not line:
        raise AnnotationError(f"{path}: no rows below the header {', '.join(columns)}")


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield where each line of a text file in UTF-8 is, and the line without white space around it; none is blank."""
    for number, line in numbered_lines(path, io.BytesIO(_content(path))):
        if line.strip():
            yield f"{path}, line {number}", line.strip()


def read_ids(path: Path) -> list[str]:
    """Read a list of video ids: text with one a line, a JSON list (``.json``), or numpy's strings (``.npy``)."""
    listed: Iterable[tuple[str, object]] = read_lines(path)
    if (suffix := path.suffix.lower()) in (".json", ".npy"):
        values = _string_array(path) if suffix == ".npy" else read_json(path)
        if not isinstance(values, list):
            raise AnnotationError(f"{path}: expected a list of video ids, got {type(values).__name__}")
        listed = ((f"{path}, entry {place}", value) for place, value in enumerate(values, start=1))
    ids = keyed(path, ((where, video_id(where, value), None) for where, value in listed), "an id may stand there once")
    if not ids:
        raise AnnotationError(f"{path}: no ids found; expected one per line")
    return list(ids)


def keyed(path: Path, found: Iterable[tuple[str, str, T]], rule: str) -> dict[str, T]:
    """Return values by video id, of where each is, its id and itself; a repeated id is an error that ends in `rule`."""
    values: dict[str, T] = {}
    first: dict[str, str] = {}
    for where, name, value in found:
        if name in values:
            raise AnnotationError(f"{where}: {shortened(name)} is already at {first[name]}; {rule}")
        values[name], first[name] = value, where.removeprefix(f"{path}, ")
    return values


def _string_array(path: Path) -> list[str]:
    try:
        # mapped, so that a header that claims more than the file holds is an error and not a large allocation
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise AnnotationError(
            f"{path}: not a numpy array of strings ({error}); write a text file with one id per line"
        ) from error
    # strings of length 0 take no place, so that a small file can claim any number of them
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind != "U" or not array.itemsize:
        got = f"shape {array.shape} of {array.dtype}" if isinstance(array, np.ndarray) else "an archive"
        raise AnnotationError(f"{path}: expected a numpy array of strings, one axis, got {got}")
    return [str(value) for value in array.tolist()]


def entries(path: Path, value: object, keys: Sequence[str]) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield where each object of a JSON list is, and the object."""
    wanted = f"expected a list of objects with {' and '.join(map(repr, keys))}"
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else type(value).__name__
        raise AnnotationError(f"{path}: {wanted}, got {got}")
    for place, entry in enumerate(value, start=1):
        if not isinstance(entry, dict) or any(key not in entry for key in keys):
            raise AnnotationError(f"{path}, entry {place}: {wanted}, got {shortened(entry)}")
        yield f"{path}, entry {place}", entry


def items(path: Path, value: object, what: str) -> Iterator[tuple[str, str, object]]:
    """Yield where each entry of a JSON object is, its key as a video's id, and its value."""
    if not isinstance(value, dict) or not value:
        got = "an empty one" if value == {} else type(value).__name__
        raise AnnotationError(f"{path}: expected an object of {what}, got {got}")
    for place, (key, entry) in enumerate(value.items(), start=1):
        name = video_id(f"{path}, entry {place}", key)
        if name != key:
            raise AnnotationError(f"{path}, entry {place}: video id {shortened(key)} has white space around it")
        yield f"{path}, {shortened(name)}", name, entry


def video_id(where: str, value: object) -> str:
    """Return an id if it can be the name of a file, without the white space around it."""
    name = checked_words(where, "video id", value)
    shown = f"{where}: video id {shortened(name)}"
    if any(mark in name for mark in ("/", "\\", "..")) or name == "." or not name.isprintable():
        raise AnnotationError(f"{shown} is not a name; expected one without '/', '\\' and '..'")
    if len(name) > MAX_ID_LENGTH:
        raise AnnotationError(f"{shown} has {len(name)} characters, more than {MAX_ID_LENGTH}")
    return name


def caption(where: str, name: str, value: object) -> str:
    """Return a caption without the white space around it; "" if it is blank, which the caller has to deal with."""
    return "" if isinstance(value, str) and not value.strip() else checked_words(where, name, value)


def captions(where: str, name: str, value: object) -> list[str]:
    """Return a list of captions, as `caption` returns each."""
    if not isinstance(value, list) or not value:
        raise AnnotationError(f"{where}: {name}={shortened(value)}: expected a list of at least one string")
    return [caption(where, f"{name}[{place}]", one) for place, one in enumerate(value)]


@dataclass(frozen=True)
class FileNames:
    """How the file of an id may be called: names before a video's suffix, and whole names, which go first."""

    stems: tuple[str, ...]
    whole: tuple[str, ...] = ()


def by_stem(name: str) -> FileNames:
    """Return the names of an id that is published without a suffix."""
    return FileNames((name,))


def locate(folder: Path, ids: Sequence[str], names: Callable[[str], FileNames] = by_stem) -> dict[str, Path]:
    """Find each id's one video file, if any, anywhere below a folder; links are followed, other files ignored."""
    if not folder.is_dir():
        raise AnnotationError(f"videos={str(folder)!r}: {'not a folder' if folder.exists() else 'no such folder'}")
    wanted = {name: names(name) for name in ids}
    whole: dict[str, list[Path]] = {one: [] for form in wanted.values() for one in form.whole}
    stems: dict[str, list[Path]] = {one: [] for form in wanted.values() for one in form.stems}
    for path in _walk(folder):
        if path.name in whole and path.is_file():
            whole[path.name].append(path)
        if path.stem in stems and path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
            stems[path.stem].append(path)
    located: dict[str, Path] = {}
    owner: dict[Path, str] = {}
    for name, form in wanted.items():
        found = [path for one in form.whole for path in whole[one]] or [p for one in form.stems for p in stems[one]]
        files = {Path(os.path.realpath(path)): path for path in sorted(found, reverse=True)}  # the first name of each
        if len(files) > 1:
            first, second = sorted(files.values())[:2]
            raise AnnotationError(f"videos: {name!r} has two files, {first} and {second}; keep one of them")
        for path in files.values():
            if other := owner.get(path):
                raise AnnotationError(f"videos: {other!r} and {name!r} are two videos, but {path} matches both")
            located[name], owner[path] = path, name
    return located


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, each real folder once, so that links that lead back end."""

    def stop(error: OSError) -> None:
        raise AnnotationError(f"videos: {error.filename} cannot be read: {error.strerror}") from error

    seen: set[str] = set()
    count = 0
    for top, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(top)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        count += len(files)
        if count > MAX_FILES:
            found = f"holds more than {MAX_FILES} files"
            raise AnnotationError(f"videos={str(folder)!r}: {found}; give the folder that contains the videos")
        yield from (Path(top, name) for name in files)
