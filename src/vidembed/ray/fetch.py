"""A video anywhere becomes a file that a decoder can open: local ones in place, others as a temporary copy."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from vidembed.index.files import canonical, is_local, path_of, uri_of
from vidembed.ray.stores import Address, Store, clean, is_address, open_store, same_file
from vidembed.video.errors import (
    EmptyFile,
    InvalidVideoInput,
    VideoError,
    VideoNotFound,
    VideoPermission,
    VideoTooLarge,
)
from vidembed.video.fingerprint import FileState, content_fingerprint
from vidembed.video.source import check_regular, item_name

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
