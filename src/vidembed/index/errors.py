"""Errors of the index. Those of single files are `vidembed.video`'s."""

from __future__ import annotations


class IndexMismatchError(ValueError):
    """The index was made by another model, with other settings or by a later version."""


class IndexDamagedError(RuntimeError):
    """The index is there and cannot be read."""


class IndexBusyError(RuntimeError):
    """Another run is writing to the index."""


class MissingExtraError(ImportError):
    """A package of an extra is not installed."""


class IndexingStoppedError(RuntimeError):
    """A file could not be indexed and the run was told to end there (`on_error="raise"`). What was committed stays."""


class IndexWriteError(RuntimeError):
    """The index could not be written: the disk is full, read-only or out of reach. What was committed stays."""
