"""Texts about videos: files of captions and of pairs of texts, and what a model itself says of videos.

What asks a model is loaded when it is used: files of captions are read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vidembed.captions.files import (
    KINDS,
    MAX_LINE_BYTES,
    CaptionedVideo,
    TextPair,
    checked_words,
    csv_rows,
    numbered_lines,
    read_captioned_videos,
    read_pairs,
    sample_pairs,
    shortened,
)
from vidembed.captions.lookup import CaptionLookup, CaptionMatches, TimedCaption, caption_at, caption_line
from vidembed.captions.records import CaptionRecord, read_captions

if TYPE_CHECKING:
    from vidembed.captions.describing import PROMPTS, Described, DescribeOptions, describe
    from vidembed.captions.writing import CaptionReport, write_captions

__all__ = [
    "KINDS",
    "MAX_LINE_BYTES",
    "PROMPTS",
    "CaptionLookup",
    "CaptionMatches",
    "CaptionRecord",
    "CaptionReport",
    "CaptionedVideo",
    "DescribeOptions",
    "Described",
    "TextPair",
    "TimedCaption",
    "caption_at",
    "caption_line",
    "checked_words",
    "csv_rows",
    "describe",
    "numbered_lines",
    "read_captioned_videos",
    "read_captions",
    "read_pairs",
    "sample_pairs",
    "shortened",
    "write_captions",
]


_LAZY = {
    **dict.fromkeys(("PROMPTS", "DescribeOptions", "Described", "describe"), "describing"),
    **dict.fromkeys(("CaptionReport", "write_captions"), "writing"),
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"vidembed.captions.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
