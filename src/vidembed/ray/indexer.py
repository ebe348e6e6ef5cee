"""Bring an index up to date on a cluster: workers decode and embed, this process plans and writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from tqdm.auto import tqdm

from vidembed.index.commit import Committer, Job, Problem, Quarantine, Report, locked, writing_to
from vidembed.index.files import IndexedFile, Listing, find_videos, is_local, path_of
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
from vidembed.ray.cluster import Resources, connected, cores
from vidembed.ray.collect import Collector, KnownContents
from vidembed.ray.pipeline import Pipeline, RemoteModel
from vidembed.ray.stores import (
    MAX_FILE_BYTES,
    UNKNOWN_TIME,
    Address,
    StoreListing,
    clean,
    is_address,
    list_stores,
    open_store,
)
from vidembed.video import VIDEO_SUFFIXES
from vidembed.video.load import DEFAULT_TIMEOUT_S
from vidembed.video.pool import DEFAULT_MEMORY_BYTES
from vidembed.video.sampling import FileState, Sampling

if TYPE_CHECKING:
    from vidembed.index.meta import IndexMeta
    from vidembed.index.table import VideoIndex
    from vidembed.video.segments import Cut


@dataclass(frozen=True, slots=True)
class Work:
    """A file that must be read to know what to do with it.

    Attributes:
        job: The file.
        state: What its store told of it when it was listed; None for a local file, which tells when it is read.
    """

    job: Job
    state: FileState | None = None


@dataclass(slots=True)
class Found:
    """The files that a run is about.

    Attributes:
        local: Local ones.
        stored: Those in stores.
    """

    local: Listing = field(default_factory=Listing)
    stored: StoreListing = field(default_factory=StoreListing)

    @property
    def problems(self) -> list[Problem]:
        """What could not be listed and what vanished, as it stands in a report."""
        unreadable = [Problem(uri, type(error).__name__, clean(error)) for uri, error in self.stored.unreadable.items()]
        return problems(self.local) + unreadable + [vanished(uri, reason) for uri, reason in self.stored.vanished]


@dataclass(slots=True)
class Todo:
    """The files of a run.

    Attributes:
        local: The local files, sorted.
        stored: Those in stores.
        work: New, or written to since; local ones first, in the order of their paths and URIs.
        unchanged: How many are in the index as they are.
        gone: In the index, under a folder of this run, and no longer there.
    """

    local: Plan
    stored: StoreListing
    work: list[Work] = field(default_factory=list)
    unchanged: int = 0
    gone: list[IndexedFile] = field(default_factory=list)

    def is_gone(self, uri: str) -> bool:
        """Whether a file is under a folder of this run, and no longer there."""
        if is_local(uri):
            return self.local.is_gone(uri)
        return self.stored.knows(uri) and uri not in self.stored.files


def find(
    paths: Sequence[str | os.PathLike[str]],
    *,
    filesystem: Any = None,
    indexed: Callable[[], Iterable[str]] = tuple,
) -> Found:
    """List the videos among paths and URIs.

    Args:
        paths: Files and folders, by path or URI.
        filesystem: As `vidembed.ray.stores.open_store` takes.
        indexed: As `vidembed.index.files.find_videos` takes it.

    Raises:
        ValueError: There are none, one does not exist or cannot be read, or there is no video in any of them.
        OSError: A store cannot be reached, or refuses.
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


def plan(found: Found, indexed: Mapping[str, IndexedFile], *, rehash: bool, filesystem: Any = None) -> Todo:
    """Sort the files of a run by what must be done with them, as `vidembed.index.ingest.make_plan` does.

    Args:
        found: What there is.
        indexed: The files in the index, by URI.
        rehash: Read every file, whatever its size and time of last write.
        filesystem: As `vidembed.ray.stores.open_store` takes.

    Raises:
        OSError: A store cannot be reached, or refuses.
    """
    local = make_plan(found.local, {uri: file for uri, file in indexed.items() if is_local(uri)}, rehash=rehash)
    todo = Todo(local, found.stored, unchanged=len(local.unchanged), gone=list(local.gone))
    todo.work = [Work(job) for job in local.jobs]
    states = {uri: file.state for uri, file in found.stored.files.items()}
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


