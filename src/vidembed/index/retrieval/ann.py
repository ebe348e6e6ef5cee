"""The index of approximate nearest neighbours (ANN): built above a number of rows, used only where it was measured."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidembed.index.retrieval.derived import DERIVED_FOLDER, read_record, write_record
from vidembed.index.retrieval.exact import Row, rank
from vidembed.index.retrieval.measure import MAX_K, MEASURED_K, SEED, TARGET_RECALL, draw, recalls
from vidembed.index.store import VideoIndex, require_packages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from vidembed.index.retrieval.measure import Sample

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
    require_packages()
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
