"""What a `vidembed search` does before its answer: imports by package, the model, the search.

    python -m benchmarks.start

Indexes some clips with the bundled model and runs, each as a process of its own:

- the search, with Python's own threshold of garbage collection and with that of the command line, five times each in
  turn; the least CPU time of each counts, since other work on the machine only adds to it;
- the search with ``-X importtime``: the share of each package in the time of imports, without what it imports in turn;
- the search without words, with one query and with 101 on standard input, twice each: a hundredth of the difference
  of the least is what a query takes once the model is there;
- ``search --server`` of a server that runs: no model is loaded.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.clips import write_folder

from benchmarks.common import environment, keep

RUN = "from vidembed.cli import main; main()"
AS_PYTHON = "import gc; gc.set_threshold = lambda *_: None; " + RUN
REPEATS, SHOWN = 5, 14
QUERY = "a square moves to the right"
IMPORT = re.compile(r"import time:\s*(\d+) \|\s*\d+ \|\s*([\w.]+)")


def run(code: str, *arguments: object, flags: tuple[str, ...] = (), words: str = "") -> tuple[float, str]:
    """CPU seconds of a command of the command line, and what it wrote to stderr."""
    command = [sys.executable, *flags, "-c", code, *map(str, arguments)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, input=words, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{arguments} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stderr


def imports(log: str) -> dict[str, float]:
    """Seconds of each package, by the output of ``-X importtime``."""
    taken: Counter[str] = Counter()
    for line in log.splitlines():
        if found := IMPORT.match(line):
            taken[found[2].partition(".")[0]] += int(found[1])
    return {name: us / 1e6 for name, us in taken.most_common()}


def shares(seconds: dict[str, float]) -> dict[str, float]:
    """The first `SHOWN` packages, as shares of all."""
    return {name: round(taken / sum(seconds.values()), 3) for name, taken in list(seconds.items())[:SHOWN]}


def through_server(index: Path) -> float:
    """CPU seconds of a search that asks a running server."""
    log = index.with_name("server.log")
    with log.open("wb") as out:
        served = subprocess.Popen([sys.executable, "-c", RUN, "serve", "--in", index, "--port", "0"], stderr=out)
    try:
        while not (found := re.search(r"on (http://\S+)/", log.read_text())):
            if served.poll() is not None:
                raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        return min(run(RUN, "search", QUERY, "--server", found[1])[0] for _ in range(REPEATS))
    finally:
        served.terminate()
        served.wait()


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as name:
        clips, index = Path(name, "clips"), Path(name, "index")
        write_folder(clips, 8)
        run(RUN, "index", clips, "--to", index)
        search = ("search", QUERY, "--in", index)
        by_threshold: dict[str, list[float]] = {"of Python": [], "of the command line": []}
        for _ in range(REPEATS):
            for threshold, code in zip(by_threshold, (AS_PYTHON, RUN), strict=True):
                by_threshold[threshold].append(run(code, *search)[0])
        seconds = {threshold: round(min(taken), 2) for threshold, taken in by_threshold.items()}
        log = run(RUN, *search, flags=("-X", "importtime"))[1]
        few, many = (
            min(run(RUN, "search", "--in", index, words=f"{QUERY}\n" * count)[0] for _ in range(2))
            for count in (1, 101)
        )
        asked = through_server(index)
    result: dict[str, Any] = {
        "environment": environment(),
        "search_cpu_seconds": seconds,
        "over_python": round(seconds["of the command line"] / seconds["of Python"], 2),
        "share_of_imports": shares(imports(log)),
        "one_more_query_cpu_seconds": round((many - few) / 100, 3),
        "search_through_server_cpu_seconds": round(asked, 2),
    }
    keep(__file__, result)


if __name__ == "__main__":
    main()
