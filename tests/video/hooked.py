"""A decoding process that misbehaves on files with certain names. Takes the place of `vidembed.video.pool.COMMAND`."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2] / "src")]

from vidembed.video import load, worker  # noqa: E402 - of this tree

COMMAND = (sys.executable, "-P", __file__)
MALFORMED = {
    "garbage": b"garbage\n",
    "layout": b'{"layout": 3}\n',
    "clip": b'{"layout": [1.0, [[0.0, 1.0]]]}\n{"clip": {}, "shape": [1, 1, 1, 3]}\n',
    "error": b'{"error": ["SystemExit", "a", "b"]}\n',
    "notes": b'{"layout": [1.0, []], "notes": [3]}\n',
    "long": b"x" * 2**25,
}


def misbehave(name: str) -> None:
    """Do what the name says."""
    if note := os.environ.get("VIDEMBED_TEST_NOTE"):
        Path(f"{note}.new").write_text(str(os.getpid()))
        Path(f"{note}.new").rename(note)
    for word, fate in FATES.items():
        if word in name:
            fate(name)


def closes(_: str) -> None:
    os.closerange(3, 100)
    time.sleep(600)


def bug(_: str) -> None:
    raise KeyError("a\nbug")


def prints(_: str) -> None:
    sys.stdout.write("to standard output\n")
    sys.stdout.flush()
    ctypes.CDLL(None).puts(b"native")
    ctypes.CDLL(None).fflush(None)


def chats(_: str) -> None:
    for number in range(1000):
        warnings.warn(f"warning {number}", RuntimeWarning, stacklevel=1)


def malformed(name: str) -> None:
    def send(stream: Any, *_: Any) -> None:
        stream.write(MALFORMED[Path(name).stem.partition("-")[2]])
        stream.flush()
        time.sleep(600)

    worker.send = send


FATES: dict[str, Callable[[str], object]] = {
    "talks": lambda name: logging.getLogger("vidembed.video.talks").warning("%s: said", name),
    "segv": lambda _: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda _: os._exit(3),
    "hang": lambda _: ctypes.PyDLL(None).pause(),  # native code that keeps the interpreter's lock
    "sleep": lambda _: time.sleep(600),
    "closes": closes,  # nothing more to say, and no end
    "bug": bug,
    "prints": prints,
    "chatty": chats,
    "malformed": malformed,
}


def hooked(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, item: str, **kwargs: Any) -> Any:
        misbehave(Path(item).name)
        return function(*args, item=item, **kwargs)

    return call


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    worker.main(hooked(load.read_windows), **json.loads(sys.argv[1]))