def waves(work: Sequence[Work], size: int) -> Iterator[Sequence[Work]]:
    """Yield `work` in portions of `size`."""
    for first in range(0, len(work), size):
        yield work[first : first + size]


WAVE_FILES: Final = 50_000
"""Files of one Ray Data execution, which keeps notes of each block to its end; then models are loaded anew (ours)."""


def index_videos_ray(
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
    filesystem: Any = None,
    max_bytes: int = MAX_FILE_BYTES,
) -> Report:
    """Bring the index in `folder` up to date as `vidembed.index.index_videos` does, with a Ray cluster at work.

    The rows are those that `index_videos` writes. This process lists the files, leaves out what the index has, and is
    the only one that writes: a file is committed once all of its segments have come back, in groups, at most one commit
    in a few seconds. So a run that is interrupted or killed loses the files in flight, and the next one takes up what
    is missing. A worker that is killed is started again by Ray, and what it had in hand is done again.

    All machines need this package in the same version, the model under the same name, and local files under the same
    paths (a shared file system). Files in object stores are copied to the worker that decodes them. A file that is
    there twice may be embedded twice within one run; both get the same vectors.

    Args:
        paths: Videos and folders of videos, by path or URI: `s3://`, `gs://`, and what else pyarrow or fsspec reads.
        folder: Where the index is or shall be, on this machine: new, empty, or an index.
        model: Name or path of the model, which the workers load; stored.
        layer: Decoder layer to read, for a model that is not a vidembed checkpoint; stored.
        sampling: Fields of `vidembed.video.Sampling` to set; the others stay as the checkpoint has them.
        cut: How files are cut, `Windows` or `Scenes`. None: as the index has it; in a new one, a file is one segment.
        on_error: `skip` reports a bad file and goes on; `raise` ends the run at the first.
        prune: Remove files that are gone. Otherwise they are reported.
        rehash: Read every file again, even where size and time of last write have not changed.
        retry: Try files in quarantine again.
        wait: Where another run is writing to the index, wait for its end. Otherwise, refuse.
        batch_size: Segments handed to the model at once.
        timeout_s: Limit on the time that a file takes to decode, seconds; None for none. Default 600.
        max_memory_bytes: Limit on the memory of a decoding process, bytes (Linux); None for none. Default 8 GiB.
        progress: Show a bar over files, on stderr.
        derived: What the index shall have beside its rows, as `index_videos` takes it.
        address: Of the cluster, as `ray.init` takes it. None: the one that this process has joined, else that of
            `RAY_ADDRESS`, else one that is started on this machine and ends with the run.
        workers: Most actors that embed, each with the model.
        decoders: Most actors that decode, each with one CPU. Default: as many as cores are left here by `workers` where
            the cluster is started here, at least 1; else two for each of `workers`.
        num_cpus: CPUs of an actor that embeds. Default 1.
        num_gpus: GPUs of an actor that embeds; a fraction shares one. Default 0.
        device: Torch device of the workers. Default: `cuda` with GPUs, else `cpu`.
        filesystem: A `pyarrow.fs.FileSystem` or `fsspec.AbstractFileSystem` for all URIs, with the options and
            credentials that it was made with. Default: by scheme, with what the environment of each machine says.
        max_bytes: Limit on the size of a file that is copied from a store. Default 16 GiB.

    Returns:
        What was done, with every file that was skipped.

    Raises:
        ValueError: An argument is out of range, a path does not exist or cannot be listed, or there is no video in any.
        IndexMismatchError: The index is of another model or cut otherwise, or a worker has another model.
        IndexBusyError: Another run is writing to it, and `wait` is False.
        IndexDamagedError: It cannot be read.
        IndexWriteError: It cannot be written: the disk is full, read-only or out of reach. What was committed stays.
        IndexingStoppedError: With `on_error="raise"`, a file could not be indexed.
        MissingExtraError: Ray or LanceDB is not installed.
        ClusterError: The cluster cannot be reached or has failed. What was committed stays.
        OSError: A store cannot be reached, or refuses to list.
        KeyboardInterrupt: Ctrl-C: what was complete was committed first.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}; at least 1 is needed")
    if on_error not in {"skip", "raise"}:
        raise ValueError(f"on_error: got {on_error!r}; 'skip' or 'raise' is allowed")
    if derived is not None:
        derived.check()
    Sampling(**(sampling or {}))
    resources = Resources(workers, decoders or _decoders(address, workers, num_cpus), num_cpus, num_gpus)
    where = Path(folder)
    existing = open_if_there(where)
    known = existing.files if existing else tuple
    found = find(paths, filesystem=filesystem, indexed=known)  # what is cheap to find wrong comes before the cluster
    settings = {
        "model": model,
        "layer": layer,
        "sampling": dict(sampling or {}),
        "device": device or ("cuda" if num_gpus else "cpu"),
        "batch_size": batch_size,
        "workers": max(1, int(num_cpus)),
    }
    limits = {"timeout_s": timeout_s, "max_memory_bytes": max_memory_bytes, "backend": "pyav"}
    report = Report(index=str(where), model=model, pruned=prune)
    with connected(address, resources):
        remote = RemoteModel(settings, resources)
        if derived is not None:
            derived.check(remote.facts.dimension)
        open_for_writing(where, remote, model, cut)  # refuse before anything is written
        with locked(where, wait=wait):
            index = open_for_writing(where, remote, model, cut)
            if wait:  # what was found before may be hours old
                found = find(paths, filesystem=filesystem, indexed=index.files if index else tuple)
            report.skipped = found.problems
            todo = plan(found, index.files() if index else {}, rehash=rehash, filesystem=filesystem)
            meta = index.meta if index else describe(remote, model, layer, cut)
            quarantine = Quarantine(where, {**decoder_versions(), **limits}, retry=retry)
            committer = Committer(where, index, meta, report=report, quarantine=quarantine, on_error=on_error)
            pipeline = Pipeline(settings, {"filesystem": filesystem, "max_bytes": max_bytes, **limits}, resources)
            report.unchanged = todo.unchanged
            _embed(todo, pipeline, committer, meta, quarantine=quarantine, sampling=remote.sampling, progress=progress)
            committer.finish(todo.gone, todo.is_gone, prune=prune)
            if committer.index is not None:
                with writing_to(where):
                    refresh(committer.index, remote, derived, progress=progress)
    return report


def _decoders(address: str | None, workers: int, num_cpus: float) -> int:
    own = address is None and not os.environ.get("RAY_ADDRESS")
    return max(1, int(cores() - workers * num_cpus)) if own else 2 * workers


def _embed(
    todo: Todo,
    pipeline: Pipeline,
    committer: Committer,
    meta: IndexMeta,
    *,
    quarantine: Quarantine,
    sampling: Sampling,
    progress: bool,
) -> None:
    """Have the files of `todo` decoded, embedded and stored."""
    with ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=len(todo.work), desc="Indexing", unit="file", disable=not progress, dynamic_ncols=True)
        )
        collector = Collector(committer, meta, quarantine=quarantine, gone=todo.gone, bar=bar)
        known = KnownContents(_known(committer.index, quarantine))
        try:
            for wave in waves(todo.work, WAVE_FILES):
                _run(collector, pipeline, wave, meta, sampling, known if len(known) else None)
            if collector.again:
                _run(collector, pipeline, collector.again, meta, sampling, None)
        except KeyboardInterrupt:
            collector.settle(now=True)
            raise


def _run(
    collector: Collector,
    pipeline: Pipeline,
    work: Sequence[Work],
    meta: IndexMeta,
    sampling: Sampling,
    known: KnownContents | None,
) -> None:
    wanted = collector.expect(work)
    if wanted:
        with closing(pipeline.rows(wanted, sampling, meta.cut, known)) as rows:
            for batch in rows:
                collector.take(batch)
    collector.close()


def _known(index: VideoIndex | None, quarantine: Quarantine) -> set[str]:
    """Return the contents that need not be decoded: those of the index, and those that are known to be bad."""
    stored = set() if index is None else {file.content_fingerprint for file in index.files().values()}
    bad = {entry.content_fingerprint for entry in quarantine.entries.values()}
    return stored | {content for content in bad if quarantine.of_content(content) is not None}
