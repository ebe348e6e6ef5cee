"""The feeding benchmark: what it measures of one model, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks import feed

from vidembed import VideoEncoder


def test_a_model_on_the_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(feed, "FRAMES", 4)
    feed.main(["--device", "cpu", "--model", "vidembed/shapes", "--clips", "6", "--batch-size", "2"])
    found = json.loads(capsys.readouterr().out)
    assert (found["clips"], found["batches"]) == (6, 3)
    assert found["clips a second"] > 0
    assert 0 <= found["idle share"] < 1
    assert found["ms to the device"]["pinned"] is None
    assert not Path(feed.__file__).with_name("feed_cpu.json").exists()


def test_ways_of_preparing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "FRAMES", 4)
    monkeypatch.setattr(feed, "CLIPS", 3)
    found = feed.preparing(VideoEncoder("vidembed/shapes", device="cpu"))
    assert len(found) == 3
    assert all(value > 0 for value in found.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cuda", "--model", "vidembed/shapes"], "finds no CUDA device here"),
        (["--device", "cpu"], "go together"),
        (["--device", "cpu", "--model", "vidembed/shapes", "--clips", "0"], "at least 1 is needed"),
        (["--device", "cpu", "--model", "no/such-model-here"], "--model no/such-model-here: "),
    ],
)
def test_refuses(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as stopped:
        feed.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
