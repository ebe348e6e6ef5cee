"""`align`: train an adapter on pairs of texts and write an aligned checkpoint; an interrupted run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Literal

import torch
from sentence_transformers.base.evaluation import BaseEvaluator
from sentence_transformers.util import is_sentence_transformer_model
from sentence_transformers.util.file_io import load_file_path
from transformers import set_seed

from vidembed.backbone.load import check_dtype
from vidembed.backbone.options import refuse_quantization, with_dtype
from vidembed.building import checked_target, drafted
from vidembed.captions import TextPair
from vidembed.checkpoint import FILE_NAME
from vidembed.encoder import VideoEncoder
from vidembed.errors import BackboneError
from vidembed.plots import can_plot, plot_curves, read_log
from vidembed.registry import loading_name, resolve_model
from vidembed.text import require_train_extra, write_atomically
from vidembed.training.lora import LanguageAdapter, LoraSettings, check_saved, write_adapter, write_facts, write_merged
from vidembed.training.trainer import (
    AlignmentTrainer,
    LogFile,
    PairEvaluator,
    TooLong,
    TrainingSettings,
    fit_context,
    last_checkpoint,
)

logger = logging.getLogger(__name__)
Output = Literal["merged", "adapter"]
HELD_OUT: Final = 256  # pairs that are not trained on, for the recall while training (ours)
EVALUATIONS: Final = 10  # how often a run is measured and saved by default, beside its start (ours)
_RUN_FILE, _LOG_FILE, _PLOT_FILE = "run.json", "train_log.jsonl", "curves.png"


def align(
    mllm: str | Path,
    pairs: Sequence[TextPair],
    out: str | Path,
    *,
    layer: int | None = None,
    prefix: str | None = None,
    lora: LoraSettings | None = None,
    training: TrainingSettings | None = None,
    held_out: int = HELD_OUT,
    every: int | None = None,
    evaluator: BaseEvaluator | None = None,
    max_tokens: int | None = None,
    too_long: TooLong = "raise",
    output: Output = "merged",
    resume: bool = True,
    overwrite: bool = False,
    dtype: str | None = None,
    device: str | None = None,
    progress: bool = False,
    **hub_kwargs: Any,
) -> Path:
    """Align the language model of a video MLLM with pairs of texts, and write the result.

    VidVec-O (arXiv 2602.08099, sections 3.4 and 3.5): a LoRA on the language model, both sides read at the last token
    of their one-word prompt, a dual-softmax loss. No video is used.

    A run's state is in ``<out>.training``; the same call goes on from there. `out` appears when it is complete, with
    ``alignment.json`` (settings, measurements), ``train_log.jsonl`` and, with the extra ``plot``, ``curves.png`` in it.

    Args:
        mllm: Directory or Hub name of a video MLLM, or a vidembed checkpoint to go on from.
        pairs: (dense caption, summary) pairs, from `read_pairs` or `sample_pairs`.
        out: Folder to write, which is returned.
        layer: 1-based decoder block to read and train for, or -1 for the last with its trained final norm. Default -1,
            as in the paper; of a checkpoint it is known.
        prefix: A line before the content of each prompt. Default none: the paper has one for models as they are.
        lora: Of the adapter. Default `LoraSettings`.
        training: Of the run. Default `TrainingSettings`.
        held_out: Pairs drawn by the seed that are measured and not trained on; 0 for none. Default `HELD_OUT`.
        every: Steps between measurements and saved states. Default a tenth of the run (`EVALUATIONS`).
        evaluator: Measured with them: any evaluator of sentence-transformers, for example one on videos.
        max_tokens: Most tokens a text may have with its prompt. Default what the model takes.
        too_long: What to do with longer ones: "raise", or "drop" to leave the pair out and say how many.
        output: "merged" for a plain sentence-transformers checkpoint, "adapter" for a PEFT adapter alone, which loads
            as a recipe: with the MLLM that it was trained on.
        resume: Go on from an interrupted run of the same settings; False starts again.
        overwrite: Replace `out` if it exists.
        dtype: "float32" or "bfloat16", of the frozen weights; None for the dtype of the model.
        device: "cpu", or None for the best there is; choose a GPU with ``CUDA_VISIBLE_DEVICES``.
        progress: Whether to show a bar.
        **hub_kwargs: ``revision``, ``token``, ``cache_folder``, ``local_files_only``; and ``model_kwargs``.

    Raises:
        MissingExtraError: A package of the extra ``train`` is not installed.
        FileExistsError: `out` exists and is not empty, and `overwrite` is False.
        BackboneError: The model is not supported, or its weights are float16, which cannot be trained in.
        AnnotationError: A pair is too long, or there are too few.
        ValueError: An argument is out of range, or an interrupted run has other settings.
        FloatingPointError: The loss was not finite; the state of earlier steps stays.
        ReadoutMismatchError: The checkpoint does not give the trained model's vectors; nothing is written.
    """
    require_train_extra()
    lora, training = lora or LoraSettings(), training or TrainingSettings()
    target = checked_target(out, overwrite=overwrite)
    if output not in ("merged", "adapter"):
        raise ValueError(f"output={output!r} is not known. Allowed: 'merged', 'adapter'.")
    if device not in (None, "cpu", "cuda"):
        raise ValueError(
            f"device={device!r}: allowed are 'cpu', 'cuda' or None; choose a GPU with CUDA_VISIBLE_DEVICES."
        )
    if every is not None and every < 1:
        raise ValueError(f"every={every!r}: expected at least 1 step.")
    check_dtype(dtype)
    refuse_quantization(hub_kwargs, "an adapter cannot be merged into quantized weights; leave it out.")
    readout = {name: value for name, value in (("layer", layer), ("prefix", prefix)) if value is not None}
    encoder = _load(mllm, readout, dtype, device=device, **hub_kwargs)
    fitting = fit_context(encoder, pairs, max_tokens=max_tokens, too_long=too_long)
    train, held = _split(fitting, held_out, training.seed)
    steps = training.steps(len(train))
    digest = hashlib.sha256("".join(json.dumps([pair.dense, pair.summary]) for pair in fitting).encode())
    every = every or max(1, steps // EVALUATIONS)
    facts: dict[str, object] = {
        "source": encoder.checkpoint_config.source if encoder.checkpoint_config else None,
        "layer": encoder.layer,
        "output": output,
        "pairs": len(train),
        "held_out": len(held),
        "left_out_too_long": len(pairs) - len(fitting),
        "pairs_digest": digest.hexdigest(),
        "dtype": str(encoder.dtype).removeprefix("torch."),
        "lora": asdict(lora),
        "training": asdict(training),
        "every": every,
    }
    work = target.with_name(f"{target.name}.training")
    state = _open_run(work, facts, resume=resume)

    set_seed(training.seed)  # the adapter's first weights
    adapter = LanguageAdapter(encoder, lora)
    facts["trained_parameters"] = adapter.size
    logger.info("training %d parameters on %d pairs, %d steps", adapter.size, len(train), steps)
    evaluators: list[BaseEvaluator] = [PairEvaluator(held)] if held else []
    evaluators += [evaluator] if evaluator is not None else []
    trainer = AlignmentTrainer(
        adapter,
        train,
        training,
        training.arguments(work, every=every, device=device, resuming=state is not None, evaluate=bool(evaluators)),
        evaluator=evaluators[0] if len(evaluators) == 1 else evaluators or None,
        callbacks=[LogFile(work / _LOG_FILE, progress=progress)],
    )
    trainer.train(resume_from_checkpoint=str(state) if state else None)
    log = read_log(work / _LOG_FILE)
    if evaluators and not any(entry["step"] == trainer.state.global_step and "loss" not in entry for entry in log):
        trainer.evaluate()
    trainer.accelerator.unwrap_model(encoder, keep_fp32_wrapper=False)
    facts |= {"steps": trainer.state.global_step, **_measured(work / _LOG_FILE)}
    del trainer

    with drafted(target) as draft:
        shutil.copyfile(work / _LOG_FILE, draft / _LOG_FILE)
        if can_plot():
            plot_curves(work / _LOG_FILE, draft / _PLOT_FILE)
        if output == "merged":
            probes = write_merged(adapter, draft)
            facts["merge_cosine"] = probes.merge_cosine
            del adapter, encoder
            check_saved(draft, probes)
        else:
            write_adapter(adapter, draft, target)
        write_facts(draft, loading_name(out), facts)
    shutil.rmtree(work)
    return target


def _load(
    mllm: str | Path, readout: dict[str, Any], dtype: str | None, *, device: str | None, **hub_kwargs: Any
) -> VideoEncoder:
    """An encoder of the last layer without a prefix, unless `readout` or a checkpoint has others."""
    name = resolve_model(str(mllm))
    of_the_hub = {key: value for key, value in hub_kwargs.items() if key != "model_kwargs"}
    known = load_file_path(name, FILE_NAME, **of_the_hub) is not None  # of a recipe, too
    if not known and not is_sentence_transformer_model(name, **of_the_hub):
        readout = {"layer": -1, "prefix": None, **readout}
    encoder = VideoEncoder(mllm, device=device, **readout, **with_dtype(hub_kwargs, dtype))
    config = encoder.checkpoint_config
    if config is not None and config.recipe is not None and config.recipe.adapter:
        remedy = "Load it as VideoEncoder, call save_pretrained, and train the saved model."
        raise BackboneError(f"{mllm}: it already has an adapter. {remedy}")
    if encoder.dtype == torch.float16:
        remedy = "Pass dtype='bfloat16' or 'float32'."
        raise BackboneError(f"{mllm}: its weights are float16, in which gradients underflow. {remedy}")
    return encoder


def _split(pairs: Sequence[TextPair], held_out: int, seed: int) -> tuple[list[TextPair], list[TextPair]]:
    """Pairs to train on, and pairs to measure on, drawn by the seed."""
    most = max(0, len(pairs) - 2)
    if not 0 <= held_out <= most:
        expected = f"expected 0..{most}, so that at least 2 remain for training"
        raise ValueError(f"held_out={held_out!r} of {len(pairs)} pairs: {expected}.")
    drawn = set(random.Random(seed).sample(range(len(pairs)), held_out))  # noqa: S311 - a sample, not a secret
    train = [pair for index, pair in enumerate(pairs) if index not in drawn]
    return train, [pair for index, pair in enumerate(pairs) if index in drawn]


def _open_run(work: Path, facts: dict[str, object], *, resume: bool) -> Path | None:
    """Make the folder of the run, or find the state of an interrupted one to go on from; other settings are refused."""
    file = work / _RUN_FILE
    if work.exists() and resume and file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if differing := sorted(key for key in facts if before.get(key) != facts[key]):
            remedy = "Use the same settings to continue, pass resume=False to start again, or choose another folder."
            raise ValueError(f"{work} has an interrupted run with different {', '.join(differing)}. {remedy}")
        state = last_checkpoint(work)
        logger.info("continuing from %s", state.name if state else "the start: no state was saved yet")
        return state
    if work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True)
    write_atomically(file, json.dumps(facts, indent=2) + "\n")
    return None


def _measured(log: Path) -> dict[str, object]:
    """Loss and metrics at the start and at the end of a run, from its log."""
    entries = read_log(log)
    steps = [entry for entry in entries if "loss" in entry]
    metrics = [{key: value for key, value in one.items() if key != "step"} for one in entries if "loss" not in one]
    return {
        "first_loss": steps[0]["loss"] if steps else None,
        "last_loss": steps[-1]["loss"] if steps else None,
        "false_negatives": sum(entry.get("false_negatives", 0) for entry in steps),
        "before": metrics[0] if metrics else {},
        "after": metrics[-1] if metrics else {},
    }
