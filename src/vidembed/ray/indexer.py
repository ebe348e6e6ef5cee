"""Bring an index up to date on a cluster: workers decode and embed, this process plans, collects and writes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from tqdm.auto import tqdm

from vidembed.errors import IndexingStoppedError, IndexMismatchError
from vidembed.index.commit import KINDS, Committer, Job, Problem, Quarantine, Report, locked, uninterrupted, writing_to
from vidembed.index.files import IndexedFile, Listing, find_videos, is_local, name_of, path_of
from vidembed.index.ingest import (
    Plan,
    decoder_versions,
    describe,
    make_plan,
    open_for_writing,
    open_if_there,
    problems,
    vanished,
)
from vidembed.index.search import Derived, refresh
from vidembed.ray.cluster import Pipeline, RemoteModel, Resources, connected, cores
from vidembed.ray.stores import (
    MAX_FILE_BYTES,
    UNKNOWN_TIME,
    Address,
    FileSystem,
    StoreListing,
    clean,
    is_address,
    list_stores,
    open_store,
)
from vidembed.video import VIDEO_SUFFIXES
from vidembed.video.clip import DEFAULT_MEMORY_BYTES, DEFAULT_TIMEOUT_S, FileState, Sampling

if TYPE_CHECKING:
    from typing import NoReturn

    import pyarrow as pa

    from vidembed.index.meta import IndexMeta
    from vidembed.ray.decode import DecodingOptions
    from vidembed.ray.embed import ModelOptions
    from vidembed.video.segments import Cut

WAVE_FILES = 50_000
"""Files of one Ray Data execution, which keeps notes of each block to its end; then models are loaded anew (ours)."""
COMMIT_EVERY_S = 5.0
"""Seconds from commit to commit at least, so that files which are done in quick succession share one (our choice)."""
COMMIT_ROWS = 4096
"""Rows at which a commit does not wait (our choice)."""
_IN_QUARANTINE: Final = "(in quarantine since {}; --retry tries it again)"


# -- what is to be done ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Work:
    """A file that must be read to know what to do with it."""

    job: Job
    state: FileState | None = None  # as its store lists it; a local file's is taken when it is read


@dataclass(slots=True)
class Found:
    """The files that a run is about: local ones, and those in stores."""

    local: Listing = field(default_factory=Listing)
    stored: StoreListing = field(default_factory=StoreListing)

    @property
    def problems(self) -> list[Problem]:
        """What could not be listed and what vanished, as it stands in a report."""
        unreadable = [Problem(uri, type(error).__name__, clean(error)) for uri, error in self.stored.unreadable.items()]
        return problems(self.local) + unreadable + [vanished(uri, reason) for uri, reason in self.stored.vanished]


@dataclass(slots=True)
class Todo:
    """The files of a run, sorted by what must be done with them."""

    local: Plan
    stored: StoreListing
    work: list[Work]  # new, or written to since; local ones first, in the order of their paths and URIs
    unchanged: int  # how many are in the index as they are
    gone: list[IndexedFile]  # in the index, under a folder of this run, and no longer there

    def is_gone(self, uri: str) -> bool:
        """Whether a file is under a folder of this run, and no longer there."""
        if is_local(uri):
            return self.local.is_gone(uri)
        return self.stored.knows(uri) and uri not in self.stored.files


def find(
    paths: Sequence[str | os.PathLike[str]],
    *,
    filesystem: FileSystem | None = None,
    indexed: Callable[[], Iterable[str]] = tuple,
) -> Found:
    """List the videos among paths and URIs of files and folders; `indexed` returns the URIs that the index has.

    ValueError if there are none, one does not exist or cannot be read, or there is no video in any of them.
    """
    if not paths:
        raise ValueError("paths: none given; name at least one video or folder")
    uris = [str(path) for path in paths if is_address(str(path)) and not is_local(str(path))]
    others = [path_of(str(path)) if is_local(str(path)) else path for path in paths if str(path) not in set(uris)]
    found = Found()
    if uris:
        found.stored = list_stores(uris, VIDEO_SUFFIXES, filesystem=filesystem, indexed=indexed)
    if others:
        found.local = find_videos(others, VIDEO_SUFFIXES, indexed=indexed, or_none=bool(found.stored.files))
    elif not found.stored.files:
        raise ValueError(
            f"paths: no video in {', '.join(uris)}; looked for files ending in {', '.join(sorted(VIDEO_SUFFIXES))}"
            + "".join(f"; {uri} {reason}, and the index has files of it" for uri, reason in found.stored.vanished)
        )
    return found


def plan(
    found: Found, indexed: Mapping[str, IndexedFile], *, rehash: bool, filesystem: FileSystem | None = None
) -> Todo:
    """Sort the files of a run by what must be done with them, as `vidembed.index.ingest.make_plan` does."""
    local = make_plan(found.local, {uri: file for uri, file in indexed.items() if is_local(uri)}, rehash=rehash)
    work = [Work(job) for job in local.jobs]
    todo = Todo(local, found.stored, work, unchanged=len(local.unchanged), gone=list(local.gone))
    states = dict(found.stored.files)
    for uri, file in indexed.items():
        if is_local(uri) or uri in states or not found.stored.knows(uri):
            continue
        try:  # the listing left it out, since its name has no video suffix, say
            states[uri] = open_store(address := Address.parse(uri), filesystem).state(address)
        except FileNotFoundError:
            todo.gone.append(file)
    for uri, state in sorted(states.items()):
        previous = indexed.get(uri)
        if previous is not None and not rehash and previous.state == state and state.mtime_ns != UNKNOWN_TIME:
            todo.unchanged += 1
        else:
            todo.work.append(Work(Job(Path("/", Address.parse(uri).path), uri, previous), state))
    todo.gone.sort(key=lambda file: file.uri)
    return todo


def waves(work: Sequence[Work], size: int) -> list[Sequence[Work]]:
    """Return `work` in portions of `size`."""
    return [work[first : first + size] for first in range(0, len(work), size)]


# -- what comes back ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class RayJob(Job):
    """A file that workers read."""

    def is_as_it_was(self) -> bool:
        """Whether it was not written to: the worker has checked that, where the file is."""
        return True


class Collector:
    """Puts files together from rows, which come back in any order, and has those that are whole stored.

    A new file of the same content as one that is `gone` takes over its rows. Its methods raise `IndexingStoppedError`
    where a file cannot be indexed and the run is to end there, and `IndexWriteError`.

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
        bar: tqdm[NoReturn],
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
            with suppress(OSError):  # reported when it is read
                job.state = each.state or FileState.of(each.job.path)
                entry = self._quarantine.of_file(each.job.uri, job.state)
            if entry is None:
                self._open[each.job.uri] = each, job
                wanted.append(each)
            else:
                job.fail(entry.kind, f"{entry.message} {_IN_QUARANTINE.format(entry.since)}")
                self._finish(job)
        return wanted

    def take(self, batch: pa.Table) -> None:
        """Take rows as `EmbedVideos` returns them; those of files that are done, or came twice, are dropped."""
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
        """Store the files that are done: `now`, or if there are many or the last commit was long ago."""
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
        """Report files of which not all has come, though the workers are done, and store the rest."""
        for _, job in list(self._open.values()):
            job.fail("InternalError", f"{len(job.vectors)} segments came back from the workers, and not all; run again")
            self._finish(job)
        self.settle(now=True)

    def _take_row(self, row: dict[str, Any], vector: pa.FixedSizeListScalar) -> None:
        work, job = self._open[row["uri"]]
        if (content := row["content_fingerprint"]) is not None:
            if job.content not in {"", content} or len(job.windows) not in {0, row["segments"]}:
                job.fail("ChangedWhileRead", "it was read twice, and differed; run again")
            job.content, job.state = content, FileState(row["size"], row["mtime_ns"])
        if row["error"] is not None:
            kind, _, message = row["error"].partition(": ")
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
    """Whether a content (SHA-256, hex) is known, so that it need not be decoded, by its first eight bytes.

    It can be wrong for one in 2**64 contents over the number of those that are known, and `Collector` checks again.
    """

    def __init__(self, contents: Iterable[str]) -> None:
        self._first = np.unique(np.fromiter((int(each[:16], 16) for each in contents), dtype=np.uint64))  # (N,), sorted

    def __call__(self, content: str) -> bool:
        """Return whether a content is known."""
        wanted = np.uint64(int(content[:16], 16))
        return bool((self._first[np.searchsorted(self._first, wanted) :][:1] == wanted).any())


