"""The index of approximate nearest neighbours (ANN) of quantized vectors: used only where its recall was measured.

It is LanceDB's: one byte a dimension (`int8`) or one bit (`binary`, RaBitQ), in partitions. What it finds is compared
again by the full vectors.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vidembed.errors import IndexMismatchError
from vidembed.index.rows import Ranking, Row, rank_blocks, unit
from vidembed.index.schema import FORMAT_VERSION
from vidembed.index.table import ROW_ID, Block, VideoIndex
from vidembed.text import write_atomically

SAMPLE = 200  # rows; a recall@10 of 0.95 is then known to about +-0.01 (2000 hits, two standard errors)
SEED = 0
MOVED = 0.5  # times the difference of two other stored vectors
AWAY = 0.5  # in a random direction
MEASURED_K = (10, 100)
MAX_K = max(MEASURED_K)
TARGET_RECALL = 0.95

EXACT_UP_TO = 100_000
"""Rows up to which every search is exact, and no ANN index is built.

At 3584 dimensions an exact search of so many rows took 1.6 s on one core, and of ten times as many 23 s
(`benchmarks/search.json`): up to it a person can wait for an answer in which nothing is missed.
"""

EFFORTS = ((8, 4), (16, 4), (32, 8), (64, 16), (128, 32), (256, 64))
"""Partitions looked into, and candidates per hit compared by their full vectors; the first that reaches
`TARGET_RECALL` is used."""

FULL_REFINES = (2, 4, 8, 16, 32, 64)
"""Candidates per hit where every partition is looked into; the first that reaches `TARGET_RECALL`, else the last."""

KINDS = {"int8": "IvfSq", "binary": "IvfRq"}
"""LanceDB's types, by name of the quantization."""

_SPARE = 16  # rows beyond k that LanceDB is asked for, so that scores in float64 decide about ties
_TIE = 1e-6  # scores are rounded to six decimals
_REBUILD_AT = 2.0  # times the rows that partitions were fitted to
_MAX_SEGMENTS = 8  # LanceDB adds one for each refresh, and each is searched
_DRIFT = 0.2  # share of rows that may come or go before a measurement no longer says much
FILE = "ann.json"  # of what was measured; without it the index is not used
_SETTINGS = "exact-up-to.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Sample:
    """Queries that stand for those to come, and what the exact search finds for them."""

    queries: NDArray[np.float64]  # (S, D), of length one
    truth: list[NDArray[np.float64]]  # the scores of the best `MAX_K` rows of each, falling

    def least_effort(
        self, index: VideoIndex, efforts: Iterable[tuple[int, int]]
    ) -> tuple[tuple[int, int], dict[str, float]]:
        """Return the first effort with which `find` reaches the target, else the last, and its mean recall by k."""
        for effort in efforts:
            recall = {}
            for k in MEASURED_K:
                shares = [  # a row counts if its score is that of the exact search's k-th: any of equals will do
                    sum(row.score >= truth[:k][-1] - _TIE for row in find(index, query, k, effort)) / len(truth[:k])
                    for query, truth in zip(self.queries, self.truth, strict=True)
                ]
                recall[str(k)] = round(float(np.mean(shares)), 6)
            if min(recall.values()) >= TARGET_RECALL:
                break
        return effort, recall


def draw(index: VideoIndex) -> Sample:
    """Draw queries from the version at hand, and rank all rows for them in one pass."""
    rng = np.random.default_rng(SEED)
    ids = np.sort(index.row_ids())  # (N,)
    count = min(SAMPLE, len(ids))
    chosen = np.stack([rng.choice(ids, size=count, replace=False) for _ in range(3)])  # (3, S)
    distinct, place = np.unique(chosen, return_inverse=True)
    taken = index.take(distinct, ["vector"])
    order = np.argsort(taken.column(ROW_ID).to_numpy())
    vectors = unit(np.stack(taken.column("vector").to_pylist()))[order][place.reshape(chosen.shape)]  # (3, S, D)
    away = unit(rng.normal(size=vectors.shape[1:]))  # (S, D)
    # A query is a stored vector, moved: text lies like that to video, near some of it and away from all of it. A stored
    # vector as it is would be too easy: quantization finds its neighbours far better than those of a text.
    queries = unit(vectors[0] + MOVED * (vectors[1] - vectors[2]) + AWAY * away)
    # Not of a mirror, which is written for searches alone.
    best = rank_blocks(index, index.blocks(), queries, k=MAX_K)
    return Sample(queries, [np.array([row.score for row in rows]) for rows in best])


