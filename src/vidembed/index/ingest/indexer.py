"""Bring an index up to date with files and folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vidembed.index.errors import IndexMismatchError
from vidembed.index.files import find_videos, uri_of
from vidembed.index.ingest.lock import LOCK_FILE, locked
from vidembed.index.ingest.plan import make_plan
from vidembed.index.ingest.report import Problem, Report
from vidembed.index.ingest.run import Run
from vidembed.index.meta import IndexMeta
from vidembed.index.retrieval.refresh import Derived, refresh
from vidembed.index.store import TABLE_FOLDER, VideoIndex, require_packages
from vidembed.video import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from vidembed.index.protocols import StreamEncoder
    from vidembed.video.windows import Windows


def index_videos(
    paths: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    encoder: StreamEncoder,
    *,
    model: str,
    layer: int | None = None,
    windows: Windows | None = None,
    on_error: Literal["skip", "raise"] = "skip",
    prune: bool = False,
    rehash: bool = False,
    batch_size: int = 32,
    progress: bool = True,
    derived: Derived | None = None,
) -> Report:
    """Bring the index in `folder` up to date with the videos in `paths`, and make it where there is none.

    Each file is committed as soon as it is embedded. A run that is interrupted or killed loses at most the files in
    flight; the next one takes up what is missing.

    Args:
        paths: Videos and folders of videos.
        folder: Where the index is or shall be: new, empty, or an index.
        encoder: The model.
        model: Name or path that loads `encoder` again; stored.
        layer: Layer that `encoder` was loaded with, if one was asked for; stored.
        windows: How files are cut. None: as the index has it; in a new one, a file is one segment.
        on_error: `skip` reports a bad file and goes on; `raise` ends the run at the first.
        prune: Remove files that are gone from disk. Otherwise they are reported.
        rehash: Read every file again, even where size and time of last write have not changed.
        batch_size: Segments handed to the model at once.
        progress: Show a bar over files, on stderr.
        derived: What the index shall have beside its rows: ANN index, compact copies, query bank. Default: an ANN index
            if there are many rows, and what is there already, brought up to date.

    Returns:
        What was done, with every file that was skipped.

    Raises:
        ValueError: An argument is out of range, a path does not exist, or there is no video in any.
        IndexMismatchError: The index is of another model or cut otherwise.
        IndexBusyError: Another run is writing to it.
        IndexDamagedError: It cannot be read.
        IndexingStoppedError: With `on_error="raise"`, a file could not be indexed.
        MissingExtraError: LanceDB is not installed.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}; at least 1 is needed")
    if on_error not in {"skip", "raise"}:
        raise ValueError(f"on_error: got {on_error!r}; 'skip' or 'raise' is allowed")
    if derived is not None:
        derived.check(encoder.get_embedding_dimension())
    where = Path(folder)
    listing = find_videos(paths, VIDEO_SUFFIXES)
    _open(where, encoder, model, windows)  # refuse before anything is written
    report = Report(index=str(where), model=model, pruned=prune)
    report.skipped = [
        Problem(uri_of(path), type(error).__name__, error.strerror or str(error)) for path, error in listing.unreadable
    ]
    with locked(where):
        index = _open(where, encoder, model, windows)
        plan = make_plan(listing, index.files() if index else {}, rehash=rehash)
        meta = index.meta if index else _describe(encoder, model, layer, windows)
        run = Run(where, index, meta, encoder=encoder, report=report, on_error=on_error)
        run.embed(plan, batch_size=batch_size, progress=progress)
        run.finish(plan, prune=prune)
        if run.index is not None:
            refresh(run.index, encoder, derived, progress=progress)
    return report


def open_if_there(folder: Path) -> VideoIndex | None:
    """Open the index in `folder`, or return None if one can be made there.

    Raises:
        ValueError: `folder` is a file, or holds other things.
        IndexDamagedError: The index cannot be read.
        MissingExtraError: LanceDB is not installed.
    """
    require_packages()
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


def _open(folder: Path, encoder: StreamEncoder, model: str, windows: Windows | None) -> VideoIndex | None:
    """Open the index if there is one, and refuse it if this run cannot add to it."""
    if (index := open_if_there(folder)) is None:
        return None
    index.meta.require_model(encoder.fingerprint, encoder.fingerprint_fields(), name=model)
    if windows is not None and windows != index.meta.windows:
        raise IndexMismatchError(
            f"segment: asked for {_said(windows)}, and the index in {str(folder)!r} has {_said(index.meta.windows)}; "
            "leave --segment and --overlap out to go on as before, or make another index"
        )
    return index


def _said(windows: Windows | None) -> str:
    return (
        "whole videos" if windows is None else f"segments of {windows.length:g} s overlapping by {windows.overlap:g} s"
    )


def _describe(encoder: StreamEncoder, model: str, layer: int | None, windows: Windows | None) -> IndexMeta:
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
        segment_s=windows.length if windows else None,
        overlap_s=windows.overlap if windows else 0.0,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
