"""One writer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vidembed.index.errors import IndexBusyError

LOCK_FILE = "vidembed.lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for one writer; make it where there is none, and remove it again if nothing came of it.

    The system frees the lock when the process ends, however it ends.

    Raises:
        IndexBusyError: Another process holds it.
    """
    fresh = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise IndexBusyError(f"to: another run is writing to {str(folder)!r}; wait for it to end") from error
    try:
        yield
    finally:
        lock.release()
        if fresh and {entry.name for entry in folder.iterdir()} <= {LOCK_FILE}:
            (folder / LOCK_FILE).unlink(missing_ok=True)
            with suppress(OSError):  # another run has just begun in it
                folder.rmdir()
