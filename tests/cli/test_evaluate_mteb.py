"""`vidembed mteb` on drawn clips."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mteb", reason="mteb is not installed: pip install vidembed[mteb]")

import mteb

from tests.cli.conftest import tree, vidembed
from tests.evaluation.mteb_tasks import ClipsT2V, ClipsV2T, HubRetrieval
from vidembed.shapes import write_clips

MODEL = "vidembed/shapes"


@pytest.fixture
def registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of ours under their names, as mteb's own are."""
    pairs = [(path, one.caption) for path, one in write_clips(tmp_path / "drawn", 4, "test", 2)]
    tasks = {"ClipsT2V": ClipsT2V.of(pairs), "ClipsV2T": ClipsV2T.of(pairs), "NowhereT2V": HubRetrieval()}
    monkeypatch.setattr(mteb, "get_task", tasks.__getitem__)


@pytest.mark.usefixtures("registered")
def test_the_whole_way(tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("mteb", "--model", MODEL, "--tasks", "ClipsT2V, ClipsV2T", "--out", out, "--device", "cpu")
    result = vidembed(*arguments)
    assert result.exit_code == 0, result.stderr
    for name in ("ClipsT2V", "ClipsV2T"):
        (file,) = out.rglob(f"{name}.json")
        assert f"Wrote {file}" in result.stderr
        (row,) = (line for line in result.stdout.splitlines() if name in line)
        score = json.loads(file.read_text())["scores"]["test"][0]
        assert row.split("│")[2:4] == [" ndcg_at_10 ", f" {score['ndcg_at_10']:.4f} "]
        assert row.split("│")[4].strip() == f"{100 * score['hit_rate_at_1']:.1f}"
    before = tree(out)
    again = vidembed(*arguments, "--json")
    assert again.exit_code == 0, again.stderr
    assert "Kept " in again.stderr
    assert [found["task_name"] for found in json.loads(again.stdout)] == ["ClipsT2V", "ClipsV2T"]
    assert {name: content for name, content in tree(out).items() if name in before and "Clips" in name} == {
        name: content for name, content in before.items() if "Clips" in name
    }


@pytest.mark.usefixtures("registered")
def test_offline(tmp_path: Path) -> None:
    result = vidembed("mteb", "--model", MODEL, "--tasks", "NowhereT2V", "--out", tmp_path / "out", "--device", "cpu")
    assert result.exit_code == 1
    assert "Error: NowhereT2V: its data, vidembed/no-such-dataset, could not be loaded" in result.stderr
    assert "run once with network access" in result.stderr
    assert not list((tmp_path / "out").rglob("*.json"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", MODEL], "give --tasks NAME,NAME or --benchmark NAME"),
        (["--model", MODEL, "--tasks", " ,"], "give --tasks NAME,NAME or --benchmark NAME"),
        (["--model", MODEL, "--tasks", "NoSuchTask"], "'NoSuchTask' not found"),
        (["--model", MODEL, "--tasks", "SciFact", "--device", "abacus"], "abacus"),
        (["--model", MODEL, "--tasks", "SciFact", "--out", __file__], "is a file; give a folder"),
    ],
)
def test_misuse(arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = vidembed("mteb", *arguments)
    assert result.exit_code == 2, result.stderr
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_help_loads_neither_mteb_nor_torch() -> None:
    code = (
        "import sys; from vidembed.cli import app\n"
        "try: app(['mteb', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'mteb', 'datasets'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_without_mteb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.delitem(sys.modules, "vidembed.evaluation.mteb", raising=False)
    result = vidembed("mteb", "--model", MODEL, "--tasks", "MSRVTTT2V")
    assert result.exit_code == 2
    assert 'mteb is not installed; pip install "vidembed[mteb]"' in result.stderr
