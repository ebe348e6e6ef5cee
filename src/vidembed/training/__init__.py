"""Text-only alignment: a light LoRA trained on (dense caption, short summary) pairs, without any video."""

from __future__ import annotations

from vidembed.training.alignment import align
from vidembed.training.curves import LogFile, plot_curves, read_log
from vidembed.training.evaluator import PairEvaluator
from vidembed.training.lora import LanguageAdapter, LoraSettings
from vidembed.training.loss import CachedDualSoftmaxLoss, DualSoftmaxLoss, dual_softmax_loss
from vidembed.training.pairs import PairsError, TextPair, read_pairs, sample_pairs
from vidembed.training.saving import merge_adapter
from vidembed.training.trainer import AlignmentTrainer, TrainingSettings

__all__ = [
    "AlignmentTrainer",
    "CachedDualSoftmaxLoss",
    "DualSoftmaxLoss",
    "LanguageAdapter",
    "LogFile",
    "LoraSettings",
    "PairEvaluator",
    "PairsError",
    "TextPair",
    "TrainingSettings",
    "align",
    "dual_softmax_loss",
    "merge_adapter",
    "plot_curves",
    "read_log",
    "read_pairs",
    "sample_pairs",
]
