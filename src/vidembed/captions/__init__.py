"""Texts about videos: files of captions and of pairs of texts, and what a model itself says of videos.

`describe` is loaded when it is used: files of captions are read without torch.
"""

from __future__ import annotations

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
    from vidembed.captions.describing import PROMPTS, Described, describe

__all__ = [
    "KINDS",
    "MAX_LINE_BYTES",
    "PROMPTS",
    "CaptionLookup",
    "CaptionMatches",
    "CaptionRecord",
    "CaptionedVideo",
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
]


def __getattr__(name: str) -> Any:
    if name in {"PROMPTS", "Described", "describe"}:
        from vidembed.captions import describing  # noqa: PLC0415 - torch is imported with it

        return getattr(describing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
