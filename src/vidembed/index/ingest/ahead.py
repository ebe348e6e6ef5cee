"""Files are identified and decoded ahead of the model, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from vidembed.index.ingest.job import Job
from vidembed.video import VideoError, item_name
from vidembed.video.fingerprint import FileState, content_fingerprint
from vidembed.video.source import check_regular

if TYPE_CHECKING:
    from vidembed.index.ingest.plan import Candidate


def jobs_ahead(
    candidates: Iterable[Candidate],
    *,
    recognize: Callable[[Job], bool],
    start: Callable[[Job], None],
    workers: int,
) -> Generator[Job, None, None]:
    """Yield a job for each candidate, in order: with its state and content, and decoding if the model must see it.

    Contents are hashed in threads. Up to `2 * workers` files are hashed, and as many decoding, ahead of the job that
    the caller has.

    Args:
        candidates: The files.
        recognize: Called for each job in a thread once its state is known; says whether its content must be read.
        start: Called for each job without a problem in the order of candidates, in the thread of the caller: decides
            whether the model must see it, and if so sets `Job.reading`.
        workers: Threads.
    """
    ahead = 2 * workers
    remaining = iter(candidates)
    hashing: deque[Future[Job]] = deque()
    ready: deque[Job] = deque()
    executor = ThreadPoolExecutor(workers, thread_name_prefix="vidembed-hash")
    try:
        while True:
            while len(hashing) < ahead and (candidate := next(remaining, None)) is not None:
                hashing.append(executor.submit(_identify, candidate, recognize))
            while hashing and len(ready) < ahead and (not ready or hashing[0].done()):
                job = hashing.popleft().result()
                if job.problem is None:
                    start(job)
                ready.append(job)
            if not ready:
                return
            yield ready.popleft()
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        for job in ready:
            if job.reading is not None:
                job.reading.cancel()


def _identify(candidate: Candidate, recognize: Callable[[Job], bool]) -> Job:
    """Find out what a file is, without decoding any of it."""
    job = Job(candidate)
    path = candidate.path
    try:
        check_regular(str(path), item_name(path))  # reading a pipe could wait for ever
        job.state = FileState.of(path)
        if recognize(job):
            job.content = content_fingerprint(path)
    except VideoError as error:
        job.fail(type(error).__name__, error.reason)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this file's problem
        job.fail(type(error).__name__, getattr(error, "strerror", None) or str(error))
    return job
