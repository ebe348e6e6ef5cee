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
    MissingExtraError,
)
from vidembed.index.indexer import index_videos
from vidembed.index.meta import IndexMeta
from vidembed.index.report import Problem, Report
from vidembed.index.rerank import rerank
from vidembed.index.search import Hit, search
from vidembed.index.sheet import contact_sheet
from vidembed.index.store import VideoIndex
from vidembed.video.windows import Windows

__all__ = [
    "Hit",
    "IndexBusyError",
    "IndexDamagedError",
    "IndexMeta",
    "IndexMismatchError",
    "IndexingStoppedError",
    "MissingExtraError",
    "Problem",
    "Report",
    "VideoIndex",
    "Windows",
    "contact_sheet",
    "index_videos",
    "rerank",
    "search",
]
