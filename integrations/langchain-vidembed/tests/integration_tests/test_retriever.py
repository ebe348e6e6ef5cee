from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import ValidationError
from vidembed import VideoReranker

from langchain_vidembed import VIDEO_PROMPT, VideoEmbeddings, VideoLoader, VideoRerank, VideoRetriever
from tests.conftest import RECORDS

QUERY = RECORDS[4].summary


class SpyStore(InMemoryVectorStore):
    """Notes how many documents it is asked for."""

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        self.asked = (k, kwargs)
        return super().similarity_search(query, k, **kwargs)


@pytest.fixture
def store(folder: Path, embeddings: VideoEmbeddings) -> SpyStore:
    store = SpyStore(embeddings)
    store.add_documents(VideoLoader(folder, segment_s=4).load())
    return store


def test_more_are_fetched_than_returned(store: SpyStore, rerank: VideoRerank) -> None:
    retriever = VideoRetriever(vectorstore=store, reranker=rerank, k=1)
    (found,) = retriever.invoke(QUERY)
    assert store.asked == (4, {})
    assert found.metadata["relevance_score"] > 0
    for options, asked in (({"k": 2}, 8), ({"k": 2, "fetch_k": 3}, 3), ({"fetch_k": 6}, 6)):
        assert len(retriever.invoke(QUERY, **options)) == options.get("k", 1)
        assert store.asked == (asked, {})
    VideoRetriever(vectorstore=store, reranker=rerank, k=1, fetch_k=5).invoke(QUERY, k=2)
    assert store.asked == (5, {})
    VideoRetriever(vectorstore=store, k=3).invoke(QUERY)
    assert store.asked == (3, {})


async def test_async_is_the_same(store: SpyStore, rerank: VideoRerank) -> None:
    retriever = VideoRetriever(vectorstore=store, reranker=rerank, k=3)
    assert await retriever.ainvoke(QUERY, k=2) == retriever.invoke(QUERY, k=2)


def test_search_kwargs_reach_the_store(store: SpyStore, folder: Path) -> None:
    only = VideoRetriever(
        vectorstore=store, search_kwargs={"filter": lambda document: document.metadata["start_s"] > 0}
    )
    assert {document.metadata["start_s"] for document in only.invoke(QUERY)} == {4.0, 8.0}


async def test_arguments_of_a_query_go_before_those_of_the_retriever(store: SpyStore, rerank: VideoRerank) -> None:
    def later(document: Document) -> bool:
        return document.metadata["start_s"] > 0

    def first(document: Document) -> bool:
        return document.metadata["start_s"] == 0

    for reranker in (None, rerank):
        ours = VideoRetriever(vectorstore=store, reranker=reranker, k=3, search_kwargs={"filter": later})
        for found in (ours.invoke(QUERY, filter=first), await ours.ainvoke(QUERY, filter=first)):
            assert {document.metadata["start_s"] for document in found} == {0.0}
        assert {document.metadata["start_s"] for document in ours.invoke(QUERY)} == {4.0, 8.0}
    stock = store.as_retriever(search_kwargs={"k": 3, "filter": later})
    ours = VideoRetriever(vectorstore=store, k=3, search_kwargs={"filter": later})
    assert ours.invoke(QUERY, filter=first) == stock.invoke(QUERY, filter=first)


@pytest.mark.parametrize("search_kwargs", [{}, {"k": 3}, {"k": 2, "fetch_k": 3, "lambda_mult": 0.1}])
@pytest.mark.parametrize("search_type", ["similarity", "mmr"])
def test_search_types_are_those_of_the_store(store: SpyStore, search_type: str, search_kwargs: dict[str, Any]) -> None:
    if search_type == "similarity":
        search_kwargs = {name: value for name, value in search_kwargs.items() if name == "k"}
    stock = store.as_retriever(search_type=search_type, search_kwargs=search_kwargs)
    ours = VideoRetriever(vectorstore=store, search_type=search_type, search_kwargs=search_kwargs)
    assert ours.invoke(QUERY) == stock.invoke(QUERY)
    assert ours.invoke(QUERY, k=1) == stock.invoke(QUERY, k=1)
    if search_type == "mmr":
        assert ours.invoke(QUERY, fetch_k=6) == stock.invoke(QUERY, fetch_k=6)


