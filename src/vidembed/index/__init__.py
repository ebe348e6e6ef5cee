"""A folder of videos becomes a searchable index.

`index_videos` brings an index up to date, `VideoIndex.open` and `search` ask it. Importing this package loads neither
torch nor LanceDB.
"""

from __future__ import annotations

from vidembed.errors import (
    IndexBusyError,
    IndexDamagedError,
    IndexingStoppedError,
    IndexMismatchError,
    IndexWriteError,
    MissingExtraError,
)
from vidembed.index.captioning import CaptionReport, add_captions
from vidembed.index.commit import Report
from vidembed.index.files import Problem
from vidembed.index.gallery import contact_sheet
from vidembed.index.hits import Hit, Hits, merge_moments, merge_videos
from vidembed.index.hybrid import stored_fusion
from vidembed.index.hybrid_fit import HybridReport, RerankReport, fit_hybrid
from vidembed.index.ingest import Derived, index_videos
from vidembed.index.reranking import rerank
from vidembed.index.rows import Condition, Filter
from vidembed.index.schema import IndexMeta
from vidembed.index.search import SearchOptions, search, search_many
from vidembed.index.table import VideoIndex
from vidembed.video.segments import Windows

__all__ = ["CaptionReport", "Condition", "Derived", "Filter", "Hit", "Hits", "HybridReport", "IndexBusyError"]
__all__ += [
    "IndexDamagedError",
    "IndexMeta",
    "IndexMismatchError",
    "IndexWriteError",
    "IndexingStoppedError",
    "MissingExtraError",
    "Problem",
    "Report",
    "RerankReport",
]
__all__ += ["SearchOptions", "VideoIndex", "Windows", "add_captions", "contact_sheet", "fit_hybrid", "index_videos"]
__all__ += ["merge_moments", "merge_videos", "rerank", "search", "search_many", "stored_fusion"]
