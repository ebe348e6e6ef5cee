"""One thread for one model, and a bounded queue before it: what waits together is run together."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")
S = TypeVar("S")


class QueueFullError(RuntimeError):
    """As many inputs wait as may wait."""


@dataclass(slots=True, eq=False)
class _Job(Generic[T, R]):
    """One request to the model: items that may share a batch, or else a function that runs alone."""

    items: Sequence[T]
    alone: Callable[[], None] | None
    future: asyncio.Future[None]
    taken: int = 0
    results: list[R] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Items that are in no batch yet; 1 for a function."""
        return len(self.items) - self.taken if self.alone is None else 1

    def settle(self, error: Exception | None = None) -> None:
        """Hand over the outcome, from any thread, unless nobody waits for it any more."""

        def hand_over() -> None:
            if error is not None and not self.future.done():
                self.future.set_exception(error)
            elif not self.future.done():
                self.future.set_result(None)

        try:
            self.future.get_loop().call_soon_threadsafe(hand_over)
        except RuntimeError:  # the loop was closed: the server went down while the model ran
            logger.debug("an answer came after the server had stopped")


@dataclass(eq=False)
class Batcher(Generic[T, R]):
    """Runs items of several requests in one call, on one thread, in the order of the requests.

    A request of more than `max_items` is run in parts, between which the others have their turn. Where `run` fails for
    a batch, each of its requests is run again on its own, so that one does not fail for another's items.
    """

    run: Callable[[list[T]], Sequence[R]]  # returns one result for each item
    _: KW_ONLY
    max_items: int  # of a batch
    wait_s: float  # that the first request of a batch waits for others
    max_queue: int  # items that may wait
    observe: Callable[[int], None] = lambda _count: None  # gets the number of items of each batch, on the thread

    def __post_init__(self) -> None:
        """Start the thread."""
        self._jobs: deque[_Job[T, R]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="vidembed-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        with self._changed:
            return sum(job.left for job in self._jobs)

    @property
    def alive(self) -> bool:
        """Whether the thread runs and takes requests."""
        return self._thread.is_alive() and not self._closed

    async def submit(self, items: Sequence[T]) -> list[R]:
        """Run items, unless the caller is cancelled before; or raise `QueueFullError`: too many wait."""
        return (await self._put(items, None)).results if items else []

    async def call(self, function: Callable[[], S]) -> S:
        """Run a function on the same thread, between batches, or raise `QueueFullError` if too many items wait."""
        results: list[S] = []
        await self._put((), lambda: results.append(function()))
        return results[0]

    def close(self, *, timeout_s: float = 10.0) -> None:
        """End the thread after the batch at hand. What waits fails."""
        with self._changed:
            self._closed = True
            jobs, self._jobs = list(self._jobs), deque()
            self._changed.notify_all()
        for job in jobs:
            job.settle(QueueFullError("the server is stopping"))
        self._thread.join(timeout_s)

    async def _put(self, items: Sequence[T], alone: Callable[[], None] | None) -> _Job[T, R]:
        job: _Job[T, R] = _Job(items, alone, asyncio.get_running_loop().create_future())
        with self._changed:
            if self._closed:
                raise QueueFullError("the server is stopping")
            waiting = sum(other.left for other in self._jobs)
            if waiting + job.left > self.max_queue:
                raise QueueFullError(
                    f"{waiting} inputs are waiting for the model, and at most {self.max_queue} can wait"
                )
            self._jobs.append(job)
            self._changed.notify_all()
        await job.future
        return job

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            if batch := [(job, items) for job, items in batch if not job.future.cancelled()]:
                if count := sum(len(items) for _, items in batch):
                    self.observe(count)
                self._run_batch(batch)

    def _next(self) -> list[tuple[_Job[T, R], Sequence[T]]] | None:
        """Wait for a batch: requests, each with those of its items that are in it. None at the end."""
        with self._changed:
            while not self._waits():
                if self._closed:
                    return None
                self._changed.wait()
            batch = [self._take()]
            if batch[0][0].alone is not None:
                return batch
            count = len(batch[0][1])
            until = time.monotonic() + self.wait_s
            while count < self.max_items and not self._closed:
                if self._waits():
                    if self._jobs[0].alone is not None or count + self._jobs[0].left > self.max_items:
                        break
                    batch.append(self._take())
                    count += len(batch[-1][1])
                elif (left := until - time.monotonic()) <= 0 or not self._changed.wait(left):
                    break
            return batch

    def _waits(self) -> bool:
        """Whether a request waits, once those that were given up are dropped."""
        while self._jobs and self._jobs[0].future.cancelled():
            self._jobs.popleft()
        return bool(self._jobs)

    def _take(self) -> tuple[_Job[T, R], Sequence[T]]:
        """Take the next part of the first request; the rest of it waits behind the others."""
        job = self._jobs.popleft()
        items = job.items[job.taken : job.taken + self.max_items]
        job.taken += len(items)
        if job.alone is None and job.left:
            self._jobs.append(job)
        return job, items

    def _run_batch(self, batch: list[tuple[_Job[T, R], Sequence[T]]]) -> None:
        job, items = batch[0][0], [item for _, part in batch for item in part]
        try:
            if job.alone is not None:
                job.alone()
            results = list(self.run(items)) if items else []
            if len(results) != len(items):
                raise RuntimeError(f"the model gave {len(results)} results for {len(items)} inputs")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001 - whatever the model raises is the request's, not the thread's
            if len(batch) > 1:
                for each in batch:
                    self._run_batch([each])
                return
            with self._changed:
                if job in self._jobs:
                    self._jobs.remove(job)  # its other parts are for nobody now
            job.settle(error)
            return
        for job, part in batch:
            job.results += results[: len(part)]
            del results[: len(part)]
            if len(job.results) == len(job.items):
                job.settle()
