"""What comes before a run: the index that is there, its model and cut, or the description of a new one."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidembed.index.errors import IndexMismatchError
from vidembed.index.files import Listing, uri_of
from vidembed.index.ingest.lock import LOCK_FILE
from vidembed.index.ingest.report import VANISHED, Problem
from vidembed.index.meta import IndexMeta
from vidembed.index.store import TABLE_FOLDER, VideoIndex, require_packages
from vidembed.video.scenes import Scenes

if TYPE_CHECKING:
    from vidembed.index.protocols import IndexedModel
    from vidembed.video.cutting import Cut


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


def open_for_writing(folder: Path, encoder: IndexedModel, model: str, cut: Cut | None) -> VideoIndex | None:
    """Open the index in `folder` if there is one, and refuse it if a run cannot add to it.

    Args:
        folder: Where the index is or shall be.
        encoder: The model.
        model: What it was loaded as, for messages.
        cut: How files shall be cut; None: as the index has it.

    Raises:
        IndexMismatchError: The index is of another model or cut otherwise.
        ValueError: As for `open_if_there`.
        IndexDamagedError: The index cannot be read.
    """
    if (index := open_if_there(folder)) is None:
        return None
    index.meta.require_model(encoder, name=model)
    if cut is not None and cut != index.meta.cut:
        raise IndexMismatchError(
            f"segment: asked for {_said(cut)}, and the index in {str(folder)!r} has {_said(index.meta.cut)}; "
            "leave --segment, --overlap and --scenes out to go on as before, or make another index"
        )
    return index


def _said(cut: Cut | None) -> str:
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
    """Return a path that vanished as it stands in a report.

    Args:
        uri: Of the path.
        reason: What is the matter with it.
    """
    return Problem(
        uri,
        VANISHED,
        f"{reason}, and the index has files of it, which stay. If a drive is not mounted, mount it and run again; if "
        "the files were deleted, name a folder above it that still holds videos, with --prune",
    )


def decoder_versions() -> dict[str, Any]:
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
