"""The bundled models and a few clips of their world, loaded and drawn once."""

from __future__ import annotations

import pytest

from vidembed import VideoEncoder, VideoReranker
from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.shapes import draw_world


@pytest.fixture(scope="session")
def shapes_encoder() -> VideoEncoder:
    return VideoEncoder("vidembed/shapes", device="cpu")


@pytest.fixture(scope="session")
def shapes_reranker() -> VideoReranker:
    return VideoReranker("vidembed/shapes-rerank", device="cpu")


@pytest.fixture(scope="session")
def shapes_world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Benchmark, Benchmark]:
    """Six clips with short summaries, and three others for validation."""
    return draw_world("shapes-short", tmp_path_factory.mktemp("world"), clips=6, seed=5)