@dataclass(frozen=True, slots=True)
class Ann:
    """A built and measured ANN index."""

    kind: str  # LanceDB's type
    index_uuid: str  # LanceDB's id of it
    model_fingerprint: str
    stamp: str  # of the version of the table that was measured
    rows: int  # when it was measured
    trained_rows: int  # when its partitions were fitted
    nprobes: int  # partitions that a search looks into
    refine: int  # candidates per hit that are compared by their full vectors
    recall: dict[str, float]  # against the exact search, by k as text
    target: float  # what `recall` should reach; else the index is not used
    sample: int  # queries: stored vectors, moved as `draw` says
    seed: int  # of the sample
    build_s: float
    full_refine: int | None = None  # where a search looks into every partition; if the quantization was asked for
    full_recall: dict[str, float] | None = None  # likewise

    @property
    def good(self) -> bool:
        """Whether it found what it should."""
        return min(self.recall.values()) >= self.target

    def fits(self, rows: int) -> bool:
        """Whether so few rows came or went since it was measured that the recall still holds."""
        return abs(rows - self.rows) <= _DRIFT * self.rows


def find(index: VideoIndex, query: NDArray[np.float64], k: int, effort: tuple[int, int]) -> list[Row]:
    """Return the rows that the ANN index finds for a unit vector, shape (D,), by exact cosine; see `EFFORTS`."""
    found = index.nearest(query, limit=k + _SPARE, effort=effort)
    ranking = Ranking(query[None], k, lambda _: found)
    for batch in found.to_batches():
        ranking.add(Block.of(batch))
    return ranking.best[0]


class Settings(NamedTuple):
    """What later runs keep to: rows up to which searches are exact, and the quantization that was asked for."""

    exact_up_to: int = EXACT_UP_TO
    quantize: str | None = None


def settings(index: VideoIndex) -> Settings:
    """Return the settings last given to `refresh`, or the default. A record that cannot be read is logged."""
    file = index.derived(_SETTINGS)
    if not file.exists():
        return Settings()
    record = read_record(file) or {}
    exact_up_to, quantize = record.get("exact_up_to"), record.get("quantize")
    if type(exact_up_to) is int and exact_up_to >= 0 and quantize in {None, *KINDS}:
        return Settings(exact_up_to, quantize)
    unread = "%s cannot be read, and searches are exact up to %d segments; index again with --exact-up-to"
    logger.warning(unread, file, EXACT_UP_TO)
    return Settings()


def check_threshold(exact_up_to: int | None) -> None:
    """Refuse a negative number of rows, with ValueError."""
    if exact_up_to is not None and exact_up_to < 0:
        raise ValueError(f"exact_up_to: got {exact_up_to}; a number of rows is needed, 0 or more")


def check_quantization(name: str, dimension: int | None = None) -> None:
    """Refuse what is no name of a quantization, or does not fit vectors of that dimension, with ValueError."""
    if re.fullmatch(r"(int8|binary|float32)-[1-9]\d*", name):
        raise ValueError(
            f"compact: got {name!r}; dimensions are no longer reduced. Use int8, or binary, "
            "which takes an eighth of its size; to keep fewer dimensions, index with a model that gives fewer"
        )
    if name not in KINDS:
        raise ValueError(f"compact: got {name!r}; allowed are int8 (one byte per dimension) and binary (one bit)")
    if name == "binary" and dimension is not None and dimension % 8:
        raise ValueError(
            f"compact: got 'binary' for vectors of {dimension} dimensions; it needs a multiple of eight. Use int8"
        )


def stored(index: VideoIndex) -> Ann | None:
    """Return the measured ANN index of the version at hand, whether or not it is good, or None where there is none."""
    if (ann := _read(index)) is None or (now := index.ann) is None:
        return None
    # LanceDB gives the index a new id when it is built or its rows are moved: then it is not what was measured.
    return ann if str(now.index_uuid) == ann.index_uuid else None


def usable(index: VideoIndex, k: int) -> Ann | None:
    """Return the ANN index if its recall is known and good for `k` hits of so many rows, else None: search exactly."""
    if k > MAX_K or (ann := stored(index)) is None or not ann.good:
        return None
    rows = len(index)
    return ann if settings(index).exact_up_to < rows and ann.fits(rows) else None


def quantized(index: VideoIndex, name: str) -> Ann:
    """Return the ANN index of a quantization; ValueError where there is none, IndexMismatchError for a stale one."""
    check_quantization(name, index.meta.dimension)
    remedy = f"run `vidembed index` again with --quantize {name}, or search without it"
    now = index.ann
    if now is None or now.index_type != KINDS[name]:
        raise ValueError(f"compact: the index has no {name} quantization; {remedy}")
    ann = stored(index)
    if ann is None or ann.full_recall is None or not ann.fits(len(index)):
        raise IndexMismatchError(f"compact: recall of {name} was measured before the index changed; {remedy}")
    return ann


