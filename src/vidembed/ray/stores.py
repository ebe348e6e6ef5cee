"""Where videos lie that are not local files: object stores and other file systems, by URI.

A URI here is percent-encoded, has no user name, password or options in it, and is the same in every run, so that it can
stand in rows and messages. Credentials come from the environment, as each store has it, or with a file system object.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Protocol
from urllib.parse import quote, unquote

from filelock import FileLock, Timeout

from vidembed.errors import EmptyFile, InvalidVideoInput, VideoError, VideoNotFound, VideoPermission, VideoTooLarge
from vidembed.index.files import canonical, is_local, path_of, uri_of
from vidembed.video.sampling import FileState, content_fingerprint
from vidembed.video.source import check_regular, item_name

if TYPE_CHECKING:
    from types import ModuleType


UNKNOWN_TIME: Final = -1
"""Stands for a time of last write that the store does not tell. Such a file is read again in every run."""
MAX_MESSAGE: Final = 400
"""Characters of a store's own message that are passed on."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two characters or more: "C:" is a drive
_CONTAINER_BEFORE_HOST = frozenset({"abfs", "abfss"})  # container@account.dfs.core.windows.net
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")  # as the stores of fsspec name it
_SECRETS = (
    (re.compile(r"(://)[^\s/@'\"]+@"), r"\1...@"),
    (re.compile(r"(://[^\s?'\"]+)\?[^\s'\"]*"), r"\1?..."),
)


def is_address(text: str) -> bool:
    """Whether a text names a place by scheme, such as `s3://bucket/a.mp4`, and not a path."""
    return _SCHEME.match(text) is not None


@dataclass(frozen=True, slots=True)
class Address:
    """A place in a store.

    Attributes:
        scheme: In lower case, such as `s3`.
        authority: What stands before the first slash, such as a bucket.
        path: The rest, without a leading slash, with nothing encoded; empty for the whole store.
    """

    scheme: str
    authority: str
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read a URI; characters that should be encoded and are not, such as a space, are taken as they are.

        Raises:
            ValueError: It has a user name, a password, options or a fragment in it, or is of http(s).
        """
        found = _SCHEME.match(text)
        if found is None:
            raise ValueError(f"path: got {text!r}; a URI such as s3://bucket/folder is needed")
        scheme = found[1].lower()
        authority, _, path = text[found.end() :].partition("/")
        if "@" in authority and (scheme not in _CONTAINER_BEFORE_HOST or ":" in authority.rpartition("@")[0]):
            raise ValueError(
                f"path: a {scheme} URI with a user name or password in it. Leave them out: credentials are taken from "
                "the environment, as the store has it, or given with a file system object (filesystem=)"
            )
        for mark, encoded in (("?", "%3F"), ("#", "%23")):
            if mark in text:
                raise ValueError(
                    f"path: a {scheme} URI with {mark!r} in it. In a name, write it as {encoded}; options of a store "
                    "are taken from the environment, or given with a file system object (filesystem=)"
                )
        if scheme in {"http", "https"}:
            raise ValueError(
                f"path: {scheme} cannot be listed. Name an object store, such as s3:// or gs://, or download the videos"
            )
        return cls(scheme, unquote(authority), unquote(path, errors="surrogateescape"))

    @property
    def uri(self) -> str:
        """The one way to write it; ASCII, without quotes and white space."""
        path = self.path.encode("utf-8", "surrogateescape")  # names that are not UTF-8 keep their bytes
        return f"{self.scheme}://{quote(self.authority, safe='@:')}/{quote(path)}"

    @property
    def root(self) -> str:
        """The store as a URI, without a path."""
        return f"{self.scheme}://{self.authority}"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in a store.

    Attributes:
        uri: As `Address.uri` writes it.
        state: Size and time of last write, which is `UNKNOWN_TIME` where the store does not tell.
        error: Why there is no state that can be used, for a file of which the store tells what makes no sense.
    """

    uri: str
    state: FileState = field(default_factory=lambda: FileState(0, UNKNOWN_TIME))
    error: Exception | None = None


