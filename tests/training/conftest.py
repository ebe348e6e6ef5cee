from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from vidembed import VideoEncoder
from vidembed.training import LanguageAdapter, LoraSettings, TextPair

SHAPES = ("square", "circle", "star")
COLOURS = ("red", "green", "blue", "white")


def make_pairs(n: int = 12) -> list[TextPair]:
    """Distinct pairs of different lengths."""
    return [
        TextPair(
            f"A {COLOURS[i % 4]} {SHAPES[i % 3]} moves down, number {i}" + ", and on" * (i % 3),
            f"{COLOURS[i % 4]} {SHAPES[i % 3]} {i}",
        )
        for i in range(n)
    ]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These models are so small that threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pairs() -> list[TextPair]:
    return make_pairs()


@pytest.fixture
def encoder(tiny_mllm: Callable[[str], Path]) -> VideoEncoder:
    """A fresh encoder: the tests change its weights."""
    return VideoEncoder(tiny_mllm("qwen2_5_vl"), layer=-1, prefix=None, device="cpu")


@pytest.fixture
def adapted(encoder: VideoEncoder) -> LanguageAdapter:
    """An adapter that already changes the vectors (a fresh LoRA changes nothing)."""
    return filled(LanguageAdapter(encoder, LoraSettings(rank=4, alpha=8, dropout=0.0)))


def filled(adapter: LanguageAdapter, seed: int = 3) -> LanguageAdapter:
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters.values():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return adapter
