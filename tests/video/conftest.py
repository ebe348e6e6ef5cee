"""Fixtures: the zoo of videos, made once per session."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.zoo import Zoo


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Makes each video on first use."""
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(scope="session")
def real_videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Copies of the camera and web videos of a folder that is not part of the repository, where there is one."""
    beside = Path(__file__).parents[3] / "shared" / "videos"
    folder = Path(os.environ.get("VIDEMBED_TEST_VIDEOS", beside))
    if not folder.is_dir():
        pytest.skip("no real videos: set VIDEMBED_TEST_VIDEOS to a folder of some")
    copies = tmp_path_factory.mktemp("real")
    return [Path(shutil.copy(path, copies)) for path in sorted(folder.iterdir()) if path.is_file()]
