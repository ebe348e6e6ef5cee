"""Which decoder block of a video MLLM to read: retrieval at every block, a choice, its margin, a figure."""

from __future__ import annotations

from vidembed.analysis.layers import analyze_layers
from vidembed.analysis.plot import plot_layers
from vidembed.analysis.relation import split_halves
from vidembed.analysis.result import DirectionFigures, LayerAnalysis, LayerRow, Margin, PromptAnalysis, Sample

__all__ = [
    "DirectionFigures",
    "LayerAnalysis",
    "LayerRow",
    "Margin",
    "PromptAnalysis",
    "Sample",
    "analyze_layers",
    "plot_layers",
    "split_halves",
]
