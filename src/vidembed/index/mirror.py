"""A mirror of the vectors of an index: a file that exact searches map into memory, as fast as memory is read.

LanceDB hands vectors out in batches that it has copied and checked: about 1 GB a second, where memory gives ten times
as much and more. The first exact search of a table with more than `MIRROR_ABOVE` rows therefore writes the vectors,
their lengths and the row ids to a file beside the table. It is named by the stamp of the table, so that one of another
version is never read, and it may be removed at any time. Scores, hits and their order do not depend on it.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from vidembed.index.table import TABLE_FOLDER, Block, VideoIndex
from vidembed.text import replacing

MIRROR_ABOVE = 5_000
"""Rows up to which there is no mirror: an exact search of so many vectors of 3584 dimensions takes a tenth of a second
without it, which nobody waits for (`benchmarks/search.json`)."""

SHARE_OF_FREE = 0.5  # of the free space of the disk that a mirror may take
SETTLED_S = 5.0  # since the last commit: while a run commits one file after the other, each mirror would be read once
FILES = "mirror-*.f32"
_DRAFTS = ".draft-*.f32"  # as `replacing` names them
BLOCK_BYTES = 2**25  # of vectors at once: what a filter chooses is copied

logger = logging.getLogger(__name__)


class Mirror(NamedTuple):
    """An open mirror: vectors are mapped, lengths and ids are in memory, 12 bytes a row."""

    row_ids: NDArray[np.uint64]  # (N,)
    vectors: NDArray[np.float32]  # (N, D)
    lengths: NDArray[np.float32]  # (N,)

    @classmethod
    def open(cls, file: Path, rows: int, dimension: int) -> Mirror:
        """Open a mirror of so many rows; OSError or ValueError if that cannot be."""
        vectors = np.memmap(file, np.float32, mode="r", shape=(rows, dimension))
        with file.open("rb") as rest:
            rest.seek(vectors.nbytes)
            lengths, row_ids = np.fromfile(rest, np.float32, rows), np.fromfile(rest, np.uint64, rows)
        return cls(row_ids, vectors.view(np.ndarray), lengths)

    def blocks(self, row_ids: NDArray[np.uint64] | None = None) -> Iterator[Block]:
        """Yield all rows, or those with these ids."""
        step = max(1, BLOCK_BYTES // (4 * self.vectors.shape[1]))
        if row_ids is None:
            for first in range(0, len(self.row_ids), step):
                rows = slice(first, first + step)
                yield Block(self.row_ids[rows], self.vectors[rows], self.lengths[rows])
            return
        chosen = np.flatnonzero(np.isin(self.row_ids, row_ids))  # (M,)
        for first in range(0, len(chosen), step):
            places = chosen[first : first + step]
            is_run = places[-1] - places[0] == len(places) - 1  # then nothing is copied
            some = slice(places[0], places[-1] + 1) if is_run else places
            yield Block(self.row_ids[some], self.vectors[some], self.lengths[some])


# Mirrors that are open, by index, with the stamp of the table; None where one could not be written or read.
_opened: WeakKeyDictionary[VideoIndex, tuple[str, Mirror | None]] = WeakKeyDictionary()


def open_mirror(index: VideoIndex) -> Mirror | None:
    """Return the mirror of the version at hand, written if there is none, or None where that cannot be (see the log).

    The index must have rows. A mirror stays open, and a failure is not tried again, until the table changes.
    """
    stamp = index.stamp()
    known = _opened.get(index)
    if known is not None and known[0] == stamp:
        return known[1]
    _opened.pop(index, None)  # a mirror that was removed takes space as long as it is open
    file, rows, size = index.derived(f"mirror-{stamp}.f32"), len(index), mirror_bytes(index)
    mirror = None
    try:
        if not _is_whole(file, size) and not _write(index, file, size):
            return None
        mirror = Mirror.open(file, rows, index.meta.dimension)
    except (OSError, ValueError, RuntimeError) as error:
        logger.warning(
            "%s: exact searches read the table instead of a mirror, which is slower: %s", index.folder, error
        )
    _opened[index] = stamp, mirror
    return mirror


def mirror_bytes(index: VideoIndex) -> int:
    """Return the size of a mirror of all rows."""
    return len(index) * (4 * index.meta.dimension + 4 + 8)


def facts(index: VideoIndex) -> dict[str, object] | None:
    """Return what `vidembed info` says of the mirror, or None where there is none and no search would write one."""
    files = [file.stat().st_size for file in index.derived("").glob(FILES)]
    if not files and len(index) <= MIRROR_ABOVE:
        return None
    size = mirror_bytes(index)
    return {"bytes": sum(files), "fresh": _is_whole(index.derived(f"mirror-{index.stamp()}.f32"), size), "needs": size}


def _is_whole(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _write(index: VideoIndex, file: Path, size: int) -> bool:
    """Write the mirror, and remove those of other versions; return False where it is not the time for it.

    That is where rows came a moment ago, or another process or thread is writing it. OSError if there is no room.
    """
    if time.time() - (index.folder / TABLE_FOLDER / "_versions").stat().st_mtime < SETTLED_S:
        return False
    file.parent.mkdir(exist_ok=True)
    try:
        # The system frees the lock when a process ends, however it ends; then its draft is for the next one to remove.
        with FileLock(file.with_name("mirror.lock")).acquire(timeout=0):
            if _is_whole(file, size):  # by another one, just now
                return True
            for old in [*file.parent.glob(FILES), *file.parent.glob(_DRAFTS)]:
                with suppress(OSError):  # Windows keeps those that another process has open
                    old.unlink()
            free = shutil.disk_usage(file.parent).free
            if size > SHARE_OF_FREE * free:
                raise OSError(
                    f"it would take {size} bytes, more than {SHARE_OF_FREE:.0%} of the {free} bytes that are free"
                )
            logger.info("%s: writing a mirror of the vectors, %d bytes, for exact searches", index.folder, size)
            with replacing(file) as draft:
                with draft.open("wb") as out:
                    lengths, row_ids = [], []
                    for block in index.blocks():
                        block.vectors.tofile(out)
                        lengths.append(block.lengths)
                        row_ids.append(block.row_ids)
                    np.concatenate(lengths).tofile(out)
                    np.concatenate(row_ids).tofile(out)
                if not _is_whole(draft, size):
                    raise OSError(f"the rows changed: {draft.stat().st_size} bytes were written, and not {size}")
            return True
    except Timeout:
        return False
