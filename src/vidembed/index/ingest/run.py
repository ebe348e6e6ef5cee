"""The work of a run: files become vectors, and vectors become rows, one commit for each file."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm.auto import tqdm

from vidembed.index.errors import IndexingStoppedError
from vidembed.index.ingest.interrupt import uninterrupted
from vidembed.index.ingest.job import Job
from vidembed.index.ingest.report import Problem, Report
from vidembed.index.store import FileRows, Segment, VideoIndex
from vidembed.video import VideoError, VideoSegment, item_name
from vidembed.video.duration import video_duration
from vidembed.video.fingerprint import FileState, content_fingerprint
from vidembed.video.source import check_regular

if TYPE_CHECKING:
    from vidembed.index.ingest.plan import Candidate, Plan
    from vidembed.index.meta import IndexMeta
    from vidembed.index.protocols import Item, StreamEncoder

logger = logging.getLogger(__name__)

_GROUP_ROWS = 4096  # of one commit, where many files are done at once


class Run:
    """The state of one run.

    Files are read ahead of the model, so a job joins the queue before its vectors exist; jobs are settled in the order
    of the queue, which is that of the paths.

    Args:
        folder: Where the index is or shall be.
        index: The index, or None where it is made with the first file.
        meta: Its description.
        encoder: The model.
        report: Where outcomes are noted.
        on_error: `skip` or `raise`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        index: VideoIndex | None,
        meta: IndexMeta,
        *,
        encoder: StreamEncoder,
        report: Report,
        on_error: Literal["skip", "raise"],
    ) -> None:
        """Begin a run; nothing is read yet but the index."""
        self.folder = folder
        self.index = index
        self.meta = meta
        self.encoder = encoder
        self.report = report
        self.on_error = on_error
        self.queue: deque[Job] = deque()
        self.awaited: dict[int, tuple[Job, int]] = {}  # input number -> job and position in its windows
        self.first_with: dict[str, Job] = {}  # content -> the job that embeds it
        self.stored_contents = set() if index is None else {file.content_fingerprint for file in index.files().values()}

    def embed(self, plan: Plan, *, batch_size: int, progress: bool) -> None:
        """Embed and store the candidates of `plan`.

        Raises:
            IndexingStoppedError: With `on_error="raise"`, at the first file that cannot be indexed.
        """
        self.report.unchanged += len(plan.unchanged)
        stream = self.encoder.encode_stream(
            self._inputs(plan.candidates), batch_size=batch_size, on_error="skip", show_progress_bar=False
        )
        with ExitStack() as stack:
            bar = stack.enter_context(
                tqdm(total=len(plan.candidates), desc="Indexing", unit="file", disable=not progress, dynamic_ncols=True)
            )
            if close := getattr(stream, "close", None):
                stack.callback(close)  # its threads end with it
            try:
                for item in stream:
                    self._take(item)
                    self._settle_finished(bar)
            except KeyboardInterrupt:
                self._settle_finished(bar)
                raise
            self._settle_finished(bar)
        if self.queue:
            raise RuntimeError(f"encode_stream ended before {self.queue[0].candidate.path} had all of its vectors")

    def finish(self, plan: Plan, *, prune: bool) -> None:
        """Deal with what is gone, tidy the table and count."""
        self.report.gone = [file.uri for file in plan.gone]
        if self.index is None:
            return
        with uninterrupted():
            if prune:
                self.index.remove(self.report.gone)
            self.index.compact()
            self.index.flush()
        self.report.files, self.report.segments = len(self.index.files()), len(self.index)

    def _inputs(self, candidates: Sequence[Candidate]) -> Iterator[Any]:
        """Yield what the model must see. Files that need no model, and files that fail, only join the queue."""
        number = 0
        for candidate in candidates:
            job = Job(candidate)
            try:
                self._prepare(job)
            except VideoError as error:
                job.fail(type(error).__name__, error.reason)
            except OSError as error:
                job.fail(type(error).__name__, error.strerror or str(error))
            self.queue.append(job)
            if job.problem is not None:
                continue
            for position, (start, end) in enumerate(job.windows):
                self.awaited[number] = (job, position)
                number += 1
                whole = self.meta.segment_s is None
                yield {"video": candidate.path} if whole else VideoSegment(candidate.path, start, end)

    def _prepare(self, job: Job) -> None:
        """Find out what a file holds, and which of its segments the model must see."""
        path = job.candidate.path
        check_regular(str(path), item_name(path))  # reading a pipe could wait for ever
        job.state = FileState.of(path)
        job.content = content_fingerprint(path)
        if self.index is not None and job.content in self.stored_contents:
            found = self.index.segments(content_fingerprint=job.content)
            if found is not None:
                job.duration, job.stored = found
                return
        if job.content in self.first_with:
            job.twin = self.first_with[job.content]
            return
        self.first_with[job.content] = job
        job.duration = round(video_duration(path), 6)
        try:
            job.windows = [(0.0, job.duration)] if (cut := self.meta.windows) is None else cut.split(job.duration)
        except ValueError as error:
            job.fail("InvalidDuration", str(error))

    def _take(self, item: Item) -> None:
        """Hand a vector or an error to the job that it belongs to."""
        job, position = self.awaited.pop(item.index)
        if job.problem is not None:
            return
        start, end = job.windows[position]
        at = "" if self.meta.segment_s is None else f"at {start:g} to {end:g} s: "
        if item.error is not None:
            job.fail(type(item.error).__name__, at + getattr(item.error, "reason", str(item.error)))
            return
        vector = np.asarray(item.embedding, dtype=np.float32).reshape(-1)  # (D,)
        if vector.shape != (self.meta.dimension,) or not np.isfinite(vector).all() or not vector.any():
            job.fail("InternalError", f"{at}the model gave a vector that is zero, not finite or of the wrong length")
        else:
            job.vectors[position] = vector

    def _settle_finished(self, bar: Any) -> None:
        """Store or report the jobs at the head of the queue that are done."""
        while self.queue and self.queue[0].done:
            with uninterrupted():
                failed = self._settle_group(bar)
            if failed is not None and failed.problem is not None:
                self.queue.clear()
                raise IndexingStoppedError(f"{failed.candidate.path}: {failed.problem.kind}: {failed.problem.message}")

    def _settle_group(self, bar: Any) -> Job | None:
        """Settle jobs that are done at the same moment, in one commit of new files and one of files in the index.

        Returns:
            The job that ends the run, if one does.
        """
        new: list[FileRows] = []
        known: list[FileRows] = []
        contents: set[str] = set()
        rows = 0
        failed = None
        while failed is None and self.queue and self.queue[0].done and rows < _GROUP_ROWS:
            if self.queue[0].twin is not None and self.queue[0].content in contents:
                break  # its vectors are in this group, and must be in the index first
            job = self.queue.popleft()
            segments = self._segments(job)
            if job.problem is not None:
                self._skip(job, job.problem)
                failed = job if self.on_error == "raise" else None
            elif self._count(job):
                file = FileRows(job.candidate.uri, segments, job.duration, job.content, job.state)
                (new if job.candidate.previous is None else known).append(file)
                contents.add(job.content)
                rows += len(segments)
            job.vectors, job.stored = {}, None  # a twin may keep the job for the length of the run
            bar.update()
        if self.index is None and new:
            self.index = VideoIndex.create(self.folder, self.meta)
        if self.index is not None:
            self.index.put(new, replace=False)
            self.index.put(known, replace=True)
        return failed

    def _count(self, job: Job) -> bool:
        """Note in the report what became of a file, and say whether there is anything to store."""
        previous = job.candidate.previous
        if previous is not None and previous.content_fingerprint == job.content:
            self.report.unchanged += 1
            return previous.state != job.state
        if job.stored is not None or job.twin is not None:
            self.report.copied += 1
        else:
            self.report.indexed += 1
            self.report.changed += previous is not None
        return True

    def _segments(self, job: Job) -> list[Segment]:
        """Return the segments to store for a finished job, or note its problem."""
        if job.problem is None and job.stored is None and job.twin is None and not job.is_as_it_was():
            job.fail("ChangedWhileRead", "the file was written to while it was being read; run again")
        if job.twin is not None:
            self._follow(job, job.twin)
        if job.problem is not None:
            return []
        return job.embedded() if job.stored is None else job.stored

    def _follow(self, job: Job, twin: Job) -> None:
        """Give a job the outcome of an earlier one with the same content."""
        if twin.problem is not None:
            job.fail(twin.problem.kind, twin.problem.message)
            return
        found = None if self.index is None else self.index.segments(content_fingerprint=job.content)
        if found is None:
            job.fail("ChangedWhileRead", f"it had the content of {twin.candidate.path}, which changed; run again")
        else:
            job.duration, job.stored = found

    def _skip(self, job: Job, problem: Problem) -> None:
        """Report a file that failed. Rows of content that it no longer has are removed; rows that may be right stay."""
        if job.content_is_new and self.index is not None:
            self.index.remove([job.candidate.uri])
            problem = replace(problem, message=f"{problem.message} (its earlier segments were removed)")
        self.report.skipped.append(problem)
        logger.info("skipped %s: %s: %s", problem.uri, problem.kind, problem.message)