# -- the run -----------------------------------------------------------------------------------------------------------


def index_videos_ray(  # noqa: D417 - the other arguments are those of index_videos
    paths: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    model: str,
    layer: int | None = None,
    sampling: Mapping[str, Any] | None = None,
    cut: Cut | None = None,
    on_error: Literal["skip", "raise"] = "skip",
    prune: bool = False,
    rehash: bool = False,
    retry: bool = False,
    wait: bool = False,
    batch_size: int = 32,
    timeout_s: float | None = DEFAULT_TIMEOUT_S,
    max_memory_bytes: int | None = DEFAULT_MEMORY_BYTES,
    progress: bool = True,
    derived: Derived | None = None,
    address: str | None = None,
    workers: int = 1,
    decoders: int | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    device: str | None = None,
    filesystem: FileSystem | None = None,
    max_bytes: int = MAX_FILE_BYTES,
) -> Report:
    """Bring the index in `folder` up to date as `vidembed.index.index_videos` does, with a Ray cluster at work.

    The rows are those that `index_videos` writes. This process is the only one that writes: a file is committed once
    all of its segments have come back. So a run that is interrupted or killed loses the files in flight, and the next
    one takes up what is missing. A worker that is killed is started again by Ray, and its work is done again.

    All machines need this package in the same version, the model under the same name, and local files under the same
    paths. Files in object stores are copied to the worker that decodes them.

    Args:
        paths: Videos and folders of videos, by path or URI: `s3://`, `gs://`, and what else pyarrow or fsspec reads.
        folder: Where the index is or shall be, on this machine: new, empty, or an index.
        model: Name or path of the model, which the workers load; stored.
        layer: As for `index_videos`, and so is every argument that is not named here.
        address: Of the cluster, as `ray.init` takes it. None: the one that this process has joined, else that of
            `RAY_ADDRESS`, else one that is started on this machine and ends with the run.
        workers: Most actors that embed, each with the model.
        decoders: Most actors that decode, each with one CPU. Default: the cores that `workers` leave, at least 1, where
            the cluster is started here; else two for each of `workers`.
        num_cpus: CPUs of an actor that embeds. Default 1.
        num_gpus: GPUs of an actor that embeds; a fraction shares one. Default 0.
        device: Torch device of the workers. Default: `cuda` with GPUs, else `cpu`.
        filesystem: A `pyarrow.fs.FileSystem` or `fsspec.AbstractFileSystem` for all URIs. Default: by scheme, with
            credentials from each machine's environment.
        max_bytes: Limit on the size of a file that is copied from a store. Default 16 GiB.

    Returns:
        What was done, with every file that was skipped.

    Raises:
        IndexMismatchError: The index is of another model or cut otherwise, or a worker has another model.
        MissingExtraError: Ray or LanceDB is not installed.
        ClusterError: The cluster cannot be reached or has failed. What was committed stays.
        OSError: A store cannot be reached, or refuses to list.
        KeyboardInterrupt: Ctrl-C: what was complete was committed first.
        Exception: As `index_videos`.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}; at least 1 is needed")
    if on_error not in {"skip", "raise"}:
        raise ValueError(f"on_error: got {on_error!r}; 'skip' or 'raise' is allowed")
    if derived is not None:
        derived.check()
    Sampling(**(sampling or {}))
    if not decoders:
        own = address is None and not os.environ.get("RAY_ADDRESS")
        decoders = max(1, int(cores() - workers * num_cpus)) if own else 2 * workers
    resources = Resources(workers, decoders, num_cpus, num_gpus)
    where = Path(folder)
    existing = open_if_there(where)
    # What is cheap to find wrong comes before the cluster.
    found = find(paths, filesystem=filesystem, indexed=existing.files if existing else tuple)
    options: ModelOptions = {
        "model": model,
        "layer": layer,
        "sampling": dict(sampling or {}),
        "device": device or ("cuda" if num_gpus else "cpu"),
        "batch_size": batch_size,
        "workers": max(1, int(num_cpus)),
    }
    limits: DecodingOptions = {"timeout_s": timeout_s, "max_memory_bytes": max_memory_bytes, "backend": "pyav"}
    decoding: DecodingOptions = {"filesystem": filesystem, "max_bytes": max_bytes, **limits}
    report = Report(index=str(where), model=model, pruned=prune)
    with connected(address, resources):
        remote = RemoteModel(options, resources)
        if derived is not None:
            derived.check(remote.facts.dimension)
        open_for_writing(where, remote, model, cut)  # refuse before anything is written
        with locked(where, wait=wait):
            index = open_for_writing(where, remote, model, cut)
            if wait:  # what was found before may be hours old
                found = find(paths, filesystem=filesystem, indexed=index.files if index else tuple)
            report.skipped = found.problems
            stored = index.files() if index else {}
            todo = plan(found, stored, rehash=rehash, filesystem=filesystem)
            report.unchanged = todo.unchanged
            meta = index.meta if index else describe(remote, model, layer, cut)
            quarantine = Quarantine(where, {**decoder_versions(), **limits}, retry=retry)
            committer = Committer(where, index, meta, report=report, quarantine=quarantine, on_error=on_error)
            bad = {entry.content_fingerprint for entry in quarantine.entries.values()}
            known = {file.content_fingerprint for file in stored.values()}
            known |= {content for content in bad if quarantine.of_content(content) is not None}
            pipeline = Pipeline(options, decoding, remote.sampling, meta.cut, resources)
            with tqdm(
                total=len(todo.work), desc="Indexing", unit="file", disable=not progress, dynamic_ncols=True
            ) as bar:
                collector = Collector(committer, meta, quarantine=quarantine, gone=todo.gone, bar=bar)
                _embed(todo.work, pipeline, collector, KnownContents(known) if known else None)
            committer.finish(todo.gone, todo.is_gone, prune=prune)
            if committer.index is not None:
                with writing_to(where):
                    refresh(committer.index, remote, derived, progress=progress)
    return report


def _embed(work: Sequence[Work], pipeline: Pipeline, collector: Collector, known: KnownContents | None) -> None:
    """Have files decoded, embedded and stored, in waves; last those whose content is no longer known."""
    try:
        for wave, known_then in (*((wave, known) for wave in waves(work, WAVE_FILES)), (collector.again, None)):
            if wanted := collector.expect(wave):
                with closing(pipeline.rows([(each.job.uri, each.state) for each in wanted], known_then)) as rows:
                    for batch in rows:
                        collector.take(batch)
            collector.close()
    except KeyboardInterrupt:
        collector.settle(now=True)
        raise
