"""The index of approximate nearest neighbours (ANN): built above a number of rows, used only where it was measured."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vidembed import text as atomic
from vidembed.index.exact import Row, batches, rank, unit
from vidembed.index.table import ROW_ID, VideoIndex
from vidembed.text import require_index_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


DERIVED_FOLDER = "derived"
FORMAT_VERSION = 1


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """See `vidembed.text.replacing`; the folder is made with the first of its files."""
    file.parent.mkdir(exist_ok=True)
    with atomic.replacing(file) as draft:
        yield draft


def write_record(file: Path, record: dict[str, Any]) -> None:
    """Write a JSON object."""
    with replacing(file) as draft:
        draft.write_text(json.dumps({"format_version": FORMAT_VERSION, **record}, indent=1, allow_nan=False) + "\n")


def read_record(file: Path) -> dict[str, Any] | None:
    """Read what `write_record` wrote, or return None where there is no such file or it is not that.

    What is derived is never needed to answer: without it, searches are exact.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION:
        return None
    return record


SAMPLE = 200  # rows; a recall@10 of 0.95 is then known to about +-0.01 (2000 hits, two standard errors)
SEED = 0
MOVED = 0.5
AWAY = 0.5
MEASURED_K = (10, 100)
MAX_K = max(MEASURED_K)
TARGET_RECALL = 0.95
_TIE = 1e-6  # scores are rounded to six decimals


@dataclass(frozen=True, slots=True)
class Sample:
    """Queries that stand for those to come, and what the exact search finds for them.

    Attributes:
        queries: Unit vectors, shape (S, D).
        truth: The scores of the best `MAX_K` rows of each, falling.
    """

    queries: NDArray[np.float64]
    truth: list[NDArray[np.float64]]


def draw(index: VideoIndex) -> Sample:
    """Draw a sample from the version at hand, and rank all rows for it in one pass.

    A query is a stored vector, moved: by `MOVED` times the difference of two other stored vectors, and by `AWAY` in a
    random direction. Text lies like that to video: near some of it, and away from all of it. A stored vector as it is
    would be too easy a query: compressed codes find its neighbours far better than those of a text.
    """
    rng = np.random.default_rng(SEED)
    ids = np.sort(np.concatenate([batch.column(ROW_ID).to_numpy() for batch in index.scan(["start_s"])]))  # (N,)
    count = min(SAMPLE, len(ids))
    chosen = np.stack([rng.choice(ids, size=count, replace=False) for _ in range(3)])  # (3, S)
    distinct, place = np.unique(chosen, return_inverse=True)
    taken = index.take(distinct, ["vector"])
    order = np.argsort(taken.column(ROW_ID).to_numpy())
    vectors = unit(np.stack(taken.column("vector").to_pylist()))[order][place.reshape(chosen.shape)]  # (3, S, D)
    away = unit(rng.normal(size=vectors.shape[1:]))  # (S, D)
    queries = unit(vectors[0] + MOVED * (vectors[1] - vectors[2]) + AWAY * away)
    ranked = rank(batches(index), queries, k=MAX_K)
    return Sample(queries, [np.array([row.score for row in rows]) for rows in ranked])


def recalls(sample: Sample, find: Callable[[int, int], Iterable[Row]]) -> dict[str, float]:
    """Return the mean recall at each of `MEASURED_K`, by k as text.

    A row counts if its score is that of the exact search's k-th or better, so it does not matter which of equals is
    found.

    Args:
        sample: What to ask.
        find: From the number of a query and k to the rows that an approximate search finds, best first.
    """
    result = {}
    for k in MEASURED_K:
        shares = [
            sum(row.score >= truth[:k][-1] - _TIE for row in find(number, k)) / len(truth[:k])
            for number, truth in enumerate(sample.truth)
        ]
        result[str(k)] = round(float(np.mean(shares)), 6)
    return result


def recall_at(measured: dict[str, float], k: int) -> tuple[int, float]:
    """Return the k that recall was measured at which stands for `k`, the next one up, and the recall there."""
    at = next(each for each in MEASURED_K if k <= each)
    return at, measured[str(at)]


logger = logging.getLogger(__name__)

EXACT_UP_TO = 100_000
"""Rows up to which every search is exact, and no ANN index is built.

At 3584 dimensions an exact search of so many rows took 1.6 s on one core, and of ten times as many 23 s
(`benchmarks/search.json`): up to it a person can wait for an answer in which nothing is missed.
"""

