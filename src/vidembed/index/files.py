"""The videos among paths and addresses of stores, by URI, and what a run must do with each of them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from vidembed.index.schema import IndexedFile, Segment
from vidembed.index.table import canonical, is_local, name_of, path_of, uri_of
from vidembed.video.clip import FileState
from vidembed.video.pool import Reading

VANISHED: Final = "PathVanished"
"""Kind of problem of a path that was named: the index has files of it, and no video is there now."""

UNKNOWN_TIME: Final = -1
"""The time of last write where a store has none. Such a file is read again in every run."""

MAX_MESSAGE: Final = 400
"""Characters of a store's own message that are passed on."""

ListStore: TypeAlias = Callable[[str], tuple[bool, dict[str, FileState | Exception]]]
"""Lists a URI of a store: whether it is a folder, and its files (or the one file) by URI, each with its state or what
is wrong with it. Raises OSError, which is FileNotFoundError where there is nothing."""

_EMPTY = "holds no video"
_SECRETS = ((re.compile(r"(://)[^\s/@'\"]+@"), r"\1...@"), (re.compile(r"(://[^\s?'\"]+)\?[^\s'\"]*"), r"\1?..."))
_OF_A_STORE = "; object stores need the Ray engine (--engine ray, or vidembed.ray.index_videos_ray)"


