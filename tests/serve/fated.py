"""A decoding process that meets the next fate in a folder. Takes the place of `vidembed.video.pool.COMMAND`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2] / "src")]

from vidembed.video import load, worker  # noqa: E402 - of this tree

COMMAND = (sys.executable, "-P", __file__)
FOLDER = "VIDEMBED_TEST_FATES"


def fated(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        for file in sorted(Path(os.environ[FOLDER]).glob("next-*")):
            try:
                met = file.rename(file.with_name(file.name.replace("next", "met")))
            except FileNotFoundError:  # another process was quicker
                continue
            os.kill(os.getpid(), signal.Signals[met.name.split("-")[1]])
        return function(*args, **kwargs)

    return call


if __name__ == "__main__":
    worker.main(fated(load.read_windows), **json.loads(sys.argv[1]))
