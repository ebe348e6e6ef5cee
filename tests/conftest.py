"""Shared fixtures: random small models of every architecture, and the offline switch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported: no test may reach for a hub
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from tests.backbone import tiny


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


@pytest.fixture(autouse=True)
def _log_level() -> None:
    """Undoes what an earlier run of the command line set for its own process."""
    logging.getLogger("vidembed").setLevel(logging.NOTSET)
