"""Files become rows: what is new or changed is embedded, and committed file by file."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np
from tqdm.auto import tqdm

from vidembed.errors import IndexingStoppedError, IndexMismatchError
from vidembed.index.commit import (
    KINDS,
    LOCK_FILE,
    VANISHED,
    Committer,
    GracefulStop,
    Job,
    Problem,
    Quarantine,
    Report,
    locked,
    uninterrupted,
    writing_to,
)
from vidembed.index.files import IndexedFile, Listing, find_videos, is_gone, is_local, path_of, uri_of
from vidembed.index.meta import IndexMeta
from vidembed.index.search import Derived, refresh
from vidembed.index.table import TABLE_FOLDER, VideoIndex
from vidembed.text import require_index_extra
from vidembed.video import VIDEO_SUFFIXES, VideoError, item_name
from vidembed.video.clip import (
    DEFAULT_MEMORY_BYTES,
    DEFAULT_TIMEOUT_S,
    DecodeLimits,
    FileState,
    check_regular,
    content_fingerprint,
)
from vidembed.video.pool import DecodePool
from vidembed.video.segments import Scenes

if TYPE_CHECKING:
    from vidembed.index.meta import IndexedModel, Item, StreamEncoder
    from vidembed.video import Clip
    from vidembed.video.segments import Cut

STOPPING = "Interrupted: the batch at hand is finished first. Ctrl-C again ends at once."


@dataclass(slots=True)
class Plan:
    """The files of a run."""

    listing: Listing  # the files on disk
    unchanged: list[IndexedFile] = field(default_factory=list)  # neither size nor time of last write has changed
    jobs: list[Job] = field(default_factory=list)  # new, or written to since; in the order of their paths
    gone: list[IndexedFile] = field(default_factory=list)  # under a folder of this run, and no longer on disk

    def is_gone(self, uri: str) -> bool:
        """Whether a file is under a folder of this run, and no longer on disk."""
        return is_local(uri) and self.listing.knows(path := path_of(uri)) and is_gone(path)


def make_plan(listing: Listing, indexed: Mapping[str, IndexedFile], *, rehash: bool = False) -> Plan:
    """Sort the files of a run by what must be done with them; `indexed` are those in the index, by URI.

    A file whose size and time of last write are those stored is taken to be unchanged, as git and rsync do, unless
    `rehash` is given. Content decides for the others, once they are read. A file of the index that the walk left out
    (its name has no video suffix, say) but that is on disk is treated as found.
    """
    plan = Plan(listing)
    paths = {uri_of(path): path for path in listing.files}
    for uri, file in indexed.items():
        if uri in paths or not is_local(uri) or not listing.knows(path := path_of(uri)):
            continue
        if is_gone(path):
            plan.gone.append(file)
        else:
            paths[uri] = path
    for uri, path in sorted(paths.items(), key=lambda item: item[1]):
        previous, state = indexed.get(uri), None
        with suppress(OSError):  # reported when the file is read
            state = FileState.of(path)
        if previous is not None and not rehash and state == previous.state:
            plan.unchanged.append(previous)
        else:
            plan.jobs.append(Job(path, uri, previous))
    plan.gone.sort(key=lambda file: file.uri)
    return plan


def open_if_there(folder: Path) -> VideoIndex | None:
    """Open the index in `folder`, or return None if one can be made there.

    Raises:
        ValueError: `folder` is a file, or holds other things.
        IndexDamagedError: The index cannot be read.
        MissingExtraError: LanceDB is not installed.
    """
    require_index_extra()
    if VideoIndex.exists(folder):
        return VideoIndex.open(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"to: {str(folder)!r} is a file; a folder is needed")
    foreign = {entry.name for entry in folder.iterdir()} - {LOCK_FILE, TABLE_FOLDER} if folder.is_dir() else None
    if foreign:
        raise ValueError(
            f"to: {str(folder)!r} holds other things ({min(foreign)!r}) and no index; name an empty or a new folder"
        )
    return None


def open_for_writing(folder: Path, encoder: IndexedModel, model: str, cut: Cut | None) -> VideoIndex | None:
    """Open the index in `folder` if there is one, and refuse it if a run cannot add to it.

    `model` is what the encoder was loaded as; without `cut`, files are cut as the index has it.

    Raises:
        IndexMismatchError: The index is of another model or cut otherwise.
        ValueError, IndexDamagedError: As for `open_if_there`.
    """
    if (index := open_if_there(folder)) is None:
        return None
    index.meta.require_model(encoder, name=model)
    if cut is not None and cut != index.meta.cut:
        raise IndexMismatchError(
            f"segment: asked for {_segments_of(cut)}, and the index in {str(folder)!r} has "
            f"{_segments_of(index.meta.cut)}; "
            "leave --segment, --overlap and --scenes out to go on as before, or make another index"
        )
    return index


def _segments_of(cut: Cut | None) -> str:
    if cut is None:
        return "whole videos"
    if isinstance(cut, Scenes):
        return f"scenes ({cut})"
    return f"segments of {cut.length:g} s overlapping by {cut.overlap:g} s"


def problems(listing: Listing) -> list[Problem]:
    """Return the folders that could not be listed and the paths that vanished, as they stand in a report."""
    paths = {path for path, _ in listing.vanished}
    return [
        Problem(uri_of(path), type(error).__name__, error.strerror or str(error))
        for path, error in listing.unreadable
        if path not in paths
    ] + [vanished(uri_of(path), reason) for path, reason in listing.vanished]


def vanished(uri: str, reason: str) -> Problem:
    """Return a path that vanished, for that reason, as it stands in a report."""
    return Problem(
        uri,
        VANISHED,
        f"{reason}, and the index has files of it, which stay. If a drive is not mounted, mount it and run again; if "
        "the files were deleted, name a folder above it that still holds videos, with --prune",
    )


def decoder_versions() -> dict[str, object]:
    """Return what else than the limits decides whether a file can be decoded."""
    return {"vidembed": version("vidembed"), "av": version("av")}


def describe(encoder: IndexedModel, model: str, layer: int | None, cut: Cut | None) -> IndexMeta:
    """Return what a new index says of itself.

    Raises:
        RuntimeError: The model does not say how long its vectors are.
    """
    dimension = encoder.get_embedding_dimension()
    if dimension is None:
        raise RuntimeError(f"model: {model!r} does not say how long its vectors are")
    return IndexMeta(
        model=model,
        layer=layer,
        sampling=encoder.sampling.as_dict(),
        model_fingerprint=encoder.fingerprint,
        fingerprint_fields=encoder.fingerprint_fields(),
        dimension=dimension,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        **IndexMeta.fields_of(cut),
    )


class Run:
    """The state of one run.

    Files are read before the model needs them, so a job joins the queue before its vectors exist. Jobs are settled in
    the order of the queue, which is that of the paths.
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
        """Embed and store the files of `plan`.

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
            inputs = self._inputs(plan.jobs, stop)
            stack.callback(inputs.close)
            stream = self._encoder.encode_stream(
                inputs, batch_size=batch_size, on_error="skip", show_progress_bar=False
            )
            if close := getattr(stream, "close", None):
                stack.callback(close)  # its threads end with it
            bar = stack.enter_context(
                tqdm(total=len(plan.jobs), desc="Indexing", unit="file", disable=not progress, dynamic_ncols=True)
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
            raise RuntimeError(f"encode_stream ended before {self._queue[0].path} had all of its vectors")

    # -- what the model must see ---------------------------------------------------------------------------------------

    def _inputs(self, planned: Sequence[Job], stop: GracefulStop) -> Generator[Clip, None, None]:
        """Yield clips in order. Files that need no model, and files that fail, only join the queue."""
        number = 0
        with ExitStack() as stack:
            jobs = self._prepared(planned)
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

    def _prepared(self, planned: Sequence[Job]) -> Generator[Job, None, None]:
        """Yield jobs in order: with state and content, and decoding if the model must see the file.

        Contents are hashed in threads. Up to two files a worker are hashed, and as many decoding, before one is taken.
        """
        most = 2 * self._pool.workers
        remaining = iter(planned)
        hashing: deque[Future[Job]] = deque()
        ready: deque[Job] = deque()
        executor = ThreadPoolExecutor(self._pool.workers, thread_name_prefix="vidembed-hash")
        try:
            while True:
                while len(hashing) < most and (job := next(remaining, None)) is not None:
                    hashing.append(executor.submit(self._identify, job))
                while hashing and len(ready) < most and (not ready or hashing[0].done()):
                    job = hashing.popleft().result()
                    if job.problem is None:
                        self._start(job)
                    ready.append(job)
                if not ready:
                    return
                yield ready.popleft()
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
            for job in ready:
                if job.reading is not None:
                    job.reading.cancel()

    def _identify(self, job: Job) -> Job:
        """Find out what a file is, without decoding it, or that it is in quarantine as it is. Runs in threads."""
        try:
            check_regular(str(job.path), item_name(job.path))  # reading a pipe could wait for ever
            job.state = FileState.of(job.path)
            if (entry := self._quarantine.of_file(job.uri, job.state)) is not None:
                job.fail(entry.kind, entry.reason)
            else:
                job.content = content_fingerprint(job.path)
        except VideoError as error:
            job.fail(type(error).__name__, error.reason)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this file's problem
            job.fail(type(error).__name__, getattr(error, "strerror", None) or str(error))
        return job

    def _start(self, job: Job) -> None:
        """Take what is known of a content from where it is, or begin to decode it."""
        index = self.committer.index
        if index is not None and job.content in self._stored:
            found = index.segments(content_fingerprint=job.content)
            if found is not None:
                job.duration, job.stored = found
                if job.previous is None and (gone := self._gone_with.get(job.content)):
                    job.moved_from = gone.pop(0)
                return
        if (entry := self._quarantine.of_content(job.content)) is not None:
            job.fail(entry.kind, entry.reason)
            return
        if job.content in self._first_with:
            job.twin = self._first_with[job.content]
            return
        self._first_with[job.content] = job
        job.reading = self._pool.submit(job.path, self._encoder.sampling, cut=self._meta.cut)

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

    def _settle_finished(self, bar: tqdm[NoReturn]) -> None:
        """Store or report the jobs at the head of the queue that are done."""
        while self._queue and self._queue[0].done:
            with uninterrupted():
                failed = self.committer.settle(self._queue, bar)
            if failed is not None and failed.problem is not None:
                self._queue.clear()
                raise IndexingStoppedError(f"{failed.path}: {failed.problem.kind}: {failed.problem.message}")


def index_videos(
    paths: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    encoder: StreamEncoder,
    *,
    model: str,
    layer: int | None = None,
    cut: Cut | None = None,
    on_error: Literal["skip", "raise"] = "skip",
    prune: bool = False,
    rehash: bool = False,
    retry: bool = False,
    wait: bool = False,
    batch_size: int = 32,
    decode_workers: int | None = None,
    timeout_s: float | None = DEFAULT_TIMEOUT_S,
    max_memory_bytes: int | None = DEFAULT_MEMORY_BYTES,
    progress: bool = True,
    derived: Derived | None = None,
) -> Report:
    """Bring the index in `folder` up to date with the videos in `paths`, and make it where there is none.

    Each file is committed as soon as it is embedded. A run that is interrupted or killed loses at most the files in
    flight; the next one takes up what is missing. Files are told apart by their content: one that was moved or renamed
    keeps its rows under its new name, and one that is there twice is embedded once.

    Files are decoded in processes of their own. One that a file brings down, or that takes too long, is killed; the
    file is skipped and put on the quarantine list of the index, as is every file whose content cannot be decoded. It is
    not tried again as long as its content, the decoder and its limits stay the same, unless `retry` asks for it.

    Args:
        paths: Videos and folders of videos.
        folder: Where the index is or shall be: new, empty, or an index.
        encoder: The model.
        model: Name or path that loads `encoder` again; stored.
        layer: Layer that `encoder` was loaded with, if one was asked for; stored.
        cut: How files are cut, `Windows` or `Scenes`. None: as the index has it; in a new one, a file is one segment.
        on_error: `skip` reports a bad file and goes on; `raise` ends the run at the first.
        prune: Remove files that are gone from disk. Otherwise they are reported. Where one of `paths` holds no video
            at all and the index has files of it, they are not gone but `Report.vanished`, and stay.
        rehash: Read every file again, even where size and time of last write have not changed.
        retry: Try files in quarantine again.
        wait: Where another run is writing to the index, wait for its end. Otherwise, refuse.
        batch_size: Segments handed to the model at once.
        decode_workers: Processes that decode. Default: one a core, at most 8.
        timeout_s: Limit on the time that one of them works on a file, seconds; None for none. Default 600.
        max_memory_bytes: Limit on the memory of one of them, bytes (Linux); None for none. Default 8 GiB.
        progress: Show a bar over files, on stderr.
        derived: What the index shall have beside its rows: ANN index and query bank. Default: an ANN index if there are
            many rows, and what is there already, brought up to date.

    Returns:
        What was done, with every file that was skipped.

    Raises:
        ValueError: An argument is out of range, a path does not exist, or there is no video in any.
        IndexMismatchError: The index is of another model or cut otherwise.
        IndexBusyError: Another run is writing to it, and `wait` is False.
        IndexDamagedError: It cannot be read.
        IndexWriteError: It cannot be written: the disk is full, read-only or out of reach. What was committed stays.
        IndexingStoppedError: With `on_error="raise"`, a file could not be indexed.
        MissingExtraError: LanceDB, or for `Scenes` PySceneDetect, is not installed.
        KeyboardInterrupt: Ctrl-C: the batch at hand was finished and committed first.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}; at least 1 is needed")
    if on_error not in {"skip", "raise"}:
        raise ValueError(f"on_error: got {on_error!r}; 'skip' or 'raise' is allowed")
    if decode_workers is not None and decode_workers < 1:
        raise ValueError(f"decode_workers: got {decode_workers}; at least 1 is needed")
    if derived is not None:
        derived.check(encoder.get_embedding_dimension())
    where = Path(folder)
    index = open_for_writing(where, encoder, model, cut)  # refuse before anything is written
    listing = find_videos(paths, VIDEO_SUFFIXES, indexed=index.files if index else tuple)
    backend = encoder.video_backend
    report = Report(index=str(where), model=model, pruned=prune)
    limits = {"timeout_s": timeout_s, "max_memory_bytes": max_memory_bytes, "backend": backend}
    decode_limits = DecodeLimits(timeout_s=timeout_s, max_memory_bytes=max_memory_bytes)
    pool = DecodePool(workers=decode_workers, limits=decode_limits, backend=backend)
    with pool, locked(where, wait=wait):
        index = open_for_writing(where, encoder, model, cut)
        if wait:  # what was found before may be hours old
            listing = find_videos(paths, VIDEO_SUFFIXES, indexed=index.files if index else tuple)
        report.skipped = problems(listing)
        plan = make_plan(listing, index.files() if index else {}, rehash=rehash)
        meta = index.meta if index else describe(encoder, model, layer, cut)
        quarantine = Quarantine(where, {**decoder_versions(), **limits}, retry=retry)
        committer = Committer(where, index, meta, report=report, quarantine=quarantine, on_error=on_error)
        run = Run(committer, meta, encoder=encoder, pool=pool, quarantine=quarantine, report=report)
        run.embed(plan, batch_size=batch_size, progress=progress)
        committer.finish(plan.gone, plan.is_gone, prune=prune)
        if committer.index is not None:
            with writing_to(where):
                refresh(committer.index, encoder, derived, progress=progress)
    return report
