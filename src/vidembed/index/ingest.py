"""Files become rows: what is new or changed is found, embedded, and committed file by file."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import numpy as np

from vidembed.index import ann, bank, captions, hybrid, mirror
from vidembed.index.commit import KINDS, Committer, Quarantine, Report, locked, open_for_writing, writing_to
from vidembed.index.files import Job, Listing, find_videos, make_plan
from vidembed.index.schema import NO_VECTOR, IndexedModel, IndexMeta, QueryEncoder, is_vector
from vidembed.index.table import VideoIndex
from vidembed.interrupt import STOPPING, GracefulStop
from vidembed.progress import Waiting, progress_bar
from vidembed.video import VIDEO_SUFFIXES, Clip, VideoError, item_name
from vidembed.video.clip import (
    DEFAULT_MEMORY_BYTES,
    DEFAULT_TIMEOUT_S,
    DecodeLimits,
    FileState,
    check_regular,
    content_fingerprint,
)
from vidembed.video.pool import DecodePool
from vidembed.video.segments import Cut

if TYPE_CHECKING:
    from vidembed.encoder import EncodedItem, VideoEncoder


@dataclass(frozen=True, slots=True)
class Derived:
    """What an index shall have beside its rows.

    Attributes:
        exact_up_to: Rows up to which searches are exact, and no ANN index is built; remembered, however many rows there
            are. None: what an earlier run gave, or `vidembed.index.ann.EXACT_UP_TO`.
        compact: The quantization of the ANN index, `int8` or `binary`, at most one. With one there is an ANN index
            however many rows there are; remembered. None: what an earlier run gave.
        query_bank: Queries of a new query bank. None: the one that is there stays.
        beta: Inverse temperature of the bank. None: that of the one that is there, or the default.
    """

    exact_up_to: int | None = None
    compact: Sequence[str] = ()
    query_bank: Sequence[str] | None = None
    beta: float | None = None

    def check(self, dimension: int | None = None) -> None:
        """Refuse what cannot be, with ValueError, before anything is indexed."""
        ann.check_threshold(self.exact_up_to)
        for name in self.compact:
            ann.check_quantization(name, dimension)
        if len(set(self.compact)) > 1:
            raise ValueError(f"compact: got {', '.join(self.compact)}; an index has one quantization; give one of them")
        if self.query_bank is not None:
            bank.check_queries(self.query_bank)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How an index is brought up to date, here or on a cluster.

    Attributes:
        cut: How files are cut, `Windows` or `Scenes`. None: as the index has it; in a new one, a file is one segment.
        on_error: `skip` reports a bad file and goes on; `raise` ends the run at the first.
        prune: Remove files that are gone from disk. Otherwise they are reported. Where one of the paths holds no video
            at all and the index has files of it, they are not gone but `Report.vanished`, and stay.
        rehash: Read every file again, even where size and time of last write have not changed.
        retry: Try files in quarantine again.
        wait: Where another run is writing to the index, wait for its end. Otherwise, refuse.
        batch_size: Segments handed to the model at once.
        timeout_s: Limit on the time that a decoding process works on a file, seconds; None for none. Default 600.
        max_memory_bytes: Limit on the memory of one of them, bytes (Linux); None for none. Default 8 GiB.
        progress: Show a bar over files, on stderr.
        derived: What the index shall have beside its rows: ANN index and query bank. Default: an ANN index if there are
            many rows, and what is there already, brought up to date.

    Raises:
        ValueError: A value is out of range.
    """

    cut: Cut | None = None
    on_error: Literal["skip", "raise"] = "skip"
    prune: bool = False
    rehash: bool = False
    retry: bool = False
    wait: bool = False
    batch_size: int = 32
    timeout_s: float | None = DEFAULT_TIMEOUT_S
    max_memory_bytes: int | None = DEFAULT_MEMORY_BYTES
    progress: bool = True
    derived: Derived | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size: got {self.batch_size}; at least 1 is needed")
        if self.on_error not in {"skip", "raise"}:
            raise ValueError(f"on_error: got {self.on_error!r}; 'skip' or 'raise' is allowed")
        if self.derived is not None:
            self.derived.check()


class RunKeywords(TypedDict, total=False):
    """The fields of `RunOptions`, as keyword arguments that type checkers know."""

    cut: Cut | None
    on_error: Literal["skip", "raise"]
    prune: bool
    rehash: bool
    retry: bool
    wait: bool
    batch_size: int
    timeout_s: float | None
    max_memory_bytes: int | None
    progress: bool
    derived: Derived | None


