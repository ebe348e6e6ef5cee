"""The embedded world of moving shapes, and the small MLLM trained in it that vidembed ships.

The world is for trying, testing and documenting without a download: clips are drawn from a seed, captions are exact,
and a share of the combinations is held out of training.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vidembed.shapes.clips import ClipRecord, iterate_clips, sample_clips, write_clip, write_clips
from vidembed.shapes.world import Scene

CHECKPOINT: Final = Path(__file__).parent / "checkpoint"
"""Folder of the trained MLLM, for ``from_pretrained`` of ``AutoModelForImageTextToText`` and ``AutoProcessor``."""

__all__ = ["CHECKPOINT", "ClipRecord", "Scene", "iterate_clips", "sample_clips", "write_clip", "write_clips"]
