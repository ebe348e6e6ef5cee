"""The embedded world of moving shapes, to try and test without a download, and the small MLLM trained in it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vidembed.shapes.clips import ClipRecord, iterate_clips, sample_clips, write_clip, write_clips, write_videos
from vidembed.shapes.world import Scene

CHECKPOINT: Final = Path(__file__).parent / "checkpoint"
"""Folder of the trained MLLM, for ``from_pretrained`` of ``AutoModelForImageTextToText`` and ``AutoProcessor``."""

__all__ = [
    "CHECKPOINT",
    "ClipRecord",
    "Scene",
    "iterate_clips",
    "sample_clips",
    "write_clip",
    "write_clips",
    "write_videos",
]
