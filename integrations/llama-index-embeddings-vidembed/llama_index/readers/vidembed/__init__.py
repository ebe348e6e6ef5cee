"""Video in LlamaIndex: files become documents, and documents become timed nodes. Importing this takes no torch."""

from __future__ import annotations

from llama_index.readers.vidembed.base import VideoReader, video_extractor
from llama_index.readers.vidembed.parser import VideoNodeParser

__all__ = ["VideoNodeParser", "VideoReader", "video_extractor"]
