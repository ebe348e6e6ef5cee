"""`VideoRerank`: the head of a model looks at what was found once more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import Callbacks
from langchain_core.documents import Document
from langchain_core.documents.compressor import BaseDocumentCompressor
from vidembed.adapters import RankFields, fuses, rank_documents
from vidembed.video import VideoSegment

from langchain_vidembed.scoring import RerankerModel


class VideoRerank(RankFields, RerankerModel, BaseDocumentCompressor):
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
        **fields: Those of `langchain_vidembed.scoring.RerankerModel`.

    Raises:
        ValueError: An option is unknown or out of range (pydantic's `ValidationError`).
    """

    def model_post_init(self, context: Any, /) -> None:
        """Load the model, and check that it can do what is asked for."""
        super().model_post_init(context)
        fuses(self.reranker, self.fuse)

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
            raise ValueError(f"query: got {query!r}; give some words")
        found = rank_documents(self.reranker, query, documents, self._video_of, self, name_of=_no_video)
        return [*(_scored(document, scores) for document, scores in found.ranked), *found.others][: self.top_n]

    def _video_of(self, document: Document) -> VideoSegment | None:
        found = self.video_in(document.page_content)
        return None if found is None else found.segment()


def _no_video(place: int, document: Document) -> str:
    shown = document.page_content[:80] + ("..." if len(document.page_content) > 80 else "")
    named = f" (id {document.id!r})" if document.id else ""
    return (
        f"documents[{place}]{named} is not a video: its text is {shown!r}; expected a video URI such as "
        "video+file:///abs/a.mp4#t=10,20. Make documents with VideoLoader, and rerank texts separately."
    )


def _scored(document: Document, scores: dict[str, float]) -> Document:
    """A copy with the numbers of a ranking in its metadata."""
    named = {"relevance_score" if name == "score" else name: value for name, value in scores.items()}
    metadata = {**document.metadata, **named}
    return document.model_copy(update={"metadata": metadata})
