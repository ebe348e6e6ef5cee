"""Vector stores opened, or made, for vectors of one length whose cosine counts.

LangChain's defaults differ: Chroma and FAISS measure the distance, which orders unit vectors alike, but gives other
scores.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any, Final, cast

from langchain_core.vectorstores import InMemoryVectorStore, VectorStore

from langchain_vidembed.embeddings import VideoEmbeddings

EMBEDDINGS_ARGUMENTS: Final = ("embedding", "embeddings", "embedding_function")
"""What LangChain's stores call the argument that takes embeddings."""


def chroma(embeddings: VideoEmbeddings, collection: str, path: Path | None, **settings: Any) -> VectorStore:
    """Open or make a Chroma collection, kept in the folder `path`, or where the settings say.

    Raises:
        ValueError: Neither says where. Chroma would keep it in memory, where all of a process share it by its name.
    """
    if path is None and not {"client", "client_settings", "host", "chroma_cloud_api_key"} & set(settings):
        raise ValueError("store: path is missing; Chroma needs a folder, or settings with a host; or use in_memory")
    store = _imported("langchain_chroma", "chroma").Chroma
    where = {} if path is None else {"persist_directory": str(path)}
    how = {"collection_configuration": {"hnsw": {"space": "cosine"}}, **where, **settings}
    return cast("VectorStore", store(collection, embedding_function=embeddings, **how))


def qdrant(
    embeddings: VideoEmbeddings, collection: str, path: Path | None, url: str | None, **settings: Any
) -> VectorStore:
    """Open or make a Qdrant collection: in the folder `path`, on the server `url`, or in memory only.

    Raises:
        ValueError: Both are given.
    """
    if path is not None and url is not None:
        raise ValueError("store: path and url are given; give one of them")
    client_module = _imported("qdrant_client", "qdrant")
    store = _imported("langchain_qdrant", "qdrant").QdrantVectorStore
    where = {"url": url} if url is not None else {"path": str(path)} if path is not None else {"location": ":memory:"}
    client = client_module.QdrantClient(**where)
    if not client.collection_exists(collection):
        size = dimension(embeddings)
        models = client_module.models
        client.create_collection(collection, models.VectorParams(size=size, distance=models.Distance.COSINE))
    return cast("VectorStore", store(client, collection, embeddings, **settings))


def faiss(
    embeddings: VideoEmbeddings, path: Path | None, *, allow_dangerous_deserialization: bool, **settings: Any
) -> VectorStore:
    """Read a FAISS store from the folder `path`, or make an empty one in memory; ``save_local`` writes it.

    Raises:
        ValueError: The folder exists, and reading a pickle from it was not allowed.
    """
    store = _imported("langchain_community.vectorstores", "faiss").FAISS
    if path is not None and path.exists():
        trusted = allow_dangerous_deserialization
        return cast(
            "VectorStore",
            store.load_local(str(path), embeddings, allow_dangerous_deserialization=trusted, **settings),
        )
    docstore = _imported("langchain_community.docstore.in_memory", "faiss").InMemoryDocstore()
    index = _imported("faiss", "faiss").IndexFlatL2(dimension(embeddings))
    return cast("VectorStore", store(embeddings, index, docstore, {}, **settings))


def in_memory(embeddings: VideoEmbeddings, path: Path | None, **settings: Any) -> VectorStore:
    """Read an `InMemoryVectorStore` from a file that its ``dump`` wrote, or make an empty one."""
    if path is not None and path.exists():
        return InMemoryVectorStore.load(str(path), embeddings, **settings)
    return InMemoryVectorStore(embeddings, **settings)


def of_class(store: type[VectorStore], embeddings: VideoEmbeddings, **settings: Any) -> VectorStore:
    """Make a store of any class, with the embeddings as whichever of `EMBEDDINGS_ARGUMENTS` it takes.

    Raises:
        ValueError: It takes none of them, or several.
    """
    taken = [name for name in EMBEDDINGS_ARGUMENTS if name in inspect.signature(store).parameters]
    if len(taken) != 1:
        raise ValueError(
            f"store: {store.__name__} takes {' and '.join(taken) or 'no embeddings'}; one of "
            f"{', '.join(EMBEDDINGS_ARGUMENTS)} is needed. Or make the store yourself and pass "
            f"VideoRetriever(vectorstore=...)."
        )
    return store(**{taken[0]: embeddings}, **settings)


def dimension(embeddings: VideoEmbeddings) -> int:
    """Return the length of the vectors."""
    return int(embeddings.encoder.get_embedding_dimension() or len(embeddings.embed_query("length")))


def _imported(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"store: {extra} needs {module.partition('.')[0]}, which is not installed; pip install "
            f"'langchain-vidembed[{extra}]'"
        ) from error
