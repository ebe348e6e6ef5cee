"""The bundled model and clips that it can describe, shared by the tests of captions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures import vision_tower
from vidembed import VideoReranker
from vidembed.shapes import write_clips

CLIPS = 4


@pytest.fixture(scope="session")
def model() -> VideoReranker:
    reranker = VideoReranker("vidembed/shapes-rerank", device="cpu")
    assert reranker.sharing is not None  # tried here, so that tests may count the passes of their own calls
    return reranker


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Any]]:
    return write_clips(tmp_path_factory.mktemp("scenes"), CLIPS, "test", 0)


@contextmanager
def counted(reranker: VideoReranker) -> Iterator[list[int]]:
    """Counts the passes of the vision tower: one for each video that the model sees."""
    passes: list[int] = []
    hook = vision_tower(reranker.parts).register_forward_hook(lambda *_: passes.append(1))
    yield passes
    hook.remove()
