"""Which decoder block of a video MLLM to read: retrieval at every block, a choice, its margin, a figure."""

from __future__ import annotations

from vidembed.analysis.layers import analyze_layers
from vidembed.analysis.measure import split_halves
from vidembed.analysis.own_queries import OwnTexts, own_texts, read_records
from vidembed.analysis.result import DirectionFigures, LayerAnalysis, LayerRow, Margin, PromptAnalysis, Sample
from vidembed.plots import plot_layers

__all__ = [
    "DirectionFigures",
    "LayerAnalysis",
    "LayerRow",
    "Margin",
    "OwnTexts",
    "PromptAnalysis",
    "Sample",
    "analyze_layers",
    "own_texts",
    "plot_layers",
    "read_records",
    "split_halves",
]
