from __future__ import annotations

from typing import Any

from langchain_tests.unit_tests import EmbeddingsUnitTests

from langchain_vidembed import VideoEmbeddings


class TestVideoEmbeddings(EmbeddingsUnitTests):
    @property
    def embeddings_class(self) -> type[VideoEmbeddings]:
        return VideoEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": "vidembed/shapes"}
