"""What it costs to ask a model for its fingerprint, which every search does once.

    python -m benchmarks.fingerprint

The bundled encoder and reranker, and a made-up model with as many tensors as one of 7B parameters. How large a tensor
is makes no difference: 64 values of it are read.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from vidembed import VideoEncoder, VideoReranker
from vidembed.backbone.sharing import weights_digest

TENSORS = 730  # Qwen2.5-VL-7B has 729
CALLS = 30


def milliseconds(call: Callable[[], object]) -> str:
    """Median and maximum of some calls, after one that is not counted."""
    taken = []
    for _ in range(CALLS + 1):
        before = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - before))
    return f"median {statistics.median(taken[1:]):.1f} ms, maximum {max(taken[1:]):.1f} ms"


def main() -> None:
    """Print the cost of each."""
    encoder, reranker = VideoEncoder("vidembed/shapes", device="cpu"), VideoReranker("vidembed/shapes-rerank")
    made_up = nn.ParameterList(torch.zeros(200 + index % 7, 300) for index in range(TENSORS))
    for model in (encoder, reranker):
        tensors = len(list(model.parameters()))
        print(f"{type(model).__name__}.fingerprint, {tensors} tensors: {milliseconds(lambda: model.fingerprint)}")  # noqa: B023
    print(f"digest of the weights, {TENSORS} tensors: {milliseconds(lambda: weights_digest(made_up))}")
    text = {"text": "a red square moves down"}
    print(f"for comparison, encoding a short text: {milliseconds(lambda: encoder.encode(text))}")


if __name__ == "__main__":
    main()
