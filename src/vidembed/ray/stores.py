"""Videos that are not local files: object stores and other file systems, by URI, listed and copied through fsspec.

A URI here is percent-encoded, holds no user name, password or options, and is the same in every run, so that it can
stand in rows and messages. Credentials come from the environment, as each store has it, or with a file system object.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, TypeAlias
from urllib.parse import quote, unquote

import fsspec
from filelock import FileLock, Timeout
from fsspec.implementations.arrow import ArrowFSWrapper

from vidembed.errors import (
    ChangedWhileRead,
    EmptyFile,
    InvalidVideoInput,
    VideoError,
    VideoNotFound,
    VideoPermission,
    VideoTooLarge,
)
from vidembed.index.files import UNKNOWN_TIME, Listing, clean, find_videos
from vidembed.index.table import canonical, is_local, path_of, uri_of
from vidembed.video import VIDEO_SUFFIXES
from vidembed.video.clip import FileState, check_regular, content_fingerprint, item_name

if TYPE_CHECKING:
    from pyarrow import fs

FileSystem: TypeAlias = "fs.FileSystem | fsspec.AbstractFileSystem"
"""What users give to reach a store with options and credentials of their own."""

MAX_FILE_BYTES: Final = 16 * 2**30
"""Default limit on the size of one file that is copied from a store: over any film, below most disks (our choice)."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")  # two characters or more: "C:" is a drive
_CONTAINER_BEFORE_HOST = frozenset({"abfs", "abfss"})  # container@account.dfs.core.windows.net
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")  # names that stores of fsspec use
_CHUNK = 8 * 2**20  # bytes; each is a request to most stores
_FOLDER = "vidembed-ray-"
_DRAFT = "vidembed-draft-"  # until it is locked
_LOCK = "lock"
_CHANGED = "the file was written to while it was being read; run again"


def is_address(text: str) -> bool:
    """Whether a text names a place by scheme, such as `s3://bucket/a.mp4`, and not a path."""
    return _SCHEME.match(text) is not None


@dataclass(frozen=True, slots=True)
class Address:
    """A place in a store."""

    scheme: str  # in lower case, such as s3
    authority: str  # what stands before the first slash, such as a bucket
    path: str = ""  # the rest, without a leading slash, with nothing encoded; empty for the whole store

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read a URI, encoded or not; ValueError if it has credentials or options in it, or is of http(s)."""
        found = _SCHEME.match(text)
        if found is None:
            raise ValueError(f"path: got {text!r}; a URI such as s3://bucket/folder is needed")
        scheme = found[1].lower()
        authority, _, path = text[found.end() :].partition("/")
        if "@" in authority and (scheme not in _CONTAINER_BEFORE_HOST or ":" in authority.rpartition("@")[0]):
            raise ValueError(
                f"path: a {scheme} URI with a user name or password in it. Leave them out: credentials come from the "
                f"environment variables of the store, or from a file system object (filesystem=)"
            )
        for mark, encoded in (("?", "%3F"), ("#", "%23")):
            if mark in text:
                raise ValueError(
                    f"path: a {scheme} URI with {mark!r} in it. In a name, write it as {encoded}; options of a store "
                    f"come from the environment, or from a file system object (filesystem=)"
                )
        if scheme in {"http", "https"}:
            raise ValueError(
                f"path: {scheme} cannot be listed. Give an object store, such as s3:// or gs://, or download the videos"
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


class ArrowFileSystem(ArrowFSWrapper):  # type: ignore[misc] # fsspec has no types
    """A `pyarrow.fs.FileSystem` in fsspec's form, which lists a folder in one go and keeps times to the nanosecond."""

    cachable = False

    def find(self, path: str, **_options: object) -> dict[str, dict[str, object]]:
        """List the files under a folder by their paths, to the bottom."""
        from pyarrow import fs  # noqa: PLC0415 - it takes a while, which --help need not wait for

        inside = self.fs.get_file_info(fs.FileSelector(path, recursive=True))
        return {info.path: self._make_entry(info) for info in inside if info.type == fs.FileType.File}

    def _make_entry(self, info: fs.FileInfo) -> dict[str, object]:
        return {**super()._make_entry(info), "mtime_ns": info.mtime_ns}


