"""A decoding process that meets the next fate in a folder. Stands in for `vidembed.video.process.script`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2] / "src")]

from vidembed.video.process import script, serve  # noqa: E402 - of this tree, as the script does it

FOLDER = "VIDEMBED_TEST_FATES"


def fated(function: Any) -> Any:
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
    serve.load_video, serve.load_segments = fated(serve.load_video), fated(serve.load_segments)  # type: ignore[attr-defined]
    sys.exit(script.main())