EFFORTS = ((8, 4), (16, 4), (32, 8), (64, 16), (128, 32), (256, 64))
"""Partitions looked into, and candidates per hit compared by their full vectors; the first that reaches
`TARGET_RECALL` is used."""

_SPARE = 16  # candidates beyond k, so that rounding decides about ties and not the index
_REBUILD_AT = 2.0  # times the rows that partitions were fitted to
_MAX_SEGMENTS = 8  # LanceDB adds one for each refresh, and each is searched
_DRIFT = 0.2  # share of rows that may come or go before a measurement no longer says much
_RECORD = "ann.json"
_THRESHOLD = "exact-up-to.json"


@dataclass(frozen=True, slots=True)
class Ann:
    """A built and measured ANN index.

    Attributes:
        kind: LanceDB's type.
        index_uuid: LanceDB's id of it.
        model_fingerprint: Of the model that made the vectors.
        stamp: Of the version of the table that was measured.
        rows: Rows when it was measured.
        trained_rows: Rows when its partitions were fitted.
        nprobes: Partitions that a search looks into.
        refine: Candidates per hit that are compared by their full vectors.
        recall: Against the exact search, by k as text.
        target: What `recall` should reach; else the index is not used.
        sample: Queries: stored vectors, moved as `measure.draw` says.
        seed: Of the sample.
        build_s: Seconds that building took.
    """

    kind: str
    index_uuid: str
    model_fingerprint: str
    stamp: str
    rows: int
    trained_rows: int
    nprobes: int
    refine: int
    recall: dict[str, float]
    target: float
    sample: int
    seed: int
    build_s: float

    @property
    def good(self) -> bool:
        """Whether it found what it should."""
        return min(self.recall.values()) >= self.target

    def find(self, index: VideoIndex, query: NDArray[np.float64], k: int) -> list[Row]:
        """Return the rows that the index finds for a unit vector, ranked by their exact cosines."""
        return _find(index, query, k, self.nprobes, self.refine)


def usable(index: VideoIndex, k: int) -> Ann | None:
    """Return the ANN index if a search for `k` hits may use it, else None: then the search is exact.

    It may if there are more rows than `threshold`, the index is the one that was measured, with the vectors of
    the same model and about as many rows, its recall is good, and `k` is no more than what recall was measured at.
    """
    ann = stored(index)
    if ann is None or k > MAX_K or not ann.good or not threshold(index) < len(index):
        return None
    return ann if abs(len(index) - ann.rows) <= _DRIFT * ann.rows else None


def stored(index: VideoIndex) -> Ann | None:
    """Return the measured ANN index of the version at hand, whether or not it is good, or None where there is none."""
    ann, now = _read(index), index.ann
    # LanceDB gives the index a new id when it is built or its rows are moved: then it is not what was measured.
    return ann if ann is not None and now is not None and str(now.index_uuid) == ann.index_uuid else None


def threshold(index: VideoIndex) -> int:
    """Return the rows up to which searches of an index are exact: the number last given to `refresh`, or `EXACT_UP_TO`.

    A record that cannot be read is told of in the log.
    """
    file = _threshold_file(index)
    if file.exists():
        given = (read_record(file) or {}).get("exact_up_to")
        if isinstance(given, int) and not isinstance(given, bool) and given >= 0:
            return given
        logger.warning(
            "%s cannot be read, and searches are exact up to %d segments; index again with --exact-up-to",
            file,
            EXACT_UP_TO,
        )
    return EXACT_UP_TO


def refresh(index: VideoIndex, *, exact_up_to: int | None = None) -> bool:
    """Build the ANN index, bring it up to date, measure it, or remove it, as the number of rows asks for.

    One that cannot be built is told of in the log, and searches stay exact.

    Args:
        index: The index; nobody else may be writing to it.
        exact_up_to: Rows up to which there shall be none, now and in later runs that do not say. Default: what an
            earlier run gave, or `EXACT_UP_TO`.

    Returns:
        Whether anything was written.

    Raises:
        ValueError: `exact_up_to` is negative.
    """
    if exact_up_to is not None and exact_up_to < 0:
        raise ValueError(f"exact_up_to: got {exact_up_to}; a number of rows is needed, 0 or more")
    index.latest()
    written = exact_up_to is not None and exact_up_to != (read_record(_threshold_file(index)) or {}).get("exact_up_to")
    if written:
        write_record(_threshold_file(index), {"exact_up_to": exact_up_to})
    if len(index) <= max(1, threshold(index)):
        had = index.ann is not None or _file(index).exists()
        _file(index).unlink(missing_ok=True)
        index.drop_ann()
        return had or written
    known = stored(index)
    if known is not None and known.stamp == index.stamp():
        return written
    try:
        _build_and_measure(index, _read(index))
    except (RuntimeError, OSError, ValueError) as error:
        _file(index).unlink(missing_ok=True)  # without it the index is not used
        logger.error("the ANN index could not be built, and searches stay exact: %s", error)  # noqa: TRY400 - short
    return True


