"""`AlignmentTrainer`: sentence-transformers' trainer, for an adapter on pairs of texts."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from torch import nn
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback

from vidembed.captions import TextPair
from vidembed.encoder import VideoEncoder
from vidembed.evaluation import ranks
from vidembed.evaluation.result import CUTS
from vidembed.plots import read_log
from vidembed.text import require_train_extra
from vidembed.training.data import PairCollator, stand_in_kwargs
from vidembed.training.lora import WEIGHTS_FILE, LanguageAdapter
from vidembed.training.loss import MINI_BATCH_SIZE, PRIOR_TEMPERATURE, TEMPERATURE, CachedDualSoftmaxLoss

LossName = Literal["dual-softmax", "infonce"]
LOSSES: Final = ("dual-softmax", "infonce")

_STATE_FILE = "trainer_state.json"  # transformers' name for it


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training run.

    Attributes:
        loss: "dual-softmax" (`CachedDualSoftmaxLoss`), or "infonce" for sentence-transformers' own symmetric
            ``CachedMultipleNegativesRankingLoss``, whose batches are drawn without duplicates since it masks none.
        batch_size: Pairs of a step. Default 288 (VidVec, arXiv 2602.08099, section 3.5).
        mini_batch_size: Texts embedded at once. Default `MINI_BATCH_SIZE`.
        epochs: Times each pair is seen. Default 1 (same section).
        learning_rate: Peak. Default 1e-4 (ours: the paper is silent; a usual value for LoRA).
        warmup: Share of the steps in which the learning rate rises, before it falls as a cosine. Default 0.1 (ours).
        weight_decay: Of AdamW. Default 0 (ours).
        temperature: What cosines are divided by. Default `TEMPERATURE` (ours).
        prior_temperature: What they are divided by inside the factor of the dual-softmax loss. Default
            `PRIOR_TEMPERATURE` (ours).
        bf16: Whether to compute in bfloat16; None for wherever CUDA supports it.
        gradient_checkpointing: Whether to compute activations of the blocks twice, to hold fewer of them.
        seed: Decides the adapter's first weights, dropout and the order of pairs.

    Raises:
        ValueError: A value is out of range.
    """

    loss: LossName = "dual-softmax"
    batch_size: int = 288
    mini_batch_size: int = MINI_BATCH_SIZE
    epochs: float = 1
    learning_rate: float = 1e-4
    warmup: float = 0.1
    weight_decay: float = 0.0
    temperature: float = TEMPERATURE
    prior_temperature: float = PRIOR_TEMPERATURE
    bf16: bool | None = None
    gradient_checkpointing: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for a value that is out of range."""
        if self.loss not in LOSSES:
            raise ValueError(f"loss={self.loss!r} is not known. Allowed: {', '.join(LOSSES)}.")
        for name, least in (("batch_size", 2), ("mini_batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected at least {least}.")
        for name in ("epochs", "learning_rate", "temperature", "prior_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected a number above 0.")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup={self.warmup!r}: expected a share of the steps, from 0 to below 1.")

    def steps(self, pairs: int) -> int:
        """Steps of a run over this many pairs."""
        return math.ceil(math.ceil(pairs / self.batch_size) * self.epochs)

    def make_loss(self, encoder: VideoEncoder) -> nn.Module:
        """The loss module."""
        if self.loss == "dual-softmax":
            prior, size = self.prior_temperature, self.mini_batch_size
            return CachedDualSoftmaxLoss(encoder, self.temperature, prior_temperature=prior, mini_batch_size=size)
        return CachedMultipleNegativesRankingLoss(
            encoder,
            scale=1 / self.temperature,
            mini_batch_size=self.mini_batch_size,
            directions=("query_to_doc", "doc_to_query"),
            partition_mode="per_direction",
        )

    def arguments(
        self,
        folder: str | Path,
        *,
        every: int,
        device: str | None = None,
        resuming: bool = False,
        evaluate: bool = True,
    ) -> SentenceTransformerTrainingArguments:
        """The arguments of the trainer, which keeps checkpoints of the training state in `folder`.

        It measures and saves once in `every` steps, and measures at the start unless it is `resuming`; `device` is as
        of `align`. A ValueError if several processes were started, or bfloat16 is asked for and not supported.
        """
        cuda = torch.cuda.is_available() and device != "cpu"
        checkpointing: dict[str, Any] = {}  # named only where used: transformers 6 will rename them
        if self.gradient_checkpointing:
            checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
        arguments = OneGpuArguments(
            output_dir=str(folder),
            num_train_epochs=self.epochs,
            per_device_train_batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=self.warmup,  # under 1: a share
            weight_decay=self.weight_decay,
            bf16=cuda and torch.cuda.is_bf16_supported() if self.bf16 is None else self.bf16,
            batch_sampler="no_duplicates" if self.loss == "infonce" else "batch_sampler",
            seed=self.seed,
            use_cpu=device == "cpu",
            dataloader_pin_memory=cuda,
            logging_steps=1,
            logging_nan_inf_filter=False,
            eval_strategy="steps" if evaluate else "no",
            eval_steps=every,
            eval_on_start=evaluate and not resuming,
            save_strategy="steps",
            save_steps=every,
            report_to="none",
            disable_tqdm=True,  # its bar writes to stdout
            **checkpointing,
        )
        if arguments.world_size > 1:
            raise ValueError(
                f"{arguments.world_size} processes were started: the batch of the loss would be one process's share. "
                "Train in one process; gradient caching holds the whole batch on one device."
            )
        return arguments


class OneGpuArguments(SentenceTransformerTrainingArguments):
    """Arguments of a trainer that uses one GPU at most: with several, each forward pass would copy the model to all."""

    @property
    def n_gpu(self) -> int:
        """As of transformers, but for 0 or 1."""
        gpus: int = super().n_gpu
        return min(gpus, 1)


class AlignmentTrainer(SentenceTransformerTrainer):
    """Trains an adapter on pairs of texts; everything else is sentence-transformers' trainer.

    What differs: a dense caption takes the video's prompt; checkpoints hold the adapter and not the model, and are
    moved into place whole; the count of masked false negatives is logged; a loss that is not finite ends the run.
    `args` are those of `TrainingSettings.arguments`.

    Raises:
        MissingExtraError: A package of the extra is not installed.
        TemplateError: The encoder's prompts are not vidembed's.
    """

    def __init__(
        self,
        adapter: LanguageAdapter,
        pairs: Sequence[TextPair],
        settings: TrainingSettings,
        args: SentenceTransformerTrainingArguments,
        *,
        evaluator: BaseEvaluator | list[BaseEvaluator] | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        require_train_extra()
        from datasets import Dataset  # type: ignore[import-untyped]  # noqa: PLC0415 - of the extra

        self.adapter = adapter
        self._saving_to: Path | None = None
        encoder = adapter.encoder
        config = vars(encoder.config)
        before = dict(config)
        columns = {"dense": [pair.dense for pair in pairs], "summary": [pair.summary for pair in pairs]}
        super().__init__(
            model=encoder,
            args=args,
            train_dataset=Dataset.from_dict(columns),
            loss=settings.make_loss(encoder),
            evaluator=evaluator,
            data_collator=PairCollator(encoder.preprocess, stand_in=stand_in_kwargs(encoder)),
            callbacks=callbacks,
        )
        config.clear()  # transformers' trainer writes use_cache into it, which checkpoints would keep
        config.update(before)
        self.remove_callback(PrinterCallback)  # stdout is for results

    def add_model_card_callback(self, default_args_dict: dict[str, object]) -> None:
        """Do nothing: the card of the result is vidembed's."""

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the pairs of rows that were masked as false negatives since the last time.

        A FloatingPointError if the loss is not finite; the step's state is not saved.
        """
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise FloatingPointError(
                    f"loss {logs['loss']} at step {self.state.global_step}. Lower the learning rate, or raise the "
                    "temperature."
                )
            if isinstance(self.loss, CachedDualSoftmaxLoss):
                logs = {**logs, "false_negatives": self.loss.false_negatives}
                self.loss.false_negatives = 0
        super().log(logs, start_time)

    def _get_output_dir(self, trial: object) -> str:
        return str(self._saving_to or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        """Save into a draft folder, move it into place, and remove the one before."""
        folder = Path(str(self.args.output_dir))
        draft = folder / "draft"
        shutil.rmtree(draft, ignore_errors=True)
        self._saving_to = draft
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving_to = None
        before = list(folder.glob("checkpoint-*"))
        new = folder / f"checkpoint-{self.state.global_step}"
        if new in before:
            shutil.rmtree(new)
        (draft / new.name).replace(new)
        for old in before:
            if old != new:
                shutil.rmtree(old)

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:  # noqa: ARG002
        self.adapter.save(output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:  # type: ignore[override]  # as its host
        self.adapter.load(checkpoint_path)


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest complete checkpoint of the training state in a folder, or None."""
    found = [
        path
        for path in Path(folder).glob("checkpoint-*")
        if (path / _STATE_FILE).is_file() and (path / WEIGHTS_FILE).is_file()
    ]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def pair_recalls(scores: NDArray[np.floating], positives: NDArray[np.bool_]) -> dict[str, float]:
    """``R@1``, ``R@5`` and ``R@10`` in percent; rows of scores (Q, N) rank columns, `positives` (Q, N) are right."""
    found = ranks(scores, positives)  # (Q,)
    return {f"R@{cut}": round(100.0 * float((found <= cut).mean()), 2) for cut in CUTS}