def refresh(index: VideoIndex, encoder: QueryEncoder, derived: Derived | None = None, *, progress: bool = True) -> None:
    """Bring ANN index, query bank and captions of an index up to date, or make the former two, as `derived` asks for.

    An interruption leaves each as it was, or stale and therefore unused. Nobody else may be writing to the index.
    """
    derived = derived or Derived()
    quantize = next(iter(derived.compact), None)
    written = ann.refresh(index, exact_up_to=derived.exact_up_to, quantize=quantize)  # first: it makes a version
    if derived.query_bank is not None or index.derived(bank.FILE).exists():
        written |= bank.refresh(index, encoder, derived.query_bank, beta=derived.beta, progress=progress)
    if index.has_captions:
        written |= captions.refresh(index)
    stamp = index.stamp()
    stale = [file for file in index.derived("").glob(mirror.FILES) if stamp not in file.name]
    for file in [*index.compact_copies(), *stale]:  # copies are of earlier versions
        with suppress(OSError):  # Windows keeps a mirror that a search has open; the next search removes it
            file.unlink()
    if written:
        index.flush()


def facts(index: VideoIndex) -> dict[str, Any]:
    """Return what `vidembed info` says of how an index is searched: its settings and derived files."""
    derived = {"ann": ann.facts(index), "query_bank": bank.facts(index), "mirror": mirror.facts(index)}
    derived |= {"captions": found} if (found := hybrid.facts(index)) else {}
    return ann.settings(index)._asdict() | derived


@contextmanager
def writing(
    folder: Path,
    encoder: IndexedModel,
    options: RunOptions,
    find: Callable[..., Listing],
    found: Listing,
    *,
    model: str,
    layer: int | None,
    backend: str,
) -> Iterator[tuple[Committer, list[Job]]]:
    """Hold an index for a run over what was `found`; yield what stores the files, and those that must be read."""
    if options.derived is not None:
        options.derived.check(encoder.get_embedding_dimension())
    decoder: dict[str, object] = {"vidembed": version("vidembed"), "av": version("av"), "backend": backend}
    decoder |= {"timeout_s": options.timeout_s, "max_memory_bytes": options.max_memory_bytes}
    report = Report(index=str(folder), model=model, pruned=options.prune)
    with locked(folder, wait=options.wait):
        index = open_for_writing(folder, encoder, model, options.cut)
        meta = index.meta if index else IndexMeta.of(encoder, model, layer=layer, cut=options.cut)
        quarantine = Quarantine(folder, decoder, retry=options.retry)
        committer = Committer(folder, index, meta, report=report, quarantine=quarantine, on_error=options.on_error)
        files = index.files() if index else {}
        if options.wait:  # what was found before may be hours old
            found = find(indexed=lambda: files)
        plan = make_plan(found, files, rehash=options.rehash)
        committer.begin(files, found.problems, unchanged=len(plan.unchanged), gone=plan.gone)
        yield committer, plan.jobs
        committer.finish(found.is_gone)
        if committer.index is not None:
            with writing_to(folder):
                refresh(committer.index, encoder, options.derived, progress=options.progress)


