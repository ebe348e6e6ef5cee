"""Indexing speed of the local engine and of Ray with one and two workers, and what a row takes on disk.

    python -m benchmarks.ray [--quick]
    python -m benchmarks.ray --videos FOLDER --model MODEL [--segment 10] [--num-gpus 1]

1. Throughput: the same files, indexed by `index_videos` on one core and on two, and by `index_videos_ray` on a cluster
   of one node and of two. A node is held on one core of its own and has one decoding and one embedding actor, so it
   stands for a machine of one core. Scaling efficiency is t1 / (2 t2): the time of one worker over twice that of two.
   Of Ray, time counts for the second half of the rows that come back: actors start and models load once, whatever there
   is to index, and what is decoded meanwhile is embedded at once then. The whole time is there too, and the efficiency
   by it. The efficiency can pass 1, probably because Ray's own processes and the writer have work that does not double
   with the workers and share the first core with the single one.
2. The writer: rows a second that the one process which writes takes in and commits.
3. Storage: bytes of a row besides its vector, with names as long as those of object stores; and the memory that a file
   of the index takes in the process that plans.

With `--videos` only the rate of one Ray worker is measured, on videos and a model of yours: what the plan of a large
run needs. Nothing is kept then.

The clips are noise-free 720p H.264 with motion everywhere, so that decoding is real work; the model is the small
bundled one. Copies of a clip differ by a number in a box that players skip, so that each is embedded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import ray
from ray.cluster_utils import Cluster
from tqdm import tqdm

from benchmarks.common import environment, keep
from benchmarks.encode import decode_heavy_clips
from vidembed import VideoEncoder
from vidembed.index import IndexMeta, Report, VideoIndex, Windows, index_videos
from vidembed.index.commit import Committer, Quarantine
from vidembed.index.files import Job
from vidembed.index.schema import FileRows, Segment, segment_id
from vidembed.ray import index_videos_ray
from vidembed.ray.indexer import Collector
from vidembed.video.clip import FileState

MODEL = "vidembed/shapes"
CUT = Windows(2)
BATCH = 8
STORE_BYTES = 512 * 2**20  # of each node's object store


def distinct_copies(clips: Sequence[Path], folder: Path, count: int) -> list[Path]:
    """Write `count` files that decode as `clips` do, in turn, and are all different."""
    folder.mkdir()
    paths = []
    for number, clip in zip(range(count), itertools.cycle(clips), strict=False):
        path = folder / f"{number:04d}.mp4"
        shutil.copy(clip, path)
        with path.open("ab") as file:
            file.write(struct.pack(">I4sQ", 16, b"free", number))
        paths.append(path)
    return paths


@contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Hold this process, and what it starts, on some cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def local(folder: Path, cores: set[int]) -> dict[str, float]:
    """Index with the local engine; the model is loaded before."""
    with on_cores(cores), tempfile.TemporaryDirectory() as to:
        encoder = VideoEncoder(MODEL, device="cpu", decode_workers=len(cores))
        encoder.encode({"text": "a red square"})
        start = time.perf_counter()
        report = index_videos(
            [folder],
            Path(to) / "index",
            encoder,
            model=MODEL,
            cut=CUT,
            batch_size=BATCH,
            decode_workers=len(cores),
            progress=False,
        )
        seconds = time.perf_counter() - start
    assert not report.skipped, report.skipped
    return {"seconds": seconds, "segments_per_s": report.segments / seconds}


@contextmanager
def nodes(cores: Sequence[int]) -> Iterator[None]:
    """Start and join a cluster with a node on each core."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - its name; Ray's 15 would set it back on a machine with other work
    cluster = Cluster()
    try:
        for core in cores:
            with on_cores({core}):
                cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
        with on_cores(set(cores)):
            ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
            yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def on_ray(folder: Path, workers: int, **options: Any) -> dict[str, float]:
    """Index on the cluster that was joined, with as many decoders as workers."""
    came: list[tuple[float, int]] = []
    take = Collector.take

    def timed(collector: Collector, batch: pa.Table) -> None:
        came.append((time.perf_counter(), len(batch)))
        take(collector, batch)

    settings = {"model": MODEL, "cut": CUT, "batch_size": BATCH, "decoders": workers, "progress": False, **options}
    with tempfile.TemporaryDirectory() as to, mock.patch.object(Collector, "take", timed):
        start = time.perf_counter()
        report = index_videos_ray([folder], Path(to) / "index", workers=workers, **settings)
        whole = time.perf_counter() - start
    assert report.segments == sum(count for _, count in came), report.skipped
    return {"whole_seconds": whole, "segments": report.segments, **second_half(came)}


