"""Files that are whole or not there: a reader, and a run after a crash, sees the old one or the new one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a path to write to, force what was written to the disk and move it to `file`; or leave `file` as it was.

    The draft lies beside `file`, empty, with the same suffix and the permissions that the process gives to new files.

    Raises:
        OSError: The folder is not there or cannot be written to, or the disk is full.
    """
    draft = file.with_name(f".draft-{secrets.token_hex(8)}{file.suffix}")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield draft
        with draft.open("rb+") as written:
            os.fsync(written.fileno())
        draft.replace(file)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_atomically(file: Path, content: bytes | str) -> None:
    """Write all of a file; text as UTF-8.

    Raises:
        OSError: See `replacing`.
    """
    with replacing(file) as draft:
        draft.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
