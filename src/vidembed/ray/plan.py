"""What a run has to do: the files in folders and stores against the files in the index."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vidembed.index.files import IndexedFile, Listing, find_videos, is_local, path_of
from vidembed.index.ingest.opening import problems, vanished
from vidembed.index.ingest.plan import Candidate, Plan, make_plan
from vidembed.index.ingest.report import Problem
from vidembed.ray.stores import UNKNOWN_TIME, Address, StoreListing, clean, is_address, list_stores, open_store
from vidembed.video import VIDEO_SUFFIXES
from vidembed.video.fingerprint import FileState


@dataclass(frozen=True, slots=True)
class Work:
    """A file that must be read to know what to do with it.

    Attributes:
        candidate: The file.
        state: What its store told of it when it was listed; None for a local file, which tells when it is read.
    """

    candidate: Candidate
    state: FileState | None = None


@dataclass(slots=True)
class Found:
    """The files that a run is about.

    Attributes:
        local: Local ones.
        stored: Those in stores.
    """

    local: Listing = field(default_factory=Listing)
    stored: StoreListing = field(default_factory=StoreListing)

    @property
    def problems(self) -> list[Problem]:
        """What could not be listed and what vanished, as it stands in a report."""
        unreadable = [Problem(uri, type(error).__name__, clean(error)) for uri, error in self.stored.unreadable.items()]
        return problems(self.local) + unreadable + [vanished(uri, reason) for uri, reason in self.stored.vanished]


@dataclass(slots=True)
class Todo:
    """The files of a run.

    Attributes:
        local: The local files, sorted.
        stored: Those in stores.
        work: New, or written to since; local ones first, in the order of their paths and URIs.
        unchanged: How many are in the index as they are.
        gone: In the index, under a folder of this run, and no longer there.
    """

    local: Plan
    stored: StoreListing
    work: list[Work] = field(default_factory=list)
    unchanged: int = 0
    gone: list[IndexedFile] = field(default_factory=list)

    def is_gone(self, uri: str) -> bool:
        """Whether a file is under a folder of this run, and no longer there."""
        if is_local(uri):
            return self.local.is_gone(uri)
        return self.stored.knows(uri) and uri not in self.stored.files


def find(
    paths: Sequence[str | os.PathLike[str]],
    *,
    filesystem: Any = None,
    indexed: Callable[[], Iterable[str]] = tuple,
) -> Found:
    """List the videos among paths and URIs.

    Args:
        paths: Files and folders, by path or URI.
        filesystem: As `vidembed.ray.stores.open_store` takes.
        indexed: As `vidembed.index.files.find_videos` takes it.

    Raises:
        ValueError: There are none, one does not exist or cannot be read, or there is no video in any of them.
        OSError: A store cannot be reached, or refuses.
    """
    if not paths:
        raise ValueError("paths: none given; name at least one video or folder")
    uris = [str(path) for path in paths if is_address(str(path)) and not is_local(str(path))]
    others = [path_of(str(path)) if is_local(str(path)) else path for path in paths if str(path) not in set(uris)]
    found = Found()
    if uris:
        found.stored = list_stores(uris, VIDEO_SUFFIXES, filesystem=filesystem, indexed=indexed)
    if others:
        found.local = find_videos(others, VIDEO_SUFFIXES, indexed=indexed, or_none=bool(found.stored.files))
    elif not found.stored.files:
        raise ValueError(
            f"paths: no video in {', '.join(uris)}; looked for files ending in {', '.join(sorted(VIDEO_SUFFIXES))}"
            + "".join(f"; {uri} {reason}, and the index has files of it" for uri, reason in found.stored.vanished)
        )
    return found


def plan(found: Found, indexed: Mapping[str, IndexedFile], *, rehash: bool, filesystem: Any = None) -> Todo:
    """Sort the files of a run by what must be done with them, as `vidembed.index.ingest.plan.make_plan` does.

    Args:
        found: What there is.
        indexed: The files in the index, by URI.
        rehash: Read every file, whatever its size and time of last write.
        filesystem: As `vidembed.ray.stores.open_store` takes.

    Raises:
        OSError: A store cannot be reached, or refuses.
    """
    local = make_plan(found.local, {uri: file for uri, file in indexed.items() if is_local(uri)}, rehash=rehash)
    todo = Todo(local, found.stored, unchanged=len(local.unchanged), gone=list(local.gone))
    todo.work = [Work(candidate) for candidate in local.candidates]
    states = {uri: file.state for uri, file in found.stored.files.items()}
    for uri, file in indexed.items():
        if is_local(uri) or uri in states or not found.stored.knows(uri):
            continue
        try:  # the listing left it out, since its name has no video suffix, say
            states[uri] = open_store(address := Address.parse(uri), filesystem).state(address)
        except FileNotFoundError:
            todo.gone.append(file)
    for uri, state in sorted(states.items()):
        previous = indexed.get(uri)
        if previous is not None and not rehash and previous.state == state and state.mtime_ns != UNKNOWN_TIME:
            todo.unchanged += 1
        else:
            todo.work.append(Work(Candidate(Path("/", Address.parse(uri).path), uri, previous), state))
    todo.gone.sort(key=lambda file: file.uri)
    return todo


def waves(work: Sequence[Work], size: int) -> Iterator[Sequence[Work]]:
    """Yield `work` in portions of `size`."""
    for first in range(0, len(work), size):
        yield work[first : first + size]
