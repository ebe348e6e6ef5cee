"""A running `vidembed serve` on this machine, for pictures and tests of its page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

COMMAND = (sys.executable, "-c", "from vidembed.cli import main; main()")


def environment() -> dict[str, str]:
    """Return the environment of the command line: offline, on one thread, without a key."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VIDEMBED_API_KEY": ""}


def vidembed(*arguments: str | Path) -> None:
    """Run a command to its end."""
    command = [*COMMAND, *arguments]
    subprocess.run(command, check=True, env=environment(), capture_output=True, timeout=240)  # noqa: S603 - this Python


@contextmanager
def serving(options: Sequence[str | Path], log: Path) -> Iterator[str]:
    """Run `vidembed serve` with these options on a free port, and yield its address. What it prints is in `log`."""
    with log.open("wb") as out:
        command = [*COMMAND, "serve", "--port", "0", *options]
        running = subprocess.Popen(command, env=environment(), stdout=out, stderr=out)  # noqa: S603 - this Python
    try:
        yield _address(running, log)
    finally:
        running.terminate()
        running.wait(30)


def _address(running: subprocess.Popen[bytes], log: Path) -> str:
    for _ in range(2400):
        if found := re.search(r"on (http://\S+)/", log.read_text()):
            return found[1]
        if running.poll() is not None:
            break
        time.sleep(0.1)
    raise RuntimeError(log.read_text())
