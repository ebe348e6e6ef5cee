"""Words against the vectors of an index: cosine similarity, exact unless the result says otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vidembed.index.retrieval import ann, compact
from vidembed.index.retrieval.bank import open_bank
from vidembed.index.retrieval.exact import Row, rank
from vidembed.index.retrieval.filters import Filter, batches
from vidembed.index.retrieval.measure import recall_at
from vidembed.index.retrieval.query import MAX_QUERY_CHARS, check_query, encode_queries, unit_queries

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vidembed.index.protocols import QueryEncoder
    from vidembed.index.store import VideoIndex

__all__ = ["MAX_QUERY_CHARS", "Hit", "Hits", "Method", "check_query", "nearest", "search", "search_many"]

MAX_QUERIES = 10_000


@dataclass(frozen=True, slots=True)
class Hit:
    """A segment that a search found.

    Attributes:
        uri: `file://` URI of the video.
        start_s: Where the segment starts, seconds.
        end_s: Where it ends, seconds.
        score: Cosine similarity to the query, -1 to 1, rounded to six decimals. Always that of the stored vector.
        probability: That the segment matches the query, 0 to 1, if a reranker was asked about it.
        normalized: Score by the query bank, up to 0, if hits are ordered by it.
        recall: Measured recall of the search that found it, if that was approximate.
    """

    uri: str
    start_s: float
    end_s: float
    score: float
    probability: float | None = None
    normalized: float | None = None
    recall: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the hit as it stands in JSON; without what there is not, and `approximate` where it is."""
        fields = {key: value for key, value in asdict(self).items() if value is not None}
        return fields | ({"approximate": True} if self.recall is not None else {})


@dataclass(frozen=True, slots=True)
class Method:
    """How hits were found.

    Attributes:
        name: `exact`, `ann`, or `compact` and the name of the copy, such as `compact int8`.
        rows: Rows in the index.
        recall: Measured recall against the exact search, if approximate.
        recall_at: The number of hits that it was measured at: the next of 10 and 100.
        sample: Queries of the measurement: stored vectors, moved (`vidembed.index.retrieval.measure.draw`).
        query_bank: Whether hits are ordered by the query bank. With a bank, False says that it has nothing to correct.
    """

    name: str
    rows: int
    recall: float | None = None
    recall_at: int | None = None
    sample: int | None = None
    query_bank: bool | None = None

    @property
    def approximate(self) -> bool:
        """Whether a hit may be missing."""
        return self.recall is not None

    def to_dict(self) -> dict[str, Any]:
        """Return it as it stands in JSON."""
        fields = {key: value for key, value in asdict(self).items() if value is not None}
        return {"approximate": self.approximate, **fields}


class Hits(list[Hit]):
    """The hits of a query, best first, and how they were found.

    Attributes:
        method: How.
    """

    def __init__(self, hits: Iterable[Hit], method: Method) -> None:
        """Wrap hits."""
        super().__init__(hits)
        self.method = method


def search(
    index: VideoIndex,
    encoder: QueryEncoder,
    query: str,
    *,
    k: int = 10,
    name: str = "this model",
    exact: bool = False,
    keep: Filter | None = None,
    copy: str | None = None,
    bank: bool = False,
) -> Hits:
    """Return the `k` segments nearest to `query`, best first.

    The order is total: by score as printed, then URI, then start. Every row is looked at, unless the index has more
    rows than the threshold that it was built with and an ANN index of measured recall, or `copy` is given:
    `Hits.method` says which it was.

    Args:
        index: Where to look.
        encoder: The model that made the index.
        query: Words. Text that looks like a path is still words.
        k: Most hits to return, at least 1.
        name: What the model was loaded as, for messages.
        exact: Look at every row, whatever the number.
        keep: Which rows may be hits. Such a search is exact.
        copy: Search this compact copy first, such as `int8`, and rescore what it brings.
        bank: Normalize scores by the query bank of the index. Such a search is exact.

    Raises:
        ValueError: The query is empty or longer than `MAX_QUERY_CHARS`, `k` is out of range, options do not go
            together, or the index has no such copy or no bank.
        IndexMismatchError: The index, the copy or the bank was made by another model or of another state of the index.
        RuntimeError: The model gave no usable vector for the query.
    """
    check_query(query, k)
    check_options(k=k, exact=exact, keep=keep, copy=copy, bank=bank)
    index.meta.require_model(encoder.fingerprint, encoder.fingerprint_fields(), name=name)
    # A dict, since a bare string could be taken for the path of a video.
    vector = np.asarray(encoder.encode_query({"text": query}), dtype=np.float64).reshape(-1)  # (D,)
    return nearest(index, vector, k=k, exact=exact, keep=keep, copy=copy, bank=bank)


