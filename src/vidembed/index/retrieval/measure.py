"""Recall of an approximate search against the exact one, on a sample of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vidembed.index.retrieval.exact import Row, rank, unit
from vidembed.index.retrieval.filters import batches
from vidembed.index.store import ROW_ID, VideoIndex

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
