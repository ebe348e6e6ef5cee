"""Video in LlamaIndex: a vidembed encoder as an embedding model. Importing this takes no torch."""

from __future__ import annotations

from llama_index.embeddings.vidembed.base import VideoEmbedding
from llama_index.embeddings.vidembed.inputs import NothingToEmbedError
from vidembed.errors import NotAVideoError

__all__ = ["NotAVideoError", "NothingToEmbedError", "VideoEmbedding"]
