"""Rows that come back from the workers, in any order, become files that are whole, and commits."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vidembed.errors import IndexingStoppedError, IndexMismatchError
from vidembed.index.commit import KINDS, Job, uninterrupted
from vidembed.index.files import name_of
from vidembed.ray.decode import ERROR
from vidembed.video.sampling import FileState

if TYPE_CHECKING:
    import pyarrow as pa

    from vidembed.index.commit import Committer, Quarantine
    from vidembed.index.files import IndexedFile
    from vidembed.index.meta import IndexMeta
    from vidembed.ray.indexer import Work


COMMIT_EVERY_S: Final = 5.0
"""Seconds from commit to commit at least, so that files which are done in quick succession share one (our choice)."""
COMMIT_ROWS: Final = 4096
"""Rows at which a commit does not wait (our choice)."""

_IN_QUARANTINE = "(in quarantine since {}; --retry tries it again)"


@dataclass(slots=True)
class RayJob(Job):
    """A file that workers read."""

    def is_as_it_was(self) -> bool:
        """Whether it was not written to: the worker has seen to that, where the file is."""
        return True


class Collector:
    """Puts files together from rows, and has them stored.

    Args:
        committer: Stores what is done.
        meta: Description of the index.
        quarantine: Files that are known to be bad.
        gone: Files of the index that are gone; one of the same content takes over their rows.
        bar: Progress over files.

    Attributes:
        again: Files whose content was known when the run began, and is no more; they must be decoded after all.
    """

    def __init__(
        self,
        committer: Committer,
        meta: IndexMeta,
        *,
        quarantine: Quarantine,
        gone: Sequence[IndexedFile],
        bar: Any,
    ) -> None:
        self.again: list[Work] = []
        self._committer = committer
        self._meta = meta
        self._quarantine = quarantine
        self._bar = bar
        self._open: dict[str, tuple[Work, RayJob]] = {}
        self._done: deque[Job] = deque()
        self._committed_at = -COMMIT_EVERY_S
        self._rows = 0
        self._first_with: dict[str, RayJob] = {}  # content -> the job of this run that embedded it
        self._gone_with: dict[str, list[IndexedFile]] = {}
        for file in gone:
            self._gone_with.setdefault(file.content_fingerprint, []).append(file)

    def expect(self, work: Sequence[Work]) -> list[Work]:
        """Open a job for each file, and return those that must be read: without those in quarantine as they are."""
        wanted = []
        for each in work:
            job = RayJob(each.job.path, each.job.uri, each.job.previous)
            entry = None
            try:
                job.state = each.state or FileState.of(each.job.path)
                entry = self._quarantine.of_file(each.job.uri, job.state)
            except OSError:
                pass  # reported when it is read
            if entry is None:
                self._open[each.job.uri] = each, job
                wanted.append(each)
            else:
                job.fail(entry.kind, f"{entry.message} {_IN_QUARANTINE.format(entry.since)}")
                self._finish(job)
        return wanted

    def take(self, batch: pa.Table) -> None:
        """Take rows as `EmbedVideos` returns them. Rows of files that are done, or came twice, are let go.

        Raises:
            IndexMismatchError: A worker had another model.
            IndexingStoppedError: A file cannot be indexed, and the run is to end there.
            IndexWriteError: Rows could not be written.
        """
        vectors = batch.column("vector")
        for place, row in enumerate(batch.drop_columns(["vector"]).to_pylist()):
            if row["uri"] not in self._open:
                continue
            if row["model_fingerprint"] != self._meta.model_fingerprint:
                raise IndexMismatchError(
                    f"model: a worker loaded one with fingerprint {row['model_fingerprint'][:12]}, and that of the "
                    f"index is {self._meta.model_fingerprint[:12]}. Have the same files and versions on all machines"
                )
            self._take_row(row, vectors[place])
        self.settle(now=False)

    def settle(self, *, now: bool) -> None:
        """Store the files that are done: `now`, or if there are many or the last commit was long ago.

        Raises:
            IndexingStoppedError: A file cannot be indexed, and the run is to end there.
            IndexWriteError: Rows could not be written.
        """
        is_due = time.monotonic() - self._committed_at >= COMMIT_EVERY_S or self._rows >= COMMIT_ROWS
        if not self._done or not (now or is_due):
            return
        while self._done:
            with uninterrupted():
                failed = self._committer.settle(self._done, self._bar)
            if failed is not None and failed.problem is not None:
                self._done.clear()
                name = name_of(failed.uri)
                raise IndexingStoppedError(f"{name}: {failed.problem.kind}: {failed.problem.message}")
        self._committed_at, self._rows = time.monotonic(), 0

    def close(self) -> None:
        """Report files of which not all has come, though the workers are done, and store the rest.

        Raises:
            IndexingStoppedError: A file cannot be indexed, and the run is to end there.
            IndexWriteError: Rows could not be written.
        """
        for _, job in list(self._open.values()):
            job.fail("InternalError", f"{len(job.vectors)} segments came back from the workers, and not all; run again")
            self._finish(job)
        self.settle(now=True)

    # -- one row -------------------------------------------------------------------------------------------------------

    def _take_row(self, row: dict[str, Any], vector: pa.FixedSizeListScalar) -> None:
        work, job = self._open[row["uri"]]
        if (content := row["content_fingerprint"]) is not None:
            if job.content not in {"", content} or len(job.windows) not in {0, row["segments"]}:
                job.fail("ChangedWhileRead", "it was read twice, and differed; run again")
            job.content, job.state = content, FileState(row["size"], row["mtime_ns"])
        if row[ERROR] is not None:
            kind, _, message = row[ERROR].partition(": ")
            job.fail(kind, message)
            job.undecodable = kind in KINDS and content is not None
        elif job.problem is None and row["segments"] == 0:
            if not self._take_known(job):
                del self._open[row["uri"]]
                self.again.append(work)
                return
        elif job.problem is None:
            job.duration = row["duration"]
            job.windows = job.windows or [(0.0, 0.0)] * row["segments"]
            job.windows[row["segment"]] = row["start_s"], row["end_s"]
            job.vectors[row["segment"]] = vector.values.to_numpy().astype(np.float32)  # (D,)
        if job.done:
            self._finish(job)

    def _take_known(self, job: RayJob) -> bool:
        """Give a job what the index or the quarantine has for its content; False where neither has anything now."""
        index = self._committer.index
        found = None if index is None else index.segments(content_fingerprint=job.content)
        if found is not None:
            job.duration, job.stored = found
            if job.previous is None and (gone := self._gone_with.get(job.content)):
                job.moved_from = gone.pop(0)
        elif (entry := self._quarantine.of_content(job.content)) is not None:
            job.fail(entry.kind, f"{entry.message} {_IN_QUARANTINE.format(entry.since)}")
        return job.problem is not None or job.stored is not None

    def _finish(self, job: RayJob) -> None:
        """Pass on a job that is done. One with the content of an earlier one of this run takes over its vectors."""
        self._open.pop(job.uri, None)
        is_embedded = job.problem is None and job.stored is None
        if is_embedded and (first := self._first_with.setdefault(job.content, job)) is not job:
            job.twin, job.windows, job.vectors = first, [], {}
        self._rows += len(job.windows)
        self._done.append(job)


class KnownContents:
    """Says whether a content is known, so that it need not be decoded. Eight bytes a content.

    It can be wrong for one in 2**64 contents over the number of those that are known; who is told that a content is
    known looks it up.

    Args:
        contents: SHA-256 of each, hex.
    """

    def __init__(self, contents: Iterable[str]) -> None:
        self._first = np.unique(np.fromiter(map(_first, contents), dtype=np.uint64))  # (N,), sorted

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._first)

    def __call__(self, content: str) -> bool:
        """Whether a content (SHA-256, hex) is known."""
        wanted = np.uint64(_first(content))
        place = int(np.searchsorted(self._first, wanted))
        return place < len(self._first) and bool(self._first[place] == wanted)


def _first(content: str) -> int:
    return int(content[:16], 16)
