"""Which files a run is about: folders walked in a fixed order, and the URIs that name files, here and elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from vidembed.video.clip import FileState


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A file as the index has it."""

    uri: str
    content_fingerprint: str  # SHA-256 of its bytes, hex
    state: FileState  # when it was indexed
    segments: int  # rows it has


@dataclass(slots=True)
class Listing:
    """What the walk found. Nothing is known about what `unreadable` and `vanished` paths hold."""

    files: list[Path] = field(default_factory=list)  # the videos, absolute, each real file once, sorted by path
    roots: list[Path] = field(default_factory=list)  # the folders that were walked
    unreadable: list[tuple[Path, OSError]] = field(default_factory=list)  # folders that could not be listed, and why
    # Paths that were named, of which the index has files and where there is no video now, with what is the matter: a
    # drive that is not mounted, say.
    vanished: list[tuple[Path, str]] = field(default_factory=list)

    def knows(self, path: Path) -> bool:
        """Whether the walk would have met `path`: it is under a root and not where nothing is known."""
        return any(path.is_relative_to(root) for root in self.roots) and not any(
            path.is_relative_to(folder) for folder, _ in (*self.unreadable, *self.vanished)
        )


def canonical(path: str | os.PathLike[str]) -> Path:
    """Return `path` absolute, with links resolved in its folders but not in its last part.

    The last part keeps the name the user gave: stores such as git-annex link `holiday.mp4` to a hash without a suffix.
    """
    absolute = Path(path).expanduser().absolute()
    if absolute.name in {"", ".."}:
        return _real(absolute)
    return _real(absolute.parent) / absolute.name


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # where Path.resolve() raises on a link that points to itself


def uri_of(path: Path) -> str:
    """Return the percent-encoded `file://` URI of an absolute path; names that are not UTF-8 keep their bytes."""
    return path.as_uri()


def is_local(uri: str) -> bool:
    """Whether a URI of the index is one of `uri_of`, and not of an object store or another file system."""
    return uri.startswith("file://")


def name_of(uri: str) -> str:
    """Return how a file of the index is shown: its path if it is a local one, else its URI with nothing encoded."""
    return str(path_of(uri)) if is_local(uri) else unquote(uri)


def file_name_of(uri: str) -> str:
    """Return the last part of the name of a file of the index, such as `holiday.mp4`."""
    return path_of(uri).name if is_local(uri) else unquote(uri.rpartition("/")[2])


def path_of(uri: str) -> Path:
    """Return the path of a URI made by `uri_of`.

    Raises:
        ValueError: `uri` is not a `file://` URI; see `is_local`.
    """
    parts = urlsplit(uri)
    if parts.scheme != "file":
        raise ValueError(f"uri: got {uri!r}; a file:// URI is needed")
    if os.name == "nt":
        return Path(url2pathname(f"//{parts.netloc}{parts.path}" if parts.netloc else parts.path))
    return Path(os.fsdecode(unquote_to_bytes(parts.path)))


_EMPTY = "holds no video"
_OF_A_STORE = "; addresses of stores are for the Ray engine (--engine ray, or vidembed.ray.index_videos_ray)"