def second_half(came: Sequence[tuple[float, int]]) -> dict[str, float]:
    """Return the rate of the second half of the rows.

    Args:
        came: When rows came, seconds, and how many.
    """
    total = list(itertools.accumulate(count for _, count in came))
    middle = next(place for place, done in enumerate(total) if done >= total[-1] / 2)
    seconds, rows = came[-1][0] - came[middle][0], total[-1] - total[middle]
    if rows == 0:
        raise ValueError(f"{total[-1]} rows came in too few batches to time; index more videos, or smaller batches")
    return {"seconds": seconds, "segments_per_s": rows / seconds}


def efficiency(one: float, two: float) -> float:
    """Return t1 / (2 t2) of the rates of one and of two workers, segments a second."""
    return two / (2 * one)


def throughput(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Part 1."""
    clips = decode_heavy_clips(folder, 2 if quick else 8, 2 if quick else 6)
    paths = distinct_copies(clips, folder / "copies", 24 if quick else 192)

    def ray_on(cores: Sequence[int]) -> dict[str, float]:
        with nodes(cores):
            return on_ray(folder / "copies", len(cores))

    first, second = sorted(os.sched_getaffinity(0))[:2]
    runs: dict[str, Callable[[], dict[str, float]]] = {
        "local_1_core": lambda: local(folder / "copies", {first}),
        "ray_1_worker": lambda: ray_on([first]),
        "local_2_cores": lambda: local(folder / "copies", {first, second}),
        "ray_2_workers": lambda: ray_on([first, second]),
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    for _ in range(1 if quick else 3):
        for name, run in runs.items():  # in turn, so that a slow moment of the machine hits all
            found[name].append(run() | {"load_1_min": os.getloadavg()[0]})
            print(name, found[name][-1], flush=True)
    rates = {name: statistics.median(each["segments_per_s"] for each in each_run) for name, each_run in found.items()}
    return {
        "baseline": "index_videos, the local engine, on as many cores as Ray has workers",
        "files": len(paths),
        "clip": f"1280x720 H.264, 30 fps, {2 if quick else 6} s, cut into windows of {CUT.length:g} s",
        "model": MODEL,
        "runs": found,
        "median_segments_per_s": rates,
        "scaling_efficiency": efficiency(rates["ray_1_worker"], rates["ray_2_workers"]),
        "scaling_efficiency_of_each_turn": [
            efficiency(one["segments_per_s"], two["segments_per_s"])
            for one, two in zip(found["ray_1_worker"], found["ray_2_workers"], strict=True)
        ],
        "scaling_efficiency_of_the_whole": statistics.median(
            efficiency(1 / one["whole_seconds"], 1 / two["whole_seconds"])
            for one, two in zip(found["ray_1_worker"], found["ray_2_workers"], strict=True)
        ),
        "local_scaling_efficiency": efficiency(rates["local_1_core"], rates["local_2_cores"]),
        "ray_over_local": [
            rates["ray_1_worker"] / rates["local_1_core"],
            rates["ray_2_workers"] / rates["local_2_cores"],
        ],
    }


def writer(folder: Path, dimension: int, files: int, *, segments: int = 6) -> dict[str, Any]:
    """Part 2: rows go through `Collector` and `Committer` as they come back from workers."""
    meta = IndexMeta("made", None, {}, "f" * 64, {}, dimension, 10.0, 0.0, "2026-01-01T00:00:00+00:00")
    folder.mkdir()
    report = Report(str(folder), "made")
    quarantine = Quarantine(folder, {})
    committer = Committer(folder, None, meta, report=report, quarantine=quarantine, on_error="skip")
    bar = tqdm(disable=True)
    collector = Collector(committer, bar)
    uris = [f"s3://bucket/videos/2026/{number // 1000:04d}/{number:08x}.mp4" for number in range(files)]
    collector.expect([Job(Path("/", uri), uri, None, FileState(10**7, 1)) for uri in uris])
    rng = np.random.default_rng(0)
    per_batch = max(1, 32 // segments)
    batches = []
    for first in range(0, files, per_batch):
        rows = [(number, part) for number in range(first, min(files, first + per_batch)) for part in range(segments)]
        vectors = rng.normal(size=(len(rows), dimension)).astype(np.float32)
        columns: dict[str, Any] = {
            "uri": [uris[number] for number, _ in rows],
            "content_fingerprint": [f"{number:064x}" for number, _ in rows],
            "size": [10**7] * len(rows),
            "mtime_ns": [1] * len(rows),
            "duration": [segments * 10.0] * len(rows),
            "segment": [part for _, part in rows],
            "segments": [segments] * len(rows),
            "start_s": [part * 10.0 for _, part in rows],
            "end_s": [part * 10.0 + 10 for _, part in rows],
            "id": [segment_id(uris[number], part * 10.0, part * 10.0 + 10) for number, part in rows],
            "model_fingerprint": [meta.model_fingerprint] * len(rows),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dimension),
            "error": pa.nulls(len(rows), pa.string()),
        }
        batches.append(pa.table(columns))
    start = time.perf_counter()
    for batch in batches:
        collector.take(batch)
    collector.close()
    seconds = time.perf_counter() - start
    assert committer.index is not None
    assert len(committer.index) == files * segments
    return {
        "rows": files * segments,
        "dimension": dimension,
        "seconds": seconds,
        "rows_per_s": files * segments / seconds,
    }


def storage(folder: Path, files: int, *, segments: int = 6, dimension: int = 8) -> dict[str, Any]:
    """Part 3."""
    meta = IndexMeta("made", None, {}, "f" * 64, {}, dimension, 10.0, 0.0, "2026-01-01T00:00:00+00:00")
    index = VideoIndex.create(folder, meta)
    rng = np.random.default_rng(0)

    def made(number: int) -> FileRows:
        uri = f"s3://bucket-of-videos/videos/2026/{number // 1000:04d}/{rng.bytes(16).hex()}.mp4"
        vectors = rng.normal(size=(segments, dimension)).astype(np.float32)
        parts = [Segment(part * 10.0, part * 10.0 + 10, vector) for part, vector in enumerate(vectors)]
        state = FileState(int(rng.integers(10**6, 10**9)), int(rng.integers(1.6e18, 1.7e18)))
        return FileRows(uri, parts, segments * 10.0, rng.bytes(32).hex(), state)

    for first in range(0, files, 500):
        index.put([made(number) for number in range(first, min(files, first + 500))], replace=False)
    index.compact()
    # compacting joins all into one file, and leaves the others for some minutes
    size = max(file.stat().st_size for file in (folder / "segments.lance" / "data").iterdir())
    rows = files * segments
    return {
        "rows": rows,
        "segments_per_file": segments,
        "bytes_of_data": size,
        "bytes_per_row_besides_vector": size / rows - 4 * dimension,
    }


_MEMORY = """
import json, sys
from vidembed.index import VideoIndex
from vidembed.index.files import Listing, make_plan

def resident(key="VmRSS"):
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key + ":"))