def clean(error: object) -> str:
    """Return the message of a store's error on one line, of bounded length, without what may be a secret in a URL."""
    text = " ".join(str(error).split())
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that could not be indexed.

    Attributes:
        uri: Its `file://` URI.
        kind: The sort of error: the name of an exception, such as a kind of `vidembed.video.VideoError`, or
            `InvalidDuration`, `InternalError` or `PathVanished`.
        message: What is wrong, and in which segment.
    """

    uri: str
    kind: str
    message: str


@dataclass(slots=True)
class Listing:
    """What was found, by URI. Nothing is known about what `unreadable` and `vanished` places hold."""

    # The videos: those of this machine, each real file once, sorted by path; those in stores with the state there.
    files: dict[str, FileState | None] = field(default_factory=dict)
    roots: list[str] = field(default_factory=list)  # the folders that were listed, each with a slash at its end
    unreadable: dict[str, Exception] = field(default_factory=dict)  # folders of this machine, and videos of stores
    # Places that were named, of which the index has files and where there is no video now, with what is the matter: a
    # drive that is not mounted, say.
    vanished: dict[str, str] = field(default_factory=dict)
    others: dict[str, FileState | None] = field(default_factory=dict)  # files of stores whose names are not of videos

    def knows(self, uri: str) -> bool:
        """Whether the listing would have met a file: it is under a root and not where nothing is known."""
        unknown = tuple(map(_as_folder, (*self.unreadable, *self.vanished)))
        return f"{uri}/".startswith(tuple(self.roots)) and not f"{uri}/".startswith(unknown)

    def has(self, uri: str) -> bool:
        """Whether a file is there, whatever it is called. A local one that cannot be reached may be."""
        if not is_local(uri):
            return uri in self.files or uri in self.others
        try:
            path_of(uri).lstat()
        except OSError as error:
            return not isinstance(error, FileNotFoundError | NotADirectoryError)
        return True

    def is_gone(self, uri: str) -> bool:
        """Whether a file is under a folder that was listed, and no longer a video there."""
        return self.knows(uri) and not (self.has(uri) if is_local(uri) else uri in self.files)

    @property
    def problems(self) -> list[Problem]:
        """What could not be read and what vanished, as it stands in a report."""
        advice = (
            "but the index has files of it, which are kept. If a drive is not mounted, mount it and run again. If the "
            "files were deleted, give a folder above it that still has videos, with --prune"
        )
        unreadable = {uri: error for uri, error in self.unreadable.items() if uri not in self.vanished}
        return [Problem(uri, type(error).__name__, _reason(error)) for uri, error in unreadable.items()] + [
            Problem(uri, VANISHED, f"{reason}, {advice}") for uri, reason in self.vanished.items()
        ]


def _reason(error: Exception) -> str:
    return clean(getattr(error, "strerror", None) or error)


@dataclass(frozen=True, slots=True)
class _Empty:
    """A place that was named and holds no video."""

    uris: tuple[str, ...]  # its own, and that of where it leads
    reason: str
    failure: Exception | None = None  # raised unless the place has vanished


def find_videos(
    paths: Sequence[str | os.PathLike[str]],
    suffixes: Iterable[str],
    *,
    uris: Sequence[str] = (),
    list_store: ListStore | None = None,
    indexed: Callable[[], Iterable[str]] = tuple,
) -> Listing:
    """List the videos among `paths` and, by `list_store`, `uris`: files as they are, folders to the bottom.

    In folders, files are taken by suffix, such as `.mp4` (either case), and names that begin with a dot are left out. A
    file given by name is taken whatever it is called. On this machine links are followed, each real folder once, so
    loops end, and a real file is listed once: under its own name if it has one here, else under the first link.

    `indexed` returns the URIs that the index has. It is called only if a place does not exist or holds no video; one of
    which the index has files, all of them gone, is then noted in `Listing.vanished`. Otherwise that is a ValueError, as
    is no video in any place, or an OSError where one cannot be reached.
    """
    if not paths and not uris:
        raise ValueError("paths: got none; give at least one video or folder")
    listing = Listing()
    wanted = tuple(sorted({suffix.lower() for suffix in suffixes}))
    empty = list(_list_local(paths, wanted, listing))
    if list_store is not None:
        empty += _list_stored(uris, wanted, listing, list_store)
    had = list(indexed()) if empty else []
    for place in empty:
        lost = []
        for uri in place.uris:
            under = [file for file in had if f"{file}/".startswith(_as_folder(uri))]
            if under and not (place.reason == _EMPTY and any(map(listing.has, under))):
                lost.append(uri)
        if not lost and place.failure is not None:
            raise place.failure
        listing.vanished |= dict.fromkeys(lost, place.reason)
    if not listing.files:
        raise ValueError(
            f"paths: no video in {', '.join([*(repr(str(path)) for path in paths), *uris])}; looked for files ending "
            f"in {', '.join(wanted)}"
            + "".join(f"; {name_of(uri)} could not be read ({_reason(why)})" for uri, why in listing.unreadable.items())
            + "".join(f"; {name_of(uri)} {why}, and the index has files of it" for uri, why in listing.vanished.items())
        )
    return listing


def _as_folder(uri: str) -> str:
    return uri.rstrip("/") + "/"


def _list_local(
    paths: Sequence[str | os.PathLike[str]], suffixes: tuple[str, ...], listing: Listing
) -> Iterator[_Empty]:
    """Add what is on this machine to `listing`, and yield the paths that hold no video."""
    found: set[tuple[str, str]] = set()  # path, and path of the real file
    for given in paths:
        path = canonical(given)
        real = Path(os.path.realpath(path))
        names = tuple(dict.fromkeys((uri_of(path), uri_of(real))))
        try:
            if path.is_dir():
                listing.roots.append(_as_folder(uri_of(real)))
                videos = set(_walk(str(real), suffixes, listing))
                found |= videos
                if not videos:
                    shut = listing.unreadable.get(uri_of(real))
                    yield _Empty((uri_of(real),), f"cannot be read ({_reason(shut)})" if shut else _EMPTY)
            elif path.exists():
                found.add((str(path), str(real)))
            else:
                elsewhere = "" if "://" not in str(given) else _OF_A_STORE
                missing = ValueError(f"path: {str(given)!r} does not exist{elsewhere}")
                yield _Empty(names, "does not exist", missing)
        except OSError as error:
            yield _Empty(names, f"cannot be read ({_reason(error)})", error)
    # A real file has the name that is not a link where there is one, else the first.
    named = {real: name for name, real in found if name == real}
    for name, real_name in sorted(found, key=lambda names: _by_parts(names[0])):
        named.setdefault(real_name, name)
    listing.files = {uri_of(Path(path)): None for path in sorted(named.values(), key=_by_parts)}


def _walk(root: str, suffixes: tuple[str, ...], listing: Listing) -> Iterator[tuple[str, str]]:
    """Yield the visible videos under `root`, each with the path of the real file; note unreadable folders in `listing`.

    All real folders come before any linked one, so a link never takes the place of the folder that it points to. Paths
    are strings, and only links are resolved: a folder of 100,000 files takes about as long as to list it.
    """
    seen: set[str] = set()
    pending = [root]
    while pending:
        links: list[str] = []
        for top in sorted(pending, key=_by_parts):
            folders = [(top, os.path.realpath(top))]
            while folders:
                folder, real = folders.pop()
                if real in seen:
                    continue
                seen.add(real)
                try:
                    with os.scandir(folder) as listed:
                        entries = [entry for entry in listed if not entry.name.startswith(".")]
                except OSError as error:
                    listing.unreadable[uri_of(Path(folder))] = error
                    continue
                for entry in entries:
                    is_link, is_folder = entry.is_symlink(), False
                    with suppress(OSError):  # a link that points to itself, say; reported when it is read
                        is_folder = entry.is_dir()
                    if is_folder and is_link:
                        links.append(entry.path)
                    elif is_folder:
                        folders.append((entry.path, os.path.join(real, entry.name)))  # noqa: PTH118 - quick
                    elif entry.name.lower().endswith(suffixes):
                        own = entry.path if real == folder else os.path.join(real, entry.name)  # noqa: PTH118 - quick
                        yield entry.path, os.path.realpath(own) if is_link else own
        pending = links


def _by_parts(path: str) -> str:
    """Return what sorts paths part by part, as `Path` does: no name has a NUL, and no character is below it."""
    return os.path.normcase(path).replace(os.sep, "\0")


def _list_stored(
    uris: Iterable[str], suffixes: tuple[str, ...], listing: Listing, list_store: ListStore
) -> Iterator[_Empty]:
    """Add what is in stores to `listing`, and yield the URIs that hold no video."""
    for uri in uris:
        try:
            is_folder, files = list_store(uri)
        except FileNotFoundError:
            yield _Empty((uri,), "does not exist", ValueError(f"path: {uri!r} does not exist"))
            continue
        except OSError as error:
            failure = OSError(f"path: {uri!r} cannot be listed: {clean(error)}")
            yield _Empty((uri,), f"cannot be listed ({clean(error)})", failure)
            continue
        root, is_empty = _as_folder(uri), True
        if is_folder:
            listing.roots.append(root)
        for file, state in files.items():
            known = None if isinstance(state, Exception) else state
            hidden = "/." in f"/{file.removeprefix(root)}"
            if is_folder and (hidden or not file.lower().endswith(suffixes)):
                listing.others[file] = known
                continue
            is_empty = False
            if isinstance(state, Exception):
                listing.unreadable[file] = state
            else:
                listing.files[file] = state
        if is_empty:
            yield _Empty((uri,), _EMPTY)


@dataclass(slots=True)
class Job:
    """A file that must be read to know what to do with it, on its way into the index."""

    path: Path
    uri: str
    previous: IndexedFile | None = None  # the file as indexed, if it is
    state: FileState = field(default_factory=lambda: FileState(0, 0))  # taken before the file was read
    content: str = ""  # SHA-256 of the file, hex; empty until it is known
    duration: float = 0.0  # seconds
    windows: list[tuple[float, float]] = field(default_factory=list)  # segments that the model must see, seconds
    vectors: dict[int, NDArray[np.float32]] = field(default_factory=dict)  # by position in `windows`; each (D,)
    reading: Reading | None = None  # its decoding, where the model must see it
    twin: Job | None = None  # an earlier job of this run with the same content
    stored: list[Segment] | None = None  # what the index had for this content when the job was prepared
    moved_from: IndexedFile | None = None  # the file of the index that has this content and is gone from disk
    problem: Problem | None = None  # why the file cannot be indexed
    undecodable: bool = False  # the problem is the content's, so that the file belongs in quarantine
    is_watched: bool = False  # what reads the file makes sure that it is not written to meanwhile

    @property
    def done(self) -> bool:
        """Whether nothing more is awaited from the model."""
        return self.problem is not None or len(self.vectors) == len(self.windows)

    def fail(self, kind: str, message: str) -> None:
        """Note the first problem."""
        if self.problem is None:
            self.problem = Problem(self.uri, kind, message)

    def is_as_it_was(self) -> bool:
        """Whether the file has not been written to since the job began."""
        try:
            return self.is_watched or FileState.of(self.path) == self.state
        except OSError:
            return False


@dataclass(slots=True)
class Plan:
    """The files of a run, sorted by what must be done with them."""

    unchanged: list[IndexedFile] = field(default_factory=list)  # neither size nor time of last write has changed
    jobs: list[Job] = field(default_factory=list)  # new, or written to since
    gone: list[IndexedFile] = field(default_factory=list)  # under a folder of this run, and no longer there


def make_plan(listing: Listing, indexed: Mapping[str, IndexedFile], *, rehash: bool = False) -> Plan:
    """Sort the files of a run, local ones first, in the order of their paths; `indexed` are those in the index, by URI.

    A file whose size and time of last write are those stored is taken to be unchanged, as git and rsync do, unless
    `rehash` is given. Content decides for the others, once they are read. A file of the index that the listing left out
    (its name has no video suffix, say) but that is there is treated as found.
    """
    plan = Plan()
    states = dict(listing.files)
    for uri, file in sorted(indexed.items()):
        if uri in states or not listing.knows(uri):
            continue
        if listing.has(uri):
            states[uri] = listing.others.get(uri)
        else:
            plan.gone.append(file)
    for uri in sorted(states, key=_in_order):
        path = path_of(uri) if is_local(uri) else Path(unquote(urlsplit(uri).path))
        job = Job(path, uri, previous := indexed.get(uri))
        if is_local(uri):
            with suppress(OSError):  # reported when the file is read
                job.state = FileState.of(path)
        elif (state := states[uri]) is not None:
            job.state = state
        is_timed = job.state.mtime_ns != UNKNOWN_TIME
        if previous is not None and job.state == previous.state and is_timed and not rehash:
            plan.unchanged.append(previous)
        else:
            plan.jobs.append(job)
    return plan


def _in_order(uri: str) -> tuple[bool, str]:
    """Return what sorts URIs: local files first, by path, then those of stores."""
    return (False, _by_parts(str(path_of(uri)))) if is_local(uri) else (True, uri)
