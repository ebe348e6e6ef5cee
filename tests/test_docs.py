"""Every Python block of README and docs runs, but those marked as not run, and prints what is shown behind it."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.clips import moving_square, write_folder, write_video
from vidembed.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIAL = ROOT / "docs" / "tutorial.md"  # whose blocks run one after the other, with its commands
# A block of Python, what it prints if that is shown, and whether it is marked.
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?(\n<!-- not run)?", re.DOTALL)
COMMAND = re.compile(r"```console\n\$ (vidembed [^\n]*)\n([^$`]+)```")
NUMBER = re.compile(r"(\d+\.\d+(?:e-?\d+)?|\d+(?=%))")
BLOCKS = [
    pytest.param(match[1], match[2], id=f"{page.stem}-{number}")
    for page in PAGES
    if page != TUTORIAL
    for number, match in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8")))
    if not match[3]
]


def printed_by(code: str, names: dict[str, Any]) -> str:
    """Run a block of our own pages, and return what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, "<docs>", "exec", dont_inherit=True), names)  # our own pages
    return printed.getvalue()


def assert_shown(printed: str, shown: str | None) -> None:
    """Compare output with the page, where it shows some; fractions by 0.02 and percent by 5, since x264 varies."""
    if shown is None:
        return
    mine, theirs = (NUMBER.split(re.sub(r" +$", "", text.strip(), flags=re.MULTILINE)) for text in (printed, shown))
    assert mine[::2] == theirs[::2], printed
    for one, other in zip(mine[1::2], theirs[1::2], strict=True):
        assert float(one) == pytest.approx(float(other), abs=0.02 if "." in other else 5), printed


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The videos that blocks name. Not to change."""
    folder = tmp_path_factory.mktemp("docs")
    write_video(folder / "clip.mp4", moving_square(20))
    write_video(folder / "long.mp4", moving_square(80, seed=1))
    write_video(folder / "talk.mp4", moving_square(210, seed=2))
    write_folder(folder / "clips", 2)
    return folder


@pytest.mark.parametrize(("code", "shown"), BLOCKS)
def test_python_block(
    code: str, shown: str | None, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(videos, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    assert_shown(printed_by(code, {"__name__": "docs"}), shown)


def test_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text, names = TUTORIAL.read_text(encoding="utf-8"), {"__name__": "docs"}
    found = sorted([*BLOCK.finditer(text), *COMMAND.finditer(text)], key=lambda match: match.start())
    for match in found:
        if match.re is COMMAND:
            assert_shown(CliRunner().invoke(app, shlex.split(match[1])[1:]).stdout, match[2])
        else:
            assert_shown(printed_by(match[1], names), match[2])


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
