"""The parent's end of a decoding process: starting it, reading from it within limits, and killing it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Final, Literal, TypeVar, cast

from vidembed.video.process import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from vidembed.video.clip import Clip
    from vidembed.video.sampling import Sampling

logger = logging.getLogger(__name__)

SCRIPT: Final = Path(__file__).with_name("script.py")
START_TIMEOUT_S: Final = 120.0
"""Seconds in which a process has to start. It takes a fraction of one; disks can be slow (our choice)."""
_END_TIMEOUT_S: Final = 5.0  # after SIGKILL: only a process that waits in the kernel takes longer

Killed = Literal["timeout", "cancelled"]
T = TypeVar("T")


class WorkerEndedError(Exception):
    """The process is gone.

    Args:
        found: What it ended with, such as ``"signal SIGSEGV"``.
        killed: Why, if this program killed it.
    """

    def __init__(self, found: str, killed: Killed | None) -> None:
        """Keep both."""
        super().__init__(found)
        self.found = found
        self.killed = killed


class Allowance:
    """The time that a process may still work on a file.

    Args:
        timeout_s: Seconds, or ``None`` for no limit.
    """

    def __init__(self, timeout_s: float | None) -> None:
        """Nothing is spent yet."""
        self._left = timeout_s

    @contextmanager
    def spent_by(self, worker: Worker) -> Iterator[None]:
        """Count the time inside; kill the process when it is up."""
        if self._left is None:
            yield
            return
        interval = min(max(self._left, 0.0), threading.TIMEOUT_MAX)
        timer = threading.Timer(interval, worker.kill, args=("timeout",))
        timer.daemon = True
        began = time.monotonic()
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # so that it cannot hit what comes after
            self._left -= time.monotonic() - began


class Worker:
    """A decoding process.

    Args:
        backend: As in `load_video`.
        threads: Decoding threads.
        max_memory_bytes: Limit on its address space, or ``None``.

    Raises:
        WorkerEndedError: It cannot be started.
    """

    def __init__(self, *, backend: str, threads: int, max_memory_bytes: int | None) -> None:
        """Start it."""
        settings = {
            "backend": backend,
            "threads": threads,
            "max_memory_bytes": max_memory_bytes,
            "parent": os.getpid(),
        }
        few = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")  # each reserves address space
        try:
            self._process = subprocess.Popen(  # noqa: S603 - this interpreter, a script of this package, no shell
                [sys.executable, "-P", os.fspath(SCRIPT), json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **few},
                process_group=0 if os.name == "posix" else None,  # Ctrl-C does not reach it; its children die with it
            )
        except OSError as error:
            raise WorkerEndedError(str(error), None) from error
        self._lock = threading.Lock()
        self._killed: Killed | None = None
        self._is_over = False
        self._max_memory_bytes = max_memory_bytes

    def greet(self) -> None:
        """Wait until it is ready.

        Raises:
            WorkerEndedError: It did not start; `found` says why.
        """
        try:
            with Allowance(START_TIMEOUT_S).spent_by(self):
                hello = self.receive()
        except WorkerEndedError as error:
            if error.killed == "timeout":
                raise WorkerEndedError(f"no answer within {START_TIMEOUT_S:g} s", None) from error
            raise
        except wire.MalformedError as error:
            raise WorkerEndedError(str(error), None) from error
        if "ready" not in hello:
            raise WorkerEndedError(str(hello.get("failed", "an unknown answer"))[: wire.MAX_TEXT], None)
        if not hello["ready"]:
            logger.warning(
                "max_memory_bytes=%s cannot be set on this system: decoding is not limited", self._max_memory_bytes
            )

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._process.pid

    @property
    def is_usable(self) -> bool:
        """Whether it has neither ended nor been killed."""
        with self._lock:
            self._is_over = self._is_over or self._process.poll() is not None
            return not self._is_over and self._killed is None

    def send(self, request: dict[str, Any]) -> None:
        """Hand it a request.

        Raises:
            WorkerEndedError: It is gone.
        """
        try:
            wire.send(self._in, request)
        except OSError as error:
            raise self._ended() from error

    def receive(self) -> dict[str, Any]:
        """Read the next line.

        Raises:
            WorkerEndedError: It is gone.
            MalformedError: It says what makes no sense.
        """
        return self._guarded(lambda: wire.receive(self._out))

    def read_clip(self, coming: wire.Announced, sampling: Sampling) -> Clip:
        """Read the arrays of a clip.

        Raises:
            WorkerEndedError: It is gone.
            MalformedError: It says what makes no sense.
            MemoryError: There is no room for them here.
        """
        return self._guarded(lambda: coming.read(self._out, sampling))

    def kill(self, why: Killed) -> None:
        """End it, from any thread. What reads from it has a `WorkerEndedError`."""
        with self._lock:
            if self._killed is None:
                self._killed = why
            if not self._is_over:
                self._kill_group()

    def stop(self) -> None:
        """End it and let go of it."""
        self.kill("cancelled")
        self._wait()
        for stream in (self._in, self._out):
            with contextlib.suppress(OSError):  # what could not be sent any more
                stream.close()

    @property
    def _in(self) -> BinaryIO:
        return _there(self._process.stdin)

    @property
    def _out(self) -> BinaryIO:
        return _there(self._process.stdout)

    def _guarded(self, read: Callable[[], T]) -> T:
        try:
            found = read()
        except EOFError as error:
            raise self._ended() from error
        if self._killed is not None:
            raise self._ended()
        return found

    def _ended(self) -> WorkerEndedError:
        """Say how it ended; if it only closed its end, end it."""
        status = self._wait()
        if status is None:
            self.kill("cancelled")
            return WorkerEndedError("nothing more to say, and no end", self._killed)
        if status >= 0:
            return WorkerEndedError(f"status {status}", self._killed)
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = str(-status)
        hint = ", which is what a system short of memory sends" if name == "SIGKILL" and self._killed is None else ""
        return WorkerEndedError(f"signal {name}{hint}", self._killed)

    def _wait(self) -> int | None:
        try:
            status = self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None
        with self._lock:
            if not self._is_over:
                self._is_over = True
                self._kill_group()  # its children, if it left any
        return status

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()


def _there(stream: IO[bytes] | None) -> BinaryIO:
    if stream is None:
        raise RuntimeError("a process without pipes")
    return cast("BinaryIO", stream)
