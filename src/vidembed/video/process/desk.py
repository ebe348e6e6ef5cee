"""Where files wait for a decoding process, and clips for somebody to take them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from vidembed.errors import VideoError

if TYPE_CHECKING:
    from vidembed.video.clip import Clip
    from vidembed.video.process.lane import Lane
    from vidembed.video.process.wire import Note
    from vidembed.video.process.worker import Worker
    from vidembed.video.sampling import Sampling
    from vidembed.video.segments import Layout

logger = logging.getLogger(__name__)

AHEAD: Final = 2
"""Clips that a process may have handed over and nobody has taken."""
_CLOSE_TIMEOUT_S: Final = 30.0  # only a process that waits in the kernel takes longer


@dataclass(eq=False)
class Task:
    """A file to read, as the threads of the pool and those that take its clips see it. Guarded by `Desk.lock`."""

    request: dict[str, Any]
    item: str
    given_name: str
    sampling: Sampling
    layout: Layout | None = None
    layout_notes: list[Note] = field(default_factory=list)
    failure: BaseException | None = None
    rest: VideoError | None = None
    entries: deque[tuple[Clip | VideoError, list[Note]]] = field(default_factory=deque)
    taken: int = 0
    waiting: int = 0
    cancelled: bool = False
    lane: Lane | None = None

    def rename(self, text: str) -> str:
        """Put the name that was given for the file in the place of its own."""
        return self.item + text.removeprefix(self.given_name) if text.startswith(self.given_name) else text

    @property
    def is_taken(self) -> bool:
        """Whether nothing more is to come."""
        return self.layout is not None and self.taken == len(self.layout.segments)


class Desk:
    """Where tasks wait for a process, and clips for somebody to take them.

    Args:
        lanes: That do the tasks. Each starts when there is something to do for it.
    """

    def __init__(self, lanes: list[Lane]) -> None:
        self.lock = threading.Condition()
        self._lanes = lanes
        self._threads: list[threading.Thread] = []
        self._queue: deque[Task] = deque()
        self._idle = 0
        self._is_closed = False
        self._is_abandoned = False

    # -- for those who submit and take -------------------------------------------------------------------------------

    def add(self, task: Task) -> None:
        """Queue a task.

        Raises:
            RuntimeError: The pool is closed.
        """
        with self.lock:
            if self._is_closed:
                raise RuntimeError("the pool is closed; make a new one")
            self._queue.append(task)
            if self._idle < len(self._queue) and len(self._threads) < len(self._lanes):
                lane = self._lanes[len(self._threads)]
                thread = threading.Thread(target=lane.run, args=(self,), name="vidembed-pool", daemon=True)
                self._threads.append(thread)
                thread.start()
            self.lock.notify_all()

    def layout(self, task: Task) -> tuple[Layout, list[Note]]:
        """Wait for the layout; its notes are given once."""
        with self.lock:
            while task.layout is None:
                self._check(task)
                self.lock.wait()
            notes, task.layout_notes = task.layout_notes, []
            return task.layout, notes

    def take(self, task: Task) -> tuple[Clip | VideoError, list[Note]] | None:
        """Wait for the next clip or error; ``None`` after the last."""
        with self.lock:
            task.waiting += 1
            self.lock.notify_all()  # a process may hand over one more than the others leave room for
            try:
                while not task.is_taken:
                    if task.entries:
                        task.taken += 1
                        self._release(task, 1)
                        return task.entries.popleft()
                    if task.rest is not None:
                        task.taken += 1
                        return task.rest, []
                    self._check(task)
                    self.lock.wait()
                return None
            finally:
                task.waiting -= 1

    def cancel(self, task: Task) -> None:
        """Drop a task."""
        with self.lock:
            if task.cancelled or task.is_taken:
                return
            task.cancelled = True
            self._release(task, len(task.entries))
            task.entries.clear()
            if task.lane is not None and task.lane.task is task and task.lane.worker is not None:
                task.lane.worker.kill("cancelled")
            if task in self._queue:
                self._queue.remove(task)
            self.lock.notify_all()

    def close(self) -> None:
        """End everything, and wait until it has."""
        with self.lock:
            self._is_closed = True
            self._queue.clear()
            for lane in self._lanes:
                if lane.worker is not None:
                    lane.worker.kill("cancelled")
            self.lock.notify_all()
        for thread in self._threads:
            thread.join(_CLOSE_TIMEOUT_S)
            if thread.is_alive():
                logger.warning("a decoding process does not end: it waits in the kernel, for a disk or a network")

    def abandon(self) -> None:
        """Let processes end when there is nothing left to do: nobody can add to it."""
        with self.lock:
            self._is_abandoned = True
            self.lock.notify_all()

    def _check(self, task: Task) -> None:
        if task.cancelled:
            raise CancelledError(f"{task.item}: the reading was cancelled")
        if task.failure is not None:
            raise task.failure
        if self._is_closed:
            raise CancelledError(f"{task.item}: the pool was closed")

    def _release(self, task: Task, count: int) -> None:
        if task.lane is not None:
            task.lane.held -= count
        self.lock.notify_all()

    # -- for the lanes -----------------------------------------------------------------------------------------------

    def next_task(self, lane: Lane) -> Task | None:
        """Wait for a task; ``None`` once the pool is closed."""
        with self.lock:
            self._idle += 1
            while not (self._queue or self._is_closed or self._is_abandoned):
                self.lock.wait()
            self._idle -= 1
            if not self._queue:
                return None
            lane.task = self._queue.popleft()
            lane.task.lane = lane
            return lane.task

    def admit(self, lane: Lane, worker: Worker | None) -> None:
        """Make a process known, so that it can be killed; or forget it."""
        with self.lock:
            lane.worker = worker
            if worker is not None and (self._is_closed or (lane.task is not None and lane.task.cancelled)):
                worker.kill("cancelled")

    def wait_for_room(self, lane: Lane, task: Task) -> None:
        """Wait until one more clip may be read."""
        with self.lock:
            while lane.held >= AHEAD and not (task.waiting and not task.entries):
                if task.cancelled or self._is_closed:
                    return  # the process is killed, which reading from it shows
                self.lock.wait()

    def put_layout(self, task: Task, layout: Layout, notes: list[Note]) -> None:
        """Publish the layout."""
        with self.lock:
            task.layout, task.layout_notes = layout, notes
            self.lock.notify_all()

    def put(self, lane: Lane, task: Task, entry: Clip | VideoError, notes: list[Note]) -> None:
        """Publish a clip or error."""
        with self.lock:
            if not task.cancelled:
                lane.held += 1
                task.entries.append((entry, notes))
                self.lock.notify_all()

    def break_off(self, task: Task, error: BaseException) -> None:
        """End a task with an error, for all segments that are left."""
        with self.lock:
            if task.layout is not None and isinstance(error, VideoError):
                task.rest = error
            else:
                task.failure = error
            self.lock.notify_all()

    def leave(self, lane: Lane) -> None:
        """Note that a lane has ended its task."""
        with self.lock:
            lane.task = None
            self.lock.notify_all()