def facts(index: VideoIndex) -> dict[str, Any] | None:
    """Return what `vidembed info` says of the ANN index of the version at hand, or None where there is none."""
    now = index.ann
    if now is None:
        return None
    ann = stored(index)
    if ann is None:
        return {"kind": str(now.index_type), "used": False, "why_not": "it was not measured; index again"}
    used = usable(index, 1) is not None
    if not ann.good:
        why = "its recall is below the target"
    elif len(index) <= threshold(index):
        why = "there are few enough rows for an exact search"
    else:
        why = "too many rows came or went since; index again"
    return {
        **{key: value for key, value in asdict(ann).items() if key not in {"index_uuid", "stamp", "model_fingerprint"}},
        "rows_not_in_it": int(now.num_unindexed_rows),
        "used": used,
        **({} if used else {"why_not": why}),
    }


def _build_and_measure(index: VideoIndex, known: Ann | None) -> None:
    began = time.perf_counter()
    now, rows = index.ann, len(index)
    keep = (
        known is not None
        and now is not None
        and not now.num_unindexed_rows
        and now.num_segments <= _MAX_SEGMENTS
        and rows <= _REBUILD_AT * known.trained_rows
    )
    if not keep:
        _file(index).unlink(missing_ok=True)  # an interruption leaves no record of what is no more
        index.build_ann(_config(index.meta.dimension))
    build_s = known.build_s if keep and known is not None else time.perf_counter() - began
    now = index.ann
    sample = draw(index)
    nprobes, refine, recall = _effort(index, sample)
    record = Ann(
        kind=str(now.index_type),
        index_uuid=str(now.index_uuid),
        model_fingerprint=index.meta.model_fingerprint,
        stamp=index.stamp(),
        rows=rows,
        trained_rows=known.trained_rows if keep and known is not None else rows,
        nprobes=nprobes,
        refine=refine,
        recall=recall,
        target=TARGET_RECALL,
        sample=len(sample.queries),
        seed=SEED,
        build_s=round(build_s, 3),
    )
    if not record.good:
        logger.error("the ANN index finds %s of what it should, and searches stay exact", recall)
    write_record(_file(index), asdict(record))


def _effort(index: VideoIndex, sample: Sample) -> tuple[int, int, dict[str, float]]:
    """Return the least effort that reaches the target, or the greatest where none does, and its recall."""
    for nprobes, refine in EFFORTS:
        recall = recalls(sample, lambda number, k, n=nprobes, r=refine: _find(index, sample.queries[number], k, n, r))  # type: ignore[misc]
        if min(recall.values()) >= TARGET_RECALL:
            break
    return nprobes, refine, recall


def _find(index: VideoIndex, query: NDArray[np.float64], k: int, nprobes: int, refine: int) -> list[Row]:
    found = index.ann_candidates(query, limit=k + _SPARE, nprobes=nprobes, refine=refine)
    return rank(found.combine_chunks().to_batches(), query[None], k=k)[0]


def _config(dimension: int) -> Any:
    """One bit a dimension (RaBitQ) where LanceDB can, which needs a multiple of eight; else one byte."""
    require_index_extra()
    from lancedb.index import IvfRq, IvfSq  # noqa: PLC0415 - takes a second

    return IvfRq(distance_type="cosine") if dimension % 8 == 0 else IvfSq(distance_type="cosine")


def _read(index: VideoIndex) -> Ann | None:
    """Return what was written of an ANN index, or None where that is nothing, damaged, or of another model."""
    record = read_record(_file(index))
    if record is None or {each.name for each in fields(Ann)} - set(record):
        return None
    recall = record["recall"]
    if not isinstance(recall, dict) or set(recall) != {str(k) for k in MEASURED_K}:
        return None
    ann = Ann(**{each.name: record[each.name] for each in fields(Ann)})
    return ann if ann.model_fingerprint == index.meta.model_fingerprint else None


def _file(index: VideoIndex) -> Path:
    return index.folder / DERIVED_FOLDER / _RECORD


def _threshold_file(index: VideoIndex) -> Path:
    return index.folder / DERIVED_FOLDER / _THRESHOLD
