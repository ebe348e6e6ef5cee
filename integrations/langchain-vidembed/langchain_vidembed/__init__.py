"""Search and rerank video in LangChain.

A video, or a timed part of one, is a document whose text is its URI, ``video+file:///abs/a.mp4#t=10,20``:
`VideoLoader` writes such documents, and `VideoEmbeddings`, `VideoRerank` and `VideoCrossEncoder` read them. Importing
this package takes no torch; that is loaded with the first model.
"""

from __future__ import annotations

from vidembed.errors import NotAVideoError

from langchain_vidembed.cross_encoder import VideoCrossEncoder
from langchain_vidembed.document_loaders import VideoLoader
from langchain_vidembed.documents import CAPTION_PROMPT, VIDEO_PROMPT, document_key
from langchain_vidembed.embeddings import VideoEmbeddings
from langchain_vidembed.indexing import IndexingReport, index_videos
from langchain_vidembed.rerank import VideoRerank
from langchain_vidembed.retrievers import VideoRetriever

__version__ = "0.2.0"

__all__ = [
    "CAPTION_PROMPT",
    "VIDEO_PROMPT",
    "IndexingReport",
    "NotAVideoError",
    "VideoCrossEncoder",
    "VideoEmbeddings",
    "VideoLoader",
    "VideoRerank",
    "VideoRetriever",
    "document_key",
    "index_videos",
]
