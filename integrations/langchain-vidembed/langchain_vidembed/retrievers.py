"""`VideoRetriever`: a vector store, and a reranker behind it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.documents.compressor import BaseDocumentCompressor
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableConfig
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from pydantic import ConfigDict, Field, model_validator

from langchain_vidembed.config import RetrieverConfig
from langchain_vidembed.embeddings import VideoEmbeddings

_OWN: Final = frozenset({"k", "fetch_k", "search_type", "search_kwargs"})
MMR_FETCH_K: Final = 20
"""LangChain's own default of how many documents "mmr" chooses from."""


class VideoRetriever(BaseRetriever):
    """Finds videos by words: `fetch_k` from the store, the best `k` of them by the reranker.

    Args:
        vectorstore: With `VideoEmbeddings`.
        reranker: As a rule a `VideoRerank`. Default none: then the store's own `k` best are returned.
        k: Documents to return. Default 4. With a reranker they can be fewer, if it leaves some out.
        fetch_k: Documents to rerank, at least `k`. Default 4 times `k`. Without a reranker, how many documents "mmr"
            chooses from, as in LangChain; default 20.
        search_type: "similarity" (default), "mmr" or "similarity_score_threshold", as `VectorStore.as_retriever` takes.
        search_kwargs: More arguments of the store's search, as `VectorStore.as_retriever` takes: ``filter``,
            ``score_threshold``, ``lambda_mult``; ``fetch_k`` is always how many documents "mmr" chooses from, and ``k``
            sets `k`.

    Raises:
        ValueError: An option is unknown or out of range (pydantic's `ValidationError`).

    `invoke` and `ainvoke` take for one query `k` and `fetch_k` too, and all that `search_kwargs` takes, which they go
    before.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    vectorstore: VectorStore
    reranker: BaseDocumentCompressor | None = None
    k: int = Field(default=4, gt=0)
    fetch_k: int | None = Field(default=None, gt=0)
    search_type: str = "similarity"
    search_kwargs: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _take_k(cls, fields: dict[str, Any]) -> dict[str, Any]:
        search_kwargs = dict(fields.get("search_kwargs") or {})
        if "k" not in search_kwargs:
            return fields
        k = search_kwargs.pop("k")
        if fields.get("k", k) != k:
            raise ValueError(f"search_kwargs: its 'k' is {k}, and k={fields['k']} is given too; give one of them")
        return {**fields, "k": k, "search_kwargs": search_kwargs}

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._fetched(self.k, self.fetch_k)
        self._search(self.k, self.fetch_k)  # raises if the search type is unknown, or lacks its threshold
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
            raise ValueError("model: embeddings are already loaded; leave model out of the configuration")
        embeddings = embeddings or settings.make_embeddings()
        return cls(
            vectorstore=settings.make_store(embeddings),
            reranker=settings.make_reranker(embeddings),
            **{name: getattr(settings, name) for name in _OWN & settings.model_fields_set},
        )

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        fetch_k: int | None = None,
        **search_kwargs: Any,
    ) -> list[Document]:
        k, count = self._counts(query, k, fetch_k)
        child: RunnableConfig = {"callbacks": run_manager.get_child()}
        found = _with_ids(self._search(count, fetch_k or self.fetch_k, **search_kwargs).invoke(query, child))
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
        **search_kwargs: Any,
    ) -> list[Document]:
        k, count = self._counts(query, k, fetch_k)
        child: RunnableConfig = {"callbacks": run_manager.get_child()}
        found = _with_ids(await self._search(count, fetch_k or self.fetch_k, **search_kwargs).ainvoke(query, child))
        if self.reranker is not None:
            found = await self.reranker.acompress_documents(found, query, callbacks=run_manager.get_child())
        return list(found)[:k]

    def _search(self, count: int, fetch_k: int | None, **search_kwargs: Any) -> VectorStoreRetriever:
        """The store's own retriever, of so many documents."""
        search_kwargs = {**self.search_kwargs, **search_kwargs, "k": count}
        if self.search_type == "mmr":
            if fetch_k is not None and self.reranker is None:  # with a reranker, it is how many that looks at
                search_kwargs["fetch_k"] = fetch_k
            search_kwargs.setdefault("fetch_k", max(count, MMR_FETCH_K))
        return self.vectorstore.as_retriever(search_type=self.search_type, search_kwargs=search_kwargs)

    def _counts(self, query: str, k: int | None, fetch_k: int | None) -> tuple[int, int]:
        if not query.strip():
            raise ValueError(f"query: got {query!r}; give some words")
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
    """Return the documents with their ids, which langchain-qdrant and langchain-milvus leave in the metadata alone."""
    return [
        document.model_copy(update={"id": document.metadata.get("_id", document.metadata.get("pk"))})
        if document.id is None
        else document
        for document in documents
    ]
