"""Files become rows: what is new or changed is found, embedded, and committed file by file."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypedDict, Unpack

import numpy as np
from tqdm.auto import tqdm

from vidembed.errors import IndexMismatchError
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
    writing_to,
)
from vidembed.index.search import Derived, refresh
from vidembed.index.table import (
    TABLE_FOLDER,
    IndexedFile,
    IndexMeta,
    VideoIndex,
    canonical,
    is_local,
    path_of,
    require_index_extra,
    uri_of,
)
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
    from vidembed.encoder import EncodedItem, VideoEncoder
    from vidembed.index.table import IndexedModel
    from vidembed.video import Clip
    from vidembed.video.segments import Cut

STOPPING = "Interrupted: the batch at hand is finished first. Ctrl-C again ends at once."
UNKNOWN_TIME: Final = -1
"""The time of last write where a store has none. Such a file is read again in every run."""


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
    """The fields of `RunOptions`, as keyword arguments."""

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


# -- what there is -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Listing:
    """What a walk found. Nothing is known about what `unreadable` and `vanished` paths hold."""

    files: list[Path] = field(default_factory=list)  # the videos, absolute, each real file once, sorted by path
    roots: list[Path] = field(default_factory=list)  # the folders that were walked
    unreadable: list[tuple[Path, OSError]] = field(default_factory=list)  # folders that could not be listed, and why
    # Paths that were named, of which the index has files and where there is no video now, with what is the matter: a
    # drive that is not mounted, say.
    vanished: list[tuple[Path, str]] = field(default_factory=list)

    def knows(self, path: Path) -> bool:
        """Whether the walk would have met `path`: it is under a root and not where nothing is known."""
        return any(path.is_relative_to(root) for root in self.roots) and not any(
            path.is_relative_to(folder) for folder, _ in (*self.unreadable, *self.vanished)
        )

    def is_gone(self, uri: str) -> bool:
        """Whether a file is under a folder that was walked, and no longer on disk."""
        return is_local(uri) and self.knows(path := path_of(uri)) and is_gone(path)

    @property
    def problems(self) -> list[Problem]:
        """The folders that could not be listed and the paths that vanished, as they stand in a report."""
        paths = {path for path, _ in self.vanished}
        return [
            Problem(uri_of(path), type(error).__name__, error.strerror or str(error))
            for path, error in self.unreadable
            if path not in paths
        ] + [vanished(uri_of(path), reason) for path, reason in self.vanished]


def vanished(uri: str, reason: str) -> Problem:
    """Return a path that vanished, for that reason, as it stands in a report."""
    return Problem(
        uri,
        VANISHED,
        f"{reason}, and the index has files of it, which stay. If a drive is not mounted, mount it and run again; if "
        "the files were deleted, name a folder above it that still holds videos, with --prune",
    )


def is_gone(path: Path) -> bool:
    """Whether a file is not there any more. One that cannot be reached may be."""
    try:
        path.lstat()
    except OSError as error:
        return isinstance(error, FileNotFoundError | NotADirectoryError)
    return False


_EMPTY = "holds no video"
_OF_A_STORE = "; addresses of stores are for the Ray engine (--engine ray, or vidembed.ray.index_videos_ray)"


def find_videos(
    paths: Sequence[str | os.PathLike[str]],
    suffixes: Iterable[str],
    *,
    indexed: Callable[[], Iterable[str]] = tuple,
    or_none: bool = False,
) -> Listing:
    """List the videos among `paths`: files as they are, folders walked to the bottom.

    In folders, files are taken by suffix (either case), names that begin with a dot are left out, and links are
    followed, each real folder once, so loops end. A file given by name is taken whatever it is called. A real file is
    listed once: under a name of its own where there is one, else under the first link in sorted order.

    Args:
        paths: Files and folders, at least one.
        suffixes: File suffixes with their dot, such as `.mp4`.
        indexed: Returns the URIs that the index has. Called only if a path does not exist or holds no video; one of
            which the index has files, all of them gone, is then noted in `Listing.vanished`.
        or_none: Allow that there is no video at all.

    Raises:
        ValueError: There are no paths, one does not exist (and has not vanished), or there is no video in any of them.
        OSError: A path cannot be reached (and has not vanished).
    """
    if not paths:
        raise ValueError("paths: none given; name at least one video or folder")
    listing = Listing()
    wanted = tuple(sorted({suffix.lower() for suffix in suffixes}))
    found: set[tuple[str, str]] = set()  # path, and path of the real file
    empty: list[tuple[set[Path], str, Exception | None]] = []  # the path and where it leads, reason, error
    for given in paths:
        path = canonical(given)
        real = Path(os.path.realpath(path))
        try:
            if path.is_dir():
                listing.roots.append(real)
                videos = set(_walk(str(real), wanted, listing))
                found |= videos
                if not videos:
                    shut = next((error for folder, error in listing.unreadable if folder == real), None)
                    empty.append(({real}, _EMPTY if shut is None else f"cannot be read ({shut.strerror})", None))
            elif path.exists():
                found.add((str(path), str(real)))
            else:
                elsewhere = "" if "://" not in str(given) else _OF_A_STORE
                missing = ValueError(f"path: {str(given)!r} does not exist{elsewhere}")
                empty.append(({path, real}, "does not exist", missing))
        except OSError as error:
            empty.append(({path, real}, f"cannot be read ({error.strerror})", error))
    listing.files = [Path(path) for path in _one_name_each(found)]
    had = [path_of(uri) for uri in indexed() if is_local(uri)] if empty else []
    for places, reason, failure in empty:
        under = {path: [file for file in had if file.is_relative_to(path)] for path in places}
        lost = [path for path, files in under.items() if files and (reason != _EMPTY or all(map(is_gone, files)))]
        if not lost and failure is not None:
            raise failure
        listing.vanished += [(path, reason) for path in lost]
    if not listing.files and not or_none:
        given_names = ", ".join(repr(str(path)) for path in paths)
        raise ValueError(
            f"paths: no video in {given_names}; looked for files ending in {', '.join(wanted)}"
            + "".join(f"; {folder} could not be read ({error.strerror})" for folder, error in listing.unreadable)
            + "".join(f"; {path} {reason}, and the index has files of it" for path, reason in listing.vanished)
        )
    return listing


def _walk(root: str, suffixes: tuple[str, ...], listing: Listing) -> Iterator[tuple[str, str]]:
    """Yield the visible videos under `root`, each with the path of the real file; note unreadable folders in `listing`.

    All real folders come before any linked one, so a link never takes the place of the folder that it points to. Paths
    are strings, and only links are resolved: a folder of 100,000 files takes about as long as to list it.
    """
    seen: set[str] = set()
    pending = [root]
    while pending:
        links: list[str] = []
        for top in sorted(pending, key=_by_parts):
            folders = [(top, os.path.realpath(top))]
            while folders:
                folder, real = folders.pop()
                if real in seen:
                    continue
                seen.add(real)
                try:
                    with os.scandir(folder) as listed:
                        entries = [entry for entry in listed if not entry.name.startswith(".")]
                except OSError as error:
                    listing.unreadable.append((Path(folder), error))
                    continue
                for entry in entries:
                    is_link, is_folder = entry.is_symlink(), False
                    with suppress(OSError):  # a link that points to itself, say; reported when it is read
                        is_folder = entry.is_dir()
                    if is_folder and is_link:
                        links.append(entry.path)
                    elif is_folder:
                        folders.append((entry.path, os.path.join(real, entry.name)))  # noqa: PTH118 - quick
                    elif entry.name.lower().endswith(suffixes):
                        own = entry.path if real == folder else os.path.join(real, entry.name)  # noqa: PTH118 - quick
                        yield entry.path, os.path.realpath(own) if is_link else own
        pending = links


def _by_parts(path: str) -> str:
    """Return what sorts paths part by part, as `Path` does: no name has a NUL, and no character is below it."""
    return os.path.normcase(path).replace(os.sep, "\0")


def _one_name_each(found: Iterable[tuple[str, str]]) -> list[str]:
    """Return one path for each real file, sorted: the one that is not a link where there is one, else the first."""
    names = {real: path for path, real in found if path == real}
    for path, real in sorted((pair for pair in found if pair[0] != pair[1]), key=lambda pair: _by_parts(pair[0])):
        names.setdefault(real, path)
    return sorted(names.values(), key=_by_parts)


@dataclass(slots=True)
class Plan:
    """The files of a run, sorted by what must be done with them."""

    unchanged: list[IndexedFile] = field(default_factory=list)  # neither size nor time of last write has changed
    jobs: list[Job] = field(default_factory=list)  # new, or written to since
    gone: list[IndexedFile] = field(default_factory=list)  # under a folder of this run, and no longer there

    def add(self, job: Job, *, rehash: bool) -> None:
        """Add a file, in the state that it has now."""
        previous = job.previous
        if previous is not None and not rehash and job.state == previous.state and job.state.mtime_ns != UNKNOWN_TIME:
            self.unchanged.append(previous)
        else:
            self.jobs.append(job)


def make_plan(listing: Listing, indexed: Mapping[str, IndexedFile], *, rehash: bool = False) -> Plan:
    """Sort the files of a run, in the order of their paths; `indexed` are those in the index, by URI.

    A file whose size and time of last write are those stored is taken to be unchanged, as git and rsync do, unless
    `rehash` is given. Content decides for the others, once they are read. A file of the index that the walk left out
    (its name has no video suffix, say) but that is on disk is treated as found.
    """
    plan = Plan()
    paths = {uri_of(path): path for path in listing.files}
    for uri, file in sorted(indexed.items()):
        if uri in paths or not is_local(uri) or not listing.knows(path := path_of(uri)):
            continue
        if is_gone(path):
            plan.gone.append(file)
        else:
            paths[uri] = path
    for uri, path in sorted(paths.items(), key=lambda item: item[1]):
        job = Job(path, uri, indexed.get(uri))
        with suppress(OSError):  # reported when the file is read
            job.state = FileState.of(path)
        plan.add(job, rehash=rehash)
    return plan


# -- the index of a run ------------------------------------------------------------------------------------------------


def open_if_there(folder: Path) -> VideoIndex | None:
    """Open the index in `folder`, or return None if one can be made there.

    Raises:
        ValueError: `folder` is a file, or holds other things. Other errors are those of `VideoIndex.open`.
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

    `model` is what the encoder was loaded as; without `cut`, files are cut as the index has it. Raises as
    `open_if_there`.

    Raises:
        IndexMismatchError: The index is of another model or cut otherwise.
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


