"""The plain configuration of a `VideoRetriever`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from langchain_core.vectorstores import VectorStore
from pydantic import BaseModel, ConfigDict, Field, ImportString, field_validator, model_validator

from langchain_vidembed import stores
from langchain_vidembed.embeddings import VideoEmbeddings
from langchain_vidembed.rerank import VideoRerank


class StoreConfig(BaseModel):
    """Which vector store, and where.

    Attributes:
        kind: ``chroma``, ``qdrant``, ``faiss`` or ``in_memory``; or the import path of any class of vector stores, such
            as ``langchain_milvus.Milvus``, which is made with `settings` and the embeddings. Importing runs code: take
            configuration only from people you trust.
        collection: Name of the collection, at least 3 characters; for chroma and qdrant. Default ``videos``.
        path: Folder that it is kept in, needed for chroma; for in_memory a file that `InMemoryVectorStore.dump` wrote.
            Default only in memory.
        url: Of a server, for qdrant, in the place of `path`.
        allow_dangerous_deserialization: For faiss with a `path` that exists: LangChain keeps part of it as a pickle,
            which can run any code when it is read. Say true for folders that you wrote yourself.
        settings: More arguments of LangChain's class.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["chroma", "qdrant", "faiss", "in_memory"] | ImportString[type[VectorStore]]
    collection: str = Field(default="videos", min_length=3)
    path: Path | None = None
    url: str | None = None
    allow_dangerous_deserialization: bool = False
    settings: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        if not isinstance(self.kind, str) and (given := self.model_fields_set - {"kind", "settings"}):
            raise ValueError(
                f"{', '.join(sorted(given))}: not for {self.kind.__name__}; give its arguments as settings"
            )
        return self


class RetrieverConfig(BaseModel):
    """What `VideoRetriever.from_config` takes.

    Attributes:
        store: A kind of store, or the fields of `StoreConfig`.
        model: Name of the model, or the fields of `VideoEmbeddings`. Default its own.
        k: As of `VideoRetriever`.
        fetch_k: As of `VideoRetriever`.
        rerank: False (default) for none; true for the reranker that goes with the model
            (`VideoRerank.from_embeddings`); the name of one; or the fields of `VideoRerank`.
        search_type: As of `VideoRetriever`.
        search_kwargs: As of `VideoRetriever`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    store: StoreConfig
    model: str | dict[str, Any] | None = None
    k: int = Field(default=4, gt=0)
    fetch_k: int | None = Field(default=None, gt=0)
    rerank: bool | str | dict[str, Any] = False
    search_type: str = "similarity"
    search_kwargs: dict[str, Any] = Field(default_factory=dict)

    @field_validator("store", mode="before")
    @classmethod
    def _named(cls, store: Any) -> Any:
        return {"kind": store} if isinstance(store, str) else store

    @classmethod
    def read(cls, config: Mapping[str, Any] | str | os.PathLike[str]) -> Self:
        """Read a mapping, or a YAML file.

        Raises:
            ValueError: It is malformed.
            OSError: The file cannot be read.
        """
        if isinstance(config, Mapping):
            return cls.model_validate(dict(config))
        try:
            found = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"config: {os.fspath(config)!r} is not valid YAML: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"config: {os.fspath(config)!r} holds {type(found).__name__}; expected a mapping")  # noqa: TRY004
        return cls.model_validate(found)

    def make_embeddings(self) -> VideoEmbeddings:
        """Load the embeddings."""
        if self.model is None:
            return VideoEmbeddings()
        return VideoEmbeddings(**({"model": self.model} if isinstance(self.model, str) else self.model))

    def make_store(self, embeddings: VideoEmbeddings) -> VectorStore:
        """Open the store, or make an empty one."""
        store = self.store
        if store.kind == "chroma":
            return stores.chroma(embeddings, store.collection, store.path, **store.settings)
        if store.kind == "qdrant":
            return stores.qdrant(embeddings, store.collection, store.path, store.url, **store.settings)
        if store.kind == "faiss":
            trusted = store.allow_dangerous_deserialization
            return stores.faiss(embeddings, store.path, allow_dangerous_deserialization=trusted, **store.settings)
        if store.kind == "in_memory":
            return stores.in_memory(embeddings, store.path, **store.settings)
        return stores.of_class(store.kind, embeddings, **store.settings)

    def make_reranker(self, embeddings: VideoEmbeddings) -> VideoRerank | None:
        """Load the reranker, if there is to be one."""
        if self.rerank is False:
            return None
        if self.rerank is True:
            return VideoRerank.from_embeddings(embeddings)
        fields = {"model": self.rerank} if isinstance(self.rerank, str) else self.rerank
        if {"model", "reranker"} & set(fields):
            return VideoRerank(**{"allowed_schemes": embeddings.allowed_schemes, "root": embeddings.root, **fields})
        return VideoRerank.from_embeddings(embeddings, **fields)
