"""What tells one version of a file from another."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PICTURE_VERSION: Final = 2
"""Of how a file becomes pictures, for what is stored by file. 2 differs from 1 for files that are mirrored, HDR,
BT.2020 or interlaced, hold several video streams, or change their shape."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What `stat` says of a file: the quick sign that it was written to.

    Both are kept modulo 2**64 as signed 64-bit numbers, as the index stores them. Times from 1677 to 2262 stay what
    they are; others wrap around, so that two that differ still do.

    Attributes:
        size: Bytes.
        mtime_ns: Time of the last write, nanoseconds since the epoch.
    """

    size: int
    mtime_ns: int

    def __post_init__(self) -> None:
        """Bring both into range: file systems store times that 64 bits of nanoseconds cannot hold."""
        object.__setattr__(self, "size", _as_int64(self.size))
        object.__setattr__(self, "mtime_ns", _as_int64(self.mtime_ns))

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Read the state of `path`, following links.

        Raises:
            OSError: The file cannot be reached.
        """
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)


def _as_int64(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def content_fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the whole file, in hex. All bytes are read: a sample would miss an edit in between.

    Raises:
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
