"""Which modules of the package a piece of work enters. Standard library only, since decoder processes load it too."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from types import FrameType, TracebackType

_IMPORTS = "<frozen importlib._bootstrap>"


class Entered:
    """Counts the modules in which a function is entered, in this process and all threads that are started meanwhile.

    Not counted is what runs to make names and weights available: an import, and a function in `quiet`, each with all
    that it calls in its thread.

    Args:
        package: Folder of the package.
        log: File that gets a line as soon as a module is entered for the first time; several processes may share it.
        quiet: Qualified names of functions that are not counted, such as ``VideoEncoder.__init__``.
    """

    def __init__(self, package: Path, log: Path, quiet: Collection[str] = ()) -> None:
        self._prefix = f"{package.resolve()}{os.sep}"
        self._quiet = frozenset(quiet)
        self._seen: set[str] = set()
        self._muted_by = threading.local()
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def __enter__(self) -> Entered:
        threading.setprofile(self._event)
        sys.setprofile(self._event)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _event(self, frame: FrameType, event: str, _argument: object) -> None:
        muted_by: FrameType | None = getattr(self._muted_by, "frame", None)
        if event == "return" and frame is muted_by:
            self._muted_by.frame = None
        elif event == "call" and muted_by is None:
            code = frame.f_code
            if code.co_filename == _IMPORTS or code.co_qualname in self._quiet:
                self._muted_by.frame = frame
            elif code.co_filename not in self._seen and code.co_name != "<module>":  # a script runs by its functions
                self._seen.add(code.co_filename)
                if code.co_filename.startswith(self._prefix):
                    os.write(self._log, f"{code.co_filename.removeprefix(self._prefix)}\n".encode())


def read(log: Path) -> list[str]:
    """The modules in a log, as dotted names inside the package, sorted; the package itself is ""."""
    files = [Path(line) for line in set(log.read_text().splitlines())] if log.exists() else []
    return sorted(".".join((file.parent if file.stem == "__init__" else file.with_suffix("")).parts) for file in files)
