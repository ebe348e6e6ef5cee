"""The memory benchmark: the checkpoint that it writes is whole, and a command's peak is that of the command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks import memory

from vidembed.backbone.load import load_backbone

TEXT = memory.TEXT | {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2}
TEXT["rope_parameters"] = {**memory.TEXT["rope_parameters"], "mrope_section": [2, 3, 3]}
VISION = memory.VISION | {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4}
VISION |= {"out_hidden_size": 64, "fullatt_block_indexes": [1]}


def test_the_checkpoint_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SHARD_BYTES", 100_000)
    written = memory.write_model(tmp_path / "mllm", TEXT, VISION)
    files = sorted((tmp_path / "mllm").glob("*.safetensors"))
    assert len(files) > 1
    assert 0 < sum(file.stat().st_size for file in files) - written < 20_000  # headers
    model = load_backbone(tmp_path / "mllm").model  # refuses one with missing weights
    parameters = list(model.parameters())
    assert sum(value.nbytes for value in parameters) == written
    assert {value.dtype for value in parameters} == {torch.bfloat16}
    assert all(bool(value.isfinite().all()) for value in parameters)
    assert 0.9 < model.model.language_model.norm.weight.float().mean() < 1.1


def test_the_published_size_is_that_of_the_configuration() -> None:
    assert 7.4e9 < memory.bytes_of(memory.TEXT, memory.VISION) < 7.6e9


def test_peak_of_a_command(tmp_path: Path) -> None:
    peaks = [memory.run(tmp_path / "log", "--help").bytes for _ in range(3)]  # one may end before it is looked at
    assert 5e6 < max(peaks) < 2e9
    with pytest.raises(RuntimeError, match="status 2"):
        memory.run(tmp_path / "log", "search", "a", "--in", tmp_path / "none")
