"""README says what is so: its first block prints what it shows, and its figures are those of the kept runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_first_block_prints_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = re.search(r"```python\n(.*?)```\n```text\n(.*?)```", README, re.DOTALL)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    exec(compile(found[1], "<README>", "exec", dont_inherit=True), {"__name__": "readme"})  # our own page
    printed, shown = (
        [line.split(" ", 1) for line in text.splitlines()] for text in (capsys.readouterr().out, found[2])
    )
    assert [line for _, line in printed] == [line for _, line in shown]
    # two decimals, and files whose bytes differ between builds of x264
    assert [float(score) for score, _ in printed] == pytest.approx([float(score) for score, _ in shown], abs=0.02)


def test_the_picture_moves_and_is_small() -> None:
    (name,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert (ROOT / name).stat().st_size < 2_000_000
    with Image.open(ROOT / name) as picture:
        assert getattr(picture, "n_frames", 1) > 50


# -- figures, each of the row that begins with some words and names the command that gives it --------------------------


def kept(name: str) -> Any:
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def row(begin: str) -> tuple[str, str]:
    """The figures and the command of a row of the table."""
    found = re.search(rf"^\| {re.escape(begin)}[^|]*\| ([^|]+) \| `([^`]+)` \|$", README, re.MULTILINE)
    assert found is not None, begin
    return found[1], found[2]


@pytest.mark.parametrize(("begin", "kind"), [("first hit right", "summaries"), ("the same with long", "captions")])
def test_recall_is_that_of_the_method(begin: str, kind: str) -> None:
    table = {
        (one["name"], one["k"]): one["t2v"]["R@1"] for one in kept("docs/method/shapes.json")["queries"][kind]["table"]
    }
    rows = [("ZS, final layer", 0), ("ZS, chosen layer", 0), ("ZS, chosen layer + fusion", 100)]
    assert row(begin) == (", ".join(f"{table[one]:g} %" for one in rows), "vidembed reproduce shapes")


def test_speed_of_embedding() -> None:
    measured = kept("benchmarks/encode.json")
    (cut,) = (one for one in measured["early_exit"] if (one["layer"], one["depth"]) == (14, 24))
    assert row("files of 720p") == (f"{measured['decode_ahead']['speedup']:.1f}x", "python -m benchmarks.encode")
    wanted = f"{cut['time_ratio']:.1f}x, {cut['added_memory_ratio']:.2f}x"
    assert row("a model cut at layer 14 of 24") == (wanted, "python -m benchmarks.encode")


def test_speed_of_reranking() -> None:
    measured = kept("benchmarks/rerank.json")["one_video"]
    least = min(one["speedup"] for one in measured if (one["pairs"], one["visual_tokens"]) == (100, 1024))
    assert row("100 sentences") == (f"{least:.0f}x", "python -m benchmarks.rerank")  # of three architectures


def test_killed_runs_lose_nothing() -> None:
    killed = kept("benchmarks/crash.json")["killed"]
    assert killed["rows_equal"]
    assert row(f"{killed['kills']} runs of `vidembed index` killed") == ("0", "python -m benchmarks.crash")


def test_speed_of_search() -> None:
    (million,) = kept("benchmarks/search_million.json")["sizes"]
    assert (million["rows"], million["dimension"]) == (1_000_000, 3584)
    figure, command = row("an exact search of 1,000,000 vectors of 3,584 numbers")
    assert figure == f"{million['exact_s']:.2f} s"
    assert command == "python -m benchmarks.search --exact-only --sizes 1000000"