def refresh(index: VideoIndex, *, exact_up_to: int | None = None, quantize: str | None = None) -> bool:
    """Build the ANN index, bring it up to date, measure it, or remove it; return whether anything was written.

    There is none up to `exact_up_to` rows, but with `quantize` there is one of that quantization however few rows there
    are. Both are remembered by later runs (None). One that cannot be built is logged, and searches stay exact. Nobody
    else may be writing to the index. ValueError for values out of range.
    """
    check_threshold(exact_up_to)
    if quantize is not None:
        check_quantization(quantize, index.meta.dimension)
    index.latest()
    given, written = settings(index), False
    if exact_up_to is not None or quantize is not None:
        given = Settings(given.exact_up_to if exact_up_to is None else exact_up_to, quantize or given.quantize)
        before = read_record(index.derived(_SETTINGS)) or {}
        written = (before.get("exact_up_to"), before.get("quantize")) != given
        if written:
            write_record(index.derived(_SETTINGS), given._asdict())
    record = index.derived(FILE)
    if len(index) <= (0 if given.quantize else max(1, given.exact_up_to)):
        had = index.ann is not None or record.exists()
        record.unlink(missing_ok=True)
        index.drop_ann()
        return had or written
    # One bit a dimension where LanceDB can, else one byte.
    name = given.quantize or ("binary" if index.meta.dimension % 8 == 0 else "int8")
    known = stored(index)
    measured = known is not None and known.kind == KINDS[name] and (not given.quantize or known.full_recall is not None)
    if measured and known is not None and known.stamp == index.stamp():
        return written
    try:
        _build_and_measure(index, _read(index), name, full=given.quantize is not None)
    except (RuntimeError, OSError, ValueError) as error:
        record.unlink(missing_ok=True)  # without it the index is not used
        logger.error("the approximate (ANN) index could not be built, so searches stay exact: %s", error)  # noqa: TRY400 - short
    return True


def facts(index: VideoIndex) -> dict[str, object] | None:
    """Return what `vidembed info` says of the ANN index of the version at hand, or None where there is none."""
    now = index.ann
    if now is None:
        return None
    if (ann := stored(index)) is None:
        return {
            "kind": str(now.index_type),
            "used": False,
            "why_not": "it was not measured; run `vidembed index` again",
        }
    why_not = None
    if not ann.good:
        why_not = "its recall is below the target"
    elif len(index) <= settings(index).exact_up_to:
        why_not = "the index is small enough for an exact search"
    elif not ann.fits(len(index)):
        why_not = "too many segments were added or removed since; run `vidembed index` again"
    hidden = {"index_uuid", "stamp", "model_fingerprint"}
    shown = {key: value for key, value in asdict(ann).items() if key not in hidden}
    shown |= {"rows_not_in_it": now.num_unindexed_rows, "bytes": now.size_bytes, "used": why_not is None}
    return {key: value for key, value in {**shown, "why_not": why_not}.items() if value is not None}


def _build_and_measure(index: VideoIndex, known: Ann | None, name: str, *, full: bool) -> None:
    now, rows = index.ann, len(index)
    if (
        known is not None
        and now is not None
        and now.index_type == KINDS[name]
        and not now.num_unindexed_rows
        and (now.num_segments or 0) <= _MAX_SEGMENTS
        and rows <= _REBUILD_AT * known.trained_rows
    ):
        trained_rows, build_s = known.trained_rows, known.build_s
    else:
        index.derived(FILE).unlink(missing_ok=True)  # an interruption leaves no record of what is no more
        began = time.perf_counter()
        from lancedb.index import IvfRq, IvfSq  # noqa: PLC0415 - takes a second

        index.build_ann((IvfRq if name == "binary" else IvfSq)(distance_type="cosine"))
        trained_rows, build_s = rows, round(time.perf_counter() - began, 3)
    if (now := index.ann) is None:
        raise RuntimeError("LanceDB made none")
    sample = draw(index)
    (nprobes, refine), recall = sample.least_effort(index, EFFORTS)
    full_refine = full_recall = None
    if full:
        (_, full_refine), full_recall = sample.least_effort(index, [(rows, times) for times in FULL_REFINES])
    record = Ann(
        kind=str(now.index_type),
        index_uuid=str(now.index_uuid),
        model_fingerprint=index.meta.model_fingerprint,
        stamp=index.stamp(),
        rows=rows,
        trained_rows=trained_rows,
        nprobes=nprobes,
        refine=refine,
        recall=recall,
        target=TARGET_RECALL,
        sample=len(sample.queries),
        seed=SEED,
        build_s=build_s,
        full_refine=full_refine,
        full_recall=full_recall,
    )
    if not record.good:
        logger.error("the ANN index finds %s of what it should, and searches stay exact", recall)
    write_record(index.derived(FILE), asdict(record))


def _read(index: VideoIndex) -> Ann | None:
    """Return what was written of an ANN index, or None where that is nothing, damaged, or of another model."""
    record = read_record(index.derived(FILE)) or {}
    known = {each.name: record[each.name] for each in fields(Ann) if each.name in record}
    try:
        ann = Ann(**known)
    except TypeError:
        return None
    recalls = [ann.recall] if ann.full_recall is None else [ann.recall, ann.full_recall]
    if any(not isinstance(recall, dict) or set(recall) != {str(k) for k in MEASURED_K} for recall in recalls):
        return None
    return ann if ann.model_fingerprint == index.meta.model_fingerprint else None


def write_record(file: Path, record: Mapping[str, object]) -> None:
    """Write a JSON object beside the table."""
    content = {"format_version": FORMAT_VERSION, **record}
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_record(file: Path) -> dict[str, Any] | None:
    """Read what `write_record` wrote, or return None where there is no such file: without it, searches are exact."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format_version") == FORMAT_VERSION else None
