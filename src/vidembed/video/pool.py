"""Decoding in child processes that can be killed: a file that crashes one touches no other file."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from io import BufferedReader
from typing import IO, Final, TypeAlias, cast

from vidembed import errors
from vidembed.errors import BackendUnavailable, DecoderCrashed, DecodeTimeout, VideoError
from vidembed.video import clip
from vidembed.video.clip import Clip, Deadline, DecodeLimits, Sampling, VideoSegment
from vidembed.video.container import DEFAULT_THREADS
from vidembed.video.reader import check_options, check_sampling
from vidembed.video.segments import Cut, Layout
from vidembed.video.worker import (
    COMMAND,
    Message,
    Note,
    ending,
    read_clip,
    read_error,
    read_layout,
    read_notes,
    receive,
    repeat_notes,
    request_for,
    send,
    start,
    worker_count,
)

logger = logging.getLogger(__name__)

MAX_UNTAKEN: Final = 2  # clips that a process may have handed over and nobody has taken
START_TIMEOUT_S: Final = 120.0  # in which a process has to start: a fraction of one, but disks can be slow (our choice)
END_TIMEOUT_S: Final = 5.0  # in which it has to end. Only one that waits in the kernel takes longer (our choice)


class Reading:
    """A submitted file: its segments, and a `Clip` or a `VideoError` for each, given once, in order, by iterating.

    Log records and warnings of the decoding process come up in the thread that takes what they belong to. A reading
    that nothing refers to any more is cancelled.
    """

    def __init__(self, task: _Task) -> None:
        self._task = task

    def layout(self) -> Layout:
        """Wait for the segments of the file and return them. A file that is read as one has them once it is decoded.

        Raises VideoError for a file that cannot be read, and `concurrent.futures.CancelledError` if it was cancelled.
        """
        task, lock = self._task, self._task.queue.lock
        with lock:
            lock.wait_for(lambda: task.layout or task.failure)
            notes, task.notes = task.notes, []
        repeat_notes(notes)
        if task.layout is None:
            raise task.failure or RuntimeError
        return task.layout

    def __iter__(self) -> Iterator[Clip | VideoError]:
        """Yield a clip or error for each segment. Raises as `layout`."""
        self.layout()
        while (found := self._task.take()) is not None:
            entry, notes = found
            repeat_notes(notes)
            del found
            yield entry
            del entry  # the next one comes while nothing here holds this

    def cancel(self) -> None:
        """Stop reading. A process that works on it is killed, and clips that were not taken are dropped."""
        self._task.cancel()

    __del__ = cancel  # nobody can take what is left


class DecodePool(AbstractContextManager["DecodePool"]):
    """Decodes files in processes of its own, in the order in which they are submitted. A context manager.

    A file that crashes the decoder, takes too long or too much memory has an error, and the process that read it is
    replaced. Clips equal those of `load_video` bit for bit. It may be used from several threads. Readings are to be
    taken, or cancelled, about in the order of their submission: a process that has handed over two clips waits until
    one is taken. Processes end on `close`, or when nothing refers to the pool any more and its readings are done.

    Args:
        workers: Processes. Default: one a core, and at most one a GiB of memory. Also an attribute.
        limits: On the time that a process works on one file, its layout included, and on its memory.
        backend: As in `load_video`. ``"decord"`` decodes a file anew for each segment.
        threads: Decoding threads of each process, as in `load_video`, and as many by default: it can depend on them
            how much damage is noticed. 1 does the least work where there are as many processes as cores.

    Raises:
        ValueError: An argument is out of range.
    """

    def __init__(
        self,
        *,
        workers: int | None = None,
        limits: DecodeLimits = clip.DEFAULT_LIMITS,
        backend: str = "pyav",
        threads: int = DEFAULT_THREADS,
    ) -> None:
        workers = worker_count() if workers is None else workers
        if workers < 1:
            raise ValueError(f"workers={workers!r}: expected a whole number of at least 1, or None")
        check_options(backend, threads)
        self.workers = workers
        settings: Message = {"backend": backend, "threads": threads, "max_memory_bytes": limits.max_memory_bytes}
        self._queue = _Queue(settings, limits.timeout_s)
        weakref.finalize(self, self._queue.finish)

    def submit(
        self,
        path: str | os.PathLike[str] | VideoSegment,
        sampling: Sampling,
        *,
        cut: Cut | Sequence[tuple[float, float | None]] | None = None,
        item: str | None = None,
        pictures: bool = False,
    ) -> Reading:
        """Have a file read. Returns at once.

        Args:
            path: A local file, or (without `cut`) one timed part of it.
            sampling: How frames are chosen in each segment.
            cut: `Windows`, `Scenes` (which decode the file once more before), or the ``(start, end)`` of each segment
                in seconds, ordered by start, ``end`` ``None`` for the end of the video. ``None``: all of it is one.
            item: Name of the file for messages. Default: as `load_video` names it.
            pictures: Take a single picture too (`still.FORMATS`), as a clip of one frame; without `cut`.

        Raises:
            RuntimeError: The pool is closed.
            TypeError: An argument is of the wrong type.
            VideoError: `cut` is malformed or not in order (`InvalidVideoInput`), or needs PySceneDetect, which is not
                installed (`BackendUnavailable`).
        """
        file = path.path if isinstance(path, VideoSegment) and cut is None else path
        if not isinstance(file, (str, os.PathLike)):
            raise TypeError(f"path is a {type(file).__name__}; the pool reads local files by their path")
        check_sampling(sampling)
        name = clip.item_name(file)
        request = request_for(file, path, sampling, cut, item=item or name, pictures=pictures)
        task = _Task(self._queue, request, name, item or name, sampling)
        self._queue.add(task, self.workers)
        return Reading(task)

    @property
    def waited(self) -> float:
        """Seconds that a process waited until clips were taken, on average."""
        return self._queue.waited / self.workers

    def close(self) -> None:
        """End all processes. Readings that are not taken to their end are cancelled."""
        self._queue.close()

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()


_Entry: TypeAlias = tuple[Clip | VideoError, list[Note]]
_FATAL: Final = (DecoderCrashed, DecodeTimeout, errors.VideoTooLarge)  # after which a process is not used again


@dataclass(eq=False)
class _Task:
    """A file to read. The lock of its queue guards what is not set from the start."""

    queue: _Queue
    request: Message
    given_name: str  # what the process calls the file
    item: str  # what messages call it
    sampling: Sampling
    layout: Layout | None = None
    failure: BaseException | None = None  # why nothing more comes: stands for the layout, or each segment that is left
    notes: list[Note] = field(default_factory=list)  # that come with the layout or the failure
    entries: deque[_Entry] = field(default_factory=deque)  # that were read and nobody has taken
    left: int = 0  # segments that nobody has taken
    takers: int = 0  # threads that wait for an entry
    worker: _Worker | None = None  # that reads it, or has read it

    def named(self, text: str) -> str:
        """Put the name for messages in the place of the process's own."""
        return self.item + text.removeprefix(self.given_name) if text.startswith(self.given_name) else text

    def take(self) -> _Entry | None:
        """Wait for the next clip or error; ``None`` after the last."""
        with self.queue.lock:
            self.takers += 1
            self.queue.lock.notify_all()  # a process may hand over one more than the others leave room for
            try:
                self.queue.lock.wait_for(lambda: self.entries or self.failure or not self.left)
            finally:
                self.takers -= 1
            if not self.left:
                return None
            if not self.entries and not isinstance(self.failure, VideoError):
                raise self.failure or RuntimeError
            self.left -= 1
            if not self.entries:
                notes, self.notes = self.notes, []
                return cast("VideoError", self.failure), notes
            cast("_Worker", self.worker).held -= 1
            self.queue.lock.notify_all()
            return self.entries.popleft()

    def fail(self, error: BaseException, notes: Sequence[Note] = ()) -> None:
        """Let an error stand for all that is left."""
        with self.queue.lock:
            if self.failure is None:
                self.failure = error
                self.notes += notes
            self.queue.lock.notify_all()

    def cancel(self) -> None:
        with self.queue.lock:
            if self.layout is not None and not self.left:
                return
            if self in self.queue.waiting:
                self.queue.waiting.remove(self)
            if self.worker is not None:
                self.worker.held -= len(self.entries)
                if self.worker.task is self:
                    self.worker.kill()
            self.entries.clear()
            self.fail(CancelledError(f"{self.item}: the reading was cancelled"))


