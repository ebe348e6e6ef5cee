from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.ray.fakes import FakeEmbed


@pytest.fixture(scope="session")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the workers of the fake model note what they do."""
    return tmp_path_factory.mktemp("notes")


@pytest.fixture(scope="session")
def _cluster(notes: Path) -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra ray)")
    before = dict(os.environ)
    os.environ |= {"NOTES": str(notes), "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    os.environ.pop("RAY_ADDRESS", None)
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=128 * 2**20,
        log_to_driver=False,
        logging_level="error",
    )
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def cluster(_cluster: None, notes: Path) -> Path:
    """A real local cluster, one for all tests; returns the folder of what its workers note, emptied."""
    for file in notes.iterdir():
        file.unlink()
    return notes


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have workers run the fake model."""
    monkeypatch.setattr("vidembed.ray.cluster.EmbedVideos", FakeEmbed)


@pytest.fixture
def seen(cluster: Path) -> Callable[[], dict[int, list[str]]]:
    """What each worker has embedded, as URIs by process id."""

    def read() -> dict[int, list[str]]:
        return {int(file.name): file.read_text().split() for file in cluster.iterdir()}

    return read


@pytest.fixture
def run(cluster: Path, fake: None) -> Callable[..., Any]:
    """`index_videos_ray` with the fake model and two workers."""
    from vidembed.ray import index_videos_ray

    def index(paths: Any, folder: Path, **options: Any) -> Any:
        return index_videos_ray(
            paths, folder, **{"model": "fake", "workers": 2, "decoders": 1, "progress": False, **options}
        )

    return index
