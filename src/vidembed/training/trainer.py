"""Pairs of texts as batches, each side in its prompt, and sentence-transformers' trainer for an adapter on them."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.base.model import BaseModel
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.trainer import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from torch import nn
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerState
from transformers.trainer_callback import PrinterCallback

from vidembed.backbone.load import Features
from vidembed.backbone.templates import stand_in_template
from vidembed.captions import TextPair
from vidembed.checkpoint import ADAPTER_FILES
from vidembed.encoder import VideoEncoder
from vidembed.errors import AnnotationError
from vidembed.evaluation import ranks
from vidembed.evaluation.result import CUTS
from vidembed.pipeline import max_positions
from vidembed.plots import read_log
from vidembed.progress import progress_bar
from vidembed.text import require_train_extra
from vidembed.training.lora import LanguageAdapter
from vidembed.training.loss import MINI_BATCH_SIZE, PRIOR_TEMPERATURE, TEMPERATURE, CachedDualSoftmaxLoss

if TYPE_CHECKING:
    from sentence_transformers.base.modules.transformer import ProcessingKwargs

LossName = Literal["dual-softmax", "infonce"]
LOSSES: Final = ("dual-softmax", "infonce")
_STATE_FILE = "trainer_state.json"  # transformers' name for it
TooLong = Literal["raise", "drop"]
_AT_ONCE = 256  # texts tokenized per call when lengths are counted
logger = logging.getLogger(__name__)


def stand_in_kwargs(encoder: BaseModel) -> ProcessingKwargs:
    """The ``processing_kwargs`` of `encode` and `preprocess` under which a text takes the video's prompt.

    The paper is silent on which prompt each side gets (ours: the caption stands where the video would be; the summary
    gets the text's). The template is passed per call, so the checkpoint keeps its own.
    """
    return {"chat_template": {"chat_template": stand_in_template(str(encoder.processor.chat_template))}}


def tokenize(
    preprocess: Callable[..., Features], texts: Sequence[str], kwargs: ProcessingKwargs | None = None
) -> Features:
    """Tokenize texts in their prompts, whatever they look like, padded on the right and never cut.

    Padding on the right is what sentence-transformers' gradient caching can trim from a mini-batch; the pooling finds
    the last real token on either side. `kwargs` are `stand_in_kwargs` for captions, nothing for summaries.
    """
    options = {**(kwargs or {}), "text": {"padding_side": "right", "truncation": False}}
    return preprocess([{"text": text} for text in texts], processing_kwargs=options)


@dataclass
class PairCollator(SentenceTransformerDataCollator):
    """Makes a batch of pairs: the columns ``dense`` and ``summary``, each in its prompt."""

    stand_in: ProcessingKwargs | None = None  # `stand_in_kwargs` of the encoder

    def __call__(self, features: list[dict[str, str]]) -> Features:
        """Tokenize both sides of some rows."""
        batch: Features = {}
        for column, kwargs in (("dense", self.stand_in), ("summary", None)):
            tokens = tokenize(self.preprocess_fn, [row[column] for row in features], kwargs)
            batch |= {f"{column}_{key}": value for key, value in tokens.items()}
        return batch


def context_length(encoder: VideoEncoder) -> int:
    """Most tokens that the model takes: what its configuration or its tokenizer allows, whichever is less."""
    return min(limit for limit in (max_positions(encoder.config), encoder.max_seq_length) if limit)


def fit_context(
    encoder: VideoEncoder, pairs: Sequence[TextPair], *, max_tokens: int | None = None, too_long: TooLong = "raise"
) -> list[TextPair]:
    """Return the pairs that fit in `max_tokens`, prompt included, in order; "drop" leaves out others. None is cut."""
    context = context_length(encoder)
    limit = context if max_tokens is None else max_tokens
    if not 1 <= limit <= context:
        raise ValueError(f"max_tokens={max_tokens!r}: expected 1..{context}, the limit of the model.")
    if too_long not in ("raise", "drop"):
        raise ValueError(f"too_long={too_long!r} is not known. Allowed: 'raise', 'drop'.")
    stand_in = stand_in_kwargs(encoder)
    kept: list[TextPair] = []
    for start in range(0, len(pairs), _AT_ONCE):
        part = pairs[start : start + _AT_ONCE]
        dense = tokenize(encoder.preprocess, [pair.dense for pair in part], stand_in)["attention_mask"].sum(1)  # (b,)
        summary = tokenize(encoder.preprocess, [pair.summary for pair in part])["attention_mask"].sum(1)  # (b,)
        for index, (pair, tokens) in enumerate(zip(part, dense.maximum(summary).tolist(), strict=True)):
            if tokens <= limit:
                kept.append(pair)
            elif too_long == "raise":
                raise AnnotationError(
                    f"pairs[{start + index}] takes {tokens} tokens with its prompt, over max_tokens={limit} (the model "
                    f"takes {context}): {pair.dense[:60]!r}... Shorten it, or pass too_long='drop' to leave out long "
                    f"pairs."
                )
    if len(kept) < len(pairs):
        logger.warning("left out %d of %d pairs of more than %d tokens", len(pairs) - len(kept), len(pairs), limit)
    if not kept:
        raise AnnotationError(f"none of the {len(pairs)} pairs fits into {limit} tokens.")
    return kept


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training run; a ValueError if one is out of range.

    Defaults are of VidVec (arXiv 2602.08099, section 3.5) where a field says so; the others are ours.
    """

    # `CachedDualSoftmaxLoss`, or "infonce" for sentence-transformers' own symmetric
    # ``CachedMultipleNegativesRankingLoss``, whose batches are drawn without duplicates since it masks none
    loss: LossName = "dual-softmax"
    batch_size: int = 288  # pairs of a step (VidVec)
    mini_batch_size: int = MINI_BATCH_SIZE  # texts embedded at once
    epochs: float = 1  # times each pair is seen (VidVec)
    learning_rate: float = 1e-4  # peak; the paper is silent, and this is a usual value for LoRA
    warmup: float = 0.1  # share of the steps in which the learning rate rises, before it falls as a cosine
    weight_decay: float = 0.0  # of AdamW
    temperature: float = TEMPERATURE  # what cosines are divided by
    prior_temperature: float = PRIOR_TEMPERATURE  # what they are divided by inside the factor of the dual-softmax loss
    bf16: bool | None = None  # whether to compute in bfloat16; None for wherever CUDA supports it
    gradient_checkpointing: bool = False  # whether to compute the blocks' activations twice, to hold fewer of them
    seed: int = 0  # decides the adapter's first weights, dropout and the order of pairs

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
        size = self.mini_batch_size
        if self.loss == "dual-softmax":
            prior = self.prior_temperature
            return CachedDualSoftmaxLoss(encoder, self.temperature, prior_temperature=prior, mini_batch_size=size)
        return CachedMultipleNegativesRankingLoss(
            encoder,
            scale=1 / self.temperature,
            mini_batch_size=size,
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

        It measures and saves once in `every` steps, and measures at the start unless it is `resuming`. A
        ValueError if several processes were started, or bfloat16 is asked for and not supported.
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
                f"{arguments.world_size} processes were started, so the loss would see only a part of the batch. "
                f"Train in one process; with gradient caching, one device is enough for the whole batch."
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
    """Trains an adapter on pairs of texts (extra ``train``); everything else is sentence-transformers' trainer.

    What differs: a dense caption takes the video's prompt; checkpoints hold the adapter and not the model, and are
    moved into place whole; the count of masked false negatives is logged; a loss that is not finite ends the run.
    `args` are those of `TrainingSettings.arguments`.
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
                at = f"loss {logs['loss']} at step {self.state.global_step}"
                raise FloatingPointError(f"{at}. Lower the learning rate, or raise the temperature.")
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
        before = set(folder.glob("checkpoint-*"))
        new = folder / f"checkpoint-{self.state.global_step}"
        if new in before:
            shutil.rmtree(new)
        (draft / new.name).replace(new)
        for old in before - {new}:
            shutil.rmtree(old)

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:  # noqa: ARG002
        self.adapter.save(output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:  # type: ignore[override]  # as of its base
        self.adapter.load(checkpoint_path)


def last_checkpoint(folder: str | Path) -> Path | None:
    """The newest complete checkpoint of the training state in a folder, or None."""
    needed = (_STATE_FILE, ADAPTER_FILES[0])
    found = [path for path in Path(folder).glob("checkpoint-*") if all((path / name).is_file() for name in needed)]
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
        ways = {"summary_to_dense": (scores, self._positives), "dense_to_summary": (scores.T, self._positives.T)}
        return {f"{way}_{name}": value for way, pair in ways.items() for name, value in pair_recalls(*pair).items()}


_LOGGED = re.compile(r"loss|grad_norm|learning_rate|false_negatives|eval_.*(?<!_runtime)(?<!_per_second)")


class LogFile(TrainerCallback):
    """Writes what the trainer logs to a file of JSON lines, and shows a bar on stderr if `progress` asks for it.

    Lines of training hold ``step``, ``loss``, ``grad_norm``, ``learning_rate`` and ``false_negatives``; those of
    evaluation ``step`` and every metric, ``eval_...``. A run removes lines after the step that it begins at.
    """

    def __init__(self, path: str | Path, *, progress: bool = False) -> None:
        self.path = Path(path)
        self.progress = progress
        self._bar: tqdm[Any] | None = None

    def on_train_begin(self, args: object, state: TrainerState, control: object, **_kwargs: object) -> None:  # noqa: ARG002
        """Drop lines of steps that are yet to come."""
        kept = [entry for entry in read_log(self.path) if entry["step"] <= state.global_step and state.global_step]
        self.path.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        total, done = state.max_steps, state.global_step
        self._bar = progress_bar("Aligning", "steps", total=total, done=done, shown=self.progress)

    def on_log(
        self, args: object, state: TrainerState, control: object, logs: dict[str, float] | None = None, **_: object
    ) -> None:
        """Write a line."""
        del args, control
        values = {key: value for key, value in (logs or {}).items() if _LOGGED.fullmatch(key)}
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
