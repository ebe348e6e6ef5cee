"""Jobs that are done become rows, in one commit for those that are done at the same moment."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vidembed.index.columns import own_rows
from vidembed.index.errors import IndexWriteError
from vidembed.index.ingest.interrupt import uninterrupted
from vidembed.index.ingest.quarantine import Entry
from vidembed.index.store import FileRows, VideoIndex

if TYPE_CHECKING:
    from vidembed.index.files import IndexedFile
    from vidembed.index.ingest.job import Job
    from vidembed.index.ingest.quarantine import Quarantine
    from vidembed.index.ingest.report import Problem, Report
    from vidembed.index.meta import IndexMeta

logger = logging.getLogger(__name__)

_GROUP_ROWS = 4096  # of one commit, where many files are done at once


class Committer:
    """Stores what is done, and notes what became of each file.

    Args:
        folder: Where the index is or shall be.
        index: The index, or None where it is made with the first file.
        meta: Its description.
        report: Where outcomes are noted.
        quarantine: Where files are noted that cannot be decoded.
        on_error: `skip` or `raise`.

    Attributes:
        index: The index, once there is one.
        moved: URIs of files that were found under another name; their rows have gone there.
    """

    def __init__(
        self,
        folder: Path,
        index: VideoIndex | None,
        meta: IndexMeta,
        *,
        report: Report,
        quarantine: Quarantine,
        on_error: Literal["skip", "raise"],
    ) -> None:
        self.index = index
        self.moved: set[str] = set()
        self._folder = folder
        self._meta = meta
        self._report = report
        self._quarantine = quarantine
        self._on_error = on_error

    def settle(self, queue: deque[Job], bar: Any) -> Job | None:
        """Take jobs that are done off the head of `queue`; store the new, the changed and the moved, a commit for each.

        Returns:
            The job that ends the run, if one does.

        Raises:
            IndexWriteError: The rows could not be written.
        """
        new: list[FileRows] = []
        known: list[FileRows] = []
        moved: list[FileRows] = []
        origins: list[str] = []
        contents: set[str] = set()
        rows = 0
        failed = None
        while failed is None and queue and queue[0].done and rows < _GROUP_ROWS:
            if queue[0].twin is not None and queue[0].content in contents:
                break  # its vectors are in this group, and must be in the index first
            job = queue.popleft()
            file = self._file_rows(job)
            if job.problem is not None:
                self._skip(job, job.problem)
                failed = job if self._on_error == "raise" else None
            elif self._count(job) and file is not None:
                if job.moved_from is not None:
                    moved.append(file)
                    origins.append(job.moved_from.uri)
                else:
                    (new if job.candidate.previous is None else known).append(file)
                contents.add(job.content)
                rows += len(file.segments)
            job.vectors, job.stored, job.reading = {}, None, None  # a twin may keep the job for the length of the run
            bar.update()
        with writing_to(self._folder):
            self._store(new, known, moved, origins)
        return failed

    def finish(self, gone: Sequence[IndexedFile], is_gone: Callable[[str], bool], *, prune: bool) -> None:
        """Deal with what is gone, tidy the table and the quarantine list, and count.

        Args:
            gone: Files of the index that are no longer on disk.
            is_gone: Whether a file, by its URI, was looked for and is no longer on disk.
            prune: Remove the rows of `gone`.

        Raises:
            IndexWriteError: The index could not be written.
        """
        self._report.gone = [file.uri for file in gone if file.uri not in self.moved]
        index = self.index
        if index is None:
            return
        with uninterrupted(), writing_to(self._folder):
            if prune:
                index.remove(self._report.gone)
            index.compact()
            files = index.files()
            self._quarantine.tidy(files, is_gone)
            index.flush()
        self._report.files, self._report.segments = len(files), len(index)

    def _store(
        self, new: Sequence[FileRows], known: Sequence[FileRows], moved: Sequence[FileRows], origins: Sequence[str]
    ) -> None:
        if self.index is None and new:
            self.index = VideoIndex.create(self._folder, self._meta)
        if self.index is not None:
            self.index.put(new, replace=False)
            self.index.put(known, replace=True)
            if moved:
                self.index.move(moved, origins)
                self.moved.update(origins)
            self._quarantine.write()

    def _count(self, job: Job) -> bool:
        """Note in the report what became of a file, and say whether there is anything to store."""
        previous = job.candidate.previous
        if previous is not None and previous.content_fingerprint == job.content:
            self._report.unchanged += 1
            return previous.state != job.state
        if job.moved_from is not None:
            self._report.moved += 1
        elif job.stored is not None or job.twin is not None:
            self._report.copied += 1
        else:
            self._report.indexed += 1
            self._report.changed += previous is not None
        return True

    def _file_rows(self, job: Job) -> FileRows | None:
        """Return the rows to store for a finished job, or note its problem.

        They are built here, file by file, so that what cannot be a row fails for its own file and not for the commit.
        """
        if job.problem is None and job.stored is None and job.twin is None and not job.is_as_it_was():
            job.fail("ChangedWhileRead", "the file was written to while it was being read; run again")
        if job.twin is not None:
            self._follow(job, job.twin)
        if job.problem is not None:
            return None
        try:
            segments = job.embedded() if job.stored is None else job.stored
            file = FileRows(job.candidate.uri, segments, job.duration, job.content, job.state)
            return replace(file, table=own_rows(file, self._meta))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this file's problem
            job.fail(type(error).__name__, f"its rows cannot be built ({error})")
            return None

    def _follow(self, job: Job, twin: Job) -> None:
        """Give a job the outcome of an earlier one with the same content."""
        if twin.problem is not None:
            job.fail(twin.problem.kind, twin.problem.message)
            job.undecodable = twin.undecodable
            return
        found = None if self.index is None else self.index.segments(content_fingerprint=job.content)
        if found is None:
            job.fail("ChangedWhileRead", f"it had the content of {twin.candidate.path}, which changed; run again")
        else:
            job.duration, job.stored = found

    def _skip(self, job: Job, problem: Problem) -> None:
        """Report a file that failed. Rows of content that it no longer has are removed; rows that may be right stay."""
        if job.undecodable and job.is_as_it_was():
            self._quarantine.add(
                Entry(
                    uri=problem.uri,
                    content_fingerprint=job.content,
                    size=job.state.size,
                    mtime_ns=job.state.mtime_ns,
                    kind=problem.kind,
                    message=problem.message,
                    since=datetime.now(UTC).isoformat(timespec="seconds"),
                    decoder=self._quarantine.decoder,
                )
            )
            self._report.quarantined += 1
        if job.content_is_new and self.index is not None:
            with writing_to(self._folder):
                self.index.remove([job.candidate.uri])
            problem = replace(problem, message=f"{problem.message} (its earlier segments were removed)")
        self._report.skipped.append(problem)
        logger.info("skipped %s: %s: %s", problem.uri, problem.kind, problem.message)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn the errors of LanceDB and of the system in this block into one that says what to do.

    Raises:
        IndexWriteError: One occurred.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise IndexWriteError(
            f"to: writing to {str(folder)!r} failed ({text[:400]}). Check its free space and access rights and run "
            "again: what was committed stays, and is not done again"
        ) from error
