"""`vidembed train`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import vidembed
from tests.training.conftest import make_pairs
from vidembed import VideoEncoder

FAST = ("--batch-size", 8, "--rank", 2, "--held-out", 4, "--device", "cpu", "--every", 10)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = ({"dense": pair.dense, "summary": pair.summary} for pair in make_pairs(24))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_trains_and_prints_the_folder(tiny_mllm: Callable[[str], Path], pairs: Path, tmp_path: Path):
    torch.set_num_threads(1)
    out = tmp_path / "aligned"
    result = vidembed("train", "--model", tiny_mllm("qwen2_vl"), "--pairs", pairs, "--out", out, *FAST, "--samples", 20)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    assert "parameters on 16 pairs in 2 steps; loss" in result.stderr
    assert "found by their summary" in result.stderr
    facts = json.loads((out / "alignment.json").read_text())
    assert (facts["pairs"], facts["held_out"], facts["lora"]["rank"]) == (16, 4, 2)
    assert VideoEncoder(out, device="cpu").layer == -1


def test_reports_what_is_left_out(tiny_mllm: Callable[[str], Path], pairs: Path, tmp_path: Path):
    torch.set_num_threads(1)
    with pairs.open("a") as file:
        file.write('{"dense": "a", "summary": ""}\n' + json.dumps({"dense": "long " * 100, "summary": "b"}) + "\n")
    options = ("--on-bad", "skip", "--too-long", "drop", "--max-tokens", 300)
    out = tmp_path / "out"
    result = vidembed("train", "--model", tiny_mllm("qwen2_vl"), "--pairs", pairs, "--out", out, *FAST, *options)
    assert result.exit_code == 0, result.output
    assert "1 pairs left out as too long" in result.stderr
    assert json.loads((out / "alignment.json").read_text())["pairs"] == 20


def test_adapter(tiny_mllm: Callable[[str], Path], pairs: Path, tmp_path: Path):
    torch.set_num_threads(1)
    out = tmp_path / "adapter"
    result = vidembed("train", "--model", tiny_mllm("qwen2_vl"), "--pairs", pairs, "--out", out, *FAST, "--adapter")
    assert result.exit_code == 0, result.output
    assert (out / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--loss", "x"), "loss='x' is not known"),
        (("--rank", 0), "rank=0"),
        (("--kind", "nli"), "no column 'anchor'"),
        (("--layer", 99), "layer=99"),
        (("--too-long", "cut"), "too_long='cut'"),
        (("--on-bad", "x"), "on_error='x'"),
        (("--model", "no/such/folder/at/all"), "no/such/folder"),
        (("--pairs", "gone.jsonl"), "gone.jsonl"),
    ],
)
def test_misuse(tiny_mllm: Callable[[str], Path], pairs: Path, tmp_path: Path, arguments: tuple[object, ...], message):
    out = tmp_path / "out"
    result = vidembed("train", "--model", tiny_mllm("qwen2_vl"), "--pairs", pairs, "--out", out, *FAST, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert not out.exists()
    assert not out.with_name("out.training").exists()


def test_missing_extra_is_named(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from importlib.util import find_spec

    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "peft" else find_spec(name, *a))
    result = vidembed("train", "--model", "m", "--pairs", pairs, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert 'pip install "vidembed[train]"' in result.stderr


def test_a_row_that_cannot_be_used_is_named(pairs: Path, tmp_path: Path):
    with pairs.open("a") as file:
        file.write('{"dense": "a", "summary": ""}\n')
    result = vidembed("train", "--model", "m", "--pairs", pairs, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "pairs.jsonl, line 25: 'summary' is empty" in result.stderr
