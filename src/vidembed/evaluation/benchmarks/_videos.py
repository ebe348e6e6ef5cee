"""The files of videos that annotations name by id."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidembed.annotations import AnnotationError
from vidembed.video import VIDEO_SUFFIXES

MAX_FILES = 2_000_000
"""Most files looked at in a folder of videos (ours): more is another folder, such as the root of a disk."""


@dataclass(frozen=True)
class FileNames:
    """How the file of an id may be called.

    Attributes:
        stems: Names before a video's suffix, such as ``("video7010",)``.
        whole: Names with their suffix, which go first.
    """

    stems: tuple[str, ...]
    whole: tuple[str, ...] = ()


def by_stem(name: str) -> FileNames:
    """Return the names of an id that is published without a suffix."""
    return FileNames((name,))


def locate(folder: Path, ids: Sequence[str], names: Callable[[str], FileNames] = by_stem) -> dict[str, Path]:
    """Find the video file of each id, anywhere below a folder; links are followed, and other files ignored.

    Args:
        folder: Where the videos lie.
        ids: All different.
        names: How the file of an id may be called.

    Returns:
        The file of each id that has one.

    Raises:
        AnnotationError: The folder is none or cannot be read; an id has two files, or two ids have one file.
    """
    if not folder.is_dir():
        raise AnnotationError(f"videos={str(folder)!r}: {'not a folder' if folder.exists() else 'no such folder'}")
    wanted = {name: names(name) for name in ids}
    whole_names = {one for form in wanted.values() for one in form.whole}
    stem_names = {one for form in wanted.values() for one in form.stems}
    whole: defaultdict[str, list[Path]] = defaultdict(list)
    stems: defaultdict[str, list[Path]] = defaultdict(list)
    for path in _walk(folder):
        if path.name in whole_names and path.is_file():
            whole[path.name].append(path)
        if path.stem in stem_names and path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
            stems[path.stem].append(path)
    located: dict[str, Path] = {}
    owner: dict[Path, str] = {}
    for name, form in wanted.items():
        found = [path for one in form.whole for path in whole[one]] or [p for one in form.stems for p in stems[one]]
        files = {Path(os.path.realpath(path)): path for path in sorted(found, reverse=True)}  # the first name of each
        if len(files) > 1:
            first, second = sorted(files.values())[:2]
            raise AnnotationError(f"videos: {name!r} has two files, {first} and {second}; keep the right one")
        for path in files.values():
            if path in owner:
                raise AnnotationError(
                    f"videos: {owner[path]!r} and {name!r} are two videos, but both are named by {path}"
                )
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
            raise AnnotationError(
                f"videos={str(folder)!r}: holds more than {MAX_FILES} files; give the videos' own folder"
            )
        yield from (Path(top, name) for name in files)
