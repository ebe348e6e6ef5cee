"""The benchmark of captions: what it compares says the same, and what it reports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from benchmarks import caption


def test_quick(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)  # other tests run in this process
    kept = Path(caption.__file__).with_suffix(".json")
    before = kept.read_bytes()
    caption.main(["--quick"])
    found = ast.literal_eval(capsys.readouterr().out)
    assert (found["clips"], found["texts_of_each"], found["marks"]["clips"]) == (2, 2, 2)
    assert found["tokens"] > 10
    assert all(value > 0 for value in found["tokens_per_s"].values())
    assert min(found["seconds"]["batched"].values()) > 0
    assert 0 < found["prefill_share"] < 1
    assert kept.read_bytes() == before
