"""Search at size: cost and recall against the exact search, the named baseline, in one run.

    python -m benchmarks.search [--sizes 10000 100000 1000000] [--dimension 3584] [--quick]

For each size an index is filled with made vectors and searched with queries that are not among them: exactly, by
LanceDB's own flat scan, by the ANN index, and by all of it with each quantization. 3584 is the dimension of a 7B model.
Needs disk for about 2.5 times the vectors (1 M: 14 GB of vectors); where memory holds less than the vectors, exact
search runs at the speed of the disk.

Vectors are made in batches from a seed, and have structure, as real embeddings do (`World`): a direction that all
share, topics, videos within topics, segments within videos, in a latent space of 256 dimensions with falling variance,
and a little noise in all dimensions. Queries are segments moved at random in the latent space, and all away from the
vectors in one direction, as text is from video. No model is run.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
from tqdm import tqdm

from benchmarks.common import environment, keep
from vidembed.index import ann
from vidembed.index.rows import Row, rank_all, unit
from vidembed.index.search import Hit, nearest
from vidembed.index.table import TABLE, FileRows, IndexMeta, Segment, VideoIndex
from vidembed.video.clip import FileState

SIZES = (10_000, 100_000, 1_000_000)
DIMENSION = 3584  # of Qwen2.5-VL-7B
SEED = 0
LATENT = 256
TOPICS = 1000
SEGMENTS = 10  # of a video
BATCH = 5_000
QUANTIZATIONS = ("int8", "binary")
RECIPE = {
    "latent_dimensions": LATENT,
    "latent_variance": "1 / rank, scaled to sum 1",
    "shared_direction": 1.0,
    "topics": TOPICS,
    "topic": 0.7,
    "video": 0.6,
    "segments_per_video": SEGMENTS,
    "segment": 0.4,
    "noise": 0.2,
    "query_moved": 0.5,
    "query_shared_direction": 0.8,
    "query_away": 0.6,
    "seed": SEED,
}


class World:
    """Where vectors come from: the recipe of this module, for one dimension."""

    def __init__(self, dimension: int) -> None:
        rng = np.random.default_rng(SEED)
        self.dimension = dimension
        self.map = (rng.normal(size=(LATENT, dimension)) / np.sqrt(dimension)).astype(np.float32)  # (L, D)
        spread = np.arange(1, LATENT + 1) ** -0.5
        self.spread = spread / np.linalg.norm(spread)  # (L,)
        self.shared, self.away = (self._direction(rng) for _ in range(2))
        self.topics = rng.normal(size=(TOPICS, LATENT)) * self.spread  # (K, L)

    def _direction(self, rng: np.random.Generator) -> np.ndarray:
        vector = rng.normal(size=self.dimension)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def _latent(self, rng: np.random.Generator, count: int) -> np.ndarray:
        videos = -(-count // SEGMENTS)
        topic = self.topics[rng.integers(0, TOPICS, videos)]  # (V, L)
        video = 0.7 * topic + 0.6 * rng.normal(size=(videos, LATENT)) * self.spread
        return video.repeat(SEGMENTS, 0)[:count] + 0.4 * rng.normal(size=(count, LATENT)) * self.spread  # (N, L)

    def made(self, batch: int, count: int) -> np.ndarray:
        """Vectors of the rows of a batch, float32, shape (N, D), at length one."""
        rng = np.random.default_rng([SEED, batch])
        rows = self._latent(rng, count).astype(np.float32) @ self.map + self.shared
        rows += (0.2 / np.sqrt(self.dimension)) * rng.standard_normal(rows.shape, dtype=np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def queries(self, count: int) -> np.ndarray:
        """Queries near rows of the first batch, shape (Q, D)."""
        latent = self._latent(np.random.default_rng([SEED, 0]), BATCH)  # as in `made`
        rng = np.random.default_rng([SEED, 10**9])
        latent = latent[rng.choice(len(latent), count, replace=False)]
        latent = latent + 0.5 * rng.normal(size=latent.shape) * self.spread
        return (latent @ self.map + 0.8 * self.shared + 0.6 * self.away).astype(np.float64)


def opened(index: VideoIndex) -> lancedb.table.Table:
    """Return the LanceDB table of an index, as it is now."""
    return lancedb.connect(index.folder).open_table(TABLE)


def filled(folder: Path, world: World, size: int) -> tuple[VideoIndex, float]:
    """An index of `size` rows, and the seconds that it took to write, without the making of vectors."""
    meta = IndexMeta("made", None, {}, "0" * 64, {}, world.dimension, 10.0, 0.0, "2026-01-01T00:00:00+00:00")
    index = VideoIndex.create(folder, meta)
    seconds = 0.0
    for batch, first in enumerate(tqdm(range(0, size, BATCH), desc=f"Writing {size}", disable=None)):
        rows = world.made(batch, min(BATCH, size - first))
        files = [
            FileRows(
                f"file:///made/{(first + at) // SEGMENTS:07d}.mp4",
                [Segment(10.0 * i, 10.0 * i + 10, row) for i, row in enumerate(rows[at : at + SEGMENTS])],
                10.0 * SEGMENTS,
                f"{first + at}",
                FileState(1, 1),
            )
            for at in range(0, len(rows), SEGMENTS)
        ]
        start = time.perf_counter()
        index.put(files, replace=False)
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    index.compact()
    seconds += time.perf_counter() - start
    warnings.simplefilter("ignore", UserWarning)  # that others could be reading; there are none
    opened(index).optimize(cleanup_older_than=timedelta(0))  # else the joined fragments count, for five minutes
    index.latest()
    return index, seconds


def median_s(run: Callable[[np.ndarray], Any], queries: np.ndarray) -> float:
    """Median seconds of a search, the first left out."""
    seconds = []
    for query in queries:
        start = time.perf_counter()
        run(query)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


def one_size(
    folder: Path, world: World, size: int, *, queries: int, repeats: int, quantizations: tuple[str, ...]
) -> dict:
    """All searches at one size."""
    index, write_s = filled(folder, world, size)
    asked = world.queries(queries)
    vectors_bytes = size * world.dimension * 4
    few, many = asked[: repeats + 1], asked
    first = nearest(index, asked[0], k=10, exact=True)  # warms up
    exact_s = median_s(lambda query: nearest(index, query, k=10, exact=True), few)
    start = time.perf_counter()
    index.latest()
    ranked = rank_all(index, unit(many), k=10)
    batch_s = (time.perf_counter() - start) / len(many)
    assert [row.score for row in ranked[0]] == [hit.score for hit in first]

    table = opened(index)

    def flat(query: np.ndarray) -> Any:
        found = table.search(query.astype(np.float32)).distance_type("cosine").bypass_vector_index().limit(10)
        return found.select(["uri", "start_s", "end_s", "_distance"]).to_arrow()

    flat_s = median_s(flat, few[:4])
    row: dict[str, Any] = {
        "rows": size,
        "dimension": world.dimension,
        "baseline": "exact: every vector compared, nearest(..., exact=True)",
        "vectors_bytes": vectors_bytes,
        "index_bytes": index.size_on_disk(),
        "write_s": write_s,
        "exact_s": exact_s,
        "exact_batch_s_per_query": batch_s,
        "batch_queries": len(many),
        "batch_speedup": exact_s / batch_s,
        "lancedb_flat_s": flat_s,
        "lancedb_flat_over_exact": flat_s / exact_s,
        "approximate": {},
    }
    scores = [[hit.score for hit in hits] for hits in ranked]

    def share(found: Sequence[Sequence[Hit | Row]]) -> float:
        pairs = zip(found, scores, strict=True)
        return float(
            np.mean([sum(hit.score >= right[-1] - 1e-6 for hit in hits) / len(right) for hits, right in pairs])
        )

    before = index.size_on_disk()
    start = time.perf_counter()
    ann.refresh(index, exact_up_to=0)
    seconds = time.perf_counter() - start
    built = ann.stored(index)
    assert built is not None
    used = ann.usable(index, 10) is not None
    found = [nearest(index, query, k=10) for query in many]
    assert found[0].method.name == ("ann" if used else "exact")
    took = median_s(lambda query: nearest(index, query, k=10), many[:20])
    row["approximate"]["ann"] = {
        "kind": built.kind,
        "used": used,
        "nprobes": built.nprobes,
        "refine": built.refine,
        "build_s": built.build_s,
        "build_and_measure_s": seconds,
        "bytes": index.size_on_disk() - before,
        "bytes_over_vectors": (index.size_on_disk() - before) / vectors_bytes,
        "query_s": took,
        "speedup_over_exact": exact_s / took,
        "recall_at_10": share(found),
        "recall_at_10_by_own_measure": built.recall["10"],
    }
    for name in quantizations:
        start = time.perf_counter()
        ann.refresh(index, quantize=name)
        seconds = time.perf_counter() - start
        built, size_on_disk = ann.quantized(index, name), (index.ann.size_bytes if index.ann else None) or 0
        found = [nearest(index, query, k=10, copy=name) for query in many]
        took = median_s(lambda query, name=name: nearest(index, query, k=10, copy=name), many[:20])
        row["approximate"][name] = {
            "kind": built.kind,
            "refine": built.full_refine,
            "build_and_measure_s": seconds,
            "bytes": size_on_disk,
            "bytes_over_vectors": size_on_disk / vectors_bytes,
            "query_s": took,
            "speedup_over_exact": exact_s / took,
            "recall_at_10": share(found),
            "recall_at_10_by_own_measure": (built.full_recall or {})["10"],
        }
    return row


def growth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How cost grows from each size to the next: times the rows, times the seconds and bytes."""
    result = []
    for small, large in itertools.pairwise(rows):
        step: dict[str, Any] = {"from": small["rows"], "to": large["rows"], "rows": large["rows"] / small["rows"]}
        step["exact_s"] = large["exact_s"] / small["exact_s"]
        step["index_bytes"] = large["index_bytes"] / small["index_bytes"]
        for name, cost in large["approximate"].items():
            other = small["approximate"][name]
            step[name] = {key: cost[key] / other[key] for key in ("query_s", "build_and_measure_s", "bytes")}
        result.append(step)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="rows of each index")
    parser.add_argument("--dimension", type=int, default=DIMENSION, help="of a vector")
    parser.add_argument("--folder", type=Path, help="where the indexes are made, and removed; default: a temporary one")
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works; writes nothing")
    args = parser.parse_args()
    sizes, dimension = ((2000, 4000), 64) if args.quick else (tuple(sorted(args.sizes)), args.dimension)
    world = World(dimension)
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            rows.append(
                one_size(Path(name) / "index", world, size, queries=100, repeats=5, quantizations=QUANTIZATIONS)
            )
    machine = environment()
    machine["versions"] |= {each: version(each) for each in ("lancedb", "pyarrow", "numpy")}
    result = {
        "sizes": rows,
        "growth": growth(rows),
        "not_run": [f"{size} rows were not run" for size in SIZES if size not in sizes],
        "recipe": RECIPE,
        **machine,
    }
    if args.quick:
        print(result)
    else:
        keep(__file__, result)


if __name__ == "__main__":
    main()