@contextmanager
def writing(
    folder: Path, encoder: IndexedModel, options: RunOptions, *, model: str, layer: int | None, backend: str
) -> Iterator[tuple[Committer, dict[str, IndexedFile]]]:
    """Hold an index for a run, and after the block, bring up to date what is made from its rows.

    `model` and `layer` load the encoder again, and `backend` decodes. Yields what stores the files, and those that the
    index has, by URI. Raises as `index_videos`.
    """
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
        yield committer, index.files() if index else {}
        if committer.index is not None:
            with writing_to(folder):
                refresh(committer.index, encoder, options.derived, progress=options.progress)


# -- the run -----------------------------------------------------------------------------------------------------------


class Run:
    """The state of one run.

    Files are read before the model needs them, so a job joins the queue before its vectors exist. Jobs are settled in
    the order of the queue, which is that of the paths.
    """

    def __init__(self, committer: Committer, encoder: VideoEncoder, pool: DecodePool) -> None:
        self._committer = committer
        self._encoder = encoder
        self._pool = pool
        self._queue: deque[Job] = deque()
        self._awaited: dict[int, tuple[Job, int]] = {}  # input number -> job and position in its windows
        self._first_with: dict[str, Job] = {}  # content -> the job that embeds it

    def embed(self, jobs: Sequence[Job], *, batch_size: int, progress: bool) -> None:
        """Embed and store files. Raises as `index_videos`; what was finished stays."""
        settle = self._committer.settle
        with ExitStack() as stack:
            stop = stack.enter_context(GracefulStop(STOPPING if progress else ""))
            inputs = self._inputs(jobs, stop)
            stack.callback(inputs.close)
            stream = self._encoder.encode_stream(
                inputs, batch_size=batch_size, on_error="skip", show_progress_bar=False
            )
            if close := getattr(stream, "close", None):
                stack.callback(close)  # its threads end with it
            bar = stack.enter_context(
                tqdm(total=len(jobs), desc="Indexing", unit="file", disable=not progress, dynamic_ncols=True)
            )
            try:
                for item in stream:
                    self._take(item)
                    settle(self._queue, bar)
            except KeyboardInterrupt:
                settle(self._queue, bar)
                raise
            settle(self._queue, bar)
            if stop.asked:
                raise KeyboardInterrupt
        if self._queue:
            raise RuntimeError(f"encode_stream ended before {self._queue[0].path} had all of its vectors")

    # -- what the model must see ---------------------------------------------------------------------------------------

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
            return
        job.reading = self._pool.submit(job.path, self._encoder.sampling, cut=self._committer.meta.cut)

    def _fail(self, job: Job, error: VideoError, at: str = "") -> None:
        job.fail(type(error).__name__, at + error.reason)
        job.undecodable = type(error).__name__ in KINDS

    def _at(self, job: Job, position: int) -> str:
        if self._committer.meta.cut is None:
            return ""
        start, end = job.windows[position]
        return f"at {start:g} to {end:g} s: "

    # -- what the model gave -------------------------------------------------------------------------------------------

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
        if vector.shape != (self._committer.meta.dimension,) or not np.isfinite(vector).all() or not vector.any():
            job.fail("InternalError", f"{at}the model gave a vector that is zero, not finite or of the wrong length")
        else:
            job.vectors[position] = vector


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
        decode_workers: Processes that decode. Default: one a core, at most 8.
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
    listing = find(indexed=index.files if index else tuple)
    limits = DecodeLimits(timeout_s=asked.timeout_s, max_memory_bytes=asked.max_memory_bytes)
    pool = DecodePool(workers=decode_workers, limits=limits, backend=backend)
    with pool, writing(where, encoder, asked, model=model, layer=layer, backend=backend) as (committer, files):
        if asked.wait:  # what was found before may be hours old
            listing = find(indexed=lambda: files)
        plan = make_plan(listing, files, rehash=asked.rehash)
        committer.begin(files, listing.problems, unchanged=len(plan.unchanged), gone=plan.gone)
        Run(committer, encoder, pool).embed(plan.jobs, batch_size=asked.batch_size, progress=asked.progress)
        committer.finish(listing.is_gone)
    return committer.report
