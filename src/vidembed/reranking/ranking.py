"""One query's documents, ranked: which are asked about, and what the scores are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidembed.reranking.pairs import check_indexed
from vidembed.scoring import MarginPolicy, _checks
from vidembed.scoring._checks import FloatArray


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


Scorer: TypeAlias = Callable[[NDArray[np.intp], FloatArray | None], "Mapping[str, np.ma.MaskedArray[Any, Any]]"]
"""Values (M,) by name of the documents at M positions, "score" among them, those that failed masked; it gets their
similarities (M,) too, or None."""


def rank_documents(
    documents: Sequence[Any],
    score: Scorer,
    *,
    top_k: int | None,
    return_documents: bool,
    first_stage: ArrayLike | None,
    policy: MarginPolicy | None,
) -> Ranking:
    """Rank the documents of one query; `VideoReranker.rank` documents the arguments.

    Raises:
        ValueError: `top_k` is below 1, `first_stage` is not one finite number a document, or `policy` lacks what it
            needs.
    """
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k={top_k}: at least 1, or None for all documents.")
    if policy is not None and (first_stage is None or top_k is None):
        raise ValueError("policy: it tells from first_stage which documents can enter the top_k; give both.")
    check_indexed("documents", documents)
    count = len(documents)
    if not count:
        return Ranking([], asked=0, candidates=0)
    asked, similarity = np.arange(count), None
    if first_stage is not None:
        similarity = _checks.vector("first_stage", first_stage, length=count)
        if policy is not None and top_k is not None:
            asked = np.flatnonzero(policy.asked(similarity, top_k=top_k))  # (M,)
        similarity = similarity[asked]
    found = score(asked, similarity)
    scores = found["score"]  # (M,)

    results: list[dict[str, Any]] = []
    for place in sorted(np.flatnonzero(~np.ma.getmaskarray(scores)), key=lambda place: -float(scores[place])):
        corpus_id = int(asked[place])
        result: dict[str, Any] = {"corpus_id": corpus_id, **{name: float(each[place]) for name, each in found.items()}}
        if return_documents:
            result["document"] = documents[corpus_id]
            if isinstance(documents[corpus_id], str):
                result["text"] = documents[corpus_id]
        results.append(result)
    return Ranking(results[:top_k], asked=len(asked), candidates=count)
