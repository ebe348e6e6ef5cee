"""Fixtures that all tests share: random small models of every architecture, and clips."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from tests import decoders
from tests.backbone import tiny
from tests.clips import write_folder
from vidembed import VideoReranker
from vidembed import registry as hook
from vidembed.backbone.architectures import Parts, find_parts
from vidembed.video import pool

OF_PROCESSES = Path(__file__).parent / "video"
"""Folder of the tests that are about the decoding processes."""


@pytest.fixture(scope="session")
def decoder_command() -> Iterator[tuple[str, ...]]:
    """A command that starts a decoding process quickly."""
    if sys.platform != "linux":
        yield pool.COMMAND
        return
    for address in decoders.server():
        yield decoders.command(address)


@contextmanager
def without_vidembed(*others: str) -> Iterator[None]:
    """Stock sentence-transformers, where an import of vidembed, or of `others`, fails."""
    names = {"vidembed", *others}
    hidden = {name: None for name in sys.modules if name.partition(".")[0] in names} | dict.fromkeys(names)
    hook.remove()
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name in hidden:
                patch.setitem(sys.modules, name, None)
            yield
    finally:
        hook.install()


@pytest.fixture(autouse=True)
def _quick_decoders(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding processes start as forks, but for tests that are about them."""
    if not request.path.is_relative_to(OF_PROCESSES):
        monkeypatch.setattr(pool, "COMMAND", request.getfixturevalue("decoder_command"))


@pytest.fixture(scope="session")
def tiny_mllm(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a random small MLLM of an architecture, written once per session."""
    made: dict[str, Path] = {}

    def get(model_type: str) -> Path:
        if model_type not in made:
            made[model_type] = tiny.save(model_type, tmp_path_factory.mktemp(model_type))
        return made[model_type]

    return get


@pytest.fixture(params=tiny.ARCHITECTURES)
def each_mllm(request: pytest.FixtureRequest, tiny_mllm: Callable[[str], Path]) -> Path:
    """The folder of a random small MLLM, once per architecture."""
    return tiny_mllm(request.param)


@pytest.fixture
def stock() -> Iterator[None]:
    """sentence-transformers' own classes as they are, for folders that vidembed wrote too."""
    hook.remove()
    yield
    hook.install()


@pytest.fixture(scope="session")
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
        find_parts(reranker[0].model).head.weight.mul_(20)  # type: ignore[union-attr]
    assert reranker.sharing is not None  # tried here, so that tests may count the passes of their own calls
    return reranker


def vision_tower(parts: Parts) -> nn.Module:
    return next(child for child in parts.base.children() if child is not parts.decoder)
