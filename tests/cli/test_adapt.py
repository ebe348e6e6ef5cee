"""`vidembed adapt` on the bundled model and few clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import tree, vidembed
from vidembed.shapes import write_clips
from vidembed.training import TrainingSettings, adapt

MODEL = "vidembed/shapes-mllm"
QUICK = TrainingSettings(batch_size=16, learning_rate=1e-3)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("own")
    write_clips(folder, 52, "train", 5)
    return folder


def test_the_whole_way_and_again(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("vidembed.training.adapting.settings_for", lambda *_: QUICK)
    command = ("adapt", videos, "--model", MODEL, "--out", out, "--rank", 4, "--device", "cpu")
    result = vidembed(*command)
    assert result.exit_code in (0, 1), result.stderr  # so few steps may do harm
    assert ("fell by" in result.stderr) == (result.exit_code == 1)
    assert "20 videos held out" in result.stdout
    assert "dense" in result.stdout
    assert result.stdout.splitlines()[-1] == str(out / "model")
    assert "Of 52 videos that the model described" in result.stderr
    assert "Do not use" not in result.stderr or result.exit_code == 1
    before = tree(out)
    again = vidembed(*command, "--json")
    assert again.exit_code == result.exit_code
    found = json.loads(again.stdout)
    assert found["held_out"] == 20
    assert found["recall_at_1"]["dense"]["t2v"]["before"] >= 0
    assert {name: data for name, data in tree(out).items() if not name.endswith("adapt.json")} == {
        name: data for name, data in before.items() if not name.endswith("adapt.json")
    }  # nothing was made again
    other = vidembed(*command[:-4], "--rank", 2, "--device", "cpu")
    assert other.exit_code == 2
    assert "other videos, settings or another model" in " ".join(other.stderr.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--model": "no/such/folder/at/all"}, "no/such/folder"),
        ({"--model": "vidembed/shapes"}, "Give the full MLLM"),
        ({"--clips": 30}, "at least 40 are needed"),
        ({"--learning-rate": -1}, "learning_rate=-1"),
        ({"--held-out": 60}, "held_out=60"),
        ({"--rank": 0}, "rank=0"),
    ],
)
def test_misuse(videos: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    usual = {"--model": MODEL, "--out": tmp_path / "out", "--device": "cpu"}
    result = vidembed("adapt", videos, *(word for option in {**usual, **change}.items() for word in option))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out" / "model").exists()


def test_no_video_and_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    result = vidembed("adapt", tmp_path / "notes", "--model", MODEL, "--out", tmp_path / "out")
    assert (result.exit_code, "no video found" in result.stderr) == (2, True)
    (tmp_path / "notes" / "mine.txt").write_text("x")
    (tmp_path / "a.mp4").write_bytes(b"")
    result = vidembed("adapt", tmp_path / "a.mp4", "--model", MODEL, "--out", tmp_path / "notes")
    assert (result.exit_code, "was not made by adapt" in result.stderr) == (2, True)


def test_the_python_call_has_the_same_defaults() -> None:
    from inspect import signature

    from vidembed.cli.adapt import command
    from vidembed.training.adapting import CLIPS, LORA

    given = signature(command).parameters
    assert given["clips"].default == signature(adapt).parameters["clips"].default == CLIPS
    assert given["rank"].default == LORA.rank
