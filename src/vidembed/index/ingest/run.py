"""The work of a run: files are decoded in processes that can be killed, and clips become vectors."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from vidembed.index.errors import IndexingStoppedError
from vidembed.index.ingest.ahead import jobs_ahead
from vidembed.index.ingest.commit import Committer
from vidembed.index.ingest.interrupt import GracefulStop, uninterrupted
from vidembed.index.ingest.quarantine import KINDS
from vidembed.video import VideoError

if TYPE_CHECKING:
    from vidembed.index.files import IndexedFile
    from vidembed.index.ingest.job import Job
    from vidembed.index.ingest.plan import Candidate, Plan
    from vidembed.index.ingest.quarantine import Quarantine
    from vidembed.index.ingest.report import Report
    from vidembed.index.meta import IndexMeta
    from vidembed.index.protocols import Item, StreamEncoder
    from vidembed.video import Clip
    from vidembed.video.pool import DecodePool

STOPPING = "Interrupted: the batch at hand is finished first. Ctrl-C again ends at once."


class Run:
    """The state of one run.

    Files are read ahead of the model, so a job joins the queue before its vectors exist; jobs are settled in the order
    of the queue, which is that of the paths.

    Args:
        committer: Stores what is done.
        meta: Description of the index.
        encoder: The model.
        pool: Decodes.
        quarantine: Files that are known to be bad.
        report: Where outcomes are noted.
    """

    def __init__(
        self,
        committer: Committer,
        meta: IndexMeta,
        *,
        encoder: StreamEncoder,
        pool: DecodePool,
        quarantine: Quarantine,
        report: Report,
    ) -> None:
        self.committer = committer
        self._meta = meta
        self._encoder = encoder
        self._pool = pool
        self._quarantine = quarantine
        self._report = report
        self._queue: deque[Job] = deque()
        self._awaited: dict[int, tuple[Job, int]] = {}  # input number -> job and position in its windows
        self._first_with: dict[str, Job] = {}  # content -> the job that embeds it
        self._gone_with: dict[str, list[IndexedFile]] = {}  # content -> files with it that are gone from disk
        index = committer.index
        self._stored = set() if index is None else {file.content_fingerprint for file in index.files().values()}

    def embed(self, plan: Plan, *, batch_size: int, progress: bool) -> None:
        """Embed and store the candidates of `plan`.

        Raises:
            IndexingStoppedError: With `on_error="raise"`, at the first file that cannot be indexed.
            IndexWriteError: Rows could not be written.
            KeyboardInterrupt: Ctrl-C was pressed; what was finished is stored.
        """
        self._report.unchanged += len(plan.unchanged)
        for file in plan.gone:
            self._gone_with.setdefault(file.content_fingerprint, []).append(file)
        with ExitStack() as stack:
            stop = stack.enter_context(GracefulStop(STOPPING if progress else ""))
            inputs = self._inputs(plan.candidates, stop)
            stack.callback(inputs.close)
            stream = self._encoder.encode_stream(
                inputs, batch_size=batch_size, on_error="skip", show_progress_bar=False
            )
            if close := getattr(stream, "close", None):
                stack.callback(close)  # its threads end with it
            bar = stack.enter_context(
                tqdm(total=len(plan.candidates), desc="Indexing", unit="file", disable=not progress, dynamic_ncols=True)
            )
            try:
                for item in stream:
                    self._take(item)
                    self._settle_finished(bar)
            except KeyboardInterrupt:
                self._settle_finished(bar)
                raise
            self._settle_finished(bar)
            if stop.asked:
                raise KeyboardInterrupt
        if self._queue:
            raise RuntimeError(f"encode_stream ended before {self._queue[0].candidate.path} had all of its vectors")

    # -- what the model must see ---------------------------------------------------------------------------------------

    def _inputs(self, candidates: Sequence[Candidate], stop: GracefulStop) -> Generator[Clip, None, None]:
        """Yield clips in order. Files that need no model, and files that fail, only join the queue."""
        number = 0
        with ExitStack() as stack:
            jobs = jobs_ahead(candidates, recognize=self._recognize, start=self._start, workers=self._pool.workers)
            stack.callback(jobs.close)
            try:
                while (job := self._next_job(jobs, stop)) is not None:
                    self._queue.append(job)
                    for position, clip in self._clips(job, stop):
                        self._awaited[number] = (job, position)
                        number += 1
                        yield clip
            except KeyboardInterrupt:
                if not stop.asked:
                    raise
                # What the model has is finished; the files that are begun are taken up by the next run.

    def _next_job(self, jobs: Iterator[Job], stop: GracefulStop) -> Job | None:
        with stop.idle():
            job = next(jobs, None)
            if job is None or job.reading is None:
                return job
            try:
                layout = job.reading.layout()
            except VideoError as error:
                self._fail(job, error)
                job.reading = None
            else:
                job.duration, job.windows = layout.duration, list(layout.segments)
            return job

    def _clips(self, job: Job, stop: GracefulStop) -> Iterator[tuple[int, Clip]]:
        """Yield the clips of a file with their positions, up to the first that cannot be decoded."""
        if (reading := job.reading) is None:
            return
        clips = enumerate(reading)
        try:
            while job.problem is None:
                with stop.idle():
                    position, clip = next(clips, (-1, None))
                if clip is None:
                    return
                if isinstance(clip, VideoError):
                    self._fail(job, clip, self._at(job, position))
                    return
                yield position, clip
        finally:
            reading.cancel()

    def _recognize(self, job: Job) -> bool:
        """Note a file that is in quarantine as it is; say whether a file must be read. Runs in threads."""
        entry = self._quarantine.of_file(job.candidate.uri, job.state)
        if entry is not None:
            job.fail(entry.kind, f"{entry.message} {_said(entry.since)}")
        return entry is None

    def _start(self, job: Job) -> None:
        """Take what is known of a content from where it is, or begin to decode it."""
        index = self.committer.index
        if index is not None and job.content in self._stored:
            found = index.segments(content_fingerprint=job.content)
            if found is not None:
                job.duration, job.stored = found
                if job.candidate.previous is None and (gone := self._gone_with.get(job.content)):
                    job.moved_from = gone.pop(0)
                return
        if (entry := self._quarantine.of_content(job.content)) is not None:
            job.fail(entry.kind, f"{entry.message} {_said(entry.since)}")
            return
        if job.content in self._first_with:
            job.twin = self._first_with[job.content]
            return
        self._first_with[job.content] = job
        job.reading = self._pool.submit(job.candidate.path, self._encoder.sampling, cut=self._meta.cut)

    def _fail(self, job: Job, error: VideoError, at: str = "") -> None:
        job.fail(type(error).__name__, at + error.reason)
        job.undecodable = type(error).__name__ in KINDS

    def _at(self, job: Job, position: int) -> str:
        if self._meta.cut is None:
            return ""
        start, end = job.windows[position]
        return f"at {start:g} to {end:g} s: "

    # -- what the model gave -------------------------------------------------------------------------------------------

    def _take(self, item: Item) -> None:
        """Hand a vector or an error to the job that it belongs to."""
        job, position = self._awaited.pop(item.index)
        if job.problem is not None:
            return
        at = self._at(job, position)
        if item.error is not None:
            job.fail(type(item.error).__name__, at + getattr(item.error, "reason", str(item.error)))
            return
        vector = np.asarray(item.embedding, dtype=np.float32).reshape(-1)  # (D,)
        if vector.shape != (self._meta.dimension,) or not np.isfinite(vector).all() or not vector.any():
            job.fail("InternalError", f"{at}the model gave a vector that is zero, not finite or of the wrong length")
        else:
            job.vectors[position] = vector

    def _settle_finished(self, bar: Any) -> None:
        """Store or report the jobs at the head of the queue that are done."""
        while self._queue and self._queue[0].done:
            with uninterrupted():
                failed = self.committer.settle(self._queue, bar)
            if failed is not None and failed.problem is not None:
                self._queue.clear()
                raise IndexingStoppedError(f"{failed.candidate.path}: {failed.problem.kind}: {failed.problem.message}")


def _said(since: str) -> str:
    return f"(in quarantine since {since}; --retry tries it again)"
