"""A stretch of a video as a file of its own, by stream copy: packets are moved, nothing is encoded again."""

from vidembed.video.remux.cut import Excerpt, cut_clip
from vidembed.video.remux.write import MUXERS

__all__ = ["MUXERS", "Excerpt", "cut_clip"]
