"""`VideoRerank`: the head of a model looks at what was found once more."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_core.callbacks import Callbacks
from langchain_core.documents import Document
from langchain_core.documents.compressor import BaseDocumentCompressor
from pydantic import Field

from langchain_vidembed.documents import reference_of
from langchain_vidembed.models import OnError
from langchain_vidembed.scoring import RerankerModel


class VideoRerank(RerankerModel, BaseDocumentCompressor):
    """Orders documents by the probability that their video matches the query.

    Args:
        top_n: Most documents to keep. Default all.
        min_score: Leave out documents below this probability, 0 to 1. Default none. Unlike the thresholds of vector
            stores, it means the same with every store.
        on_error: "raise", or "skip" to leave out documents whose video cannot be read (the log names them). A document
            that is no video is an error in both cases.
        model: As of `RerankerModel`, which documents the rest too.
        device: As of `RerankerModel`.
        allowed_schemes: As of `RerankerModel`.
        root: As of `RerankerModel`.
        model_kwargs: As of `RerankerModel`.
        reranker: As of `RerankerModel`.

    Raises:
        ValueError: An option is unknown or out of range (pydantic's `ValidationError`).
    """

    top_n: int | None = Field(default=None, gt=0)
    min_score: float | None = Field(default=None, ge=0, le=1)
    on_error: OnError = "raise"

    def compress_documents(
        self,
        documents: Sequence[Document],
        query: str,
        callbacks: Callbacks | None = None,  # noqa: ARG002 - of the host's signature
    ) -> list[Document]:
        """Rerank documents.

        Args:
            documents: As `VideoLoader` makes them. They are not changed.
            query: Words.
            callbacks: Not used.

        Returns:
            Copies with their score in ``metadata["relevance_score"]`` and their ids as they were, best first; equal
            scores in the order of `documents`.

        Raises:
            NotAVideoError: A document names no video; the message says which.
            ValueError: The query is empty.
            VideoError: A video cannot be read, with ``on_error="raise"``.
        """
        if not query.strip():
            raise ValueError(f"query: got {query!r}; some words are needed")
        if not documents:
            return []
        pairs = [
            {
                "text": query,
                "video": reference_of(document, place, allowed_schemes=self.allowed_schemes, root=self.root).segment(),
            }
            for place, document in enumerate(documents)
        ]
        scores = self._predict(pairs, on_error=self.on_error)
        scored = [
            (float(score), document)
            for score, document in zip(scores.tolist(), documents, strict=True)
            if score is not None and (self.min_score is None or score >= self.min_score)
        ]
        return [
            document.model_copy(update={"metadata": {**document.metadata, "relevance_score": score}})
            for score, document in sorted(scored, key=lambda one: -one[0])[: self.top_n]
        ]