class PairEvaluator(BaseEvaluator):
    """Text-to-text recall of held-out pairs, each side in its prompt, in percent.

    A column counts as right for every row that has the same summary or the same caption.
    """

    def __init__(self, pairs: Sequence[TextPair], *, batch_size: int = 32) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pairs = list(pairs)
        self.batch_size = batch_size
        self.primary_metric = "summary_to_dense_R@1"
        dense, summary = (np.array([getattr(pair, side) for pair in self.pairs]) for side in ("dense", "summary"))
        self._positives = (dense[:, None] == dense) | (summary[:, None] == summary)  # (N, N)

    # the model is one with an `encode`
    def __call__(self, model: SentenceTransformer, *_: object, **_kwargs: object) -> dict[str, float]:  # type: ignore[override]
        """Measure ``summary_to_dense_R@k`` and ``dense_to_summary_R@k`` for k in `CUTS`; called by the trainer."""
        vectors = {}
        for side, kwargs in (("dense", stand_in_kwargs(model)), ("summary", None)):
            inputs = [{"text": getattr(pair, side)} for pair in self.pairs]
            found = model.encode(inputs, batch_size=self.batch_size, show_progress_bar=False, processing_kwargs=kwargs)
            vectors[side] = np.asarray(found)
        dense, summary = vectors["dense"], vectors["summary"]  # (N, D) each
        scores = summary @ dense.T  # (N, N)
        recalls = {
            "summary_to_dense": pair_recalls(scores, self._positives),
            "dense_to_summary": pair_recalls(scores.T, self._positives.T),
        }
        return {f"{way}_{name}": value for way, found in recalls.items() for name, value in found.items()}


