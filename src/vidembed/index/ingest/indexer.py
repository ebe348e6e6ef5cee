"""Bring an index up to date with files and folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vidembed.index.files import find_videos
from vidembed.index.ingest.commit import Committer, writing_to
from vidembed.index.ingest.lock import locked
from vidembed.index.ingest.opening import decoder_versions, describe, open_for_writing, problems
from vidembed.index.ingest.plan import make_plan
from vidembed.index.ingest.quarantine import Quarantine
from vidembed.index.ingest.report import Report
from vidembed.index.ingest.run import Run
from vidembed.index.retrieval.refresh import Derived, refresh
from vidembed.video import VIDEO_SUFFIXES
from vidembed.video.load import DEFAULT_TIMEOUT_S
from vidembed.video.pool import DEFAULT_MEMORY_BYTES, DecodePool

if TYPE_CHECKING:
    from vidembed.index.protocols import StreamEncoder
    from vidembed.video.cutting import Cut


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
        derived: What the index shall have beside its rows: ANN index, compact copies, query bank. Default: an ANN index
            if there are many rows, and what is there already, brought up to date.

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
    pool = DecodePool(workers=decode_workers, timeout_s=timeout_s, max_memory_bytes=max_memory_bytes, backend=backend)
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
