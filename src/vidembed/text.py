"""Text for terminals and pages, files written whole, and packages of extras."""

from __future__ import annotations

import importlib.util
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vidembed.errors import MissingExtraError


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
    """Write all of a file, or none of it; text as UTF-8. Raises as `replacing`."""
    with replacing(file) as draft:
        draft.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def require(extra: str, *packages: str, purpose: str) -> None:
    """Check that packages of an extra are installed, without importing them.

    Raises:
        MissingExtraError: One is not; the message names `purpose`, the packages and the command that installs them.
    """
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise MissingExtraError(
            f'{purpose} needs {", ".join(missing)}, which is not installed; pip install "vidembed[{extra}]"'
        )


def require_train_extra() -> None:
    """Check that the packages of the extra `train` are there (see `require`)."""
    require("train", "peft", "accelerate", "datasets", purpose="training")


def printable(text: str) -> str:
    """Return `text` on one line with what cannot be printed, such as a newline in a file name, written as an escape."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii") for char in text
    )
