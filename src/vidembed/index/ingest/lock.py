"""One writer at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from vidembed.index.errors import IndexBusyError, IndexWriteError

LOCK_FILE = "vidembed.lock"


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `folder` for one writer; make it where there is none, and remove it again if nothing came of it.

    The system frees the lock when the process ends, however it ends.

    Args:
        folder: Of the index.
        wait: Wait while another process holds it, as long as that takes.

    Raises:
        IndexBusyError: Another process holds it, and `wait` is False.
        IndexWriteError: The folder cannot be made or written to.
    """
    fresh = not folder.exists()
    lock = FileLock(folder / LOCK_FILE)
    try:
        while not (folder / LOCK_FILE).exists() or not lock.is_locked:  # the run before may take the folder away
            lock.release()
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                lock.acquire(timeout=-1 if wait else 0, poll_interval=0.2)
    except Timeout as error:
        raise IndexBusyError(
            f"to: another run is writing to {str(folder)!r}; wait for it to end, or give --wait to have this one wait"
        ) from error
    except OSError as error:
        raise IndexWriteError(f"to: {str(folder)!r} cannot be written to ({error.strerror or error})") from error
    try:
        yield
    finally:
        lock.release()
        if fresh and {entry.name for entry in folder.iterdir()} <= {LOCK_FILE}:
            (folder / LOCK_FILE).unlink(missing_ok=True)
            with suppress(OSError):  # another run has just begun in it
                folder.rmdir()
