"""Text-only alignment: a light LoRA trained on (dense caption, short summary) pairs, without any video."""

from __future__ import annotations

from vidembed.captions import TextPair, read_pairs, sample_pairs
from vidembed.plots import plot_curves, read_log
from vidembed.training.adapting import Adaptation, adapt
from vidembed.training.alignment import align
from vidembed.training.lora import LanguageAdapter, LoraSettings, merge_adapter
from vidembed.training.loss import CachedDualSoftmaxLoss, DualSoftmaxLoss, dual_softmax_loss
from vidembed.training.trainer import AlignmentTrainer, LogFile, PairEvaluator, TrainingSettings

__all__ = [
    "Adaptation",
    "AlignmentTrainer",
    "CachedDualSoftmaxLoss",
    "DualSoftmaxLoss",
    "LanguageAdapter",
    "LogFile",
    "LoraSettings",
    "PairEvaluator",
    "TextPair",
    "TrainingSettings",
    "adapt",
    "align",
    "dual_softmax_loss",
    "merge_adapter",
    "plot_curves",
    "read_log",
    "read_pairs",
    "sample_pairs",
]