index = VideoIndex.open(sys.argv[1])
len(index)
before = resident()
files = index.files()
todo = make_plan(Listing({uri + ".new": file.state for uri, file in files.items()}), files)
assert len(todo.jobs) == len(files)
print(json.dumps({"files": len(files), "resident": resident() - before, "peak": resident("VmHWM") - before}))
"""


def memory(folders: Sequence[Path]) -> dict[str, Any]:
    """Of part 3: what the planning process takes for a file of the index and a new one, by the slope between sizes."""
    found = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", _MEMORY, str(folder)], check=True, capture_output=True, text=True
            ).stdout
        )
        for folder in folders
    ]
    first, last = found[0], found[-1]
    more = last["files"] - first["files"]
    return {
        "sizes": found,
        "bytes_per_file": (last["resident"] - first["resident"]) / more,
        "peak_bytes_per_file": (last["peak"] - first["peak"]) / more,
    }


def yours(arguments: argparse.Namespace) -> dict[str, Any]:
    """The rate of one worker on videos and a model of yours."""
    cut = None if arguments.segment is None else Windows(arguments.segment)
    found = on_ray(
        arguments.videos,
        1,
        model=arguments.model,
        cut=cut,
        batch_size=arguments.batch_size,
        num_gpus=arguments.num_gpus,
        decoders=arguments.decoders,
    )
    return {"yours": found, **environment()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works; writes nothing")
    parser.add_argument("--videos", type=Path, help="measure one worker on the videos in this folder; writes nothing")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--segment", type=float, help="seconds; default: whole videos")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-gpus", type=float, default=0)
    parser.add_argument("--decoders", type=int, default=max(1, (os.cpu_count() or 1) - 1))
    arguments = parser.parse_args()
    if arguments.videos:
        print(yours(arguments))
        return
    quick = arguments.quick
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = {
            "throughput": throughput(folder, quick=quick),
            "writer": writer(folder / "written", 3584, 200 if quick else 8_000),
            "storage": [
                storage(folder / f"stored{files}", files) for files in ((500, 1_000) if quick else (10_000, 100_000))
            ],
            **environment(),
        }
        result["memory"] = memory(sorted(folder.glob("stored*"), key=lambda path: len(path.name)))
    result["versions"]["ray"] = version("ray")
    print(f"scaling efficiency, 1 to 2 workers: {result['throughput']['scaling_efficiency']:.3f}")
    if quick:
        print(result)
    else:
        keep(__file__, result)


if __name__ == "__main__":
    main()
