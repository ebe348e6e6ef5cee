"""One thread for one model, and a bounded queue before it: what waits together is run together."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


class QueueFullError(RuntimeError):
    """As many inputs wait as may wait."""


@dataclass(slots=True)
class _Job:
    """What one request asks of the model: items that may share a batch, or else a function that runs alone."""

    items: Sequence[Any]
    alone: Callable[[], Any] | None
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]

    @property
    def size(self) -> int:
        return len(self.items) if self.alone is None else 1

    def settle(self, result: Any, error: Exception | None) -> None:
        """Hand over the outcome, from any thread, unless nobody waits for it any more."""

        def hand_over() -> None:
            if self.future.done():
                return
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result(result)

        try:
            self.loop.call_soon_threadsafe(hand_over)
        except RuntimeError:  # the loop was closed: the server went down while the model ran
            logger.debug("an answer came after the server had stopped")


class Batcher(Generic[T, R]):
    """Runs items of several requests in one call, on one thread, in the order of the requests.

    Args:
        run: Returns one result for each item. An exception is that of every request in the batch; then each request is
            run again on its own, so that one does not fail for another's items.
        max_items: Items after which no other request joins a batch. A request is never cut.
        wait_s: How long the first request of a batch waits for others, seconds.
        max_queue: Items that may wait.
        observe: Called with the number of items of each batch, on the thread.
    """

    def __init__(
        self,
        run: Callable[[list[T]], Sequence[R]],
        *,
        max_items: int,
        wait_s: float,
        max_queue: int,
        observe: Callable[[int], None] = lambda _count: None,
    ) -> None:
        self._run = run
        self._max_items = max_items
        self._wait_s = wait_s
        self._max_queue = max_queue
        self._observe = observe
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="vidembed-model", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        with self._changed:
            return sum(job.size for job in self._jobs)

    @property
    def alive(self) -> bool:
        """Whether the thread runs and takes requests."""
        return self._thread.is_alive() and not self._closed

    async def submit(self, items: Sequence[T]) -> list[R]:
        """Run items, together with those of other requests.

        If the caller is cancelled before its batch has begun, its items are not run.

        Raises:
            QueueFullError: Too many items wait.
        """
        return await self._put(items, None) if items else []

    async def call(self, function: Callable[[], R]) -> R:
        """Run a function on the same thread, between batches.

        Raises:
            QueueFullError: Too many items wait.
        """
        result: R = await self._put((), function)
        return result

    def close(self, *, timeout_s: float = 10.0) -> None:
        """End the thread after the batch at hand. What waits fails."""
        with self._changed:
            self._closed = True
            jobs, self._jobs = list(self._jobs), deque()
            self._changed.notify_all()
        for job in jobs:
            job.settle(None, QueueFullError("the server is stopping"))
        self._thread.join(timeout_s)

    async def _put(self, items: Sequence[Any], alone: Callable[[], Any] | None) -> Any:
        loop = asyncio.get_running_loop()
        job = _Job(items, alone, loop, loop.create_future())
        with self._changed:
            if self._closed:
                raise QueueFullError("the server is stopping")
            waiting = sum(other.size for other in self._jobs)
            if waiting + job.size > self._max_queue:
                raise QueueFullError(f"{waiting} inputs wait for the model; at most {self._max_queue} may")
            self._jobs.append(job)
            self._changed.notify_all()
        return await job.future

    # -- on the thread -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            batch = [job for job in batch if not job.future.cancelled()]
            if not batch:
                continue
            if batch[0].alone is not None:
                self._settle_one(batch[0], batch[0].alone)
            else:
                self._run_batch(batch)

    def _next(self) -> list[_Job] | None:
        with self._changed:
            while not self._jobs:
                if self._closed:
                    return None
                self._changed.wait()
            batch = [self._jobs.popleft()]
            if batch[0].alone is not None:
                return batch
            count = batch[0].size
            until = time.monotonic() + self._wait_s
            while count < self._max_items and not self._closed:
                if self._jobs:
                    if self._jobs[0].alone is not None or count + self._jobs[0].size > self._max_items:
                        break
                    batch.append(self._jobs.popleft())
                    count += batch[-1].size
                elif (left := until - time.monotonic()) <= 0 or not self._changed.wait(left):
                    break
            return batch

    def _run_batch(self, batch: list[_Job]) -> None:
        items = [item for job in batch for item in job.items]
        self._observe(len(items))
        try:
            results = self._checked(items)
        except Exception as error:  # noqa: BLE001 - whatever the model raises is the request's, not the thread's
            if len(batch) == 1:
                batch[0].settle(None, error)
                return
            for job in batch:
                self._settle_one(job, functools.partial(self._checked, list(job.items)))
            return
        start = 0
        for job in batch:
            job.settle(results[start : start + job.size], None)
            start += job.size

    def _checked(self, items: list[T]) -> list[R]:
        results = list(self._run(items))
        if len(results) != len(items):
            raise RuntimeError(f"the model gave {len(results)} results for {len(items)} inputs")
        return results

    @staticmethod
    def _settle_one(job: _Job, function: Callable[[], Any]) -> None:
        try:
            job.settle(function(), None)
        except Exception as error:  # noqa: BLE001 - as above
            job.settle(None, error)
