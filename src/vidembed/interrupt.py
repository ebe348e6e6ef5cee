"""Ctrl-C during long work: what is at hand is finished first, and what is being written is not cut short."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, Self

STOPPING: Final = "Interrupted: the batch at hand is finished first. Ctrl-C again ends at once."


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C within the block, and deliver it at its end. Signals reach the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[tuple[int, FrameType | None]] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if held and callable(before):
        before(*held[0])


class GracefulStop:
    """While it is entered, the first Ctrl-C only asks to stop, and the second interrupts at once."""

    def __init__(self, notice: str = "") -> None:
        self.asked = False  # whether to stop
        self._notice = notice  # for stderr when the first Ctrl-C comes; empty for none
        self._idle = False
        self._installed = False  # not where there is another handler than Python's own, or in other threads

    def __enter__(self) -> Self:
        """Take Ctrl-C over."""
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        """Give it back."""
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._installed = False

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Mark a block in which nothing is lost by an interruption: there, the first Ctrl-C interrupts too."""
        self._idle = True
        try:
            if self.asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._idle = False

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if again or self._idle:
            raise KeyboardInterrupt
        if self._notice:
            os.write(2, f"\n{self._notice}\n".encode())  # print() may be interrupted in the middle of itself
