"""Search at size: cost and recall against the exact search, the named baseline, in one run.

    python -m benchmarks.search [--sizes 10000 100000 1000000] [--dimension 3584] [--quick]
    python -m benchmarks.search --exact-only [--sizes 50000 100000]

For each size an index is filled with made vectors and searched with queries that are not among them: exactly, by
LanceDB's own flat scan, by the ANN index, and by all of it with each quantization. 3584 is the dimension of a 7B model.
Needs disk for about 2.5 times the vectors (1 M: 14 GB of vectors); where memory holds less than the vectors, exact
search runs at the speed of the disk.

Vectors are made in batches from a seed, and have structure, as real embeddings do (`World`): a direction that all
share, topics, videos within topics, segments within videos, in a latent space of 256 dimensions with falling variance,
and a little noise in all dimensions. Queries are segments moved at random in the latent space, and all away from the
vectors in one direction, as text is from video. No model is run.

Exact searches of large indexes read a mirror of the vectors (`vidembed.index.mirror`). `--exact-only` leaves the ANN
indexes out, and compares it with numpy's product of the same memory-mapped file, by turns, warm and cold: divided by
the lengths that the file keeps, and by lengths computed anew. `exact_over_numpy` is against the first, the harder one.
Cold means that the system was asked to forget the pages (POSIX_FADV_DONTNEED). FAISS's flat index, of vectors at length
one in memory, is measured where it is installed and half of the free memory
holds them. It writes `benchmarks/search_exact.json`.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import psutil
from tqdm import tqdm

from benchmarks.common import environment, keep
from vidembed.index import ann, mirror
from vidembed.index.hits import Hit
from vidembed.index.rows import Filter, Row, rank_all, unit
from vidembed.index.schema import FileRows, IndexMeta, Segment
from vidembed.index.search import nearest
from vidembed.index.table import TABLE, VideoIndex
from vidembed.video.clip import FileState

SIZES = (10_000, 100_000, 1_000_000)
EXACT_SIZES = (50_000, 100_000)
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


def by_turns(runs: Mapping[str, Callable[[np.ndarray], Any]], queries: np.ndarray) -> dict[str, float]:
    """Median seconds of each, all of them run for a query before the next one; the first query is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for query in queries:
        for name, run in runs.items():
            start = time.perf_counter()
            run(query)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[1:]) for name, each in seconds.items()}


def forget(folder: Path) -> None:
    """Ask the system to drop the pages of all files from its cache; those that are mapped stay."""
    gc.collect()
    for file in folder.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def exact_beside_numpy(folder: Path, world: World, *, queries: int, repeats: int) -> dict[str, Any]:
    """Exact searches of an index, with and without its mirror, beside numpy's and FAISS's over the same vectors."""
    asked = world.queries(queries)
    plain, index = VideoIndex.open(folder, mirror=False), VideoIndex.open(folder)
    size, dimension = len(index), world.dimension
    time.sleep(mirror.SETTLED_S)
    before = index.size_on_disk()
    start = time.perf_counter()
    first = nearest(index, asked[0], k=10, exact=True)
    first_s = time.perf_counter() - start
    written = index.size_on_disk() - before
    assert written == mirror.mirror_bytes(index)  # else the search read the table
    [file] = index.derived("").glob(mirror.FILES)
    same = all(nearest(index, query, k=10) == nearest(plain, query, k=10) for query in asked[:5])

    def exact(query: np.ndarray) -> Any:
        return nearest(index, query, k=10, exact=True)

    def table(query: np.ndarray) -> Any:
        return nearest(plain, query, k=10, exact=True)

    handle = opened(index)

    def lancedb_flat(query: np.ndarray) -> Any:
        found = handle.search(query.astype(np.float32)).distance_type("cosine").bypass_vector_index().limit(10)
        return found.select(["uri", "start_s", "end_s", "_distance"]).to_arrow()

    def numpy_kept(query: np.ndarray) -> Any:
        cosines = kept.vectors @ query.astype(np.float32) / kept.lengths
        return np.argpartition(cosines, -10)[-10:]

    def numpy_computed(query: np.ndarray) -> Any:
        lengths = np.sqrt(np.einsum("nd,nd->n", kept.vectors, kept.vectors))
        cosines = kept.vectors @ query.astype(np.float32) / lengths
        return np.argpartition(cosines, -10)[-10:]

    kept = mirror.Mirror.open(file, size, dimension)
    runs: dict[str, Callable[[np.ndarray], Any]] = {
        "exact_s": exact,
        "numpy_s": numpy_kept,
        "numpy_lengths_computed_s": numpy_computed,
    }
    room = psutil.virtual_memory().available / 2
    if importlib.util.find_spec("faiss") is not None and size * dimension * 4 < room:
        import faiss  # noqa: PLC0415 - may not be there

        flat = faiss.IndexFlatIP(dimension)
        for block in kept.blocks():
            flat.add(block.vectors / block.lengths[:, None])
        runs["faiss_flat_s"] = lambda query: flat.search(query[None].astype(np.float32), 10)
    warm = by_turns(runs, asked[: repeats + 1])
    slow = by_turns({"table_s": table, "lancedb_flat_s": lancedb_flat}, asked[:4])
    start = time.perf_counter()
    many = rank_all(index, unit(asked), k=10)
    batch_s = (time.perf_counter() - start) / len(asked)
    assert [row.score for row in many[0]] == [hit.score for hit in first]
    keep_half = Filter(after=10.0 * SEGMENTS / 2)
    filtered = by_turns({"filtered_s": lambda query: nearest(index, query, k=10, keep=keep_half)}, asked[:4])

    cold: dict[str, list[float]] = {"exact_cold_s": [], "numpy_cold_s": []}
    for query in asked[:3]:
        del index, kept
        forget(folder)
        start = time.perf_counter()
        index = VideoIndex.open(folder)
        nearest(index, query, k=10, exact=True)
        cold["exact_cold_s"].append(time.perf_counter() - start)
        del index
        forget(folder)
        start = time.perf_counter()
        kept = mirror.Mirror.open(file, size, dimension)
        numpy_kept(query)
        cold["numpy_cold_s"].append(time.perf_counter() - start)
        index = VideoIndex.open(folder)
    coldly = {name: statistics.median(each) for name, each in cold.items()}
    return {
        "rows": size,
        "dimension": dimension,
        "mirror_bytes": written,
        "first_search_s": first_s,
        "same_hits_as_without": same,
        **warm,
        **slow,
        **filtered,
        **coldly,
        "exact_batch_s_per_query": batch_s,
        "batch_queries": len(asked),
        "exact_over_numpy": warm["exact_s"] / warm["numpy_s"],
        "exact_over_numpy_lengths_computed": warm["exact_s"] / warm["numpy_lengths_computed_s"],
        "exact_over_numpy_cold": coldly["exact_cold_s"] / coldly["numpy_cold_s"],
        "table_over_exact": slow["table_s"] / warm["exact_s"],
    }


