"""`VideoRerank`: the head of a model looks at what was found once more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from langchain_core.callbacks import Callbacks
from langchain_core.documents import Document
from langchain_core.documents.compressor import BaseDocumentCompressor
from pydantic import Field

from langchain_vidembed.documents import reference_of, video_of
from langchain_vidembed.models import OnError
from langchain_vidembed.scoring import RerankerModel


class VideoRerank(RerankerModel, BaseDocumentCompressor):
    """Orders documents by the probability that their video matches the query.

    Where the reranker was calibrated together with a first stage, as the bundled one is, the probability is made of the
    head's answer and of the similarity. The reranker finds the similarity itself, in the same pass over the video: the
    scores of vector stores have scales of their own, and are not used. The documents of a call are compared with each
    other, so give all candidates at once.

    Args:
        top_n: Most documents to keep. Default all.
        min_score: Leave out documents below this probability, 0 to 1. Default none. Unlike the thresholds of vector
            stores, it means the same with every store.
        fuse: Whether to use the similarity. Default (None) wherever the reranker can; False for the head alone.
        on_error: "raise", or "skip" to leave out documents whose video cannot be read (the log names them).
        not_video: What happens to a document that names no video: "raise"; "keep" to let it follow the videos, without
            a score and in its place among such documents; "drop" to leave it out.
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
    fuse: bool | None = None
    on_error: OnError = "raise"
    not_video: Literal["raise", "keep", "drop"] = "raise"

    def model_post_init(self, context: Any, /) -> None:
        """Load the model, and check that it can do what is asked for."""
        super().model_post_init(context)
        self._fuses(self.fuse)

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
            scores in the order of `documents`. Where the score is fused, the metadata hold its parts too:
            ``similarity`` (cosine) and ``match`` (the head's own probability).

        Raises:
            NotAVideoError: A document names no video, with ``not_video="raise"``; the message says which.
            ValueError: The query is empty.
            VideoError: A video cannot be read, with ``on_error="raise"``.
        """
        if not query.strip():
            raise ValueError(f"query: got {query!r}; some words are needed")
        gate: dict[str, Any] = {"allowed_schemes": self.allowed_schemes, "root": self.root}
        videos: list[tuple[Document, Any]] = []
        others: list[Document] = []
        for place, document in enumerate(documents):
            if self.not_video != "raise" and video_of(document.page_content, **gate) is None:
                others.append(document)
            else:
                videos.append((document, reference_of(document, place, **gate).segment()))
        found = []
        if videos:
            segments = [segment for _, segment in videos]
            found = self._rank(query, segments, fuse=self._fuses(self.fuse), on_error=self.on_error)
        ranked = [
            _scored(videos[each["corpus_id"]][0], each)
            for each in found
            if self.min_score is None or each["score"] >= self.min_score
        ]
        if self.not_video == "keep":
            ranked += others
        return ranked[: self.top_n]


def _scored(document: Document, found: dict[str, Any]) -> Document:
    """A copy with the numbers of a ranking in its metadata."""
    parts = {name: found[name] for name in ("similarity", "match") if name in found}
    return document.model_copy(update={"metadata": {**document.metadata, **parts, "relevance_score": found["score"]}})
