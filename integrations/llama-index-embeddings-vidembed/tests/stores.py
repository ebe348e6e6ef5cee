"""The stores that round trips run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chromadb
import faiss
import qdrant_client
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index.vector_stores.faiss import FaissVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore

KINDS = ["chroma", "qdrant"]


def open_store(kind: str, place: Path) -> BasePydanticVectorStore:
    """Open a store that is kept in a folder, or make it."""
    if kind == "chroma":
        client = chromadb.PersistentClient(str(place))
        return ChromaVectorStore(chroma_collection=client.get_or_create_collection("videos"))
    return QdrantVectorStore(client=qdrant_client.QdrantClient(path=str(place)), collection_name="videos")


def close_store(store: Any) -> None:
    """Let go of what keeps another process out."""
    if isinstance(store, QdrantVectorStore):
        store.client.close()


def faiss_store(dimensions: int) -> FaissVectorStore:
    """Make an empty store in memory."""
    return FaissVectorStore(faiss_index=faiss.IndexFlatIP(dimensions))
