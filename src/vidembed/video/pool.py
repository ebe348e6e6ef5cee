"""Decoding in processes of their own, which can be killed: what native code does to one touches no other file."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Self

from vidembed.errors import InvalidVideoInput, VideoError
from vidembed.video.container import DEFAULT_THREADS
from vidembed.video.process.desk import Desk, Task
from vidembed.video.process.lane import Lane
from vidembed.video.reader import BACKENDS, DEFAULT_TIMEOUT_S
from vidembed.video.sampling import Sampling
from vidembed.video.segments import MAX_WINDOWS, Cut, Layout, Scenes, Windows, cut_to_dict, require_scenedetect
from vidembed.video.source import VideoSegment, item_name

if TYPE_CHECKING:
    from types import TracebackType

    from vidembed.video.clip import Clip

__all__ = ["DecodePool", "Layout", "Reading"]

DEFAULT_MEMORY_BYTES: Final = 8 * 2**30
"""Address space of one process. 180 pictures of 4K as RGB take 4.5 GB (our choice)."""
MIN_MEMORY_BYTES: Final = 2**29
"""The interpreter, numpy and FFmpeg alone have 220 MB, and each thread reserves some more."""


class Reading:
    """A file that is being read. It is read from when it is looked at or the file's turn comes.

    Iterating gives, for each segment of the layout in order, its `Clip`, or the `VideoError` that it has instead. Each
    is given once: a second loop goes on where the first was left. Log entries and warnings of the decoding process
    come up in the thread that takes what they belong to. A reading that nothing refers to any more is cancelled.
    """

    def __init__(self, desk: Desk, task: Task) -> None:
        self._desk = desk
        self._task = task

    def layout(self) -> Layout:
        """Wait for the segments of the file and return them.

        Raises:
            VideoError: The file cannot be read.
            CancelledError: Of `concurrent.futures`: it was cancelled, or the pool was closed.
        """
        layout, notes = self._desk.layout(self._task)
        for note in notes:
            note.emit()
        return layout

    def __iter__(self) -> Iterator[Clip | VideoError]:
        """Yield a clip or error for each segment.

        Raises:
            VideoError: The file cannot be read; as `layout`.
            CancelledError: As `layout`.
        """
        _, notes = self._desk.layout(self._task)
        for note in notes:
            note.emit()
        while (found := self._desk.take(self._task)) is not None:
            entry, notes = found
            for note in notes:
                note.emit()
            del found
            yield entry
            del entry  # the next one comes while nothing here holds this

    def cancel(self) -> None:
        """Read no more of it. A process that is at work on it is killed; what was not taken is dropped."""
        self._desk.cancel(self._task)

    def __del__(self) -> None:
        """Cancel: nobody can take what is left."""
        if hasattr(self, "_task"):
            self._desk.cancel(self._task)


class DecodePool:
    """Decodes files in processes of its own, in the order in which they are submitted. A context manager.

    A file that crashes the decoder, takes too long or too much memory has an error, and the process that read it is
    replaced; other files do not notice. Clips equal those of `load_video` bit for bit. It may be used from several
    threads. Readings are to be taken, or cancelled, about in the order of their submission: a process that has handed
    over two clips waits until one is taken, and files that come later wait for it. Processes end with the pool: on
    `close`, with this program, or when nothing refers to the pool any more and its readings are done.

    Args:
        workers: Processes. Default: one a core, at most 8.
        timeout_s: Seconds that a process may work on one file, its layout included; what it waits for clips to be
            taken does not count. ``None`` for no limit. Default 600.
        max_memory_bytes: Limit on the address space of each process, at least 512 MiB, ``None`` for none. Default
            8 GiB. Not every system can set it (Linux can); where it cannot, a warning is logged.
        backend: As in `load_video`. ``"decord"`` decodes a file anew for each segment.
        threads: Decoding threads of each process, as in `load_video`, and as many by default: it can depend on them
            how much of the damage of a file is noticed. 1 does the least work where there are as many processes as
            cores.

    Attributes:
        workers: Processes.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        max_memory_bytes: int | None = DEFAULT_MEMORY_BYTES,
        backend: str = "pyav",
        threads: int = DEFAULT_THREADS,
    ) -> None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = min(8, cores) if workers is None else workers
        if workers < 1:
            raise ValueError(f"workers={workers!r}: expected a whole number of at least 1, or None")
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            raise ValueError(f"timeout_s={timeout_s!r}: expected seconds above 0, or None for no limit")
        if max_memory_bytes is not None and max_memory_bytes < MIN_MEMORY_BYTES:
            raise ValueError(f"max_memory_bytes={max_memory_bytes!r}: expected at least {MIN_MEMORY_BYTES}, or None")
        if backend not in BACKENDS:
            raise ValueError(f"backend={backend!r}: expected one of {', '.join(map(repr, BACKENDS))}")
        if threads < 1:
            raise ValueError(f"threads={threads!r}: expected a whole number of at least 1")
        self.workers = workers
        settings = {"backend": backend, "threads": threads, "max_memory_bytes": max_memory_bytes}
        self._desk = Desk([Lane(settings, timeout_s) for _ in range(workers)])
        weakref.finalize(self, self._desk.abandon)

    def submit(
        self,
        path: str | os.PathLike[str],
        sampling: Sampling,
        *,
        cut: Cut | Sequence[tuple[float, float | None]] | None = None,
        item: str | None = None,
    ) -> Reading:
        """Have a file read. Returns at once.

        Args:
            path: A local file.
            sampling: How frames are chosen in each segment.
            cut: `Windows`, `Scenes` (which decode the file once more before), or the ``(start, end)`` of each segment
                in seconds, ordered by start, ``end`` ``None`` for the end of the video. ``None``: all of it is one.
            item: Name for messages. Default: as `load_video` names it.

        Raises:
            RuntimeError: The pool is closed.
            TypeError: An argument is of the wrong type.
            InvalidVideoInput: A segment is malformed, or they are not ordered by start.
            BackendUnavailable: `cut` is `Scenes`, and PySceneDetect is not installed.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path is a {type(path).__name__}; the pool reads local files by their path")
        if not isinstance(sampling, Sampling):
            raise TypeError(f"sampling is a {type(sampling).__name__}; expected a Sampling, such as Sampling(fps=2.0)")
        given_name = item_name(path)
        item = given_name if item is None else item
        request: dict[str, Any] = {
            "path": os.fsdecode(path),
            "is_path": not isinstance(path, str),
            "cwd": _working_folder(),
            "sampling": sampling.as_dict(),
        }
        if isinstance(cut, (Windows, Scenes)):
            if isinstance(cut, Scenes):
                require_scenedetect(item)
            request["cut"] = cut_to_dict(cut)
        elif cut is not None:
            request["segments"] = _segments(path, cut)
        task = Task(request, item, given_name, sampling)
        self._desk.add(task)
        return Reading(self._desk, task)

    def close(self) -> None:
        """End all processes. Readings that are not taken to their end are cancelled."""
        self._desk.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


def _working_folder() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - Path cannot hold every name a string can
    except OSError:  # it was removed
        return None


def _segments(path: str | os.PathLike[str], cut: Any) -> list[tuple[float, float | None]]:
    parts = [VideoSegment(path, start, end) for start, end in cut]
    if any(after.start < before.start for before, after in pairwise(parts)):
        raise InvalidVideoInput(item_name(path), "segments are not ordered by their start; sort them")
    if len(parts) > MAX_WINDOWS:
        raise InvalidVideoInput(item_name(path), f"{len(parts)} segments; at most {MAX_WINDOWS} of a file are cut")
    return [(part.start, part.end) for part in parts]
