from __future__ import annotations

from pathlib import Path

import pytest

from tests.clips import write_folder
from vidembed.captions import CaptionedVideo


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[CaptionedVideo]:
    """Eight clips of unequal length; the first has two captions, and the last two share one."""
    clips: list[Path] = write_folder(tmp_path_factory.mktemp("analysis"), 8)
    texts = [f"a square that moves {'on ' * index}in scene {index}" for index in range(7)]
    rows = [CaptionedVideo(clip, text) for clip, text in zip(clips, [*texts, texts[6]], strict=True)]
    return [*rows, CaptionedVideo(clips[0], "another caption")]
