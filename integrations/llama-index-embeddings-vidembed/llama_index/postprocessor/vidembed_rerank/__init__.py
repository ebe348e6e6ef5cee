"""Video in LlamaIndex: the head of a model as a reranker, and clips to show. Importing this takes no torch."""

from __future__ import annotations

from vidembed.errors import NotAVideoError

from llama_index.postprocessor.vidembed_rerank.base import VideoRerank
from llama_index.postprocessor.vidembed_rerank.clips import VideoClips

__all__ = ["NotAVideoError", "VideoClips", "VideoRerank"]
