"""What a run has to do: the files on disk against the files in the index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vidembed.index.files import IndexedFile, Listing, is_gone, is_local, path_of, uri_of
from vidembed.video.fingerprint import FileState


@dataclass(frozen=True, slots=True)
class Candidate:
    """A file that must be read to know what to do with it.

    Attributes:
        path: Where it is.
        uri: Its `file://` URI.
        previous: The file as indexed, or None where it is not in the index.
    """

    path: Path
    uri: str
    previous: IndexedFile | None


@dataclass(slots=True)
class Plan:
    """The files of a run.

    Attributes:
        unchanged: In the index, and neither size nor time of last write has changed.
        candidates: New, or written to since; in the order of their paths.
        gone: In the index, under a folder of this run, and no longer on disk.
        listing: The files on disk.
    """

    listing: Listing
    unchanged: list[IndexedFile] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    gone: list[IndexedFile] = field(default_factory=list)

    def is_gone(self, uri: str) -> bool:
        """Whether a file is under a folder of this run, and no longer on disk."""
        return is_local(uri) and self.listing.knows(path := path_of(uri)) and is_gone(path)


def make_plan(listing: Listing, indexed: Mapping[str, IndexedFile], *, rehash: bool = False) -> Plan:
    """Sort the files of a run by what must be done with them.

    A file whose size and time of last write are those stored is taken to be unchanged, as git and rsync do. Content
    decides for the others, once they are read. A file of the index that the walk left out (its name has no video
    suffix, say) but that is on disk is treated as found.

    Args:
        listing: The files on disk.
        indexed: The files in the index, by URI.
        rehash: Read every file, whatever its size and time of last write.
    """
    plan = Plan(listing)
    paths = {uri_of(path): path for path in listing.files}
    for uri, file in indexed.items():
        if uri in paths or not is_local(uri) or not listing.knows(path := path_of(uri)):
            continue
        if is_gone(path):
            plan.gone.append(file)
        else:
            paths[uri] = path
    for uri, path in sorted(paths.items(), key=lambda item: item[1]):
        previous = indexed.get(uri)
        if previous is not None and not rehash and _state(path) == previous.state:
            plan.unchanged.append(previous)
        else:
            plan.candidates.append(Candidate(path, uri, previous))
    plan.gone.sort(key=lambda file: file.uri)
    return plan


def _state(path: Path) -> FileState | None:
    try:
        return FileState.of(path)
    except OSError:
        return None  # reported when the file is read
