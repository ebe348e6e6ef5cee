"""Bring an index up to date on a cluster: workers decode and embed, this process plans, collects and writes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Unpack

import numpy as np
from tqdm.auto import tqdm

from vidembed.backbone.options import ModelOptions
from vidembed.errors import IndexMismatchError
from vidembed.index.commit import KINDS, Committer, Report, open_for_writing, open_if_there
from vidembed.index.files import Job
from vidembed.index.ingest import RunKeywords, RunOptions, writing
from vidembed.index.table import is_local
from vidembed.progress import progress_bar
from vidembed.ray.cluster import Pipeline, RemoteModel, Resources, connected
from vidembed.ray.decode import DecodingOptions
from vidembed.ray.embed import EmbeddingOptions
from vidembed.ray.stores import MAX_FILE_BYTES, FileSystem, find
from vidembed.video.clip import FileState, Sampling
from vidembed.video.worker import worker_count

if TYPE_CHECKING:
    import pyarrow as pa

WAVE_FILES = 50_000
"""Files of one Ray Data execution, which keeps notes of each block to its end; then models are loaded anew (ours)."""
COMMIT_EVERY_S = 5.0
"""Seconds from commit to commit at least, so that files which are done in quick succession share one (our choice)."""
COMMIT_ROWS = 4096
"""Rows at which a commit does not wait (our choice)."""


class Collector:
    """Puts files together from rows, which come back in any order, and has those that are whole stored."""

    def __init__(self, committer: Committer, bar: tqdm[NoReturn]) -> None:
        self.again: list[Job] = []  # to be decoded after all: their contents were known when the run began
        self._committer = committer
        self._bar = bar
        self._open: dict[str, Job] = {}
        self._done: deque[Job] = deque()
        self._committed_at = -COMMIT_EVERY_S
        self._rows = 0
        self._first_with: dict[str, Job] = {}  # content -> the job of this run that embedded it

    def expect(self, jobs: Iterable[Job]) -> list[Job]:
        """Await files, and return those that must be read: without those in quarantine as they are."""
        for job in jobs:
            job.is_watched = True  # by the worker, where the file is
            if is_local(job.uri):
                with suppress(OSError):  # reported when it is read
                    job.state = FileState.of(job.path)
            self._open[job.uri] = job
            if (entry := self._committer.quarantine.of_file(job.uri, job.state)) is not None:
                job.fail(entry.kind, entry.reason)
                self._finish(job)
        return list(self._open.values())

    def take(self, batch: pa.Table) -> None:
        """Take rows as `EmbedVideos` returns them; those of files that are done, or came twice, are dropped."""
        vectors, expected = batch.column("vector"), self._committer.meta.model_fingerprint
        for place, row in enumerate(batch.drop_columns(["vector"]).to_pylist()):
            if row["uri"] not in self._open:
                continue
            if (fingerprint := row["model_fingerprint"]) != expected:
                raise IndexMismatchError(
                    f"model: a worker loaded one with fingerprint {fingerprint[:12]}, and that of the index is "
                    f"{expected[:12]}. Install the same files and versions on all machines"
                )
            self._take_row(row, vectors[place])
        self.settle(now=False)

    def settle(self, *, now: bool) -> None:
        """Store the files that are done: `now`, or if there are many or the last commit was long ago."""
        is_due = time.monotonic() - self._committed_at >= COMMIT_EVERY_S or self._rows >= COMMIT_ROWS
        if self._done and (now or is_due):
            self._committer.settle(self._done, self._bar)
            self._committed_at, self._rows = time.monotonic(), 0

    def close(self) -> None:
        """Report files of which not all has come, though the workers are done, and store the rest."""
        for job in list(self._open.values()):
            job.fail("InternalError", f"{len(job.vectors)} segments came back from the workers, and not all; run again")
            self._finish(job)
        self.settle(now=True)

    def _take_row(self, row: dict[str, Any], vector: pa.FixedSizeListScalar) -> None:
        job = self._open[row["uri"]]
        if (content := row["content_fingerprint"]) is not None:
            if job.content not in {"", content} or len(job.windows) not in {0, row["segments"]}:
                job.fail("ChangedWhileRead", "it was read twice, and differed; run again")
            job.content, job.state = content, FileState(row["size"], row["mtime_ns"])
        if row["error"] is not None:
            kind, _, message = row["error"].partition(": ")
            job.fail(kind, message)
            job.undecodable = kind in KINDS and content is not None
        elif job.problem is None and row["segments"] == 0:
            if not self._committer.take_known(job):
                del self._open[row["uri"]]
                self.again.append(replace(job, content=""))
                return
        elif job.problem is None:
            job.duration = row["duration"]
            job.windows = job.windows or [(0.0, 0.0)] * row["segments"]
            job.windows[row["segment"]] = row["start_s"], row["end_s"]
            job.vectors[row["segment"]] = vector.values.to_numpy().astype(np.float32)  # (D,)
        if job.done:
            self._finish(job)

    def _finish(self, job: Job) -> None:
        """Pass on a job that is done. One with the content of an earlier one of this run takes over its vectors."""
        del self._open[job.uri]
        is_embedded = job.problem is None and job.stored is None
        if is_embedded and (first := self._first_with.setdefault(job.content, job)) is not job:
            job.twin, job.windows, job.vectors = first, [], {}
        self._rows += len(job.windows)
        self._done.append(job)


class KnownContents:
    """Whether a content (SHA-256, hex) is known, by its first eight bytes; `Collector` checks again."""

    def __init__(self, contents: Iterable[str]) -> None:
        self._first = np.unique(np.fromiter((int(each[:16], 16) for each in contents), dtype=np.uint64))  # (N,), sorted

    def __call__(self, content: str) -> bool:
        """Return whether a content is known."""
        wanted = np.uint64(int(content[:16], 16))
        return bool((self._first[np.searchsorted(self._first, wanted) :][:1] == wanted).any())


def index_videos_ray(
    paths: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    model: str,
    layer: int | None = None,
    sampling: Mapping[str, Any] | None = None,
    address: str | None = None,
    workers: int = 1,
    decoders: int | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    model_options: ModelOptions | None = None,
    filesystem: FileSystem | None = None,
    max_bytes: int = MAX_FILE_BYTES,
    **options: Unpack[RunKeywords],
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
        layer: Decoder layer, for a model that is not a vidembed checkpoint; stored.
        sampling: Fields of `vidembed.video.Sampling` to set; the others stay as the checkpoint has them.
        address: Of the cluster, as `ray.init` takes it. None: the one that this process has joined, else that of
            `RAY_ADDRESS`, else one that is started on this machine and ends with the run.
        workers: Most actors that embed, each with the model.
        decoders: Most actors that decode, each with one CPU. Default: the cores that `workers` leave, at least 1, where
            the cluster is started here; else two for each of `workers`.
        num_cpus: CPUs of an actor that embeds. Default 1.
        num_gpus: GPUs of an actor that embeds; a fraction shares one. Default 0.
        model_options: How the workers load the model. Its device is by default `cuda` with GPUs, else `cpu`.
        filesystem: A `pyarrow.fs.FileSystem` or `fsspec.AbstractFileSystem` for all URIs. Default: by scheme, with
            credentials from each machine's environment.
        max_bytes: Limit on the size of a file that is copied from a store. Default 16 GiB.
        options: Fields of `vidembed.index.ingest.RunOptions`, as for `index_videos`.

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
    asked = RunOptions(**options)
    Sampling(**(sampling or {}))  # checks the values
    if not decoders:
        own = address is None and not os.environ.get("RAY_ADDRESS")
        decoders = worker_count(workers * num_cpus) if own else 2 * workers
    resources = Resources(workers, decoders, num_cpus, num_gpus)
    where = Path(folder)
    existing = open_if_there(where)
    search = partial(find, paths, filesystem=filesystem)  # what is cheap to find wrong comes before the cluster
    found = search(indexed=existing.files if existing else tuple)
    loading = model_options or ModelOptions()
    if loading.device is None and loading.device_map is None:
        loading = replace(loading, device="cuda" if num_gpus else "cpu")
    load: EmbeddingOptions = {
        "model": model,
        "layer": layer,
        "sampling": dict(sampling or {}),
        "model_options": loading,
        "batch_size": asked.batch_size,
        "workers": max(1, int(num_cpus)),
    }
    decoding: DecodingOptions = {
        "filesystem": filesystem,
        "max_bytes": max_bytes,
        "timeout_s": asked.timeout_s,
        "max_memory_bytes": asked.max_memory_bytes,
        "backend": "pyav",
    }
    with connected(address, resources):
        remote = RemoteModel(load, resources)
        open_for_writing(where, remote, model, asked.cut)  # refuse before anything is written
        bar_over = partial(progress_bar, "Indexing", "files", shown=asked.progress)
        held = writing(where, remote, asked, search, found, model=model, layer=layer, backend="pyav")
        with held as (committer, jobs), bar_over(total=len(jobs)) as bar:
            pipeline = Pipeline(load, decoding, remote.sampling, committer.meta.cut, resources)
            _embed(jobs, pipeline, Collector(committer, bar), committer.known_contents)
    return committer.report


def _embed(jobs: Sequence[Job], pipeline: Pipeline, collector: Collector, contents: set[str]) -> None:
    """Have files decoded, embedded and stored, in waves; last those whose content is no longer known."""
    known = KnownContents(contents) if contents else None
    waves = [(jobs[first : first + WAVE_FILES], known) for first in range(0, len(jobs), WAVE_FILES)]
    try:
        for wave, known_then in (*waves, (collector.again, None)):
            if wanted := collector.expect(wave):
                with closing(pipeline.rows([(job.uri, job.state) for job in wanted], known_then)) as rows:
                    for batch in rows:
                        collector.take(batch)
            collector.close()
    except KeyboardInterrupt:
        collector.settle(now=True)
        raise