@dataclass(slots=True)
class StoreListing:
    """The videos in stores.

    Attributes:
        files: By URI.
        roots: URIs of the folders that were listed, each with a slash at its end.
        unreadable: Videos that were listed and of which the store tells what makes no sense, by URI.
        vanished: URIs that were named, of which the index has files and where there is no video now, with what is the
            matter. Nothing is known about what they hold.
    """

    files: dict[str, StoredFile] = field(default_factory=dict)
    roots: list[str] = field(default_factory=list)
    unreadable: dict[str, Exception] = field(default_factory=dict)
    vanished: list[tuple[str, str]] = field(default_factory=list)

    def knows(self, uri: str) -> bool:
        """Whether the listing would have had `uri`."""
        lost = tuple(root.rstrip("/") + "/" for root, _ in self.vanished)
        return uri.startswith(tuple(self.roots)) and not uri.startswith(lost) and uri not in self.unreadable


class Store(Protocol):
    """A file system that is read by URI."""

    def find(self, address: Address) -> tuple[bool, Iterable[StoredFile]]:
        """Return whether there is a folder, and the files in it, or the one file.

        Raises:
            FileNotFoundError: There is neither.
            OSError: The store cannot be reached, or refuses.
        """
        ...

    def state(self, address: Address) -> FileState:
        """Return size and time of last write of a file.

        Raises:
            FileNotFoundError: There is no such file.
            OSError: The store cannot be reached, or refuses.
        """
        ...

    def open(self, address: Address) -> BinaryIO:
        """Open a file for reading from its beginning to its end.

        Raises:
            OSError: It cannot be opened.
        """
        ...


@dataclass(frozen=True, slots=True)
class ArrowStore:
    """A store through `pyarrow.fs`.

    Args:
        filesystem: A `pyarrow.fs.FileSystem`.
        base: Path of the address without a path within it.
    """

    filesystem: Any
    base: str

    def find(self, address: Address) -> tuple[bool, Iterable[StoredFile]]:
        """As `Store.find`."""
        from pyarrow import fs  # noqa: PLC0415 - it takes a while, which --help need not wait for

        info = self.filesystem.get_file_info(self._path(address))
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(address.uri)
        if info.type == fs.FileType.File:
            return False, [_stored(address, self._state, info)]
        inside = self.filesystem.get_file_info(fs.FileSelector(self._path(address), recursive=True))
        files = (info for info in inside if info.type == fs.FileType.File)
        return True, (_stored(self._address(address, info.path), self._state, info) for info in files)

    def state(self, address: Address) -> FileState:
        """As `Store.state`."""
        info = self.filesystem.get_file_info(self._path(address))
        if not info.is_file:
            raise FileNotFoundError(address.uri)
        return self._state(info)

    def open(self, address: Address) -> BinaryIO:
        """As `Store.open`."""
        stream: BinaryIO = self.filesystem.open_input_stream(self._path(address), compression=None)
        return stream

    def _path(self, address: Address) -> str:
        return f"{self.base}/{address.path}".rstrip("/") if self.base else address.path

    def _address(self, under: Address, path: str) -> Address:
        return Address(under.scheme, under.authority, path.removeprefix(self.base).lstrip("/"))

    @staticmethod
    def _state(info: Any) -> FileState:
        return FileState(int(info.size), UNKNOWN_TIME if info.mtime_ns is None else int(info.mtime_ns))


@dataclass(frozen=True, slots=True)
class FsspecStore:
    """A store through `fsspec`.

    Args:
        filesystem: An `fsspec.AbstractFileSystem`.
        base: Path of the address without a path within it.
    """

    filesystem: Any
    base: str

    def find(self, address: Address) -> tuple[bool, Iterable[StoredFile]]:
        """As `Store.find`."""
        info = self.filesystem.info(self._path(address))
        if info["type"] == "file":
            return False, [_stored(address, self._state, info)]
        inside = self.filesystem.find(self._path(address), detail=True)
        return True, (
            _stored(self._address(address, path), self._state, info)
            for path, info in inside.items()
            if info["type"] == "file"
        )

    def state(self, address: Address) -> FileState:
        """As `Store.state`."""
        self.filesystem.invalidate_cache()  # else an earlier listing may answer
        info = self.filesystem.info(self._path(address))
        if info["type"] != "file":
            raise FileNotFoundError(address.uri)
        return self._state(info)

    def open(self, address: Address) -> BinaryIO:
        """As `Store.open`."""
        stream: BinaryIO = self.filesystem.open(self._path(address), "rb")
        return stream

    def _path(self, address: Address) -> str:
        return f"{self.base.rstrip('/')}/{address.path}".rstrip("/")

    def _address(self, under: Address, path: str) -> Address:
        inside = path.lstrip("/").removeprefix(self.base.strip("/")).lstrip("/")
        return Address(under.scheme, under.authority, inside)

    def _state(self, info: Mapping[str, Any]) -> FileState:
        found = next((info[key] for key in _TIMES if info.get(key) is not None), None)
        if found is None:
            try:
                found = self.filesystem.modified(info["name"])
            except (NotImplementedError, KeyError):
                return FileState(int(info["size"]), UNKNOWN_TIME)
        return FileState(int(info["size"]), _nanoseconds(found))


