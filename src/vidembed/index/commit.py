"""What becomes of each file of a run: its rows are stored, in one commit for several files, or its problem is noted."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, NoReturn

from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from vidembed.errors import IndexBusyError, IndexingStoppedError, IndexMismatchError, IndexWriteError
from vidembed.index.files import VANISHED, Job, Problem
from vidembed.index.schema import FileRows, IndexedFile, IndexedModel, IndexMeta, Segment, own_rows, require_index_extra
from vidembed.index.table import TABLE_FOLDER, VideoIndex, name_of
from vidembed.interrupt import uninterrupted
from vidembed.text import write_atomically
from vidembed.video.clip import FileState
from vidembed.video.segments import Cut, Scenes

LOCK_FILE = "vidembed.lock"
QUARANTINE_FILE = "quarantine.jsonl"
_GROUP_ROWS = 4096  # of one commit, where many files are done at once

KINDS: Final = frozenset({
    "CorruptVideo", "DecodeTimeout", "DecoderCrashed", "EncryptedVideo", "InvalidDuration", "NoVideoStream",
    "NotAVideo", "UnsupportedCodec", "VideoTooLarge",
})  # fmt: skip
"""Kinds of problem that are the content's: the same bytes, decoder and limits have the same again."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Report:
    """What a run of `index_videos` did.

    Attributes:
        index: Folder of the index.
        model: Model that made the vectors.
        indexed: Files embedded and stored, new ones and changed ones.
        changed: How many of `indexed` took the place of an earlier version.
        copied: Files with the content of another, stored with its vectors.
        moved: Files with the content of one that is gone from disk, whose rows they took over.
        unchanged: Files that were in the index as they are.
        skipped: Files that could not be indexed, and named or inner folders that hold nothing or cannot be read; why.
        quarantined: How many of `skipped` were put on the quarantine list by this run.
        gone: URIs that are in the index, or were, and no longer on disk; without those that were moved.
        pruned: Whether those were removed.
        files: Files in the index after the run.
        segments: Rows in the index after the run.
    """

    index: str
    model: str
    indexed: int = 0
    changed: int = 0
    copied: int = 0
    moved: int = 0
    unchanged: int = 0
    skipped: list[Problem] = field(default_factory=list)
    quarantined: int = 0
    gone: list[str] = field(default_factory=list)
    pruned: bool = False
    files: int = 0
    segments: int = 0

    @property
    def any_in_index(self) -> bool:
        """Whether some file of this run is in the index."""
        return self.indexed + self.copied + self.moved + self.unchanged > 0

    @property
    def vanished(self) -> list[str]:
        """URIs of the paths that were named, of which the index has files and where no video is now; the files stay."""
        return [problem.uri for problem in self.skipped if problem.kind == VANISHED]

    def to_dict(self) -> dict[str, object]:
        """Return the report as it stands in JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in quarantine."""

    uri: str
    content_fingerprint: str  # SHA-256 of its bytes, hex
    size: int  # bytes
    mtime_ns: int  # time of the last write, nanoseconds since the epoch
    kind: str  # the sort of error
    message: str
    since: str  # when it was found, ISO 8601 with offset
    decoder: dict[str, object]  # what found it: versions, backend and limits; with others, the file is tried again

    @property
    def reason(self) -> str:
        """Why such a file is not read."""
        return f"{self.message} (in quarantine since {self.since}; --retry tries it again)"

    @property
    def line(self) -> bytes:
        """The entry as a line of the file."""
        return json.dumps(asdict(self), sort_keys=True).encode() + b"\n"


