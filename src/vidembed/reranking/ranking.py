"""One query's documents, ranked: which are asked about, and what the scores are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from vidembed.scoring import MarginPolicy, _checks, similarity_gaps
from vidembed.scoring._checks import FloatArray
from vidembed.scoring._logistic import sigmoid

if TYPE_CHECKING:
    from vidembed.reranker import VideoReranker


class Ranking(list[dict[str, Any]]):
    """The result of `VideoReranker.rank`: a list of dicts, best first.

    Attributes:
        asked: Documents that the head was asked about.
        candidates: Documents given.
    """

    def __init__(self, results: Sequence[dict[str, Any]], *, asked: int, candidates: int) -> None:
        super().__init__(results)
        self.asked = asked
        self.candidates = candidates

    @property
    def passes_saved(self) -> int:
        """Documents that the policy left out."""
        return self.candidates - self.asked


def rank_documents(
    reranker: VideoReranker,
    query: Any,
    documents: Sequence[Any],
    *,
    top_k: int | None,
    return_documents: bool,
    first_stage: ArrayLike | None,
    policy: MarginPolicy | None,
    **kwargs: Any,
) -> Ranking:
    """`VideoReranker.rank`, which documents the arguments."""
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}: at least 1, or None for all documents.")
    if policy is not None and (first_stage is None or top_k is None):
        raise ValueError("policy: it tells from first_stage which documents can enter the top_k; give both.")
    count = len(documents)
    if not count:
        return Ranking([], asked=0, candidates=0)
    similarity = None if first_stage is None else _checks.vector("first_stage", first_stage, length=count)
    asked = np.arange(count)
    if policy is not None and similarity is not None and top_k is not None:
        asked = np.flatnonzero(policy.asked(similarity, top_k=top_k))  # (M,)

    fused = similarity is not None and reranker.fusion is not None
    if fused and "activation_fn" in kwargs:
        raise ValueError("activation_fn: a fused score is a probability already; leave first_stage or this out.")
    pairs = [(query, documents[index]) for index in asked.tolist()]
    if fused and similarity is not None and reranker.fusion is not None:
        scores = _fused(reranker, pairs, similarity_gaps(similarity)[asked], **kwargs)
    else:
        scores = np.ma.asarray(reranker.predict(pairs, **kwargs))
    missing = np.ma.getmaskarray(scores)  # (M,)

    results: list[dict[str, Any]] = []
    for place in sorted(np.flatnonzero(~missing), key=lambda place: -float(scores[place])):
        corpus_id = int(asked[place])
        result: dict[str, Any] = {"corpus_id": corpus_id, "score": float(scores[place])}
        if return_documents:
            result["document"] = documents[corpus_id]
            if isinstance(documents[corpus_id], str):
                result["text"] = documents[corpus_id]
        results.append(result)
    return Ranking(results[:top_k], asked=len(asked), candidates=count)


def _fused(reranker: VideoReranker, pairs: list[Any], gaps: FloatArray, **kwargs: Any) -> np.ma.MaskedArray:
    odds = reranker._log_odds(pairs, **kwargs)  # (M,)
    missing = np.isnan(odds)
    scores = np.zeros(len(pairs))
    if not missing.all() and reranker.fusion is not None:
        scores[~missing] = sigmoid(reranker.fusion.fused_log_odds(odds[~missing], gaps[~missing]))
    return np.ma.MaskedArray(scores, mask=missing)
