"""A folder of videos becomes a searchable index.

`index_videos` brings an index up to date, `VideoIndex.open` and `search` ask it. Importing this package loads neither
torch nor LanceDB.
"""

from __future__ import annotations

from vidembed.index.errors import (
    IndexBusyError,
    IndexDamagedError,
    IndexingStoppedError,
    IndexMismatchError,
    IndexWriteError,
    MissingExtraError,
)
from vidembed.index.ingest.indexer import index_videos
from vidembed.index.ingest.report import Problem, Report
from vidembed.index.meta import IndexMeta
from vidembed.index.retrieval.filters import Condition, Filter
from vidembed.index.retrieval.merge import merge_moments, merge_videos
from vidembed.index.retrieval.refresh import Derived
from vidembed.index.retrieval.rerank import rerank
from vidembed.index.retrieval.search import Hit, Hits, search, search_many
from vidembed.index.sheet import contact_sheet
from vidembed.index.store import VideoIndex
from vidembed.video.windows import Windows

__all__ = [
    "Condition",
    "Derived",
    "Filter",
    "Hit",
    "Hits",
    "IndexBusyError",
    "IndexDamagedError",
    "IndexMeta",
    "IndexMismatchError",
    "IndexWriteError",
    "IndexingStoppedError",
    "MissingExtraError",
    "Problem",
    "Report",
    "VideoIndex",
    "Windows",
    "contact_sheet",
    "index_videos",
    "merge_moments",
    "merge_videos",
    "rerank",
    "search",
    "search_many",
]