class Quarantine:
    """The files of an index whose content cannot be decoded by `decoder`; `retry` has every file tried again."""

    def __init__(self, folder: Path, decoder: Mapping[str, object], *, retry: bool = False) -> None:
        self.decoder = dict(decoder)
        self.entries = read(folder)  # by URI
        self._file = folder / QUARANTINE_FILE
        self._retry = retry
        same = (entry for entry in self.entries.values() if entry.decoder == self.decoder)
        self._by_content = {entry.content_fingerprint: entry for entry in same}
        self._unwritten: list[Entry] = []

    def of_file(self, uri: str, state: FileState) -> Entry | None:
        """Return the entry that holds for a file with this name, size and time of last write."""
        entry = None if self._retry else self.entries.get(uri)
        if entry is None or entry.decoder != self.decoder:
            return None
        return entry if FileState(entry.size, entry.mtime_ns) == state else None

    def of_content(self, content_fingerprint: str) -> Entry | None:
        """Return an entry for this content, under any name."""
        return None if self._retry else self._by_content.get(content_fingerprint)

    @property
    def contents(self) -> set[str]:
        """The contents for which there is an entry that holds."""
        return set() if self._retry else set(self._by_content)

    def add(self, entry: Entry) -> None:
        """Put a file on the list; `write` writes it down."""
        self.entries[entry.uri] = entry
        self._by_content[entry.content_fingerprint] = entry
        self._unwritten.append(entry)

    def write(self) -> None:
        """Append what is new to the file. There must be an index in the folder."""
        if not self._unwritten:
            return
        with self._file.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")  # the last line was cut off by a kill
            file.write(b"".join(entry.line for entry in self._unwritten))
        self._unwritten.clear()

    def tidy(self, in_index: Container[str], is_gone: Callable[[str], bool]) -> None:
        """Write the file anew without what is in the index by now or gone from disk, and without doubles."""
        kept = {uri: each for uri, each in sorted(self.entries.items()) if uri not in in_index and not is_gone(uri)}
        self.entries = kept
        self._unwritten.clear()
        if kept:
            write_atomically(self._file, b"".join(entry.line for entry in kept.values()))
        else:
            self._file.unlink(missing_ok=True)


def read(folder: Path) -> dict[str, Entry]:
    """Return the quarantine list of an index, by URI; a line that cannot be read is logged and left out."""
    entries: dict[str, Entry] = {}
    with suppress(FileNotFoundError):
        for number, line in enumerate((folder / QUARANTINE_FILE).read_bytes().splitlines(), 1):
            try:
                entry = Entry(**json.loads(line))
            except (ValueError, TypeError) as error:  # such files are only tried again
                logger.warning("%s, line %d: not an entry (%s); left out", QUARANTINE_FILE, number, error)
            else:
                entries[entry.uri] = entry
    return entries


