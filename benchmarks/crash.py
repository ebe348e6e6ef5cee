"""Indexing under fire: runs that are killed at random moments, two runs at once, and what they leave.

    python -m benchmarks.crash [--kills 20] [--clips 120] [--seed 0]

1. A folder of clips is indexed without disturbance: the rows to be equal to, and the time a run takes.
2. The same folder is indexed by runs that get SIGKILL at a random moment, each taken up by the next, until the kills
   are spent; a last run completes. Rows must equal those of the undisturbed run. Every segment is written to a log just
   before the model sees it, so that what was embedded twice can be counted: at most what is in flight at each kill,
   which is a batch, and the segments of a file that was not complete. The model pauses with each batch, so that every
   kill finds work.
3. Two runs are started at once on one index (`wait`): together they embed each segment once.

The model is the bundled one. Exits with status 1 if one of these is not so.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lancedb
import numpy as np

from benchmarks.common import environment, keep
from vidembed.shapes import write_clips

MODEL = "vidembed/shapes"
BATCH = 4
WORKERS = 2
PAUSE_S = 0.2
"""Seconds that the model waits with each batch. A kill comes within half of it, and so before the work is done."""
RUN = f"""
import os, sys, time
from vidembed import VideoEncoder
from vidembed.index import Windows, index_videos

clips, folder, log, wait = sys.argv[1:]
log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

class Logged(VideoEncoder):
    def _embed_batch(self, batch, **kwargs):
        os.write(log, "".join(f"{{each.name}}\\n" for each in batch).encode())
        time.sleep({PAUSE_S})
        return super()._embed_batch(batch, **kwargs)

report = index_videos([clips], folder, Logged("{MODEL}", device="cpu"), model="{MODEL}", cut=Windows(2.0, 1.0),
                      batch_size={BATCH}, decode_workers={WORKERS}, progress=False, wait=wait == "wait")
print(report.indexed, report.unchanged, report.copied)
"""


def start(clips: Path, folder: Path, log: Path, *, wait: bool = False) -> subprocess.Popen[str]:
    """Begin a run in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(clips), str(folder), str(log), "wait" if wait else "refuse"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(run: subprocess.Popen[str]) -> str:
    """Wait for a run that must succeed."""
    out, errors = run.communicate()
    if run.returncode:
        raise RuntimeError(f"a run failed with status {run.returncode}:\n{errors}")
    return out.strip()


def rows(folder: Path) -> list[dict[str, Any]]:
    """Everything that an index holds, in a fixed order."""
    table = lancedb.connect(folder).open_table("segments").to_arrow().to_pylist()
    return sorted(table, key=lambda row: (row["uri"], row["start_s"]))


def seen(log: Path) -> Counter[str]:
    """How often the model saw each segment."""
    return Counter(log.read_text().splitlines()) if log.exists() else Counter()


def same_rows(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> tuple[bool, float]:
    """Whether all but the vectors is equal, and the largest difference of a number of a vector."""
    bare = [[{k: v for k, v in row.items() if k != "vector"} for row in each] for each in (found, expected)]
    if bare[0] != bare[1]:
        return False, float("inf")
    vectors = [np.array([row["vector"] for row in each]) for each in (found, expected)]  # (S, D) each
    return True, float(np.abs(vectors[0] - vectors[1]).max())


def killed(clips: Path, work: Path, expected: list[dict[str, Any]], kills: int) -> dict[str, Any]:
    """Part 2."""
    folder, log = work / "killed", work / "killed.log"
    stored, during_work = 0, 0
    after: list[int] = []
    for left in range(kills, 0, -1):
        # On average a run gets as far as an even share of what is left, and none further than its last batch.
        rest = len(expected) - stored
        until = sum(seen(log).values()) + random.randint(0, min(2 * rest // (left + 1), rest - 1))
        run = start(clips, folder, log)
        while run.poll() is None and sum(seen(log).values()) <= until:
            time.sleep(0.002)
        time.sleep(random.uniform(0, PAUSE_S / 2))
        during_work += run.poll() is None
        run.send_signal(signal.SIGKILL)
        run.communicate()
        stored = len(rows(folder)) if (folder / "segments.lance" / "_versions").is_dir() else 0
        after.append(stored)
    finish(start(clips, folder, log))
    equal, difference = same_rows(rows(folder), expected)
    counts = seen(log)
    again = sum(counts.values()) - len(counts)
    in_flight = BATCH + max(Counter(row["uri"] for row in expected).values()) - 1
    return {
        "kills": kills,
        "kills_during_work": during_work,
        "rows_after_each_kill": after,
        "rows_equal": equal,
        "largest_difference_of_a_vector": difference,
        "segments": len(counts),
        "embedded_again": again,
        "embedded_again_allowed": kills * in_flight,
        "ok": during_work == kills
        and equal
        and difference < 1e-5
        and len(counts) == len(expected)
        and again <= kills * in_flight,
    }


def together(clips: Path, work: Path, expected: list[dict[str, Any]]) -> dict[str, Any]:
    """Part 3."""
    folder, log = work / "together", work / "together.log"
    first, second = (start(clips, folder, log, wait=True) for _ in range(2))
    reports = [finish(first), finish(second)]
    equal, difference = same_rows(rows(folder), expected)
    counts = seen(log)
    return {
        "reports": reports,
        "rows_equal": equal,
        "largest_difference_of_a_vector": difference,
        "embedded_again": sum(counts.values()) - len(counts),
        "ok": equal and difference < 1e-5 and set(counts.values()) == {1},
    }


def measure(*, kills: int, clips: int, seed: int) -> dict[str, Any]:
    """Run all parts."""
    random.seed(seed)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_clips(work / "clips", clips, "test", seed)
        finish(start(work / "clips", work / "undisturbed", work / "undisturbed.log"))
        expected = rows(work / "undisturbed")
        return {
            "clips": clips,
            "segments": len(expected),
            "killed": killed(work / "clips", work, expected, kills),
            "together": together(work / "clips", work, expected),
        }


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--clips", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    result = measure(**vars(parser.parse_args()))
    keep(__file__, {"environment": environment(), **result})
    sys.exit(not (result["killed"]["ok"] and result["together"]["ok"]))


if __name__ == "__main__":
    main()