@dataclass(frozen=True, slots=True)
class Store:
    """A file system that is read by address. It raises `FileNotFoundError` and other kinds of `OSError`."""

    filesystem: fsspec.AbstractFileSystem
    base: str  # path within it of the address without a path

    def find(self, address: Address) -> tuple[bool, dict[str, FileState | Exception]]:
        """Return whether there is a folder, and the files in it (or the one) by URI, each with state or error."""
        info = self.filesystem.info(path := self._path(address))
        if info["type"] == "file":
            return False, dict([self._entry(address, info)])
        inside = self.filesystem.find(path, detail=True).items()
        base = self.base.strip("/")
        return True, dict(
            self._entry(replace(address, path=name.lstrip("/").removeprefix(base).lstrip("/")), info)
            for name, info in inside
            if info["type"] == "file"
        )

    def state(self, address: Address) -> FileState:
        """Return size and time of last write of a file."""
        self.filesystem.invalidate_cache()  # else an earlier listing may answer
        info = self.filesystem.info(self._path(address))
        if info["type"] != "file":
            raise FileNotFoundError(address.uri)
        return self._state(info)

    def open(self, address: Address) -> BinaryIO:
        """Open a file for reading."""
        stream: BinaryIO = self.filesystem.open(self._path(address), "rb")
        return stream

    def _path(self, address: Address) -> str:
        return f"{self.base.rstrip('/')}/{address.path}".rstrip("/")

    def _entry(self, address: Address, info: Mapping[str, object]) -> tuple[str, FileState | Exception]:
        try:
            return address.uri, self._state(info)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this file's problem
            shown = address.path.encode("utf-8", "backslashreplace").decode()
            return replace(address, path=shown).uri, error

    def _state(self, info: Mapping[str, object]) -> FileState:
        size = int(info["size"])  # type: ignore[call-overload] # what is no number raises
        if isinstance(exact := info.get("mtime_ns"), int):
            return FileState(size, exact)
        found = next((info[key] for key in _TIMES if info.get(key) is not None), None)
        if found is None:
            with contextlib.suppress(NotImplementedError, KeyError):
                found = self.filesystem.modified(info["name"])
        return FileState(size, _nanoseconds(found))


def _nanoseconds(moment: object) -> int:
    try:
        if isinstance(moment, str):
            moment = datetime.fromisoformat(moment)
        if isinstance(moment, datetime) and moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)  # the time zones of the machines of a cluster can differ
        seconds = moment.timestamp() if isinstance(moment, datetime) else float(moment)  # type: ignore[arg-type]
        return round(seconds * 1e9)
    except (ValueError, TypeError, OverflowError):
        return UNKNOWN_TIME


def open_store(address: Address, filesystem: FileSystem | None = None) -> Store:
    """Return the store that an address is in: with `filesystem`, else pyarrow's client for the scheme, else fsspec's.

    ValueError if nothing that is installed reads the scheme.
    """
    from pyarrow import ArrowInvalid, ArrowNotImplementedError, fs  # noqa: PLC0415 - it takes a while

    if filesystem is not None:
        if isinstance(filesystem, fs.FileSystem):
            filesystem = ArrowFileSystem(filesystem)
        elif not isinstance(filesystem, fsspec.AbstractFileSystem):
            needed = "a pyarrow.fs.FileSystem or an fsspec.AbstractFileSystem is needed"
            raise ValueError(f"filesystem: got a {type(filesystem).__name__}; {needed}")
        return Store(filesystem, address.authority)  # as in Ray Data, its paths are URIs without their scheme
    with contextlib.suppress(ArrowInvalid, ArrowNotImplementedError):
        found, base = fs.FileSystem.from_uri(address.root)
        return Store(ArrowFileSystem(found), base)
    try:
        return Store(*fsspec.url_to_fs(address.root))
    except (ValueError, ImportError, TypeError) as error:
        raise ValueError(
            f"path: neither pyarrow nor fsspec reads {address.scheme!r} as it is here ({clean(error)}); install the "
            "package of that store, or give a file system object (filesystem=)"
        ) from error


