"""Shared fixtures: random small models of every architecture; the offline switch; how tests are dealt to processes."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported: no test may reach for a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the workers share the cores

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

from tests.backbone import tiny
from tests.clips import write_folder
from vidembed import VideoReranker
from vidembed import registry as hook
from vidembed.backbone.architectures import Parts, find_parts

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell does so to what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests of Ctrl-C send it to themselves and to processes

# no test is timed, and each run tries the same examples
settings.register_profile("here", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")

SHARED = ("tests/ray/", "tests/serve/test_page.py", "tests/serve/test_process.py")
"""Folders, and files of one folder, whose tests share something that is slow to start: a cluster, a server."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `-n N --dist loadgroup`: the tests of a file stay together, and so do those that share something.

    Not by the marker `xdist_group`, which xdist 3.8 overlooks with pytest 9.2.
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file.rpartition("/")[0] if file.startswith(SHARED) else file

    return Grouped(config, log)


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


@pytest.fixture(autouse=True)
def _log_level() -> None:
    """Undoes what an earlier run of the command line set for its own process."""
    logging.getLogger("vidembed").setLevel(logging.NOTSET)


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
