from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from langchain_core.vectorstores import InMemoryVectorStore
from langchain_tests.integration_tests import EmbeddingsIntegrationTests, RetrieversIntegrationTests

from langchain_vidembed import VideoEmbeddings, VideoLoader, VideoRerank, VideoRetriever
from tests.conftest import RECORDS, write_scenes


class TestVideoEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[VideoEmbeddings]:
        return VideoEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "vidembed/shapes"}


@functools.cache
def store() -> InMemoryVectorStore:
    found = InMemoryVectorStore(VideoEmbeddings(model="vidembed/shapes"))
    folder = Path(tempfile.mkdtemp())
    write_scenes(folder / "a.mp4", 0, 1, 2, 3)
    found.add_documents(VideoLoader(folder, segment_s=4).load())
    return found


class TestVideoRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self) -> type[VideoRetriever]:
        return VideoRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"vectorstore": store()}

    @property
    def retriever_query_example(self) -> str:
        return RECORDS[0].summary


class TestVideoRetrieverWithReranker(TestVideoRetriever):
    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"vectorstore": store(), "reranker": VideoRerank(model="vidembed/shapes-rerank")}
