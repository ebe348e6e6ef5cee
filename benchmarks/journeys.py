"""How many modules of the package a user's call passes through.

    python -m benchmarks.journeys

Four calls, on the bundled models and two generated clips: one file is encoded, one pair is reranked, two files are
indexed by the command line, and the index is searched by it.

A module is counted if one of its functions is entered between the call and its return, in any thread of this process
or in a decoder process that the call starts. Methods, properties, generators and comprehensions are functions. Not
counted are imports (bodies of modules, and what they call) and the loading of a model (the constructors of
`VideoEncoder` and `VideoReranker`, and what they call), although both may happen during a command. Encoder and
reranker of the first two calls are loaded before. Decoder processes are counted by a ``sitecustomize`` module on
their PYTHONPATH; a decoder that ignores PYTHONPATH would not be.

Exits with status 1 if a call passes through more modules than its limit.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

import vidembed
from benchmarks.common import environment, keep
from benchmarks.entered import Entered, read
from vidembed import VideoEncoder, VideoReranker
from vidembed.cli import app
from vidembed.shapes import write_clips

PACKAGE = Path(vidembed.__file__).parent
ROOT = Path(__file__).parents[1]
LIMITS = {"encode": 9, "predict": 13, "index": 18, "search": 12}
LOADING = ("VideoEncoder.__init__", "VideoReranker.__init__")
IN_WORKERS = """
import sys
from pathlib import Path
sys.path.append({root!r})
from benchmarks.entered import Entered
Entered(Path({package!r}), Path({log!r})).__enter__()
"""


def entered(call: Callable[[], object], package: Path = PACKAGE) -> dict[str, list[str]]:
    """Modules of a package that a call enters, those in this process and those in its child processes."""
    with tempfile.TemporaryDirectory() as name:
        here, there = Path(name, "here.log"), Path(name, "workers.log")
        custom = IN_WORKERS.format(root=str(ROOT), package=str(package), log=str(there))
        Path(name, "sitecustomize.py").write_text(custom)
        before = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = os.pathsep.join([name, before] if before else [name])
        try:
            with Entered(package, here, LOADING):
                call()
        finally:
            os.environ["PYTHONPATH"] = before
        return {"process": read(here), "workers": read(there)}


def command(*arguments: object) -> None:
    """Run a command of the command line, which must succeed."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    if done.exit_code:
        raise RuntimeError(f"{arguments} failed with status {done.exit_code}:\n{done.output}")


def journeys() -> dict[str, Any]:
    """Make the four calls: how many modules each enters, which, and how many it may."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (clip, record), _ = write_clips(folder / "clips", 2, "test", 0)
        encoder, reranker = (
            kind(model, device="cpu")
            for kind, model in (
                (VideoEncoder, "vidembed/shapes"),
                (VideoReranker, "vidembed/shapes-rerank"),
            )
        )
        calls: dict[str, Callable[[], object]] = {
            "encode": lambda: encoder.encode([str(clip)]),
            "predict": lambda: reranker.predict([(record.summary, str(clip))]),
            "index": lambda: command("index", folder / "clips", "--to", folder / "index"),
            "search": lambda: command("search", record.summary, "--in", folder / "index"),
        }
        result = {}
        for call, limit in LIMITS.items():
            found = entered(calls[call])
            count = len({*found["process"], *found["workers"]})
            result[call] = {"modules": count, "limit": limit, "ok": count <= limit, **found}
        return result


def main() -> None:
    """Run, print, keep."""
    result = journeys()
    keep(__file__, {"environment": environment(), "journeys": result})
    sys.exit(not all(journey["ok"] for journey in result.values()))


if __name__ == "__main__":
    main()
