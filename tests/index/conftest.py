from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.index.fakes import FakeEncoder, write_videos
from vidembed.index import Report, index_videos


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of six videos."""
    write_videos(tmp_path / "clips", 6)
    return tmp_path / "clips"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the index goes."""
    return tmp_path / "index"


@pytest.fixture
def run(clips: Path, folder: Path) -> Callable[..., Report]:
    """Index the clips with a fresh fake model."""

    def index(encoder: FakeEncoder | None = None, **options: object) -> Report:
        encoder = encoder or FakeEncoder()
        return index_videos([clips], folder, encoder, **{"model": encoder.name, "progress": False, **options})

    return index
