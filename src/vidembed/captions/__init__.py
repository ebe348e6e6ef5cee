"""Texts about videos: files of captions and of pairs of texts, and what a model itself says of videos."""

from vidembed.captions.describe import PROMPTS, Described, describe
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

__all__ = [
    "KINDS",
    "MAX_LINE_BYTES",
    "PROMPTS",
    "CaptionedVideo",
    "Described",
    "TextPair",
    "checked_words",
    "csv_rows",
    "describe",
    "numbered_lines",
    "read_captioned_videos",
    "read_pairs",
    "sample_pairs",
    "shortened",
]
