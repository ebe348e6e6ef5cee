"""A query bank that belongs to an index: vectors of bank queries, and what they say of every row.

QB-Norm (arXiv 2112.12777) as `vidembed.scoring.QueryBank` has it; here is where it is kept, and how all rows are ranked
by it. Rows have ids and not places in a gallery, and are never all in memory, so it has a form of its own.
The bank's queries must not be the ones that are evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from vidembed.errors import IndexMismatchError
from vidembed.index.rows import Ranking, Row, blocks, check_query, encode_queries, unit
from vidembed.index.schema import FORMAT_VERSION, QueryEncoder
from vidembed.index.table import PLACE, VideoIndex
from vidembed.progress import progress_bar
from vidembed.scoring.query_bank import DEFAULT_BETA, DEFAULT_BLOCK_BYTES, QueryBank
from vidembed.text import replacing

MAX_QUERIES = 20_000  # at 3584 dimensions 287 MB of vectors
FILE = "query-bank.safetensors"
_KIND = "index_query_bank"


@dataclass(frozen=True, slots=True)
class StoredBank:
    """A bank as it lies in an index. Values that do not fit each other are refused with ValueError."""

    vectors: NDArray[np.float32]  # (B, D), of the bank queries
    beta: float  # inverse temperature
    row_ids: NDArray[np.uint64]  # (N,), rising
    log_normalizer: NDArray[np.float64]  # (N,), log sum_b exp(beta * cosine) over the bank queries
    activation: NDArray[np.bool_]  # (N,), whether a row is the best of some bank query
    model_fingerprint: str
    stamp: str  # of the version of the table that the rows are of

    def __post_init__(self) -> None:
        """Check the values, which may come from a damaged file."""
        if self.vectors.ndim != 2 or not len(self.vectors) or not (self.beta > 0 and math.isfinite(self.beta)):
            raise ValueError(f"query bank: got vectors of shape {self.vectors.shape} and beta={self.beta}")
        shapes = {self.row_ids.shape, self.log_normalizer.shape, self.activation.shape}
        if shapes != {(len(self.row_ids),)} or self.activation.dtype != np.bool_:
            raise ValueError(f"query bank: got arrays of shapes {shapes}; one value for each row is needed")
        if not np.isfinite(self.log_normalizer).all():
            raise ValueError(f"query bank: a value is not finite at beta={self.beta}; a smaller beta is needed")

    def is_of(self, index: VideoIndex) -> bool:
        """Whether it was made by the model of an index, of the version at hand."""
        return self.model_fingerprint == index.meta.model_fingerprint and self.stamp == index.stamp()

    def places(self, row_ids: Sequence[int] | NDArray[np.uint64]) -> NDArray[np.intp]:
        """Return the positions of rows in `row_ids`, shape (N,)."""
        return np.searchsorted(self.row_ids, np.asarray(row_ids, dtype=np.uint64))

    def rank(
        self, index: VideoIndex, queries: NDArray[np.float64], *, k: int, where: str | None = None
    ) -> Iterator[tuple[list[Row], list[float] | None]]:
        """Yield the `k` best rows of each query, shape (Q, D), by normalized score, with those scores.

        The dynamic variant: a query whose best row by cosine is not the best of any bank query is ranked by cosine, and
        comes with None. `where` says which rows may be hits (`Filter.sql`).
        """
        places = partial(index.take, columns=PLACE)
        plain = Ranking(queries, k, places)
        shift = self.log_normalizer / self.beta  # (N,); less it, a cosine orders as its normalized score does
        normalized = Ranking(queries, k, places, offset=lambda row_ids: shift[self.places(row_ids)])
        for rows in blocks(index, where):
            plain.add(rows)
            normalized.add(rows)
        for by_cosine, by_bank in zip(plain.best, normalized.best, strict=True):
            top = [row for row in by_cosine if row.score == by_cosine[0].score]
            if not self.activation[self.places([row.row_id for row in top])].any():
                yield by_cosine, None
                continue
            cosines = np.array([row.score for row in by_bank])  # (K,)
            margin = self.log_normalizer[self.places([row.row_id for row in by_bank])] - self.beta * cosines  # (K,)
            yield by_bank, [float(value) for value in -np.logaddexp(0.0, margin)]


def refresh(
    index: VideoIndex,
    encoder: QueryEncoder,
    queries: Sequence[str] | None = None,
    *,
    beta: float | None = None,
    progress: bool = True,
) -> bool:
    """Make the bank of an index, or bring the one that it has up to date; return whether anything was written.

    What is not given stays; queries are then not encoded again. Nobody else may be writing to the index. ValueError for
    queries that cannot be a bank, IndexMismatchError if the one at hand was made by another model.
    """
    index.latest()
    known = _read(index)
    if queries is not None:
        check_queries(queries)
        vectors = encode_queries(encoder, queries, dimension=None).astype(np.float32)  # (B, D)
        beta = DEFAULT_BETA if beta is None else beta
    elif known is None or not len(index):
        return False
    else:
        if known.model_fingerprint != index.meta.model_fingerprint:
            raise IndexMismatchError(
                f"query bank: it was made with another model (fingerprint {known.model_fingerprint[:12]}); give its "
                "queries again with --query-bank"
            )
        vectors = known.vectors
        if known.stamp == index.stamp() and beta in {None, known.beta}:
            return False
        beta = known.beta if beta is None else beta
    bank = _summed_up(index, vectors, beta, progress=progress)
    metadata = {"kind": _KIND, "format_version": str(FORMAT_VERSION), "beta": float(bank.beta).hex()}
    metadata |= {"model_fingerprint": bank.model_fingerprint, "stamp": bank.stamp}
    tensors: dict[str, NDArray[Any]] = {"vectors": bank.vectors, "row_ids": bank.row_ids.view(np.int64)}
    tensors |= {"log_normalizer": bank.log_normalizer, "activation": bank.activation}
    index.derived(FILE).parent.mkdir(exist_ok=True)
    with replacing(index.derived(FILE)) as draft:
        save_file(tensors, draft, metadata=metadata)
    return True


def open_bank(index: VideoIndex) -> StoredBank:
    """Return the bank of the version at hand; ValueError where there is none, IndexMismatchError for a stale one."""
    remedy = "run `vidembed index` again with --query-bank FILE, or search without --bank"
    stored = _read(index)
    if stored is None:
        raise ValueError(f"bank: the index has no query bank that can be read; {remedy}")
    if not stored.is_of(index):
        raise IndexMismatchError(f"bank: the query bank was made before the index changed; {remedy}")
    return stored


def facts(index: VideoIndex) -> dict[str, object] | None:
    """Return what `vidembed info` says of the bank of an index, or None where there is none."""
    if not index.derived(FILE).exists():
        return None
    stored = _read(index)
    if stored is None:
        return {"fresh": False, "why_not": "it cannot be read"}
    share = round(float(stored.activation.mean()), 6) if len(stored.row_ids) else 0.0
    fresh = stored.is_of(index)
    return {"queries": len(stored.vectors), "beta": stored.beta, "activated_share": share, "fresh": fresh}


def check_queries(queries: Sequence[str]) -> None:
    """Refuse what cannot be a bank, with ValueError: no queries or too many, or one that is empty or too long."""
    if not 0 < len(queries) <= MAX_QUERIES:
        raise ValueError(f"query bank: got {len(queries)} queries; 1 to {MAX_QUERIES} are needed")
    for number, query in enumerate(queries):
        check_query(query, name=f"query bank: query {number + 1}")


def _summed_up(index: VideoIndex, vectors: NDArray[np.float32], beta: float, *, progress: bool) -> StoredBank:
    """Return the bank of all rows of the version at hand, made without all of their vectors in memory at once."""
    queries = unit(vectors.astype(np.float64))  # (B, D)
    sums, ids = [np.empty(0)], [np.empty(0, dtype=np.uint64)]
    best = np.full(len(queries), -np.inf)  # (B,)
    tops: list[list[int]] = [[] for _ in queries]  # rows at the best of each bank query
    block = max(1, DEFAULT_BLOCK_BYTES // (8 * len(queries)))
    with progress_bar("Query bank", "segments", total=len(index), shown=progress) as bar:
        for rows in index.blocks():
            for first in range(0, len(rows.row_ids), block):
                part = slice(first, first + block)
                # Rounded as the cosines of a search are, so that the same vector ties with itself in any block.
                scores = np.round(queries @ unit(rows.vectors[part].astype(np.float64)).T, 6)  # (B, n)
                row_ids = rows.row_ids[part]
                sums.append(QueryBank(scores, beta=beta).log_normalizer)
                ids.append(row_ids)
                peaks = scores.max(axis=1)  # (B,)
                for number in np.flatnonzero(peaks >= best):
                    if peaks[number] > best[number]:
                        tops[number] = []
                    tops[number] += row_ids[scores[number] == peaks[number]].tolist()
                best = np.maximum(best, peaks)
                bar.update(len(row_ids))
    row_ids = np.concatenate(ids)  # (N,)
    order = np.argsort(row_ids)
    return StoredBank(
        vectors=vectors,
        beta=beta,
        row_ids=row_ids[order],
        log_normalizer=np.concatenate(sums)[order],
        activation=np.isin(row_ids[order], np.array([row for rows in tops for row in rows], dtype=np.uint64)),
        model_fingerprint=index.meta.model_fingerprint,
        stamp=index.stamp(),
    )


def _read(index: VideoIndex) -> StoredBank | None:
    """Read the bank, or return None where there is none or it is damaged."""
    try:
        with safe_open(index.derived(FILE), framework="numpy") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dict
        if metadata["kind"] != _KIND or metadata["format_version"] != str(FORMAT_VERSION):
            return None
        tensors["row_ids"] = tensors["row_ids"].view(np.uint64)
        about = {name: metadata[name] for name in ("model_fingerprint", "stamp")}
        bank = StoredBank(beta=float.fromhex(metadata["beta"]), **tensors, **about)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    return bank if bank.vectors.shape[1] == index.meta.dimension else None
