"""`build`: what it writes, what it verifies, and what it refuses before writing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer

import vidembed
from tests.backbone import tiny
from vidembed import Sampling, VideoEncoder, VideoFrames, VideoReranker, build
from vidembed.backbone.cut import cut
from vidembed.checkpoint import CheckpointConfig
from vidembed.errors import BackboneError, LayerChosen, LayerError, ReadoutMismatchError

GetModel = Callable[[str], Path]


def test_writes_a_plain_checkpoint(tiny_mllm: GetModel, tmp_path: Path) -> None:
    out = build(
        tiny_mllm("qwen2_5_vl"), layer=3, out=tmp_path / "m", sampling=Sampling(fps=1.0, max_frames=8), standalone=True
    )
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
def test_layer_left_out_is_the_default_share_of_the_depth(tiny_mllm: GetModel, tmp_path: Path) -> None:
    with pytest.warns(LayerChosen, match="block 5 of 6"):
        out = build(tiny_mllm("qwen2_5_vl"), out=tmp_path / "m", device="cpu")
    assert CheckpointConfig.read(out / "vidembed_config.json").layer == 5


def test_last_layer_keeps_the_trained_norm(tiny_mllm: GetModel, tmp_path: Path) -> None:
    folder = tiny_mllm("qwen2_vl")
    trained, unit = (
        build(folder, layer=layer, out=tmp_path / str(layer), standalone=True) for layer in (-1, tiny.DEPTH)
    )
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
        ({"layer": 2, "out": None}, ValueError, "give either out=FOLDER or name=NAME"),
        ({"layer": 2, "name": "x"}, ValueError, "give either out=FOLDER or name=NAME"),
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


@pytest.mark.parametrize("standalone", [True, False])
def test_a_cut_that_reads_something_else_is_not_saved(
    tiny_mllm: GetModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, standalone: bool
) -> None:
    """The check must see a cut one block too short."""
    monkeypatch.setattr("vidembed.encoder.cut", lambda model, layer, **kwargs: cut(model, layer - 1, **kwargs))
    with pytest.raises(ReadoutMismatchError, match="Nothing was written"):
        build(tiny_mllm("qwen3_vl"), layer=4, out=tmp_path / "m", standalone=standalone)
    assert not list(tmp_path.iterdir())


def test_dtype(tiny_mllm: GetModel, tmp_path: Path) -> None:
    out = build(tiny_mllm("video_llama_3"), layer=3, out=tmp_path / "m", dtype="bfloat16", standalone=True)
    assert SentenceTransformer(str(out), device="cpu").dtype == torch.bfloat16


def test_newer_format_is_refused(tiny_mllm: GetModel, tmp_path: Path) -> None:
    out = build(tiny_mllm("qwen2_vl"), layer=2, out=tmp_path / "m", standalone=True)
    file = out / "vidembed_config.json"
    file.write_text(file.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(BackboneError, match="format_version 9"):
        VideoEncoder(out)


class TestRecipe:
    """What `build` writes by default: how the model is made of an MLLM, which keeps its weights."""

    @pytest.fixture
    def mllm(self, tiny_mllm: GetModel, tmp_path: Path) -> Path:
        return Path(shutil.copytree(tiny_mllm("qwen2_5_vl"), tmp_path / "mllm"))

    @pytest.fixture
    def recipe(self, mllm: Path, tmp_path: Path) -> Path:
        return build(mllm, layer=3, out=tmp_path / "recipe", sampling=Sampling(fps=1.0), device="cpu")

    def test_holds_no_weights(self, mllm: Path, recipe: Path, tmp_path: Path) -> None:
        assert {file.name for file in recipe.iterdir()} == {"README.md", "vidembed_config.json"}
        assert sum(file.stat().st_size for file in recipe.iterdir()) < 20_000
        assert {entry.name for entry in tmp_path.iterdir()} == {"mllm", "recipe"}  # no draft left behind
        config = CheckpointConfig.read(recipe / "vidembed_config.json")
        assert config.recipe is not None
        assert (config.layer, config.source, config.recipe.mllm) == (3, "mllm", str(mllm))
        assert (config.recipe.dtype, config.recipe.revision, config.recipe.adapter) == ("float32", None, False)
        card = (recipe / "README.md").read_text()
        assert "It is a recipe" in card
        assert str(tmp_path) not in card

    def test_is_the_standalone_checkpoint(self, each_mllm: Path, tmp_path: Path) -> None:
        recipe = VideoEncoder(build(each_mllm, layer=3, out=tmp_path / "r", device="cpu"), device="cpu")
        plain = build(each_mllm, layer=3, out=tmp_path / "s", standalone=True, device="cpu")
        inputs = [VideoFrames(np.full((4, 56, 56, 3), 90, dtype=np.uint8), fps=2.0), {"text": "a red square"}]
        standalone = VideoEncoder(plain, device="cpu")
        assert np.abs(recipe.encode(inputs) - standalone.encode(inputs)).max() <= 1e-6
        assert recipe.checkpoint_config is not None
        assert recipe.fingerprint == standalone.fingerprint == recipe.checkpoint_config.fingerprint
        recipe.save_pretrained(str(tmp_path / "saved"))
        files = {path: sorted(file.name for file in path.iterdir()) for path in (plain, tmp_path / "saved")}
        assert files[plain] == files[tmp_path / "saved"]
        again = (tmp_path / "saved" / "vidembed_config.json").read_text()
        assert again == (plain / "vidembed_config.json").read_text()

    def test_opens_in_the_hosts_classes_and_has_a_head(self, recipe: Path) -> None:
        encoder = SentenceTransformer(str(recipe), device="cpu")
        assert isinstance(encoder, VideoEncoder)
        assert encoder.sampling == Sampling(fps=1.0)
        reranker = encoder.reranker()
        other = CrossEncoder(str(recipe), device="cpu")
        assert isinstance(other, VideoReranker)
        assert other.sampling == encoder.sampling
        assert other.fingerprint == reranker.fingerprint
        assert {model.backbone.model for model in (encoder, reranker, other)} == {encoder.backbone.model}

    def test_by_name(self, mllm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("VIDEMBED_HOME", str(tmp_path / "home"))
        build(mllm, layer=2, name="mine", prefix=None, device="cpu")
        assert "vidembed/mine" in vidembed.model_names()
        encoder = VideoEncoder("vidembed/mine", device="cpu")
        assert encoder.checkpoint_config is not None
        assert (encoder.layer, encoder.checkpoint_config.prefix) == (2, None)
        with pytest.raises(LayerError, match="reads layer 2"):
            VideoEncoder("vidembed/mine", layer=3, device="cpu")

    def test_of_a_bundled_model_names_it(self, tmp_path: Path) -> None:
        config = CheckpointConfig.read(
            build("vidembed/shapes-mllm", layer=4, prefix=None, out=tmp_path / "r", device="cpu")
            / "vidembed_config.json"
        )
        assert config.recipe is not None
        assert (config.recipe.mllm, config.recipe.beside) == ("vidembed/shapes-mllm", None)

    def test_dtype_is_that_of_the_build_unless_asked(self, mllm: Path, tmp_path: Path) -> None:
        recipe = build(mllm, layer=3, out=tmp_path / "r", dtype="bfloat16", device="cpu")
        assert VideoEncoder(recipe, device="cpu").dtype == torch.bfloat16
        assert VideoEncoder(recipe, device="cpu", model_kwargs={"dtype": "float32"}).dtype == torch.float32

    def test_both_folders_can_be_moved_together(self, mllm: Path, recipe: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        moved = [folder.rename(tmp_path / "elsewhere" / folder.name) for folder in (mllm, recipe)]
        assert VideoEncoder(moved[1], device="cpu").layer == 3

    def test_gone_mllm(self, mllm: Path, recipe: Path) -> None:
        shutil.rmtree(mllm)
        for kind in (VideoEncoder, VideoReranker, SentenceTransformer):
            with pytest.raises(BackboneError, match=rf"recipe: this model is a recipe.*is missing: {mllm}"):
                kind(str(recipe), device="cpu")

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_changed_weights(self, mllm: Path, recipe: Path, dtype: str) -> None:
        weights = load_file(mllm / "model.safetensors")
        name = next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
        weights[name] *= 1.01
        save_file(weights, mllm / "model.safetensors", metadata={"format": "pt"})
        for kind in (VideoEncoder, VideoReranker):
            with pytest.raises(BackboneError, match=r"has changed since the recipe was built: different weights\."):
                kind(recipe, device="cpu", model_kwargs={"dtype": dtype})

    def test_changed_processor(self, mllm: Path, recipe: Path) -> None:
        file = mllm / "processor_config.json"
        content = json.loads(file.read_text())
        content["video_processor"]["image_mean"] = [0.1, 0.2, 0.3]
        file.write_text(json.dumps(content))
        with pytest.raises(BackboneError, match=r"has changed since the recipe was built: different video_processor\."):
            VideoEncoder(recipe, device="cpu")

    def test_weights_dealt_to_other_files_are_the_same(self, mllm: Path, recipe: Path) -> None:
        weights = load_file(mllm / "model.safetensors")
        (mllm / "model.safetensors").unlink()
        names = sorted(weights)
        shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, part in shards.items():
            save_file({name: weights[name] for name in part}, mllm / file, metadata={"format": "pt"})
        index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
        (mllm / "model.safetensors.index.json").write_text(json.dumps(index))
        assert VideoEncoder(recipe, device="cpu").layer == 3

    def test_misuse_writes_nothing(self, mllm: Path, tmp_path: Path) -> None:
        plain = build(mllm, layer=3, out=tmp_path / "plain", standalone=True, device="cpu")
        with pytest.raises(ValueError, match="contains the model to build from"):
            build(mllm, layer=3, out=mllm, overwrite=True, device="cpu")
        assert (mllm / "model.safetensors").is_file()
        with pytest.raises(BackboneError, match="cut at layer 3, so it cannot be built from"):
            build(plain, layer=3, out=tmp_path / "m", device="cpu")
        assert not (tmp_path / "m").exists()

    def test_from_the_hubs_cache_keeps_the_commit(self, mllm: Path, tmp_path: Path) -> None:
        commit = "0123456789abcdef0123456789abcdef01234567"
        cache = tmp_path / "hub" / "models--some--mllm"
        (cache / "refs").mkdir(parents=True)
        (cache / "refs" / "main").write_text(commit)
        (cache / "snapshots").mkdir()
        mllm.rename(cache / "snapshots" / commit)
        how: dict[str, Any] = {"cache_folder": str(tmp_path / "hub"), "local_files_only": True, "device": "cpu"}
        recipe = build("some/mllm", layer=3, out=tmp_path / "r", **how)
        config = CheckpointConfig.read(recipe / "vidembed_config.json")
        assert config.recipe is not None
        assert (config.recipe.mllm, config.recipe.revision) == ("some/mllm", commit)
        (cache / "refs" / "main").write_text("f" * 40)  # the name stands for another commit now
        assert VideoEncoder(recipe, **how).layer == 3
        shutil.rmtree(cache)
        with pytest.raises(BackboneError, match="some/mllm, cannot be loaded"):
            VideoEncoder(recipe, **how)
