"""The example and the README run; the page of the documentation runs with the others of the repository."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from tests.captions import segment_captions, write_captions
from tests.conftest import RECORDS

PACKAGE = Path(__file__).parents[1]
EXAMPLE = PACKAGE.parent.parent / "docs" / "examples" / "llamaindex_videos.py"


def test_readme(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    search, answer = re.findall(r"```python\n(.*?)```", (PACKAGE / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    write_captions(folder.parent / "captions.jsonl", segment_captions(folder))
    monkeypatch.chdir(folder.parent)
    exec(compile(search, "<README>", "exec"), {"__name__": "readme"})  # our own page
    assert capsys.readouterr().out.startswith(
        f"video+{(folder / 'c.mp4').as_uri()} 0.0 4.0\n".replace("c.mp4", "c.mp4#t=,4")
    )
    exec(compile(answer, "<README>", "exec"), {"__name__": "readme"})
    answered = capsys.readouterr().out
    for cited in (f"file_path: {folder / 'c.mp4'}", "start_s: 0.0\nend_s: 4.0", f"caption: {RECORDS[5].caption}"):
        assert cited in answered


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the package lies outside of its repository")
def test_example(capsys: pytest.CaptureFixture[str]) -> None:
    answers = runpy.run_path(str(EXAMPLE))["main"]([])
    right = [("video-0.mp4", at, at + 4.0) for at in (0.0, 4.0, 8.0)]
    assert [found[0][:3] for found in answers.values()][:2] == right[:2]
    assert right[2] in [one[:3] for one in list(answers.values())[2]]  # second, behind a yellow cross that turns
    assert all(0 <= probability <= 1 for found in answers.values() for *_, probability in found)
    assert "12 segments indexed" in capsys.readouterr().out


@pytest.mark.skipif(not EXAMPLE.exists(), reason="the package lies outside of its repository")
def test_example_on_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.mp4").write_text("no video")
    question = "A red triangle moves down and then bounces back."
    answers = runpy.run_path(str(EXAMPLE))["main"]([str(folder), question])
    assert answers[question][0][:3] == ("c.mp4", 0.0, 4.0)
    assert "6 segments indexed" in capsys.readouterr().out
