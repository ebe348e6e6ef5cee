"""Files that could not be decoded, kept from run to run, so that a bad file costs its time once.

One JSON object a line, appended as a file fails: a run that is killed loses the last line at most.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Container, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from vidembed.atomic import write_atomically
from vidembed.video.fingerprint import FileState

logger = logging.getLogger(__name__)

QUARANTINE_FILE = "quarantine.jsonl"

KINDS: Final = frozenset(
    {
        "CorruptVideo",
        "DecodeTimeout",
        "DecoderCrashed",
        "EncryptedVideo",
        "InvalidDuration",
        "NoVideoStream",
        "NotAVideo",
        "UnsupportedCodec",
        "VideoTooLarge",
    }
)
"""Kinds of problem that are the content's: the same bytes, decoder and limits have the same again."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file in quarantine.

    Attributes:
        uri: Its URI.
        content_fingerprint: SHA-256 of its bytes, hex.
        size: Bytes.
        mtime_ns: Time of the last write, nanoseconds since the epoch.
        kind: The sort of error.
        message: What is wrong.
        since: When that was found, ISO 8601 with offset.
        decoder: What found it: versions, backend and limits. With others, the file is tried again.
    """

    uri: str
    content_fingerprint: str
    size: int
    mtime_ns: int
    kind: str
    message: str
    since: str
    decoder: dict[str, Any]

    @property
    def state(self) -> FileState:
        """Size and time of last write when it failed."""
        return FileState(self.size, self.mtime_ns)


class Quarantine:
    """The list of an index.

    Args:
        folder: Of the index.
        decoder: What would decode now.
        retry: Try every file again.

    Attributes:
        entries: By URI.
    """

    def __init__(self, folder: Path, decoder: Mapping[str, Any], *, retry: bool = False) -> None:
        self.decoder = dict(decoder)
        self.entries = read(folder)
        self._file = folder / QUARANTINE_FILE
        self._retry = retry
        self._by_content = {
            entry.content_fingerprint: entry for entry in self.entries.values() if entry.decoder == self.decoder
        }
        self._unwritten: list[Entry] = []

    def of_file(self, uri: str, state: FileState) -> Entry | None:
        """Return the entry that holds for a file with this name, size and time of last write."""
        entry = None if self._retry else self.entries.get(uri)
        return entry if entry is not None and entry.state == state and entry.decoder == self.decoder else None

    def of_content(self, content_fingerprint: str) -> Entry | None:
        """Return an entry for this content, under any name."""
        return None if self._retry else self._by_content.get(content_fingerprint)

    def add(self, entry: Entry) -> None:
        """Put a file on the list; `write` writes it down."""
        self.entries[entry.uri] = entry
        self._by_content[entry.content_fingerprint] = entry
        self._unwritten.append(entry)

    def write(self) -> None:
        """Append what is new to the file. There must be an index in the folder."""
        if not self._unwritten:
            return
        with self._file.open("a+b") as file:
            if file.tell() and not _ends_with_newline(file):
                file.write(b"\n")  # the last line was cut off by a kill
            file.write(b"".join(_line(entry) for entry in self._unwritten))
        self._unwritten.clear()

    def tidy(self, in_index: Container[str], is_gone: Callable[[str], bool]) -> None:
        """Write the file anew without what is in the index by now or gone from disk, and without doubles."""
        kept = [entry for uri, entry in sorted(self.entries.items()) if uri not in in_index and not is_gone(uri)]
        self.entries = {entry.uri: entry for entry in kept}
        self._unwritten.clear()
        if not kept:
            self._file.unlink(missing_ok=True)
            return
        write_atomically(self._file, b"".join(map(_line, kept)))


def read(folder: Path) -> dict[str, Entry]:
    """Return the quarantine list of the index in `folder`, by URI; a line that cannot be read is logged and left out.

    Raises:
        OSError: The file is there and cannot be read.
    """
    entries: dict[str, Entry] = {}
    try:
        lines = (folder / QUARANTINE_FILE).read_bytes().splitlines()
    except FileNotFoundError:
        return entries
    for number, line in enumerate(lines, 1):
        try:
            entry = Entry(**json.loads(line))
        except (ValueError, TypeError) as error:
            # Such files are only tried again.
            logger.warning("%s, line %d: not an entry (%s); left out", QUARANTINE_FILE, number, error)
            continue
        entries[entry.uri] = entry
    return entries


def _line(entry: Entry) -> bytes:
    return json.dumps(asdict(entry), sort_keys=True).encode() + b"\n"


def _ends_with_newline(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