def at_a_million(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a million rows would take by arithmetic, of what a smaller run took; not run."""
    times = 1_000_000 / row["rows"]
    return {
        "rows": 1_000_000,
        "arithmetic": f"{times:g} times {row['rows']} rows; holds where memory can hold the mirror",
        "mirror_bytes": round(times * row["mirror_bytes"]),
        **{name: times * row[name] for name in ("exact_s", "exact_cold_s", "first_search_s")},
    }


def one_size(
    folder: Path, world: World, size: int, *, queries: int, repeats: int, quantizations: tuple[str, ...]
) -> dict:
    """All searches at one size."""
    index, write_s = filled(folder, world, size)
    asked = world.queries(queries)
    vectors_bytes = size * world.dimension * 4
    few, many = asked[: repeats + 1], asked
    time.sleep(mirror.SETTLED_S)
    first = nearest(index, asked[0], k=10, exact=True)  # warms up, and writes the mirror
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
        "mirror_bytes": sum(file.stat().st_size for file in index.derived("").glob(mirror.FILES)),
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
    parser.add_argument("--sizes", type=int, nargs="+", help="rows of each index")
    parser.add_argument("--exact-only", action="store_true", help="the exact search alone, beside numpy's")
    parser.add_argument("--dimension", type=int, default=DIMENSION, help="of a vector")
    parser.add_argument("--folder", type=Path, help="where the indexes are made, and removed; default: a temporary one")
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works; writes nothing")
    args = parser.parse_args()
    asked = args.sizes or (EXACT_SIZES if args.exact_only else SIZES)
    sizes, dimension = ((6000, 12000), 64) if args.quick else (tuple(sorted(asked)), args.dimension)
    world = World(dimension)
    machine = environment()
    machine["versions"] |= {each: version(each) for each in ("lancedb", "pyarrow", "numpy")}
    rows = []
    if args.exact_only:
        for size in sizes:
            with tempfile.TemporaryDirectory(dir=args.folder) as name:
                filled(Path(name) / "index", world, size)
                rows.append(exact_beside_numpy(Path(name) / "index", world, queries=100, repeats=9))
        result = {"sizes": rows, "not_run": at_a_million(rows[-1]), "recipe": RECIPE, **machine}
        if args.quick:
            print(result)
        else:
            keep(__file__.replace(".py", "_exact.py"), result)
        return
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            rows.append(
                one_size(Path(name) / "index", world, size, queries=100, repeats=5, quantizations=QUANTIZATIONS)
            )
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
