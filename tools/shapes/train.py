"""Trains the small MLLM from scratch: ``python -m tools.shapes.train --out DIR``.

Generative objectives only: next-token loss on tags, captions, summaries, answers and yes/no. No contrastive loss, and
the "in one word" prompt that embeddings are read from is never trained. Needs torch 2.9 or newer, for its Muon.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import shutil
import time
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from tqdm import tqdm
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor

from tools.shapes.card import write_card
from tools.shapes.dataset import GRID, Batch, Mixture, RowBuilder, make_batch
from tools.shapes.evaluate import evaluate, probe
from tools.shapes.model import build_config, build_model, build_processor, forward
from tools.shapes.packing import Packed
from vidembed.text import write_atomically

logger = logging.getLogger(__name__)

_EVERY_TEXT: Final = ("tags", "short", "dense")
STAGES: Final[dict[str, tuple[int, Mixture]]] = {
    "tags": (800, Mixture(clips=24, texts=12, tags=1, isolated=0.3)),
    "describe": (
        400,
        Mixture(
            clips=24,
            texts=8,
            tags=1,
            captions=1,
            summaries=1,
            questions=1,
            statements=1,
            text_answers=_EVERY_TEXT,
            isolated=0.6,
        ),
    ),
    "match": (
        1600,
        Mixture(
            clips=16,
            texts=12,
            tags=1,
            captions=1,
            summaries=1,
            questions=1,
            statements=3,
            hard=0.9,
            text_answers=_EVERY_TEXT,
            isolated=0.8,
        ),
    ),
}
"""Steps and mixture of each stage, in order: tags alone first, or the decoder learns to do without the clip.
What the last stage does not ask for is unlearned in it."""

TEXT_WEIGHT: Final = 0.5
LOG_EVERY: Final = 50

PEAK_RATE: Final = 2e-3
WEIGHT_DECAY: Final = 0.02
WARMUP_STEPS: Final = 60
DECAY_SHARE: Final = 0.4
"""Share of the run over which the learning rate falls linearly to 2 % of its peak."""


@dataclass(frozen=True, slots=True)
class Run:
    """What decides a training run.

    Attributes:
        seed: Of the weights and of the data.
        steps: Steps of each stage of ``STAGES``, in order.
        layers: Decoder blocks.
        hidden: Width of the decoder.
        batch_scale: Multiplies the clips and texts of a step.
        weights: Name of the checkpoint whose weights the run begins with; empty for random ones.
    """

    seed: int = 0
    steps: tuple[int, ...] = tuple(steps for steps, _ in STAGES.values())
    layers: int = 10
    hidden: int = 128
    batch_scale: int = 1
    weights: str = ""

    def stage(self, step: int) -> tuple[str, Mixture]:
        """Name and mixture of the stage that a step belongs to."""
        for end, (name, (_, mixture)) in zip(accumulate(self.steps), STAGES.items(), strict=True):
            if step < end:
                scale = self.batch_scale
                return name, Mixture(
                    **asdict(mixture) | {"clips": mixture.clips * scale, "texts": mixture.texts * scale}
                )
        raise ValueError(f"step must be below {sum(self.steps)}, got {step}")


def learning_rate(step: int, total: int, peak: float = PEAK_RATE) -> float:
    """Rate of a step: linear warm-up, constant, then a linear fall.

    Args:
        step: From 0.
        total: Steps of the whole run.
        peak: The highest rate.

    Returns:
        The rate.
    """
    fall = total * DECAY_SHARE
    return peak * min((step + 1) / WARMUP_STEPS, 1.0, max((total - step) / fall, 0.02))


def make_optimizers(model: torch.nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    """Muon (https://kellerjordan.github.io/posts/muon/) for the matrices of the blocks, AdamW for everything else.

    Side by side on this model, Muon was ahead of AdamW alone at equal time within the first few hundred steps.
    """
    blocks = (".layers.", ".blocks.", ".merger.mlp.")
    matrices: list[torch.nn.Parameter] = []
    rest: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and any(block in name for block in blocks) else rest).append(parameter)
    decay = WEIGHT_DECAY
    return (
        torch.optim.Muon(matrices, lr=PEAK_RATE, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=decay, foreach=True),
    )


def packed_loss(
    model: Qwen2_5_VLForConditionalGeneration, packed: Packed, pixel_values: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted next-token loss of packed rows, and the weighted share of tokens that are right."""
    hidden = forward(model, packed, pixel_values, GRID)  # (B, L, D)
    logits = model.lm_head(hidden[packed.rows, packed.predictors])  # (N, V)
    loss = functional.cross_entropy(logits, packed.targets, reduction="none")
    right = (logits.argmax(-1) == packed.targets).float()
    total = packed.weights.sum()
    return (loss * packed.weights).sum() / total, (right * packed.weights).sum() / total


def export(model: Qwen2_5_VLForConditionalGeneration, processor: Qwen2_5_VLProcessor, out: Path) -> None:
    """Saves weights in float16 and a configuration of float32, so that they load as float32.

    Args:
        model: The trained model; it is not changed.
        processor: Its processor.
        out: The folder, made where missing.
    """
    half: Any = copy.deepcopy(model)
    half = half.half().cpu()
    half.save_pretrained(out)
    processor.save_pretrained(out)
    path = out / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config, config["text_config"], config["vision_config"]):
        if "dtype" in part:
            part["dtype"] = "float32"
    config["dtype"] = "float32"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class Training:
    """A run under way: model, optimizer and position, saved to and restored from a folder without pickle."""

    def __init__(self, run: Run, *, device: torch.device) -> None:
        self.run = run
        self.device = device
        self.processor = build_processor()
        self.builder = RowBuilder(self.processor.tokenizer)
        config = build_config(self.processor.tokenizer, layers=run.layers, hidden=run.hidden)
        self.model = build_model(config, run.seed).train()
        torch.nn.Module.to(self.model, device)
        self.optimizers = make_optimizers(self.model)
        self.step = 0
        self.seconds = 0.0

    def save(self, folder: Path) -> None:
        """Writes weights, optimizer state and position; ``state.json`` comes last and names the others."""
        folder.mkdir(parents=True, exist_ok=True)
        names = {"model": f"model-{self.step}.safetensors", "optimizer": f"optimizer-{self.step}.safetensors"}
        save_file({k: v.contiguous().cpu() for k, v in self.model.state_dict().items()}, folder / names["model"])
        moments = {
            f"{part}/{index}/{key}": value.clone().contiguous().cpu()
            for part, optimizer in enumerate(self.optimizers)
            for index, tensors in optimizer.state_dict()["state"].items()
            for key, value in tensors.items()
        }
        save_file(moments, folder / names["optimizer"])
        state = {"step": self.step, "seconds": round(self.seconds, 1), "run": asdict(self.run), **names}
        write_atomically(folder / "state.json", json.dumps(state))
        for old in folder.glob("*.safetensors"):
            if old.name not in names.values():
                old.unlink()

    @classmethod
    def resume(cls, folder: Path, *, device: torch.device) -> Training:
        """Restores what ``save`` wrote.

        Raises:
            FileNotFoundError: When the folder holds no saved state.
        """
        path = folder / "state.json"
        if not path.is_file():
            raise FileNotFoundError(f"resume: no state.json in {folder}; start the run without --resume")
        state = json.loads(path.read_text())
        run = Run(**state["run"] | {"steps": tuple(state["run"]["steps"])})
        training = cls(run, device=device)
        training.model.load_state_dict(load_file(folder / state["model"]))
        moments: list[dict[int, dict[str, torch.Tensor]]] = [defaultdict(dict) for _ in training.optimizers]
        for name, value in load_file(folder / state["optimizer"]).items():
            part, index, key = name.split("/")
            moments[int(part)][int(index)][key] = value
        for optimizer, tensors in zip(training.optimizers, moments, strict=True):
            optimizer.load_state_dict({**optimizer.state_dict(), "state": tensors})
        training.step, training.seconds = state["step"], state["seconds"]
        return training

    def begin_with(self, folder: Path) -> None:
        """Takes the weights of a checkpoint, in float32, before the first step.

        Raises:
            RuntimeError: When it is of another shape than the run's model.
        """
        auto_model: Any = Qwen2_5_VLForConditionalGeneration
        trained = auto_model.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        self.model.load_state_dict(trained.state_dict())

    def batch(self, step: int) -> Batch:
        """The data of a step."""
        return make_batch(self.builder, self.run.stage(step)[1], seed=self.run.seed, step=step)

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One update.

        Args:
            batch: The data of the current step.

        Returns:
            Losses and token accuracies on clips and on texts.
        """
        clip_loss, clip_accuracy = packed_loss(
            self.model, batch.clips.to(self.device), batch.pixel_values.to(self.device)
        )
        torch.autograd.backward(clip_loss)
        figures = {"clip_loss": clip_loss.item(), "clip_accuracy": clip_accuracy.item()}
        if batch.texts is not None:
            text_loss, text_accuracy = packed_loss(self.model, batch.texts.to(self.device), None)
            torch.autograd.backward(TEXT_WEIGHT * text_loss)
            figures |= {"text_loss": text_loss.item(), "text_accuracy": text_accuracy.item()}
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = learning_rate(self.step, sum(self.run.steps))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        self.step += 1
        return figures

    def fit(
        self, out: Path, *, until: int | None = None, save_every: int = 200, workers: int = 1, probe_clips: int = 100
    ) -> None:
        """Trains to the end of the run, or to a step, logging to ``out/train_log.jsonl`` and saving to ``out/state``.

        Args:
            out: The run's folder.
            until: Step to stop at; the end of the run by default.
            save_every: Steps between saved states, each of which is also probed on held-out clips.
            workers: Threads that prepare batches ahead.
            probe_clips: Held-out clips of a probe.
        """
        out.mkdir(parents=True, exist_ok=True)
        end = min(until or sum(self.run.steps), sum(self.run.steps))
        sums: dict[str, float] = {}
        count = 0
        with (
            ThreadPoolExecutor(workers) as pool,
            (out / "train_log.jsonl").open("a", encoding="utf-8") as log,
            tqdm(total=end, initial=self.step, unit="step", desc="training") as bar,
        ):
            ahead: list[Future[Batch]] = [
                pool.submit(self.batch, s) for s in range(self.step, min(end, self.step + workers))
            ]
            while self.step < end:
                started = time.monotonic()
                if (following := self.step + len(ahead)) < end:
                    ahead.append(pool.submit(self.batch, following))
                name = self.run.stage(self.step)[0]
                figures = self.train_step(ahead.pop(0).result())
                self.seconds += time.monotonic() - started
                sums = {key: sums.get(key, 0.0) + value for key, value in figures.items()}
                count += 1
                bar.update()
                bar.set_postfix(stage=name, loss=f"{figures['clip_loss']:.3f}")
                saving = self.step % save_every == 0 or self.step == end
                if self.step % LOG_EVERY == 0 or saving:
                    record: dict[str, Any] = {"step": self.step, "stage": name, "seconds": round(self.seconds, 1)}
                    record |= {key: round(value / count, 4) for key, value in sums.items()}
                    sums, count = {}, 0
                    if saving:
                        self.save(out / "state")
                        record |= probe(self.model, self.builder, probe_clips)
                    log.write(json.dumps(record) + "\n")
                    log.flush()

    def publish(self, out: Path, *, clips: int = 200) -> dict[str, Any]:
        """Writes ``out/checkpoint``: the model, its figures on held-out files, its log and its card.

        Args:
            out: The run's folder.
            clips: Held-out clips to measure on.

        Returns:
            The figures.
        """
        folder = out / "checkpoint"
        export(self.model, self.processor, folder)
        figures = evaluate(folder, clips=clips, device=str(self.device))
        (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        shutil.copyfile(out / "train_log.jsonl", folder / "train_log.jsonl")
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        start = self.run.weights
        note = f"The run began with the weights of {start}, not with random ones." if start else ""
        card = write_card(figures, asdict(self.run), parameters=parameters, seconds=self.seconds, note=note)
        (folder / "README.md").write_text(card, encoding="utf-8")
        return figures


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.shapes.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; the model goes to OUT/checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/state")
    parser.add_argument("--steps", type=int, nargs=len(STAGES), metavar="N", help=f"steps of {', '.join(STAGES)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="a checkpoint to begin with; random weights by default")
    parser.add_argument("--weights-name", default="", help="what the card calls it; its folder by default")
    parser.add_argument("--layers", type=int, default=10, help="decoder blocks")
    parser.add_argument("--hidden", type=int, default=128, help="width of the decoder, a multiple of 64")
    parser.add_argument("--batch-scale", type=int, default=1, help="multiplies the clips and texts of a step")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU")
    parser.add_argument("--workers", type=int, default=1, help="threads that prepare batches ahead")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if options.resume:
        training = Training.resume(options.out / "state", device=device)
    else:
        steps = tuple(options.steps or Run().steps)
        name = options.weights_name or str(options.weights or "")
        run = Run(options.seed, steps, options.layers, options.hidden, options.batch_scale, name)
        training = Training(run, device=device)
        if options.weights:
            training.begin_with(options.weights)
    training.fit(options.out, workers=options.workers)
    figures = training.publish(options.out)
    best = figures["layers"][figures["best_layer"] - 1]
    logger.info("wrote %s: text to video %s at layer %s", options.out / "checkpoint", best["t2v"], best["layer"])


if __name__ == "__main__":
    main()