class _Queue:
    """Files that wait for a process. Threads refer to it, and not to the pool, which ends when users let go of it."""

    def __init__(self, settings: Message, timeout_s: float | None) -> None:
        self.settings = settings
        self.timeout_s = timeout_s
        self.lock = threading.Condition()
        self.waiting: deque[_Task] = deque()
        self._workers: list[_Worker] = []
        self._idle = 0
        self._closed = False
        self.waited = 0.0  # seconds that processes waited until a clip was taken

    def add(self, task: _Task, workers: int) -> None:
        with self.lock:
            if self._closed:
                raise RuntimeError("the pool is closed; make a new one")
            self.waiting.append(task)
            if self._idle < len(self.waiting) and len(self._workers) < workers:
                self._workers.append(_Worker(self))
                self._workers[-1].start()
            self.lock.notify_all()

    def next(self, worker: _Worker) -> _Task | None:
        """Wait for a file that a worker is to read; ``None`` once there can be none."""
        with self.lock:
            self._idle += 1
            self.lock.wait_for(lambda: self.waiting or self._closed)
            self._idle -= 1
            if self.waiting:
                worker.task = self.waiting.popleft()
                worker.task.worker = worker
            return worker.task

    def finish(self) -> None:
        """Let processes end when there is nothing left to do."""
        with self.lock:
            self._closed = True
            self.lock.notify_all()

    def close(self) -> None:
        """End everything, and wait until it has."""
        with self.lock:
            self.finish()
            for task in [*self.waiting, *(worker.task for worker in self._workers if worker.task is not None)]:
                task.fail(CancelledError(f"{task.item}: the pool was closed"))
            self.waiting.clear()
            for worker in self._workers:
                worker.kill()
        for worker in self._workers:
            worker.join(6 * END_TIMEOUT_S)
            if worker.is_alive():
                logger.warning("a decoding process does not end: it is waiting in the kernel for a disk or a network")