def _stored(address: Address, state: Callable[[Any], FileState], info: Any) -> StoredFile:
    """Return a file as it is listed. Whatever a store tells of one file, the others are listed."""
    try:
        return StoredFile(address.uri, state(info))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this file's problem
        shown = address.path.encode("utf-8", "backslashreplace").decode()
        return StoredFile(replace(address, path=shown).uri, error=error)


def _nanoseconds(moment: Any) -> int:
    try:
        if isinstance(moment, str):
            moment = datetime.fromisoformat(moment)
        seconds = moment.timestamp() if isinstance(moment, datetime) else float(moment)
        return round(seconds * 1e9)
    except (ValueError, TypeError, OverflowError):
        return UNKNOWN_TIME


def open_store(address: Address, filesystem: Any = None) -> Store:
    """Return the store that an address is in: through `pyarrow.fs` where it knows the scheme, else through `fsspec`.

    Args:
        address: Any place in it.
        filesystem: A `pyarrow.fs.FileSystem` or `fsspec.AbstractFileSystem` to use instead, with the credentials and
            options that it was made with. As in Ray Data, the paths within it are URIs without their scheme.

    Raises:
        ValueError: Nothing that is installed reads this scheme, or `filesystem` is neither.
        OSError: The store cannot be reached, or refuses.
    """
    from pyarrow import ArrowInvalid, ArrowNotImplementedError, fs  # noqa: PLC0415 - it takes a while

    if isinstance(filesystem, fs.FileSystem):
        return ArrowStore(filesystem, address.authority)
    fsspec = _fsspec()
    if filesystem is not None:
        if fsspec is None or not isinstance(filesystem, fsspec.AbstractFileSystem):
            raise ValueError(
                f"filesystem: got a {type(filesystem).__name__}; a pyarrow.fs.FileSystem or an "
                "fsspec.AbstractFileSystem is needed"
            )
        return FsspecStore(filesystem, address.authority)
    try:
        found, base = fs.FileSystem.from_uri(address.root)
    except (ArrowInvalid, ArrowNotImplementedError) as error:
        return _open_fsspec(address, fsspec, error)
    return ArrowStore(found, base.rstrip("/"))


def _fsspec() -> ModuleType | None:
    try:
        return importlib.import_module("fsspec")
    except ImportError:
        return None


def _open_fsspec(address: Address, fsspec: Any, arrow_error: Exception) -> Store:
    if fsspec is None:
        raise ValueError(
            f"path: pyarrow does not read {address.scheme!r} ({arrow_error}), and fsspec is not installed, which may; "
            "install it and its package for this store"
        ) from arrow_error
    try:
        kind = fsspec.get_filesystem_class(address.scheme)
        found = kind(**kind._get_kwargs_from_urls(address.root))
        return FsspecStore(found, kind._strip_protocol(address.root))
    except (ValueError, ImportError, TypeError) as error:
        raise ValueError(
            f"path: neither pyarrow nor fsspec reads {address.scheme!r} as it is here ({clean(error)}); install the "
            "package of that store, or give a file system object (filesystem=)"
        ) from error


