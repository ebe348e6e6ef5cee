"""Every Python block of README and docs runs, but those marked as not run."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from tests.clips import moving_square, write_folder, write_video

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```python\n(.*?)```(\n<!-- not run)?", re.DOTALL)
BLOCKS = [
    pytest.param(match[1], id=f"{page.stem}-{number}")
    for page in PAGES
    for number, match in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8")))
    if not match[2]
]


@pytest.mark.parametrize("code", BLOCKS)
def test_python_block(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "clip.mp4", moving_square(20))
    write_video(tmp_path / "long.mp4", moving_square(80, seed=1))
    write_video(tmp_path / "talk.mp4", moving_square(210, seed=2))
    write_folder(tmp_path / "clips", 2)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "<docs>", "exec", dont_inherit=True), {"__name__": "docs"})  # our own pages


def test_blocks_are_found() -> None:
    assert len(BLOCKS) >= 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("name", ["vidembed.encoder"])
def test_docstring_examples(name: str) -> None:
    module = __import__(name, fromlist=["_"])
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