class _EndedError(Exception):
    """A decoding process is gone. The message says what it ended with, such as ``signal SIGSEGV``."""


class _Worker(threading.Thread):
    """One thread of a pool, and the process that it has. The lock of the queue guards `task`, `held` and `_process`."""

    def __init__(self, queue: _Queue) -> None:
        super().__init__(name="vidembed-pool", daemon=True)
        self.task: _Task | None = None
        self.held = 0  # clips that came from here and nobody has taken
        self._queue = queue
        self._process: subprocess.Popen[bytes] | None = None
        self._seconds = math.inf  # that the process may still work

    def kill(self) -> None:
        """Kill the process. The caller has the lock."""
        if self._process is not None:
            self._process.kill()

    def run(self) -> None:
        """Read files until there can be no more."""
        try:
            while (task := self._queue.next(self)) is not None:
                try:
                    self._begin(task)
                    self._read(task)
                except BaseException as error:  # noqa: BLE001 - whatever it is, whoever waits for the file hears of it
                    task.fail(self._failure(task.named(task.request["item"]), error))
                with self._queue.lock:
                    self.task, failure = None, task.failure
                del task
                if failure is not None and (not isinstance(failure, VideoError) or isinstance(failure, _FATAL)):
                    self._end()
        finally:
            self._end()

    def _failure(self, item: str, error: BaseException) -> BaseException:
        """Return what an error means for the file."""
        match error:
            case _EndedError() if self._seconds <= 0:
                return Deadline(self._queue.timeout_s, item).error()
            case _EndedError():
                return DecoderCrashed(item, f"the decoder ended with {error} on it; get an intact copy, or convert it")
            case ValueError():
                return DecoderCrashed(item, f"the decoder sent {error}; get an intact copy, or convert it")
            case MemoryError():
                reason = "its frames do not fit into memory; lower Sampling.max_frames or max_pixels"
                return errors.VideoTooLarge(item, reason)
        return error

    def _begin(self, task: _Task) -> None:
        """Have a process begin a file. One that died while it had nothing to do is replaced: no file is to blame."""
        is_new = self._process is None or self._process.poll() is not None
        try:
            if is_new:
                self._end()
                process = start(COMMAND, self._queue.settings)
                with self._queue.lock:
                    self._process = process
                    if task.failure is not None:  # cancelled
                        process.kill()
            self._seconds = START_TIMEOUT_S
            with self._working() as (requests, answers):
                with suppress(BrokenPipeError):  # its answer may say why it ended
                    send(requests, task.request)
                message = receive(answers)
                if "begun" not in message:
                    raise ValueError(message.get("failed", "an unknown answer"))  # noqa: TRY301
        except (_EndedError, OSError, ValueError) as error:
            self._end()
            if is_new or task.failure is not None:
                reason = f"the decoding process did not start ({error}); check the installation"
                raise BackendUnavailable(task.item, reason) from error
            logger.warning("an idle decoding process ended with %s; another takes its place", error)
            self._begin(task)
        else:
            if is_new and not message["begun"]:
                limit = self._queue.settings["max_memory_bytes"]
                logger.warning("max_memory_bytes=%s cannot be set on this system: decoding is not limited", limit)

    def _read(self, task: _Task) -> None:
        """Hand on what the process reads."""
        self._seconds = math.inf if self._queue.timeout_s is None else self._queue.timeout_s
        lock, name = self._queue.lock, task.named
        with self._working() as (_, answers):
            message = receive(answers)
        if "error" in message:
            task.fail(read_error(message, name), read_notes(message, name))
            return
        layout, notes = read_layout(message), read_notes(message, name)
        with lock:
            task.layout, task.notes, task.left = layout, notes, len(layout.segments)
            lock.notify_all()
        for _ in layout.segments:
            with lock:
                asked = time.monotonic()
                lock.wait_for(lambda: self.held < MAX_UNTAKEN or (task.takers and not task.entries) or task.failure)
                self._queue.waited += time.monotonic() - asked
            with self._working() as (_, answers):
                message = receive(answers)
                is_clip = "error" not in message
                entry = read_clip(message, answers, task.sampling, name) if is_clip else read_error(message, name)
            notes = read_notes(message, name)
            if isinstance(entry, VideoError) and message.get("rest"):
                task.fail(entry, notes)
                return
            with lock:
                if task.failure is None:
                    self.held += 1
                    task.entries.append((entry, notes))
                    lock.notify_all()
            del entry

    @contextmanager
    def _working(self) -> Iterator[tuple[IO[bytes], BufferedReader]]:
        """Kill the process when the time that it may work is up. Yields its pipes. Raises _EndedError if it is gone."""
        process = cast("subprocess.Popen[bytes]", self._process)
        timer = threading.Timer(min(max(self._seconds, 0.0), threading.TIMEOUT_MAX), process.kill)
        timer.daemon = True
        began, is_gone = time.monotonic(), False
        timer.start()
        try:
            yield cast("IO[bytes]", process.stdin), cast("BufferedReader", process.stdout)
        except (EOFError, OSError):
            is_gone = True
        finally:
            timer.cancel()
            timer.join()  # so that it cannot hit what comes after
            self._seconds -= time.monotonic() - began
        if is_gone:
            raise _EndedError("no answer in time" if self._seconds <= 0 else self._end(kill=False))

    def _end(self, *, kill: bool = True) -> str:
        """Let go of the process. Return what it ended with."""
        with self._queue.lock:
            process, self._process = self._process, None
        if process is None:
            return ""
        if kill:
            process.kill()
        try:
            status = process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return "nothing more to say, and no end"
        finally:
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):  # what could not be sent any more
                    cast("IO[bytes]", stream).close()
        return ending(status)