def search_many(
    index: VideoIndex,
    encoder: QueryEncoder,
    queries: Sequence[str],
    *,
    k: int = 10,
    name: str = "this model",
    exact: bool = False,
    keep: Filter | None = None,
    copy: str | None = None,
    bank: bool = False,
) -> list[Hits]:
    """Search many queries: encoded in one call, and where the search is exact, the vectors are read once for all.

    Args:
        index: As for `search`.
        encoder: As for `search`.
        queries: At least one, at most `MAX_QUERIES`.
        k: As for `search`.
        name: As for `search`.
        exact: As for `search`.
        keep: As for `search`.
        copy: As for `search`.
        bank: As for `search`.

    Returns:
        The hits of each query, in order.

    Raises:
        ValueError: As for `search`; the message says which query.
        IndexMismatchError: As for `search`.
        RuntimeError: As for `search`.
    """
    if not 0 < len(queries) <= MAX_QUERIES:
        raise ValueError(f"queries: got {len(queries)}; 1 to {MAX_QUERIES} are taken at once")
    for number, query in enumerate(queries):
        check_query(query, k, name=f"queries[{number}]")
    check_options(k=k, exact=exact, keep=keep, copy=copy, bank=bank)
    index.meta.require_model(encoder.fingerprint, encoder.fingerprint_fields(), name=name)
    vectors = encode_queries(encoder, queries, dimension=index.meta.dimension)
    return _nearest(index, vectors, k=k, exact=exact, keep=keep, copy=copy, bank=bank)


def check_options(*, k: int, exact: bool, keep: Filter | None, copy: str | None, bank: bool) -> None:
    """Refuse options that do not go together; cheap, so it can come before the model is loaded.

    Raises:
        ValueError: They do not.
    """
    if copy is None:
        return
    compact.check_k(k)
    others = {"exact": exact, "a filter": keep is not None and keep.any, "bank": bank}
    if clash := next((other for other, given in others.items() if given), None):
        raise ValueError(f"compact: got {copy!r} together with {clash}, which needs every row; leave one of them out")


def nearest(
    index: VideoIndex,
    vector: NDArray[np.float64],
    *,
    k: int,
    exact: bool = False,
    keep: Filter | None = None,
    copy: str | None = None,
    bank: bool = False,
) -> Hits:
    """Return the `k` segments whose vectors have the highest cosine with `vector`, best first.

    Args:
        index: Where to look.
        vector: Shape (D,).
        k: Most hits to return, at least 1.
        exact: As for `search`.
        keep: As for `search`.
        copy: As for `search`.
        bank: As for `search`.

    Raises:
        ValueError: As for `search`.
        IndexMismatchError: As for `search`.
        RuntimeError: `vector` is of another length than those of the index, not finite, or zero.
    """
    check_options(k=k, exact=exact, keep=keep, copy=copy, bank=bank)
    queries = unit_queries(np.asarray(vector, dtype=np.float64)[None], index.meta.dimension)  # (1, D)
    return _nearest(index, queries, k=k, exact=exact, keep=keep, copy=copy, bank=bank)[0]


def _nearest(
    index: VideoIndex,
    queries: NDArray[np.float64],
    *,
    k: int,
    exact: bool,
    keep: Filter | None,
    copy: str | None,
    bank: bool,
) -> list[Hits]:
    """Search for unit vectors, shape (Q, D). All is read of one version of the table."""
    index.latest()
    method = Method("exact", len(index))
    filtered = keep is not None and keep.any
    if bank:
        results = []
        for rows, normalized in open_bank(index).rank(index, queries, k=k, keep=keep):
            hits = _hits(rows, replace(method, query_bank=normalized is not None))
            if normalized is not None:
                hits[:] = [
                    replace(hit, normalized=round(value, 6)) for hit, value in zip(hits, normalized, strict=True)
                ]
            results.append(hits)
        return results
    if copy is not None:
        opened = compact.open_compact(index, copy)
        at, recall = recall_at(opened.recall, k)
        method = Method(f"compact {copy}", len(index), recall, at, int(opened.record["sample"]))
        found = opened.find(index, queries, k)
    elif not exact and not filtered and (built := ann.usable(index, k)) is not None:
        at, recall = recall_at(built.recall, k)
        method = Method("ann", len(index), recall, at, built.sample)
        found = [built.find(index, query, k) for query in queries]
    else:
        found = rank(batches(index, keep), queries, k=k)
    return [_hits(rows, method) for rows in found]


def _hits(rows: Iterable[Row], method: Method) -> Hits:
    return Hits((Hit(row.uri, row.start_s, row.end_s, row.score, recall=method.recall) for row in rows), method)
