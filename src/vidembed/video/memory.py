"""Whether memory is short because it is limited, which FFmpeg does not tell from damage that asks for too much."""

from __future__ import annotations

import errno
import importlib
from pathlib import Path
from typing import Any, Final

HEADROOM_BYTES: Final = 2**31
"""Bytes. FFmpeg allocates no more at once (``av_max_alloc``, by default ``INT_MAX``): what fails while the limit leaves
this much was refused for its size."""


def is_want(error: BaseException | None) -> bool:
    """Whether an error says that there was no memory, for data or (``EAGAIN``) for the stack of a thread."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.ENOMEM, errno.EAGAIN)


def check(error: BaseException) -> None:
    """Raise a ``MemoryError`` if `error` says that there was no memory, and that is for want of it here.

    Otherwise it is damage: a length that was garbled asks for more than there could be.
    """
    if is_want(error) and is_short():
        raise MemoryError("the limit on the address space of this process is reached") from error


def is_short() -> bool:
    """Whether the limit on the address space of this process (``RLIMIT_AS``) leaves under `HEADROOM_BYTES`.

    Never where there is no such limit, or no way to know how much is used.
    """
    try:
        resource: Any = importlib.import_module("resource")
        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return False
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return bool(limit != resource.RLIM_INFINITY and limit - used < HEADROOM_BYTES)
