"""A decoding process that misbehaves on files with certain names. Stands in for `vidembed.video.process.script`."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[3] / "src")]

from vidembed.video import decord  # noqa: E402 - of this tree, as the script does it
from vidembed.video.process import script, serve  # noqa: E402

SLEEPER = Path(__file__).with_name("sleeper.py")


def misbehave(name: str) -> None:
    """Do what the name says."""
    if "talks" in name:
        logging.getLogger("vidembed.video.talks").warning("%s: said", name)
    if "segv" in name:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "exit" in name:
        os._exit(3)
    if "hang" in name:  # native code that keeps the interpreter's lock
        ctypes.PyDLL(None).pause()
    if "sleep" in name:
        time.sleep(600)
    if "bug" in name:
        raise KeyError("a\nbug")
    if "prints" in name:
        sys.stdout.write("to standard output\n")
        sys.stdout.flush()
        ctypes.CDLL(None).puts(b"native")
        ctypes.CDLL(None).fflush(None)
    if "chatty" in name:
        for number in range(1000):
            warnings.warn(f"warning {number}", RuntimeWarning, stacklevel=1)


def hooked(function: Any) -> Any:
    def call(source: Any, *args: Any, **kwargs: Any) -> Any:
        misbehave(Path(getattr(source, "path", source)).name)
        return function(source, *args, **kwargs)

    return call


if __name__ == "__main__":
    serve.load_video, serve.load_segments = hooked(serve.load_video), hooked(serve.load_segments)  # type: ignore[attr-defined]
    if "VIDEMBED_TEST_SLEEPER" in os.environ:
        decord._WORKER = SLEEPER  # type: ignore[misc]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    sys.exit(script.main())