def list_stores(
    uris: Iterable[str],
    suffixes: Iterable[str],
    *,
    filesystem: Any = None,
    indexed: Callable[[], Iterable[str]] = tuple,
) -> StoreListing:
    """List the videos at URIs: files as they are, folders to the bottom.

    In folders, files are taken by suffix (either case), and those with a part of their path that begins with a dot are
    left out. A file given by name is taken whatever it is called.

    Args:
        uris: Of files and folders.
        suffixes: File suffixes with their dot, such as `.mp4`.
        filesystem: As `open_store` takes.
        indexed: As `vidembed.index.files.find_videos` takes it, for `StoreListing.vanished`.

    Raises:
        ValueError: A URI is malformed, nothing is there (and it has not vanished), or nothing that is installed reads
            it.
        OSError: A store cannot be reached, or refuses (and what is asked of it has not vanished).
    """
    listing = StoreListing()
    wanted = tuple({suffix.lower() for suffix in suffixes})
    empty: list[tuple[str, str, Exception | None, set[str]]] = []
    for given in uris:
        address = Address.parse(given)
        try:
            is_folder, files = open_store(address, filesystem).find(address)
        except FileNotFoundError:
            missing = ValueError(f"path: {address.uri!r} does not exist")
            empty.append((address.uri, "does not exist", missing, set()))
            continue
        except OSError as error:
            shut = OSError(f"path: {address.uri!r} cannot be listed: {clean(error)}")
            empty.append((address.uri, f"cannot be listed ({clean(error)})", shut, set()))
            continue
        there = list(files)
        videos = there
        if is_folder:
            root = address.uri.rstrip("/") + "/"
            listing.roots.append(root)
            videos = [file for file in there if _is_wanted(file.uri.removeprefix(root), wanted)]
            if not videos:
                empty.append((address.uri, "holds no video", None, {file.uri for file in there}))
        listing.files.update((file.uri, file) for file in videos if file.error is None)
        listing.unreadable.update((file.uri, file.error) for file in videos if file.error is not None)
    _note_vanished(empty, indexed, listing)
    return listing


def _note_vanished(
    empty: Sequence[tuple[str, str, Exception | None, set[str]]],
    indexed: Callable[[], Iterable[str]],
    listing: StoreListing,
) -> None:
    """Note which of the URIs without a video have vanished, and raise the error of one that has not and has one."""
    had = list(indexed()) if empty else []
    for uri, reason, error, there in empty:
        under = {file for file in had if file == uri or file.startswith(uri.rstrip("/") + "/")}
        if under and not under & there:
            listing.vanished.append((uri, reason))
        elif error is not None:
            raise error


def _is_wanted(inside: str, suffixes: tuple[str, ...]) -> bool:
    return inside.lower().endswith(suffixes) and not any(part.startswith(".") for part in inside.split("/"))


def clean(error: object) -> str:
    """Return the message of a store's error on one line, of bounded length, without what may be a secret in a URL."""
    text = " ".join(str(error).split())
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


def same_file(before: FileState, after: FileState) -> bool:
    """Whether a file can still be the one that was listed: of one size, and one time to the second.

    Stores tell the time of one file by the second (HTTP's `Last-Modified`) and in listings more exactly.
    """
    second = 1_000_000_000
    return before.size == after.size and before.mtime_ns // second == after.mtime_ns // second


MAX_FILE_BYTES: Final = 16 * 2**30
"""Default limit on the size of one file that is copied from a store: over any film, below most disks (our choice)."""

_CHUNK = 8 * 2**20  # bytes; each is a request to most stores
_FOLDER = "vidembed-ray-"
_DRAFT = "vidembed-draft-"  # until it is locked
_LOCK = "lock"


class ChangedWhileRead(VideoError):  # noqa: N818 - named as in reports
    """The file was written to while it was being read."""


@dataclass(slots=True)
class Fetched:
    """A file at hand.

    Attributes:
        path: Where it can be opened.
        content: SHA-256 of its bytes, hex.
        state: Size and time of last write, as its store tells.
    """

    path: Path
    content: str
    state: FileState


