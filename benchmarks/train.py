"""What gradient caching costs in time and saves in memory, in one run at the same batch.

    python -m benchmarks.train [--quick]

One step of `CachedDualSoftmaxLoss` (forward and backward, at several sizes of the mini-batch) against one of
`DualSoftmaxLoss` on the whole batch: tokens a second, and memory added by the step. The gradients of both are compared.
The model is random, of Qwen2.5-VL's classes, with a LoRA of rank 64.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.backbone import tiny

from benchmarks.common import environment, keep
from benchmarks.encode import M_MMAP_THRESHOLD, added_memory
from vidembed import VideoEncoder
from vidembed.training import (
    CachedDualSoftmaxLoss,
    DualSoftmaxLoss,
    LanguageAdapter,
    LoraSettings,
    TextPair,
    TrainingSettings,
)
from vidembed.training.trainer import stand_in_kwargs, tokenize

WORDS = ("a", "red", "square", "moves", "slowly", "down", "and", "then", "stops", "beside", "the", "still", "star")


def some_pairs(count: int) -> list[TextPair]:
    """Distinct pairs; captions of 15 to 25 words, summaries of 4 to 8."""
    rng = np.random.default_rng(0)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS, size=rng.integers(low, high + 1)))

    return [TextPair(f"{text(15, 25)} {index}", f"{text(4, 8)} {index}") for index in range(count)]


def gradients(adapter: LanguageAdapter) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in adapter.parameters.values()])


def measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    mllm = tiny.save(
        "qwen2_5_vl",
        folder / "mllm",
        hidden_size=128,
        intermediate_size=384,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
    )
    adapter = LanguageAdapter(VideoEncoder(mllm, layer=-1, prefix=None, device="cpu"), LoraSettings(dropout=0.0))
    generator = torch.Generator().manual_seed(0)
    for parameter in adapter.parameters.values():
        parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    encoder = adapter.encoder.train()
    pairs = some_pairs(16 if quick else 32)
    batch = [
        tokenize(encoder.preprocess, [pair.dense for pair in pairs], stand_in_kwargs(encoder)),
        tokenize(encoder.preprocess, [pair.summary for pair in pairs], {}),
    ]
    tokens = sum(int(feature["attention_mask"].sum()) for feature in batch)
    sizes = (4, 16) if quick else (4, 8, 32)
    losses: dict[str, torch.nn.Module] = {"whole": DualSoftmaxLoss(encoder)}
    losses |= {f"cached_{size}": CachedDualSoftmaxLoss(encoder, mini_batch_size=size) for size in sizes}
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    memory: dict[str, list[float]] = {name: [] for name in losses}
    gap = {}
    wanted = torch.empty(0)

    def step(loss: torch.nn.Module) -> None:
        encoder.zero_grad()
        loss([dict(feature) for feature in batch]).backward()

    for turn in range(2 if quick else 6):  # in turn, so that a slow moment of the machine hits all
        for name, loss in losses.items():
            start = time.perf_counter()
            step(loss)
            elapsed = time.perf_counter() - start
            found = gradients(adapter)
            if name == "whole":
                wanted = found
            gap[name] = float((found - wanted).norm() / wanted.norm())
            assert gap[name] <= 1e-5, f"{name}: gradients differ by {gap[name]}, relative"
            if turn:  # the first warms up
                seconds[name].append(elapsed)
    # every tensor its own mapping, given back when freed: else the heap's holes count as memory of the step
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 64 * 1024)
    for _ in range(1 if quick else 3):
        for name, loss in losses.items():
            box: dict[str, float] = {}
            with added_memory(box):
                step(loss)
            memory[name].append(box["added_mib"])
    whole_s, whole_mib = statistics.median(seconds["whole"]), statistics.median(memory["whole"])
    return {
        "pairs": len(pairs),
        "tokens": tokens,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "trained_parameters": adapter.size,
        "paper_batch": TrainingSettings().batch_size,
        "losses": {
            name: {
                "tokens_per_second": tokens / statistics.median(seconds[name]),
                "added_mib": statistics.median(memory[name]),
                "time_ratio": statistics.median(seconds[name]) / whole_s,
                "memory_ratio": statistics.median(memory[name]) / whole_mib,
                "relative_gradient_difference": gap[name],
            }
            for name in losses
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small run, to see that it works; writes nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        result = {**measure(Path(name), quick=args.quick), **environment()}
    if args.quick:
        print(result)
    else:
        keep(__file__, result)


if __name__ == "__main__":
    main()
