"""Indexing on many machines, over Ray Data.

`index_videos_ray` is `vidembed.index.index_videos` on a cluster; `DecodeVideos` and `EmbedVideos` are its stages, for
pipelines of your own. Importing this package loads neither torch nor Ray.
"""

from __future__ import annotations

from vidembed.errors import ClusterError
from vidembed.ray.decode import DecodeVideos
from vidembed.ray.embed import EmbedVideos
from vidembed.ray.indexer import index_videos_ray

__all__ = ["ClusterError", "DecodeVideos", "EmbedVideos", "index_videos_ray"]