def find(
    paths: Sequence[str | os.PathLike[str]],
    *,
    filesystem: FileSystem | None = None,
    indexed: Callable[[], Iterable[str]] = tuple,
) -> Listing:
    """List the videos among paths and URIs of files and folders; arguments and errors are those of `find_videos`."""
    stored = [text for text in map(str, paths) if is_address(text) and not is_local(text)]
    others = [path_of(str(path)) if is_local(str(path)) else path for path in paths if str(path) not in set(stored)]

    def list_store(uri: str) -> tuple[bool, dict[str, FileState | Exception]]:
        address = Address.parse(uri)
        return open_store(address, filesystem).find(address)

    uris = [Address.parse(text).uri for text in stored]
    return find_videos(others, VIDEO_SUFFIXES, uris=uris, list_store=list_store, indexed=indexed)


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that can be opened."""

    path: Path
    content: str  # SHA-256 of its bytes, hex
    state: FileState  # as its store has it


class Fetcher:
    """Gets files by path or URI. Closed by `close`, or with the process: what a killed one left, the next removes."""

    def __init__(self, *, filesystem: FileSystem | None = None, max_bytes: int = MAX_FILE_BYTES) -> None:
        self._filesystem = filesystem
        self._max_bytes = max_bytes
        self._stores: dict[str, Store] = {}
        self._folder: Path | None = None
        self._lock: FileLock | None = None

    def uri(self, name: str) -> str:
        """Return the URI that a path or URI has in the index; `InvalidVideoInput` if neither can be."""
        try:
            if is_local(name):
                return uri_of(canonical(path_of(name)))
            if is_address(name):
                return Address.parse(name).uri
        except ValueError as error:
            raise InvalidVideoInput(clean(name), str(error)) from error
        if not Path(name).is_absolute():
            reason = "a relative path, which differs between machines; give an absolute path"
            raise InvalidVideoInput(item_name(name), reason)
        return uri_of(canonical(name))

    @contextmanager
    def fetch(self, uri: str, listed: FileState | None = None) -> Iterator[Fetched]:
        """Get a file for the length of a block: a local one where it is, another as a copy that is removed then.

        A copy must still have the state in which it was `listed`. Raises kinds of `VideoError`.
        """
        if is_local(uri):
            item = item_name(path := path_of(uri))
            check_regular(str(path), item)  # reading a pipe could wait for ever
            with _as_video_error(item):
                state = FileState.of(path)  # before it is read
                file = Fetched(path, content_fingerprint(path), state)
            yield file
            return
        address, item = Address.parse(uri), item_name(uri)
        with _as_video_error(item):
            if (store := self._stores.get(address.root)) is None:
                store = self._stores[address.root] = open_store(address, self._filesystem)
            before = listed or store.state(address)
        if before.size == 0:
            raise EmptyFile(item, "empty (0 bytes)")
        handle, name = tempfile.mkstemp(dir=self._scratch(), suffix=".video")
        try:
            with os.fdopen(handle, "wb") as copy:
                content = self._copy(store, address, copy, before, item)
            yield Fetched(Path(name), content, before)
        finally:
            Path(name).unlink(missing_ok=True)

    def check_unchanged(self, uri: str, fetched: Fetched) -> None:
        """Raise `ChangedWhileRead` for a local file that was written to since it was fetched; a copy cannot be."""
        if is_local(uri):
            with contextlib.suppress(OSError):
                if FileState.of(fetched.path) == fetched.state:
                    return
            raise ChangedWhileRead(item_name(fetched.path), _CHANGED)

    def close(self) -> None:
        """Remove the folder of temporary copies."""
        if self._folder is not None and self._lock is not None:
            self._lock.release()
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._lock = None

    def _copy(self, store: Store, address: Address, copy: BinaryIO, before: FileState, item: str) -> str:
        """Copy a file that must stay as it was `before`, and return the SHA-256 of its bytes, hex."""
        digest, size = hashlib.sha256(), before.size
        with _as_video_error(item), store.open(address) as source:
            while size <= self._max_bytes and (chunk := source.read(_CHUNK)):
                digest.update(chunk)
                copy.write(chunk)
                size = max(size, copy.tell())  # a store may be wrong about the size
            if size > self._max_bytes:
                raise VideoTooLarge(item, f"over {self._max_bytes} bytes; raise max_bytes to allow it")
            after = store.state(address)
        # Stores have the time of one file by the second (HTTP's `Last-Modified`) and in listings more exactly.
        same_second = before.mtime_ns // 10**9 == after.mtime_ns // 10**9
        if not (before.size == copy.tell() == after.size and same_second):
            raise ChangedWhileRead(item, _CHANGED)
        return digest.hexdigest()

    def _scratch(self) -> Path:
        """Return the folder of temporary copies, made at first use; remove those of processes that were killed."""
        if self._folder is None:
            for left in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*/{_LOCK}"):
                with contextlib.suppress(Timeout, OSError), FileLock(left).acquire(timeout=0):
                    shutil.rmtree(left.parent, ignore_errors=True)
            draft = Path(tempfile.mkdtemp(prefix=_DRAFT))
            self._lock = FileLock(draft / _LOCK)  # the system frees it when the process ends, however it ends
            self._lock.acquire()
            self._folder = draft.rename(draft.with_name(_FOLDER + draft.name.removeprefix(_DRAFT)))
        return self._folder


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
        reason = f"permission denied ({clean(error)}); check its access rights"
        raise VideoPermission(item, reason) from error
    except (OSError, ValueError) as error:
        reason = f"reading failed ({clean(error)}); check the disk or connection it comes from"
        raise VideoError(item, reason) from error
