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
    """Give an empty file beside `file` to write to, then force it to the disk and move it to `file`; or leave that."""
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
    """Write all of a file, or none of it; text as UTF-8."""
    with replacing(file) as draft:
        draft.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def require(extra: str, *packages: str, purpose: str) -> None:
    """Raise `MissingExtraError` unless the packages of an extra are installed; imports none of them."""
    if missing := ", ".join(name for name in packages if importlib.util.find_spec(name) is None):
        raise MissingExtraError(f'{purpose} needs {missing}, which is not installed; pip install "vidembed[{extra}]"')


def require_train_extra() -> None:
    """Check that the packages of the extra `train` are there (see `require`)."""
    require("train", "peft", "accelerate", "datasets", purpose="training")


def printable(text: str) -> str:
    """Return `text` on one line with what cannot be printed, such as a newline in a file name, written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)