def test_mmr_chooses_what_is_reranked(store: SpyStore, rerank: VideoRerank) -> None:
    options = {"k": 2, "fetch_k": 2, "search_type": "mmr", "search_kwargs": {"lambda_mult": 0.0}}
    chosen = VideoRetriever(vectorstore=store, **options).invoke(QUERY, fetch_k=6)
    found = VideoRetriever(vectorstore=store, reranker=rerank, **options).invoke(QUERY)
    assert {document.page_content for document in found} == {document.page_content for document in chosen}
    assert all("relevance_score" in document.metadata for document in found)


@pytest.mark.parametrize("query", ["", "  "])
async def test_empty_queries_are_refused(store: SpyStore, query: str) -> None:
    retriever = VideoRetriever(vectorstore=store)
    with pytest.raises(ValueError, match="give some words"):
        retriever.invoke(query)
    with pytest.raises(ValueError, match="give some words"):
        await retriever.ainvoke(query)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k"),
        ({"k": 4, "fetch_k": 2}, "fetch_k=2: it must be at least k=4"),
        ({"top_k": 3}, "top_k"),
        ({"k": 2, "search_kwargs": {"k": 3}}, "its 'k' is 3, and k=2 is given too"),
        ({"search_kwargs": {"k": 0}}, "k"),
        ({"search_type": "nearest"}, "nearest"),
        ({"search_type": "similarity_score_threshold"}, "score_threshold"),
    ],
)
def test_bad_options(store: SpyStore, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VideoRetriever(vectorstore=store, **options)


def test_bad_options_of_a_query(store: SpyStore) -> None:
    retriever = VideoRetriever(vectorstore=store)
    for options, message in (({"k": 0}, "at least 1"), ({"k": 3, "fetch_k": 2}, "at least k=3")):
        with pytest.raises(ValueError, match=message):
            retriever.invoke(QUERY, **options)
    retriever.invoke(QUERY, lambda_mult=0.5)
    assert store.asked == (4, {"lambda_mult": 0.5})  # the store gets what is not ours, as from its own retriever


def test_a_tool_shows_a_model_where_to_look(store: SpyStore, folder: Path) -> None:
    retriever = VideoRetriever(vectorstore=store, k=1)
    shown = create_retriever_tool(retriever, "videos", "Finds videos.", document_prompt=VIDEO_PROMPT).invoke(QUERY)
    assert shown == f"Video {folder / 'b.MP4'}, from 4.0 s to 8.0 s"


# -- configuration -----------------------------------------------------------------------------------------------------

CONFIG = """
store:
  kind: chroma
  collection: clips
  path: STORE
model:
  model: vidembed/shapes
  fps: 2
k: 2
fetch_k: 6
rerank:
  top_n: 2
  min_score: 0.01
"""


def test_a_yaml_file_is_a_retriever(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "videos.yaml").write_text(CONFIG.replace("STORE", str(tmp_path / "store")), encoding="utf-8")
    retriever = VideoRetriever.from_config(tmp_path / "videos.yaml")
    retriever.vectorstore.add_documents(VideoLoader(folder, segment_s=4).load())
    found = retriever.invoke(QUERY)
    assert (found[0].metadata["start_s"], Path(found[0].metadata["source"]).name) == (4.0, "b.MP4")
    assert found[0].metadata["relevance_score"] >= 0.01
    assert (retriever.fetch_k, retriever.reranker.top_n) == (6, 2)


@pytest.mark.parametrize("rerank", [True, "vidembed/shapes-rerank", {"model": "vidembed/shapes-rerank"}])
def test_a_mapping_is_a_retriever(embeddings: VideoEmbeddings, folder: Path, rerank: object) -> None:
    retriever = VideoRetriever.from_config({"store": "in_memory", "rerank": rerank}, embeddings=embeddings)
    retriever.vectorstore.add_documents(VideoLoader(folder, segment_s=4).load())
    assert Path(retriever.invoke(QUERY, k=1)[0].metadata["source"]).name == "b.MP4"


def test_one_model_serves_both(folder: Path) -> None:
    model = {"model": "vidembed/shapes-mllm", "layer": 7, "model_kwargs": {"prefix": None}}
    retriever = VideoRetriever.from_config({"store": "in_memory", "model": model, "rerank": True})
    encoder = retriever.vectorstore.embeddings.encoder
    assert retriever.reranker.reranker.backbone.model is encoder.backbone.model


class Odd(InMemoryVectorStore):
    """A store whose embeddings have a name of their own."""

    def __init__(self, vectors: VideoEmbeddings) -> None:
        super().__init__(vectors)


def test_a_store_by_its_import_path(folder: Path) -> None:
    config = {
        "store": "langchain_core.vectorstores.InMemoryVectorStore",
        "model": "vidembed/shapes",
        "search_type": "mmr",
        "search_kwargs": {"k": 2, "fetch_k": 6},
    }
    retriever = VideoRetriever.from_config(config)
    assert type(retriever.vectorstore) is InMemoryVectorStore
    assert (retriever.k, retriever.search_type) == (2, "mmr")
    retriever.vectorstore.add_documents(VideoLoader(folder, segment_s=4).load())
    found = retriever.invoke(QUERY)
    assert len(found) == 2
    assert Path(found[0].metadata["source"]).name == "b.MP4"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "store"),
        ({"store": "pinecone"}, "'chroma', 'qdrant', 'faiss' or 'in_memory'"),
        ({"store": "in_memory", "fetchk": 3}, "fetchk"),
        ({"store": {"kind": "chroma", "folder": "x"}}, "folder"),
        ({"store": {"kind": "chroma", "collection": "v"}}, "collection"),
        ({"store": "chroma"}, "path is missing"),  # in memory, all of a process would share one collection
        ({"store": "in_memory", "k": 0}, "k"),
        ({"store": "in_memory", "model": "vidembed/shapes"}, "embeddings are already loaded"),
        ({"store": {"kind": "qdrant", "path": "x", "url": "http://h"}}, "path and url are given"),
        ({"store": "no_such_package.Store"}, "no_such_package"),
        ({"store": "langchain_core.vectorstores.NoSuch"}, "NoSuch"),
        ({"store": "os.system"}, "subclass of VectorStore"),
        ({"store": "langchain_core.documents.Document"}, "subclass of VectorStore"),
        ({"store": {"kind": "langchain_core.vectorstores.InMemoryVectorStore", "path": "x"}}, "path: not for InMemory"),
        ({"store": f"{__name__}.Odd"}, "Odd takes no embeddings"),
    ],
)
def test_bad_configuration_is_named(embeddings: VideoEmbeddings, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoRetriever.from_config(config, embeddings=embeddings)


def test_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("- 1\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("{", encoding="utf-8")
    (tmp_path / "c.yaml").write_text("!!python/object/apply:os.getcwd []", encoding="utf-8")
    for name, message in (("a", "holds list"), ("b", "is not valid YAML"), ("c", "is not valid YAML")):
        with pytest.raises(ValueError, match=message):
            VideoRetriever.from_config(tmp_path / f"{name}.yaml")
    with pytest.raises(FileNotFoundError):
        VideoRetriever.from_config(tmp_path / "d.yaml")


def test_a_pickle_is_not_read_unasked(tmp_path: Path, embeddings: VideoEmbeddings, folder: Path) -> None:
    config = {"store": {"kind": "faiss", "path": str(tmp_path / "store")}}
    store = VideoRetriever.from_config(config, embeddings=embeddings).vectorstore
    store.add_documents(VideoLoader(folder / "c.mp4").load())
    store.save_local(str(tmp_path / "store"))
    with pytest.raises(ValueError, match="allow_dangerous_deserialization"):
        VideoRetriever.from_config(config, embeddings=embeddings)


def test_a_store_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, embeddings: VideoEmbeddings) -> None:
    monkeypatch.setitem(__import__("sys").modules, "langchain_chroma", None)
    with pytest.raises(ImportError, match=r"pip install 'langchain-vidembed\[chroma\]'"):
        VideoRetriever.from_config({"store": {"kind": "chroma", "path": "x"}}, embeddings=embeddings)


def test_an_in_memory_store_is_read_from_its_file(tmp_path: Path, embeddings: VideoEmbeddings, folder: Path) -> None:
    config = {"store": {"kind": "in_memory", "path": str(tmp_path / "store.json")}, "k": 1}
    store = VideoRetriever.from_config(config, embeddings=embeddings).vectorstore
    store.add_documents(VideoLoader(folder, segment_s=4).load())
    store.dump(str(tmp_path / "store.json"))
    again = VideoRetriever.from_config(config, embeddings=embeddings)
    assert Path(again.invoke(QUERY)[0].metadata["source"]).name == "b.MP4"


def test_a_reranker_reads_what_the_embeddings_may(folder: Path, reranker: VideoReranker) -> None:
    embeddings = VideoEmbeddings(model="vidembed/shapes", root=folder)
    for rerank in (True, {"model": "vidembed/shapes-rerank"}, {"top_n": 1}):
        config = {"store": "in_memory", "rerank": rerank}
        assert VideoRetriever.from_config(config, embeddings=embeddings).reranker.root == folder