_LOGGED = ("loss", "grad_norm", "learning_rate", "false_negatives")


class LogFile(TrainerCallback):
    """Writes what the trainer logs to a file of JSON lines, and shows a bar on stderr if `progress` asks for it.

    Lines of training hold ``step``, ``loss``, ``grad_norm``, ``learning_rate`` and ``false_negatives``; lines of
    evaluation hold ``step`` and every metric, named ``eval_...``. Lines after the step that a run begins at are removed
    then: they are made again.
    """

    def __init__(self, path: str | Path, *, progress: bool = False) -> None:
        self.path = Path(path)
        self.progress = progress
        self._bar: tqdm[Any] | None = None

    def on_train_begin(self, args: object, state: TrainerState, control: object, **_kwargs: object) -> None:  # noqa: ARG002
        """Drop lines of steps that are yet to come."""
        kept = [entry for entry in read_log(self.path) if entry["step"] <= state.global_step and state.global_step]
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        self._bar = tqdm(
            total=state.max_steps, initial=state.global_step, unit="step", desc="aligning", disable=not self.progress
        )

    def on_log(
        self, args: object, state: TrainerState, control: object, logs: dict[str, float] | None = None, **_: object
    ) -> None:
        """Write a line."""
        del args, control
        values = {
            key: value
            for key, value in (logs or {}).items()
            if key in _LOGGED or (key.startswith("eval_") and not key.endswith(("_runtime", "_per_second")))
        }
        if values:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **values}) + "\n")

    def on_step_end(self, *_args: object, **_kwargs: object) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update()

    def on_train_end(self, *_args: object, **_kwargs: object) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
