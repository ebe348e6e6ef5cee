"""`align` as a whole: what it writes, that interrupted runs go on, and what is refused before training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from tests.clips import moving_square
from tests.fixtures import without_vidembed
from tests.training.conftest import make_pairs
from vidembed import VideoEncoder, VideoFrames, build
from vidembed.checkpoint import CheckpointConfig
from vidembed.errors import AnnotationError, BackboneError, LayerError, ReadoutMismatchError
from vidembed.inputs import load_input
from vidembed.shapes import CHECKPOINT, iterate_clips
from vidembed.training import (
    AlignmentTrainer,
    LanguageAdapter,
    LoraSettings,
    TextPair,
    TrainingSettings,
    align,
    merge_adapter,
    read_log,
)
from vidembed.training.trainer import last_checkpoint

GetModel = Callable[[str], Path]
QUICK = TrainingSettings(batch_size=4, learning_rate=1e-2)
SMALL = LoraSettings(rank=4, alpha=8, dropout=0.1)
VIDEO = VideoFrames(moving_square(8), fps=2.0)


def quick(mllm: Path | str, out: Path, *, plot: bool = False, **kwargs: Any) -> Path:
    options = {"lora": SMALL, "training": QUICK, "held_out": 0, "every": 10, "device": "cpu", **kwargs}
    with pytest.MonkeyPatch.context() as patch:
        if not plot:  # the slow part of so short a run
            patch.setattr("vidembed.training.alignment.plot_curves", lambda *_: None)
        return align(mllm, options.pop("pairs", make_pairs(12)), out, **options)


class TestResult:
    def test_everything_but_the_decoders_linear_layers_is_kept(self, each_mllm: Path, tmp_path: Path):
        out = quick(each_mllm, tmp_path / "aligned")
        assert [path.name for path in tmp_path.iterdir()] == ["aligned"]  # no draft, no state left
        plain = VideoEncoder(each_mllm, layer=-1, prefix=None, device="cpu")
        before, after = plain[0].model.state_dict(), load_file(out / "model.safetensors")
        assert before.keys() == after.keys()
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert changed
        assert all(".layers." in name and "norm" not in name and name.startswith("language_model.") for name in changed)
        vision = {name for name in after if not name.startswith("language_model.")}
        assert vision
        assert not vision & changed  # bit for bit
        config = CheckpointConfig.read(out / "vidembed_config.json")
        assert (config.layer, config.prefix, config.source) == (-1, None, each_mllm.name)
        encoder = VideoEncoder(out, device="cpu")
        assert config.fingerprint == encoder.fingerprint
        assert encoder.fingerprint != plain.fingerprint
        assert "was changed" in (out / "README.md").read_text()
        for file in out.rglob("*.json*"):
            assert str(each_mllm.parent) not in file.read_text(), file

    def test_files_are_those_of_build(self, tiny_mllm: GetModel, tmp_path: Path):
        out = quick(tiny_mllm("qwen2_5_vl"), tmp_path / "aligned")
        built = build(
            tiny_mllm("qwen2_5_vl"), layer=-1, out=tmp_path / "built", prefix=None, standalone=True, device="cpu"
        )
        for name in ("config.json", "modules.json", "sentence_bert_config.json", "chat_template.jinja"):
            assert (out / name).read_text() == (built / name).read_text(), name
        weights = [
            path.name for path in out.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt", ".pth", ".pkl")
        ]
        assert weights == ["model.safetensors"]

    def test_stock_sentence_transformers_without_vidembed(self, tmp_path: Path):
        pairs = [TextPair(r.caption, r.summary) for r in islice(iterate_clips("train", 5), 4)]
        out = quick(CHECKPOINT, tmp_path / "aligned", pairs=pairs)
        encoder = VideoEncoder(out, device="cpu")
        frames = load_input(VIDEO, encoder.sampling)[0]["video"]
        video = {"array": frames["array"].numpy(), "video_metadata": frames["video_metadata"]}
        with without_vidembed("peft"):
            model = SentenceTransformer(str(out), device="cpu")
            stock = [
                model.encode([{"video": video}], processing_kwargs={"video": {"do_sample_frames": False}})[0],
                model.encode(["a red square"])[0],
            ]
        assert type(model) is SentenceTransformer
        wanted = encoder.encode([VIDEO, {"text": "a red square"}])
        assert np.abs(np.stack(stock) - wanted).max() <= 1e-5

    def test_the_log_and_the_facts(self, tiny_mllm: GetModel, tmp_path: Path):
        pairs = [*make_pairs(22), *make_pairs(2)]
        out = quick(tiny_mllm("qwen2_vl"), tmp_path / "m", pairs=pairs, held_out=4, every=2, plot=True)
        log = read_log(out / "train_log.jsonl")
        steps = [entry for entry in log if "loss" in entry]
        assert [entry["step"] for entry in steps] == [1, 2, 3, 4, 5]
        assert all(np.isfinite(entry["loss"]) and entry["grad_norm"] > 0 for entry in steps)
        measured = [entry for entry in log if "loss" not in entry]
        assert [entry["step"] for entry in measured] == [0, 2, 4, 5]
        assert all(0 <= entry["eval_summary_to_dense_R@1"] <= 100 for entry in measured)
        facts = json.loads((out / "alignment.json").read_text())
        assert (facts["pairs"], facts["held_out"], facts["steps"]) == (20, 4, 5)
        assert facts["false_negatives"] == sum(entry["false_negatives"] for entry in steps)
        assert facts["trained_parameters"] == 22272
        assert facts["merge_cosine"] > 0.99999
        assert facts["training"]["batch_size"] == 4
        assert (out / "curves.png").stat().st_size > 5000

    def test_it_learns(self, tiny_mllm: GetModel, tmp_path: Path):
        training = TrainingSettings(batch_size=12, epochs=5, learning_rate=2e-2, warmup=0.0)
        out = quick(tiny_mllm("qwen3_vl"), tmp_path / "m", training=training)
        facts = json.loads((out / "alignment.json").read_text())
        assert facts["last_loss"] < 0.5 * facts["first_loss"]

    def test_another_layer_and_going_on_from_a_checkpoint(self, tiny_mllm: GetModel, tmp_path: Path):
        first = quick(tiny_mllm("video_llama_3"), tmp_path / "first", layer=3)
        assert VideoEncoder(first, device="cpu").layer == 3
        second = quick(first, tmp_path / "second")
        assert VideoEncoder(second, device="cpu").layer == 3
        text = {"text": "a red square"}
        vectors = [VideoEncoder(path, device="cpu").encode(text) for path in (first, second)]
        assert np.abs(vectors[0] - vectors[1]).max() > 1e-3

    def test_memory_options_change_nothing(self, tiny_mllm: GetModel, tmp_path: Path):
        same = [
            QUICK,
            TrainingSettings(batch_size=4, mini_batch_size=3, learning_rate=1e-2, gradient_checkpointing=True),
        ]
        lora = LoraSettings(rank=4, alpha=8, dropout=0.0)
        found = []
        for index, training in enumerate(same):
            out = quick(tiny_mllm("qwen2_5_vl"), tmp_path / str(index), training=training, lora=lora)
            found.append(VideoEncoder(out, device="cpu").encode({"text": "a red square"}))
        assert np.abs(found[0] - found[1]).max() < 1e-3

    def test_bfloat16(self, tiny_mllm: GetModel, tmp_path: Path):
        training = TrainingSettings(batch_size=4, learning_rate=1e-3, bf16=True)
        out = quick(tiny_mllm("qwen2_5_vl"), tmp_path / "m", training=training, held_out=2, dtype="bfloat16")
        assert SentenceTransformer(str(out), device="cpu").dtype == torch.bfloat16


class TestAdapter:
    def test_alone_and_merged_later(self, tiny_mllm: GetModel, tmp_path: Path):
        mllm = tiny_mllm("qwen2_5_vl")
        adapter = quick(mllm, tmp_path / "adapter", layer=4, output="adapter")
        assert not (adapter / "model.safetensors").exists()
        assert CheckpointConfig.read(adapter / "vidembed_config.json").layer == 4
        assert "PEFT adapter" in (adapter / "README.md").read_text()
        later = merge_adapter(mllm, adapter, tmp_path / "later", device="cpu")
        at_once = quick(mllm, tmp_path / "at-once", layer=4)
        inputs = [VIDEO, {"text": "a red square"}]
        vectors = [VideoEncoder(path, device="cpu").encode(inputs) for path in (later, at_once)]
        assert np.abs(vectors[0] - vectors[1]).max() <= 1e-6
        assert VideoEncoder(later, device="cpu").fingerprint == VideoEncoder(at_once, device="cpu").fingerprint

    def test_is_a_recipe(self, tiny_mllm: GetModel, tmp_path: Path):
        mllm = tiny_mllm("qwen2_5_vl")
        adapter = quick(mllm, tmp_path / "adapter", layer=4, output="adapter")
        encoder = VideoEncoder(adapter, device="cpu")
        config = CheckpointConfig.read(adapter / "vidembed_config.json")
        assert config.recipe is not None
        assert (config.recipe.adapter, encoder.fingerprint) == (True, config.fingerprint)
        assert "It is a recipe, too" in (adapter / "README.md").read_text()
        later = VideoEncoder(merge_adapter(mllm, adapter, tmp_path / "later", device="cpu"), device="cpu")
        inputs = [VIDEO, {"text": "a red square"}]
        vectors = encoder.encode(inputs)
        assert np.abs(vectors - later.encode(inputs)).max() <= 1e-5
        plain = VideoEncoder(mllm, layer=4, prefix=None, device="cpu")
        assert np.abs(vectors - plain.encode(inputs)).max() > 1e-4
        assert encoder.reranker().fingerprint == plain.reranker().fingerprint
        with pytest.raises(BackboneError, match="it already has an adapter"):
            quick(adapter, tmp_path / "again")
        with pytest.raises(BackboneError, match="is aligned: a recipe with an adapter"):
            build(adapter, layer=4, out=tmp_path / "built", device="cpu")
        assert not (tmp_path / "again").exists()
        assert not (tmp_path / "built").exists()

    def test_goes_on_from_a_recipe_of_build(self, tiny_mllm: GetModel, tmp_path: Path):
        recipe = build(tiny_mllm("qwen2_5_vl"), layer=4, prefix=None, out=tmp_path / "recipe", device="cpu")
        out = quick(recipe, tmp_path / "aligned", output="adapter")
        assert VideoEncoder(out, device="cpu").layer == 4

    def test_misuse(self, tiny_mllm: GetModel, tmp_path: Path):
        with pytest.raises(FileNotFoundError, match=r"no adapter_config\.json"):
            merge_adapter(tiny_mllm("qwen2_vl"), tmp_path, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class Killed(Exception):  # noqa: N818 - stands for a signal
    pass


class TestInterruption:
    @pytest.fixture
    def kill_at(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        """Ends a run in the middle of saving the state of a step, half of it written."""

        armed: list[int] = []
        original = AlignmentTrainer._save_optimizer_and_scheduler  # noqa: SLF001 - transformers has no hook there

        def save(self: Any, folder: str) -> None:
            if self.state.global_step in armed[-1:]:
                raise Killed
            original(self, folder)

        monkeypatch.setattr(AlignmentTrainer, "_save_optimizer_and_scheduler", save)
        return armed.append

    @pytest.mark.parametrize("loss", ["dual-softmax", "infonce"])
    def test_a_resumed_run_equals_an_uninterrupted_one(
        self, tiny_mllm: GetModel, tmp_path: Path, kill_at: Callable[[int], None], loss: Any
    ):
        training = TrainingSettings(loss=loss, batch_size=2, learning_rate=1e-2)
        options: dict[str, Any] = {"training": training, "held_out": 2, "every": 2}
        whole = quick(tiny_mllm("qwen2_vl"), tmp_path / "whole", **options)
        kill_at(4)
        with pytest.raises(Killed):
            quick(tiny_mllm("qwen2_vl"), tmp_path / "broken", **options)
        kill_at(0)
        assert not (tmp_path / "broken").exists()
        work = tmp_path / "broken.training"
        assert (work / "draft" / "checkpoint-4" / "adapter_model.safetensors").is_file()  # the half-written one
        assert last_checkpoint(work) == work / "checkpoint-2"
        with pytest.MonkeyPatch.context() as patch:
            started = []
            patch.setattr(
                "transformers.Trainer._save_rng_state",
                lambda self, folder, original=AlignmentTrainer._save_rng_state: (  # noqa: SLF001 - likewise
                    started.append(self._initial_global_step),
                    original(self, folder),
                ),
            )
            out = quick(tiny_mllm("qwen2_vl"), tmp_path / "broken", **options)
        assert set(started) == {2}
        assert not work.exists()
        a, b = (load_file(path / "model.safetensors") for path in (whole, out))
        assert max(float((a[name] - b[name]).abs().max()) for name in a) <= 1e-6
        logs = [read_log(path / "train_log.jsonl") for path in (whole, out)]
        assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]]
        counted = ["false_negatives" in entry for entry in logs[0] if "loss" in entry]
        assert all(counted) if loss == "dual-softmax" else not any(counted)
        losses = [[entry["loss"] for entry in log if "loss" in entry] for log in logs]
        assert losses[1] == pytest.approx(losses[0], rel=1e-4, abs=1e-6)

    def test_other_settings_are_refused(
        self, tiny_mllm: GetModel, tmp_path: Path, kill_at: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
    ):
        kill_at(2)
        with pytest.raises(Killed):
            quick(tiny_mllm("qwen2_vl"), tmp_path / "m", every=2)
        for other, name in ({"lora": LoraSettings(rank=2)}, "lora"), ({"pairs": make_pairs(13)}, "pairs"):
            with pytest.raises(ValueError, match=rf"m\.training has an interrupted run with different.*{name}"):
                quick(tiny_mllm("qwen2_vl"), tmp_path / "m", every=2, **other)
        monkeypatch.undo()
        out = quick(tiny_mllm("qwen2_vl"), tmp_path / "m", lora=LoraSettings(rank=2), resume=False)
        assert json.loads((out / "alignment.json").read_text())["lora"]["rank"] == 2

    def test_only_the_last_state_is_kept(self, tiny_mllm: GetModel, tmp_path: Path, kill_at: Callable[[int], None]):
        kill_at(4)
        with pytest.raises(Killed):
            quick(tiny_mllm("qwen2_vl"), tmp_path / "m", every=1, training=TrainingSettings(batch_size=2))
        work = tmp_path / "m.training"
        assert [path.name for path in work.glob("checkpoint-*")] == ["checkpoint-3"]
        assert not list(work.rglob("model.safetensors"))  # the adapter alone
        shutil.rmtree(work / "checkpoint-3")
        assert last_checkpoint(work) is None

    def test_a_loss_that_is_not_finite_ends_the_run(
        self, tiny_mllm: GetModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        original = AlignmentTrainer.log

        def log(self: Any, logs: dict[str, float], *args: Any) -> None:
            original(self, {**logs, "loss": float("nan")} if "loss" in logs else logs, *args)

        monkeypatch.setattr(AlignmentTrainer, "log", log)
        with pytest.raises(FloatingPointError, match=r"loss nan at step 1.*learning rate"):
            quick(tiny_mllm("qwen2_vl"), tmp_path / "m", every=1)
        assert last_checkpoint(tmp_path / "m.training") is None
        assert not (tmp_path / "m").exists()


class TestMisuse:
    @pytest.mark.parametrize(
        ("kwargs", "error", "message"),
        [
            ({"layer": 9}, LayerError, r"layer=9.*1\.\.6"),
            ({"output": "both"}, ValueError, "output='both'"),
            ({"device": "cuda:1"}, ValueError, "CUDA_VISIBLE_DEVICES"),
            ({"every": 0}, ValueError, "every=0"),
            ({"held_out": 11}, ValueError, r"held_out=11 of 12 pairs: expected 0\.\.10"),
            ({"held_out": -1}, ValueError, "held_out=-1"),
            ({"max_tokens": 20}, AnnotationError, r"pairs\[0\] takes"),
            ({"dtype": "float16"}, BackboneError, "float16, in which gradients underflow"),
            ({"dtype": "float12"}, BackboneError, "float12"),
            ({"pairs": []}, ValueError, "none of the 0 pairs fits"),
        ],
    )
    def test_nothing_is_written(self, tiny_mllm: GetModel, tmp_path: Path, kwargs, error, message):
        with pytest.raises(error, match=message):
            quick(tiny_mllm("qwen2_vl"), tmp_path / "m", **kwargs)
        assert not list(tmp_path.iterdir())

    def test_existing_folder_is_kept(self, tiny_mllm: GetModel, tmp_path: Path):
        (tmp_path / "precious.txt").write_text("x")
        with pytest.raises(FileExistsError, match="overwrite=True"):
            quick(tiny_mllm("qwen2_vl"), tmp_path)
        assert [file.name for file in tmp_path.iterdir()] == ["precious.txt"]

    @pytest.mark.parametrize(
        "kwargs",
        [
            {"loss": "x"},
            {"batch_size": 1},
            {"mini_batch_size": 0},
            {"epochs": 0},
            {"learning_rate": 0},
            {"temperature": 0},
            {"prior_temperature": 0},
            {"warmup": 1.0},
        ],
    )
    def test_settings(self, kwargs):
        with pytest.raises(ValueError, match=f"{next(iter(kwargs))}="):
            TrainingSettings(**kwargs)

    def test_a_merge_that_changes_vectors_is_not_saved(
        self, tiny_mllm: GetModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        def merge(self: LanguageAdapter) -> VideoEncoder:
            self._peft.base_model.unload()  # the updates are lost
            return self.encoder

        monkeypatch.setattr(LanguageAdapter, "merge", merge)
        with pytest.raises(ReadoutMismatchError, match="Nothing was written"):
            quick(tiny_mllm("qwen2_vl"), tmp_path / "m", training=TrainingSettings(batch_size=4, learning_rate=0.1))
        assert not (tmp_path / "m").exists()
        assert last_checkpoint(tmp_path / "m.training") is not None  # the training is not lost
