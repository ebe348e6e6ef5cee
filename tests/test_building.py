"""`build`: what it writes, what it verifies, and what it refuses before writing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import vidembed
from tests.backbone import tiny
from vidembed import Sampling, VideoEncoder, VideoFrames, build
from vidembed.backbone.cut import cut
from vidembed.checkpoint import CheckpointConfig
from vidembed.errors import BackboneError, LayerError, ReadoutMismatchError

GetModel = Callable[[str], Path]


def test_writes_a_plain_checkpoint(tiny_mllm: GetModel, tmp_path: Path) -> None:
    out = build(tiny_mllm("qwen2_5_vl"), layer=3, out=tmp_path / "m", sampling=Sampling(fps=1.0, max_frames=8))
    modules = json.loads((out / "modules.json").read_text())
    assert [module["type"].split(".")[0] for module in modules] == ["sentence_transformers"] * 3
    assert [module["type"].rsplit(".", 1)[1] for module in modules] == ["Transformer", "Pooling", "Normalize"]
    modalities = json.loads((out / "sentence_bert_config.json").read_text())["modality_config"]
    assert set(modalities) == {"text", "image", "video", "message"}
    config = json.loads((out / "vidembed_config.json").read_text())
    assert (config["layer"], config["depth"]) == (3, tiny.DEPTH)
    assert "before any norm" in config["layer_definition"]
    assert config["sampling"]["fps"] == 1.0
    assert config["fingerprint"] == VideoEncoder(out, device="cpu").fingerprint
    weights = [file.name for file in out.rglob("*") if file.suffix in (".safetensors", ".bin", ".pt", ".pkl")]
    assert weights == ["model.safetensors"]
    card = (out / "README.md").read_text()
    assert "block 3 of the 6 decoder blocks" in card
    assert config["fingerprint"] in card
    assert list(tmp_path.iterdir()) == [out]  # no draft left behind


@pytest.mark.usefixtures("stock")
def test_last_layer_keeps_the_trained_norm(tiny_mllm: GetModel, tmp_path: Path) -> None:
    folder = tiny_mllm("qwen2_vl")
    trained, unit = (build(folder, layer=layer, out=tmp_path / str(layer)) for layer in (-1, tiny.DEPTH))
    a, b = (SentenceTransformer(str(path), device="cpu").encode("a red square") for path in (trained, unit))
    assert float(a @ b) < 0.999
    assert VideoEncoder(trained, device="cpu").layer == -1


def test_named_model_loads_by_its_name(tiny_mllm: GetModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEMBED_HOME", str(tmp_path))
    out = build(tiny_mllm("qwen2_vl"), layer=2, name="mine")
    assert vidembed.model_path("mine") == out
    assert "vidembed/mine" in vidembed.model_names()
    video = VideoFrames(np.full((4, 56, 56, 3), 90, dtype=np.uint8), fps=2.0)
    by_name = VideoEncoder("vidembed/mine", device="cpu").encode(video)
    assert np.array_equal(by_name, VideoEncoder(out, device="cpu").encode(video))
    assert SentenceTransformer("vidembed/mine", device="cpu").encode("a").shape == (tiny.HIDDEN,)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"layer": 0}, LayerError, r"layer=0.*1\.\.6"),
        ({"layer": 7}, LayerError, r"layer=7.*1\.\.6"),
        ({"layer": 2, "dtype": "float12"}, BackboneError, "float12"),
        ({"layer": 2, "out": None}, ValueError, "one of them"),
        ({"layer": 2, "name": "x"}, ValueError, "one of them"),
        ({"layer": 2, "out": None, "name": "../x"}, ValueError, "not valid"),
    ],
)
def test_misuse_writes_nothing(
    tiny_mllm: GetModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kwargs: dict[str, Any],
    error: Any,
    message: str,
) -> None:
    monkeypatch.setenv("VIDEMBED_HOME", str(tmp_path / "home"))
    with pytest.raises(error, match=message):
        build(tiny_mllm("qwen2_vl"), **{"out": tmp_path / "out", **kwargs})
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_kept(tiny_mllm: GetModel, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        build(tiny_mllm("qwen2_vl"), layer=2, out=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["precious.txt"]


def test_overwrite(tiny_mllm: GetModel, tmp_path: Path) -> None:
    out = build(tiny_mllm("qwen2_vl"), layer=2, out=tmp_path / "m")
    build(tiny_mllm("qwen2_vl"), layer=3, out=out, overwrite=True)
    assert CheckpointConfig.read(out / "vidembed_config.json").layer == 3


def test_a_cut_that_reads_something_else_is_not_saved(
    tiny_mllm: GetModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check must see a cut one block too short."""
    monkeypatch.setattr("vidembed.encoder.cut", lambda model, layer, **kwargs: cut(model, layer - 1, **kwargs))
    with pytest.raises(ReadoutMismatchError, match="Nothing was written"):
        build(tiny_mllm("qwen3_vl"), layer=4, out=tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_dtype(tiny_mllm: GetModel, tmp_path: Path) -> None:
    out = build(tiny_mllm("video_llama_3"), layer=3, out=tmp_path / "m", dtype="bfloat16")
    assert SentenceTransformer(str(out), device="cpu").dtype == torch.bfloat16


def test_newer_format_is_refused(tiny_mllm: GetModel, tmp_path: Path) -> None:
    out = build(tiny_mllm("qwen2_vl"), layer=2, out=tmp_path / "m")
    file = out / "vidembed_config.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(BackboneError, match="format_version 9"):
        VideoEncoder(out)