class Run:
    """The state of one run. Files are read before the model needs them: a job is queued before its vectors exist."""

    def __init__(self, committer: Committer, encoder: VideoEncoder, pool: DecodePool) -> None:
        self._committer = committer
        self._encoder = encoder
        self._pool = pool
        self._waiting = Waiting()
        self._queue: deque[Job] = deque()  # in the order of the paths, in which they are settled
        self._awaited: dict[int, tuple[Job, int]] = {}  # input number -> job and position in its windows
        self._first_with: dict[str, Job] = {}  # content -> the job that embeds it

    def embed(self, jobs: Sequence[Job], *, batch_size: int, progress: bool) -> None:
        """Embed and store files. Raises as `index_videos`; what was finished stays."""
        settle = self._committer.settle
        with ExitStack() as stack:
            stop = stack.enter_context(GracefulStop(STOPPING if progress else ""))
            inputs = self._inputs(jobs, stop)
            stack.callback(inputs.close)
            encode = partial(self._encoder.encode_stream, on_error="skip", show_progress_bar=False)
            stream = encode(inputs, batch_size=batch_size)
            if close := getattr(stream, "close", None):
                stack.callback(close)  # its threads end with it
            bar = stack.enter_context(progress_bar("Indexing", "files", total=len(jobs), shown=progress))
            try:
                for item in stream:
                    self._take(item)
                    bar.set_postfix_str(self._pace(item.index + 1), refresh=False)
                    settle(self._queue, bar)
            except KeyboardInterrupt:
                settle(self._queue, bar)
                raise
            settle(self._queue, bar)
            if stop.asked:
                raise KeyboardInterrupt
        if self._queue:
            raise RuntimeError(f"encode_stream ended before {self._queue[0].path} had all of its vectors")

    def _pace(self, clips: int) -> str:
        self._waiting.for_model = self._pool.waited
        return f"{clips / (time.perf_counter() - self._waiting.began):.1f} clips/s, {self._waiting}"

    @contextmanager
    def _decoding(self, stop: GracefulStop) -> Iterator[None]:
        """Wait for what is decoded: nothing is lost by an interruption."""
        asked = time.perf_counter()
        with stop.idle():
            yield
        self._waiting.for_decoding += time.perf_counter() - asked

    def _inputs(self, planned: Sequence[Job], stop: GracefulStop) -> Generator[Clip, None, None]:
        """Yield clips in order. Files that need no model, and files that fail, only join the queue."""
        number = 0
        with closing(self._prepared(planned)) as jobs:
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
        with self._decoding(stop):
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
                with self._decoding(stop):
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
        """Yield jobs in order: with state and content, hashed in threads, and decoding if the model must see it."""
        most = 2 * self._pool.workers  # hashed, and as many decoding, before one is taken
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
            if (entry := self._committer.quarantine.of_file(job.uri, job.state)) is not None:
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
        if self._committer.take_known(job):
            return
        if (first := self._first_with.setdefault(job.content, job)) is not job:
            job.twin = first
        else:
            job.reading = self._pool.submit(job.path, self._encoder.sampling, cut=self._committer.meta.cut)

    def _fail(self, job: Job, error: VideoError, at: str = "") -> None:
        job.fail(type(error).__name__, at + error.reason)
        job.undecodable = type(error).__name__ in KINDS

    def _at(self, job: Job, position: int) -> str:
        if self._committer.meta.cut is None:
            return ""
        start, end = job.windows[position]
        return f"at {start:g} to {end:g} s: "

    def _take(self, item: EncodedItem) -> None:
        """Hand a vector or an error to the job that it belongs to."""
        job, position = self._awaited.pop(item.index)
        if job.problem is not None:
            return
        at = self._at(job, position)
        if item.error is not None:
            job.fail(type(item.error).__name__, at + getattr(item.error, "reason", str(item.error)))
            return
        vector = np.asarray(item.embedding, dtype=np.float32).reshape(-1)  # (D,)
        if is_vector(vector, self._committer.meta.dimension):
            job.vectors[position] = vector
        else:
            job.fail("InternalError", f"{at}{NO_VECTOR}")


def index_videos(
    paths: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    encoder: VideoEncoder,
    *,
    model: str,
    layer: int | None = None,
    decode_workers: int | None = None,
    **options: Unpack[RunKeywords],
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
        decode_workers: Processes that decode. Default: as many threads as `encoder` prepares videos with.
        options: Fields of `RunOptions`: `cut`, `on_error`, `prune`, `rehash`, `retry`, `wait`, `batch_size`,
            `timeout_s`, `max_memory_bytes`, `progress` and `derived`.

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
    asked = RunOptions(**options)
    if decode_workers is not None and decode_workers < 1:
        raise ValueError(f"decode_workers: got {decode_workers}; at least 1 is needed")
    where, backend = Path(folder), encoder.video_backend
    index = open_for_writing(where, encoder, model, asked.cut)  # refuse before anything is written
    find = partial(find_videos, paths, VIDEO_SUFFIXES)
    found = find(indexed=index.files if index else tuple)
    limits = DecodeLimits(timeout_s=asked.timeout_s, max_memory_bytes=asked.max_memory_bytes)
    pool = DecodePool(workers=decode_workers or encoder.decode_workers, limits=limits, backend=backend)
    held = writing(where, encoder, asked, find, found, model=model, layer=layer, backend=backend)
    with pool, held as (committer, jobs):
        Run(committer, encoder, pool).embed(jobs, batch_size=asked.batch_size, progress=asked.progress)
    return committer.report