def find_videos(
    paths: Sequence[str | os.PathLike[str]],
    suffixes: Iterable[str],
    *,
    indexed: Callable[[], Iterable[str]] = tuple,
    or_none: bool = False,
) -> Listing:
    """List the videos among `paths`: files as they are, folders walked to the bottom.

    In folders, files are taken by suffix (either case), names that begin with a dot are left out, and links are
    followed, each real folder once, so loops end. A file given by name is taken whatever it is called. A real file is
    listed once: under a name of its own where there is one, else under the first link in sorted order.

    Args:
        paths: Files and folders, at least one.
        suffixes: File suffixes with their dot, such as `.mp4`.
        indexed: Returns the URIs that the index has. Called only if a path does not exist or holds no video; one of
            which the index has files, all of them gone, is then noted in `Listing.vanished`.
        or_none: Allow that there is no video at all.

    Raises:
        ValueError: There are no paths, one does not exist (and has not vanished), or there is no video in any of them.
        OSError: A path cannot be reached (and has not vanished).
    """
    if not paths:
        raise ValueError("paths: none given; name at least one video or folder")
    listing = Listing()
    wanted = tuple(sorted({suffix.lower() for suffix in suffixes}))
    found: set[tuple[str, str]] = set()  # path, and path of the real file
    empty: list[tuple[set[Path], str, Exception | None]] = []  # the path and where it leads, reason, error
    for given in paths:
        path = canonical(given)
        real = _real(path)
        try:
            if path.is_dir():
                listing.roots.append(real)
                videos = set(_walk(str(real), wanted, listing))
                found |= videos
                if not videos:
                    shut = next((error for folder, error in listing.unreadable if folder == real), None)
                    empty.append(({real}, _EMPTY if shut is None else f"cannot be read ({shut.strerror})", None))
            elif path.exists():
                found.add((str(path), str(real)))
            else:
                elsewhere = "" if "://" not in str(given) else _OF_A_STORE
                missing = ValueError(f"path: {str(given)!r} does not exist{elsewhere}")
                empty.append(({path, real}, "does not exist", missing))
        except OSError as error:
            empty.append(({path, real}, f"cannot be read ({error.strerror})", error))
    listing.files = [Path(path) for path in _one_name_each(found)]
    _note_vanished(empty, indexed, listing)
    if not listing.files and not or_none:
        given_names = ", ".join(repr(str(path)) for path in paths)
        raise ValueError(
            f"paths: no video in {given_names}; looked for files ending in {', '.join(wanted)}"
            + "".join(f"; {folder} could not be read ({error.strerror})" for folder, error in listing.unreadable)
            + "".join(f"; {path} {reason}, and the index has files of it" for path, reason in listing.vanished)
        )
    return listing


def is_gone(path: Path) -> bool:
    """Whether a file is not there any more. One that cannot be reached may be."""
    try:
        path.lstat()
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


def _note_vanished(
    empty: Sequence[tuple[set[Path], str, Exception | None]], indexed: Callable[[], Iterable[str]], listing: Listing
) -> None:
    """Note which of the paths without a video have vanished, and raise the error of one that has not and has one."""
    had = [path_of(uri) for uri in indexed() if is_local(uri)] if empty else []
    for paths, reason, error in empty:
        under = {path: [file for file in had if file.is_relative_to(path)] for path in paths}
        lost = [path for path, files in under.items() if files and (reason != _EMPTY or all(map(is_gone, files)))]
        if not lost and error is not None:
            raise error
        listing.vanished += [(path, reason) for path in lost]


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
                    listing.unreadable.append((Path(folder), error))
                    continue
                for entry in entries:
                    is_link = entry.is_symlink()
                    if _is_folder(entry):
                        if is_link:
                            links.append(entry.path)
                        else:
                            folders.append((entry.path, os.path.join(real, entry.name)))  # noqa: PTH118 - quick
                    elif entry.name.lower().endswith(suffixes):
                        own = entry.path if real == folder else os.path.join(real, entry.name)  # noqa: PTH118 - quick
                        yield entry.path, os.path.realpath(own) if is_link else own
        pending = links


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself, say; reported when it is read
        return False


def _by_parts(path: str) -> str:
    """Return what sorts paths part by part, as `Path` does: no name has a NUL, and no character is below it."""
    return os.path.normcase(path).replace(os.sep, "\0")


def _one_name_each(found: Iterable[tuple[str, str]]) -> list[str]:
    """Return one path for each real file, sorted: the one that is not a link where there is one, else the first."""
    names = {real: path for path, real in found if path == real}
    for path, real in sorted((pair for pair in found if pair[0] != pair[1]), key=lambda pair: _by_parts(pair[0])):
        names.setdefault(real, path)
    return sorted(names.values(), key=_by_parts)