class Fetcher:
    """Gets files by path or URI. Closed by `close`, or with the process: what a killed one left, the next removes.

    Args:
        filesystem: As `vidembed.ray.stores.open_store` takes, for what is not local.
        max_bytes: Limit on the size of a file that is copied.
    """

    def __init__(self, *, filesystem: Any = None, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._filesystem = filesystem
        self._max_bytes = max_bytes
        self._stores: dict[str, Store] = {}
        self._folder: Path | None = None
        self._lock: FileLock | None = None

    def uri(self, name: str) -> str:
        """Return the URI that a path or URI has in the index.

        Raises:
            InvalidVideoInput: It is neither an absolute path nor a URI that is read.
        """
        try:
            if is_local(name):
                return uri_of(canonical(path_of(name)))
            if is_address(name):
                return Address.parse(name).uri
        except ValueError as error:
            raise InvalidVideoInput(clean(name), str(error)) from error
        if not Path(name).is_absolute():
            raise InvalidVideoInput(
                item_name(name), "a relative path, which means something else on each machine; give an absolute one"
            )
        return uri_of(canonical(name))

    @contextmanager
    def fetch(self, uri: str, listed: FileState | None = None) -> Iterator[Fetched]:
        """Get a file for the length of a block.

        Args:
            uri: As `uri` returns.
            listed: What its store said of it before, if that is what the rows shall have.

        Raises:
            ChangedWhileRead: It was written to meanwhile, or since it was listed.
            VideoError: It cannot be read.
        """
        if is_local(uri):
            yield self._local(uri)
            return
        with self._copy(Address.parse(uri), listed) as fetched:
            yield fetched

    def check_unchanged(self, uri: str, fetched: Fetched) -> None:
        """Refuse a local file that was written to since it was fetched; a copy cannot be.

        Raises:
            ChangedWhileRead: It was.
        """
        if not is_local(uri):
            return
        try:
            now: FileState | None = FileState.of(fetched.path)
        except OSError:
            now = None
        if now != fetched.state:
            raise ChangedWhileRead(item_name(fetched.path), _CHANGED)

    def close(self) -> None:
        """Remove the folder of temporary copies."""
        if self._folder is not None and self._lock is not None:
            self._lock.release()
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._lock = None

    def _local(self, uri: str) -> Fetched:
        path = path_of(uri)
        item = item_name(path)
        check_regular(str(path), item)  # reading a pipe could wait for ever
        with _as_video_error(item):
            state = FileState.of(path)
            return Fetched(path, content_fingerprint(path), state)

    @contextmanager
    def _copy(self, address: Address, listed: FileState | None) -> Iterator[Fetched]:
        item = item_name(address.uri)
        with _as_video_error(item):
            store = self._store(address)
            before = listed or store.state(address)
        if before.size == 0:
            raise EmptyFile(item, "empty (0 bytes)")
        self._check_size(before.size, item)
        handle, name = tempfile.mkstemp(dir=self._scratch(), suffix=".video")
        path = Path(name)
        try:
            digest = hashlib.sha256()
            with os.fdopen(handle, "wb") as copy, _as_video_error(item), store.open(address) as source:
                while chunk := source.read(_CHUNK):
                    digest.update(chunk)
                    copy.write(chunk)
                    self._check_size(copy.tell(), item)
                size, after = copy.tell(), store.state(address)
            if size != after.size or not same_file(before, after):
                raise ChangedWhileRead(item, _CHANGED)
            yield Fetched(path, digest.hexdigest(), before)
        finally:
            path.unlink(missing_ok=True)

    def _check_size(self, size: int, item: str) -> None:
        if size > self._max_bytes:
            raise VideoTooLarge(item, f"over {self._max_bytes} bytes; allow more with max_bytes")

    def _store(self, address: Address) -> Store:
        if address.root not in self._stores:
            self._stores[address.root] = open_store(address, self._filesystem)
        return self._stores[address.root]

    def _scratch(self) -> Path:
        """Return the folder of temporary copies, made at first use; remove those of processes that were killed."""
        if self._folder is None:
            for left in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
                _remove_if_left(left)
            draft = Path(tempfile.mkdtemp(prefix=_DRAFT))
            self._lock = FileLock(draft / _LOCK)  # the system frees it when the process ends, however it ends
            self._lock.acquire()
            self._folder = draft.rename(draft.with_name(_FOLDER + draft.name.removeprefix(_DRAFT)))
        return self._folder


_CHANGED = "the file was written to while it was being read; run again"


def _remove_if_left(folder: Path) -> None:
    lock = FileLock(folder / _LOCK)
    if not (folder / _LOCK).exists():
        return  # not ours
    with contextlib.suppress(Timeout, OSError), lock.acquire(timeout=0):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _as_video_error(item: str) -> Iterator[None]:
    """Turn the errors of a store into those of reading videos."""
    try:
        yield
    except VideoError:
        raise
    except FileNotFoundError as error:
        raise VideoNotFound(item, "no such file; check the path") from error
    except PermissionError as error:
        raise VideoPermission(
            item, f"permission denied to read it ({clean(error)}); check its access rights"
        ) from error
    except (OSError, ValueError) as error:
        raise VideoError(
            item, f"reading failed ({clean(error)}); check the disk or connection it comes from"
        ) from error
