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

    Attributes:
        size: Bytes.
        mtime_ns: Time of the last write, nanoseconds since the epoch.
    """

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> FileState:
        """Read the state of `path`, following links.

        Raises:
            OSError: The file cannot be reached.
        """
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns)


def content_fingerprint(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of the whole file, in hex. All bytes are read: a sample would miss an edit in between.

    Raises:
        OSError: The file cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
