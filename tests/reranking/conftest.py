from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.backbone import tiny
from tests.clips import write_folder
from vidembed import VideoReranker
from vidembed.backbone import find_parts


@pytest.fixture(scope="package")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_folder(tmp_path_factory.mktemp("clips"), 3)


@pytest.fixture(params=tiny.ARCHITECTURES)
def each_reranker(request: pytest.FixtureRequest, tiny_mllm: Callable[[str], Path]) -> VideoReranker:
    return loud(VideoReranker(tiny_mllm(request.param), device="cpu"))


@pytest.fixture
def reranker(tiny_mllm: Callable[[str], Path]) -> VideoReranker:
    return loud(VideoReranker(tiny_mllm("qwen2_5_vl"), device="cpu"))


def loud(reranker: VideoReranker) -> VideoReranker:
    """Scales the head, so that logits are of a size at which a wrong prompt shows."""
    with torch.no_grad():
        find_parts(reranker._transformer.model).head.weight.mul_(20)  # type: ignore[union-attr]
    return reranker
