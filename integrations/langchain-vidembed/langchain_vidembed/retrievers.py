"""`VideoRetriever`: a vector store, and a reranker behind it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.documents.compressor import BaseDocumentCompressor
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from pydantic import ConfigDict, Field, model_validator

from langchain_vidembed.config import RetrieverConfig
from langchain_vidembed.embeddings import VideoEmbeddings


class VideoRetriever(BaseRetriever):
    """Finds videos by words: `fetch_k` from the store, the best `k` of them by the reranker.

    Args:
        vectorstore: With `VideoEmbeddings`.
        reranker: As a rule a `VideoRerank`. Default none: then the store's own `k` best are returned.
        k: Documents to return. Default 4. With a reranker they can be fewer, if it leaves some out.
        fetch_k: Documents to rerank, at least `k`. Default 4 times `k`. Not used without a reranker.
        search_kwargs: More arguments of the store's ``similarity_search``, such as ``filter``.

    Raises:
        ValueError: An option is unknown or out of range (pydantic's `ValidationError`).

    `invoke` and `ainvoke` take `k` and `fetch_k` too, for one query.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    vectorstore: VectorStore
    reranker: BaseDocumentCompressor | None = None
    k: int = Field(default=4, gt=0)
    fetch_k: int | None = Field(default=None, gt=0)
    search_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._fetched(self.k, self.fetch_k)
        if "k" in self.search_kwargs:
            raise ValueError("search_kwargs: 'k' has a field of its own; give k")
        return self

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | str | os.PathLike[str],
        *,
        embeddings: VideoEmbeddings | None = None,
    ) -> Self:
        """Make a retriever from plain configuration.

        Args:
            config: What `langchain_vidembed.config.RetrieverConfig` documents, or the name of a YAML file of it.
            embeddings: Loaded already, in the place of ``model``.

        Raises:
            ValueError: The configuration is malformed, or holds an unknown key; the message names it.
            ImportError: What the store needs is not installed; the message says what to install.
            OSError: The file cannot be read.
        """
        settings = RetrieverConfig.read(config)
        if embeddings is not None and "model" in settings.model_fields_set:
            raise ValueError("model: embeddings are given and loaded already; leave model out of the configuration")
        embeddings = embeddings or settings.make_embeddings()
        return cls(
            vectorstore=settings.make_store(embeddings),
            reranker=settings.make_reranker(embeddings),
            k=settings.k,
            fetch_k=settings.fetch_k,
            search_kwargs=settings.search_kwargs,
        )

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        fetch_k: int | None = None,
    ) -> list[Document]:
        k, count = self._counts(query, k, fetch_k)
        found = _with_ids(self.vectorstore.similarity_search(query, k=count, **self.search_kwargs))
        if self.reranker is not None:
            found = self.reranker.compress_documents(found, query, callbacks=run_manager.get_child())
        return list(found)[:k]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        fetch_k: int | None = None,
    ) -> list[Document]:
        k, count = self._counts(query, k, fetch_k)
        found = _with_ids(await self.vectorstore.asimilarity_search(query, k=count, **self.search_kwargs))
        if self.reranker is not None:
            found = await self.reranker.acompress_documents(found, query, callbacks=run_manager.get_child())
        return list(found)[:k]

    def _counts(self, query: str, k: int | None, fetch_k: int | None) -> tuple[int, int]:
        if not query.strip():
            raise ValueError(f"query: got {query!r}; some words are needed")
        if k is not None and k < 1:
            raise ValueError(f"k={k}: at least 1 is needed")
        wanted = self.k if k is None else k
        if fetch_k is None and self.fetch_k is not None:
            fetch_k = max(self.fetch_k, wanted)
        return wanted, self._fetched(wanted, fetch_k)

    def _fetched(self, k: int, fetch_k: int | None) -> int:
        if fetch_k is not None and fetch_k < k:
            raise ValueError(f"fetch_k={fetch_k}: it must be at least k={k}")
        return k if self.reranker is None else fetch_k or 4 * k


def _with_ids(documents: Sequence[Document]) -> Sequence[Document]:
    """Return the documents with their ids, which langchain-qdrant leaves in the metadata alone."""
    return [
        document.model_copy(update={"id": document.metadata["_id"]})
        if document.id is None and "_id" in document.metadata
        else document
        for document in documents
    ]
