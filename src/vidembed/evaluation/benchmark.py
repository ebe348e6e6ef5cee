"""What a retrieval benchmark is: videos, texts, and which belong together."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vidembed.captions import read_captioned_videos
from vidembed.errors import AnnotationError
from vidembed.video import VIDEO_SUFFIXES


@dataclass(frozen=True, eq=False)
class Benchmark:
    """Videos, texts, and which text is true of which video, as one published protocol has it.

    Attributes:
        name: As `vidembed evaluate --benchmark` takes it, such as ``"msrvtt"``.
        title: As papers write it, such as ``"MSR-VTT 1k-A"``.
        split: Which part of the data, such as ``"test 1k-A"``.
        protocol: What counts as right, in a sentence or two.
        source: Where the annotation file is published (URL), or the file itself for a benchmark of the user's.
        video_ids: Names of the V videos, as the annotations have them; all different.
        videos: Their files, in the same order.
        texts: T texts. Equal ones are not merged where the protocol keeps them apart.
        owners: For each text the places of the videos it is true of, at least one.
        missing: Ids of videos that were left out with their texts, because there is no file (``allow_missing``).
        notes: What a reader of the result should know about this data, one sentence each.
    """

    name: str
    title: str
    split: str
    protocol: str
    source: str
    video_ids: tuple[str, ...]
    videos: tuple[Path, ...]
    texts: tuple[str, ...]
    owners: tuple[tuple[int, ...], ...]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Check that the parts fit.

        Raises:
            ValueError: They do not.
        """
        if len(self.videos) != len(self.video_ids) or len(set(self.video_ids)) != len(self.video_ids):
            raise ValueError(f"video_ids: {len(self.video_ids)} ids, all different, expected for {len(self.videos)}")
        if len(self.owners) != len(self.texts):
            raise ValueError(f"owners: got {len(self.owners)}, expected one a text, {len(self.texts)}")
        for row, places in enumerate(self.owners):
            if not places or not all(0 <= place < len(self.videos) for place in places):
                raise ValueError(f"owners[{row}]={places}: expected at least one place below {len(self.videos)}")
        owned = {place for places in self.owners for place in places}
        if bare := [one for place, one in enumerate(self.video_ids) if place not in owned]:
            raise ValueError(f"owners: no text is true of {len(bare)} videos, the first is {bare[0]!r}")

    @property
    def positives(self) -> NDArray[np.bool_]:
        """Which videos each text is true of, ``(T, V)``; its transpose is for the other direction."""
        mask = np.zeros((len(self.texts), len(self.videos)), dtype=np.bool_)
        for row, places in enumerate(self.owners):
            mask[row, list(places)] = True
        return mask


PROTOCOL = (
    "Every different text searches once, and every video that it is said of is right; for a video, any of its texts."
)


def read_custom(annotations: Path, videos: Path | None = None) -> Benchmark:
    """Read a JSONL or CSV file of captioned videos, as `vidembed.captions.read_captioned_videos` describes it.

    Equal texts are one, true of all their videos. A video's id is its path below the folder of the videos.

    Args:
        annotations: The file.
        videos: Folder that relative paths are taken from. Default: the folder of the file.

    Raises:
        AnnotationError: As `read_pairs`, or rows have labels.
    """
    pairs = read_captioned_videos(annotations, videos=videos)
    if any(pair.label is not None for pair in pairs):
        raise AnnotationError(
            f"{annotations}: rows have a label; retrieval takes every row for true, so leave out the rows that are "
            "false, and the column"
        )
    base = (annotations.parent if videos is None else videos).expanduser()
    first: dict[Path, Path] = {}  # by which of its spellings a file is known
    for pair in pairs:
        first.setdefault(_same(pair.video), pair.video)
    places = {video: place for place, video in enumerate(first)}
    owners: dict[str, dict[int, None]] = {}
    for pair in pairs:
        owners.setdefault(pair.text, {})[places[_same(pair.video)]] = None
    merged = len(pairs) - len(owners)
    return Benchmark(
        name="custom",
        title=annotations.stem,
        split="all rows",
        protocol=PROTOCOL,
        source=str(annotations),
        video_ids=tuple((v.relative_to(base) if v.is_relative_to(base) else v).as_posix() for v in first.values()),
        videos=tuple(first.values()),
        texts=tuple(owners),
        owners=tuple(tuple(sorted(one)) for one in owners.values()),
        notes=(f"{len(pairs)} rows have {len(owners)} different texts; equal ones are merged.",) if merged else (),
    )


def _same(video: Path) -> Path:
    """The path in one spelling; a link keeps its own name, as two names may be two videos with one content."""
    return Path(os.path.realpath(video.parent), video.name)


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