@dataclass(slots=True)
class Committer:
    """Stores what is done, and notes in `report` and `quarantine` what became of each file."""

    folder: Path
    index: VideoIndex | None  # None until there is one: it is made for the first file
    meta: IndexMeta
    _: KW_ONLY
    report: Report
    quarantine: Quarantine
    on_error: Literal["skip", "raise"]
    _contents: set[str] = field(default_factory=set)  # of the files in the index when the run began
    _gone: dict[str, list[IndexedFile]] = field(default_factory=dict)  # by content; without those that were moved
    _moved: set[str] = field(default_factory=set)  # URIs of files that are gone, whose rows went to another name

    def begin(
        self, files: Mapping[str, IndexedFile], problems: list[Problem], *, unchanged: int, gone: Sequence[IndexedFile]
    ) -> None:
        """Note the files of the index, by URI, how many are unchanged, which are gone, and what could not be listed."""
        self._contents = {file.content_fingerprint for file in files.values()}
        self.report.skipped, self.report.unchanged = problems, unchanged
        self.report.gone = [file.uri for file in gone]
        for file in gone:
            self._gone.setdefault(file.content_fingerprint, []).append(file)

    @property
    def known_contents(self) -> set[str]:
        """Contents that need not be decoded: those of the index when the run began, and those in quarantine."""
        return self._contents | self.quarantine.contents

    def take_known(self, job: Job) -> bool:
        """Give a job what index or quarantine list had for its content before the run; False where neither has it."""
        found = None
        if self.index is not None and job.content in self._contents:
            found = self.index.segments(content_fingerprint=job.content)
        if found is not None:
            job.duration, job.stored = found
            if job.previous is None and (gone := self._gone.get(job.content)):  # whose rows it takes over
                job.moved_from = gone.pop(0)
        elif (entry := self.quarantine.of_content(job.content)) is not None:
            job.fail(entry.kind, entry.reason)
        return job.problem is not None or job.stored is not None

    def settle(self, queue: deque[Job], bar: tqdm[NoReturn]) -> None:
        """Store the jobs that are done at the head of `queue`; IndexingStoppedError if one is to end the run."""
        while queue and queue[0].done:
            with uninterrupted():
                problem = self._settle_group(queue, bar)
            if problem is not None:
                queue.clear()
                raise IndexingStoppedError(f"{name_of(problem.uri)}: {problem.kind}: {problem.message}")

    def finish(self, is_gone: Callable[[str], bool]) -> None:
        """Prune if the run is to, tidy the table and the quarantine list, and count; `is_gone` is the listing's."""
        report, index = self.report, self.index
        report.gone = [uri for uri in report.gone if uri not in self._moved]
        if index is None:
            return
        with uninterrupted(), writing_to(self.folder):
            if report.pruned:
                index.remove(report.gone)
            index.compact()
            files = index.files()
            self.quarantine.tidy(files, is_gone)
            index.flush()
        report.files, report.segments = len(files), len(index)

    def _settle_group(self, queue: deque[Job], bar: tqdm[NoReturn]) -> Problem | None:
        """Settle jobs of the rows of one commit; return the problem that ends the run, if one does."""
        new: list[FileRows] = []
        known: list[FileRows] = []
        moved: dict[str, FileRows] = {}  # by the name that the index has
        contents: set[str] = set()
        rows, failed = 0, None
        while failed is None and queue and queue[0].done and rows < _GROUP_ROWS:
            if queue[0].twin is not None and queue[0].content in contents:
                break  # its vectors are in this group, and must be in the index first
            job = queue.popleft()
            file = self._file_rows(job)
            if job.problem is not None:
                self._skip(job, job.problem)
                failed = job.problem if self.on_error == "raise" else None
            elif self._count(job) and file is not None:
                if job.moved_from is not None:
                    moved[job.moved_from.uri] = file
                else:
                    (new if job.previous is None else known).append(file)
                contents.add(job.content)
                rows += len(file.segments)
            job.vectors, job.stored, job.reading = {}, None, None  # a twin may keep the job for the length of the run
            bar.update()
        with writing_to(self.folder):
            if self.index is None and new:
                self.index = VideoIndex.create(self.folder, self.meta)
            if self.index is not None:
                self.index.put(new, replace=False)
                self.index.put(known, replace=True)
                if moved:
                    self.index.move(list(moved.values()), list(moved))
                    self._moved.update(moved)
                self.quarantine.write()
        return failed

    def _count(self, job: Job) -> bool:
        """Note in the report what became of a file, and say whether there is anything to store."""
        if job.previous is not None and job.previous.content_fingerprint == job.content:
            self.report.unchanged += 1
            return job.previous.state != job.state
        if job.moved_from is not None:
            self.report.moved += 1
        elif job.stored is not None or job.twin is not None:
            self.report.copied += 1
        else:
            self.report.indexed += 1
            self.report.changed += job.previous is not None
        return True

    def _file_rows(self, job: Job) -> FileRows | None:
        """Return the rows to store for a finished job, or note its problem."""
        if job.problem is None and job.stored is None and job.twin is None and not job.is_as_it_was():
            job.fail("ChangedWhileRead", "the file was written to while it was being read; run again")
        if (twin := job.twin) is not None:  # the outcome of an earlier file with the same content
            found = None if self.index is None else self.index.segments(content_fingerprint=job.content)
            if twin.problem is not None:
                job.fail(twin.problem.kind, twin.problem.message)
                job.undecodable = twin.undecodable
            elif found is None:
                job.fail("ChangedWhileRead", f"it had the content of {twin.path}, which changed; run again")
            else:
                job.duration, job.stored = found
        if job.problem is not None:
            return None
        try:  # here, so that what cannot be a row fails for its own file and not for the commit
            segments = job.stored
            if segments is None:
                segments = [Segment(start, end, job.vectors[place]) for place, (start, end) in enumerate(job.windows)]
            file = FileRows(job.uri, segments, job.duration, job.content, job.state)
            return replace(file, table=own_rows(file, self.meta))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this file's problem
            job.fail(type(error).__name__, f"its rows cannot be built ({error})")
            return None

    def _skip(self, job: Job, problem: Problem) -> None:
        """Report a file that failed. Rows of content that it no longer has are removed; rows that may be right stay."""
        if job.undecodable and job.is_as_it_was():
            since, decoder = datetime.now(UTC).isoformat(timespec="seconds"), self.quarantine.decoder
            what = job.content, job.state.size, job.state.mtime_ns, problem.kind, problem.message
            self.quarantine.add(Entry(problem.uri, *what, since=since, decoder=decoder))
            self.report.quarantined += 1
        had = job.previous
        if self.index is not None and had is not None and job.content not in {"", had.content_fingerprint}:
            with writing_to(self.folder):
                self.index.remove([job.uri])
            problem = replace(problem, message=f"{problem.message} (its earlier segments were removed)")
        self.report.skipped.append(problem)
        logger.info("skipped %s: %s: %s", problem.uri, problem.kind, problem.message)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn the errors of LanceDB and of the system in this block into an IndexWriteError that says what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise IndexWriteError(
            f"to: writing to {str(folder)!r} failed ({text[:400]}). Check free space and access rights, and run "
            f"again: finished files are kept"
        ) from error


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the folder of an index for one writer; make it where there is none, and remove it if nothing came of it.

    IndexBusyError if another process holds it and it is not to `wait`, IndexWriteError if it cannot be made.
    """
    fresh = not folder.exists()
    lock = FileLock(folder / LOCK_FILE)  # the system frees it when a process ends, however it ends
    try:
        while not (folder / LOCK_FILE).exists() or not lock.is_locked:  # the run before may take the folder away
            lock.release()
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                lock.acquire(timeout=-1 if wait else 0, poll_interval=0.2)
    except Timeout as error:
        raise IndexBusyError(
            f"to: another run is writing to {str(folder)!r}; try again when it has ended, or use --wait"
        ) from error
    except OSError as error:
        raise IndexWriteError(f"to: {str(folder)!r} cannot be written to ({error.strerror or error})") from error
    try:
        yield
    finally:
        lock.release()
        if fresh and {entry.name for entry in folder.iterdir()} <= {LOCK_FILE}:
            (folder / LOCK_FILE).unlink(missing_ok=True)
            with suppress(OSError):  # another run has just begun in it
                folder.rmdir()


def open_if_there(folder: Path) -> VideoIndex | None:
    """Open the index in `folder`, or return None if one can be made there; ValueError if neither can be."""
    require_index_extra()
    if VideoIndex.exists(folder):
        return VideoIndex.open(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"to: {str(folder)!r} is a file; give a folder")
    foreign = {entry.name for entry in folder.iterdir()} - {LOCK_FILE, TABLE_FOLDER} if folder.is_dir() else None
    if foreign:
        raise ValueError(
            f"to: {str(folder)!r} is not an index and not empty (it holds {min(foreign)!r}); give an empty or a new "
            f"folder"
        )
    return None


def open_for_writing(folder: Path, encoder: IndexedModel, model: str, cut: Cut | None) -> VideoIndex | None:
    """Open the index in `folder` if there is one; IndexMismatchError if it is of another model, or cut otherwise."""
    if (index := open_if_there(folder)) is None:
        return None
    index.meta.require_model(encoder, name=model)
    if cut is not None and cut != index.meta.cut:
        raise IndexMismatchError(
            f"segment: asked for {_segments_of(cut)}, and the index in {str(folder)!r} has "
            f"{_segments_of(index.meta.cut)}; leave out --segment, --overlap and --scenes, or make another index"
        )
    return index


def _segments_of(cut: Cut | None) -> str:
    if cut is None:
        return "whole videos"
    if isinstance(cut, Scenes):
        return f"scenes ({cut})"
    return f"segments of {cut.length:g} s overlapping by {cut.overlap:g} s"
