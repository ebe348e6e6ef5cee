"""Which files a run is about: folders walked in a fixed order, and the URIs that name files, here and elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit
from urllib.request import url2pathname

from vidembed.video.fingerprint import FileState


@dataclass(frozen=True, slots=True)
class IndexedFile:
    """A file as the index has it.

    Attributes:
        uri: Its URI.
        content_fingerprint: SHA-256 of its bytes, hex.
        state: Size and time of last write when it was indexed.
        segments: Rows it has.
    """

    uri: str
    content_fingerprint: str
    state: FileState
    segments: int


@dataclass(slots=True)
class Listing:
    """What the walk found.

    Attributes:
        files: The videos, absolute, each real file once, sorted by path.
        roots: The folders that were walked.
        unreadable: Folders that could not be listed, with the reason. Nothing is known about what they hold.
    """

    files: list[Path] = field(default_factory=list)
    roots: list[Path] = field(default_factory=list)
    unreadable: list[tuple[Path, OSError]] = field(default_factory=list)

    def knows(self, path: Path) -> bool:
        """Whether the walk would have met `path`: it is under a root and not under a folder that could not be read."""
        return any(path.is_relative_to(root) for root in self.roots) and not any(
            path.is_relative_to(folder) for folder, _ in self.unreadable
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
    # Path.resolve() raises on a link that points to itself; realpath() leaves it for open() to report.
    return Path(os.path.realpath(path))


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


_OF_A_STORE = "; addresses of stores are for the Ray engine (--engine ray, or vidembed.ray.index_videos_ray)"


def find_videos(paths: Sequence[str | os.PathLike[str]], suffixes: Iterable[str]) -> Listing:
    """List the videos among `paths`: files as they are, folders walked to the bottom.

    In folders, files are taken by suffix (either case), names that begin with a dot are left out, and links are
    followed, each real folder once, so loops end. A file given by name is taken whatever it is called. A real file is
    listed once: under a name of its own where there is one, else under the first link in sorted order.

    Args:
        paths: Files and folders, at least one.
        suffixes: File suffixes with their dot, such as `.mp4`.

    Raises:
        ValueError: There are no paths, one does not exist, or there is no video in any of them.
    """
    if not paths:
        raise ValueError("paths: none given; name at least one video or folder")
    listing = Listing()
    wanted = frozenset(suffix.lower() for suffix in suffixes)
    found: set[Path] = set()
    for given in paths:
        path = canonical(given)
        if path.is_dir():
            root = _real(path)
            listing.roots.append(root)
            found.update(file for file in _walk(root, listing) if file.suffix.lower() in wanted)
        elif path.exists():
            found.add(path)
        else:
            elsewhere = "" if "://" not in str(given) else _OF_A_STORE
            raise ValueError(f"path: {str(given)!r} does not exist{elsewhere}")
    listing.files = sorted(_one_name_each(found))
    if not listing.files:
        given_names = ", ".join(repr(str(path)) for path in paths)
        raise ValueError(
            f"paths: no video in {given_names}; looked for files ending in {', '.join(sorted(wanted))}"
            + "".join(f"; {folder} could not be read ({error.strerror})" for folder, error in listing.unreadable)
        )
    return listing


def _walk(root: Path, listing: Listing) -> Iterator[Path]:
    """Yield the visible files under `root`, and note folders that cannot be read in `listing`.

    All real folders come before any linked one, so a link never takes the place of the folder that it points to.
    """
    seen: set[Path] = set()
    pending = [root]
    while pending:
        links: list[Path] = []
        for top in sorted(pending):
            for folder, folders, files in os.walk(top, onerror=lambda error: _note(error, listing)):
                here = Path(folder)
                real = _real(here)
                if real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                links.extend(here / name for name in folders if (here / name).is_symlink())
                yield from (here / name for name in sorted(files) if not name.startswith("."))
        pending = links


def _note(error: OSError, listing: Listing) -> None:
    listing.unreadable.append((Path(error.filename), error))


def _one_name_each(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield one path for each real file: the one that is not a link where there is one, else the first."""
    taken: set[Path] = set()
    for path in sorted(paths, key=lambda path: (_real(path) != path, path)):
        real = _real(path)
        if real not in taken:
            taken.add(real)
            yield path
