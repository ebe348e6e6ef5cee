"""`vidembed check`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import vidembed

GetModel = Callable[[str], Path]


def test_a_model_that_passes(tiny_mllm: GetModel) -> None:
    result = vidembed("check", tiny_mllm("qwen2_vl"), "--layer", 4, "--device", "cpu")
    assert result.exit_code == 0
    assert "shared prefix" in result.stdout
    assert "embed: works; rerank: works; shared prefill: works" in result.stderr


def test_json(tiny_mllm: GetModel) -> None:
    result = vidembed("check", tiny_mllm("qwen2_vl"), "--layer", 4, "--device", "cpu", "--dtype", "bfloat16", "--json")
    found = json.loads(result.stdout)
    assert found["passed"] is True
    assert found["items"][0]["values"]["dtype"] == "bfloat16"


def test_a_failure_exits_with_1(tiny_mllm: GetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from vidembed.backbone.cut import cut

    monkeypatch.setattr("vidembed.encoder.cut", lambda model, layer, **kwargs: cut(model, layer - 1, **kwargs))
    result = vidembed("check", tiny_mllm("qwen2_vl"), "--layer", 4, "--device", "cpu")
    assert result.exit_code == 1
    assert "embed: does not work" in result.stderr


@pytest.mark.parametrize(("arguments", "message"), [(["--layer", 7], "layer=7"), (["--dtype", "int3"], "int3")])
def test_what_is_not_there_exits_with_2(tiny_mllm: GetModel, arguments: list[object], message: str) -> None:
    result = vidembed("check", tiny_mllm("qwen2_vl"), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_no_such_model_exits_with_2(tmp_path: Path) -> None:
    assert vidembed("check", tmp_path / "none").exit_code == 2
