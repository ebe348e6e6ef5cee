"""Model cards: what a reader pastes loads the model that the card is about."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

import vidembed
from tests.cards import run_snippets, snippets
from tests.clips import write_folder
from vidembed import VideoEncoder, VideoReranker, build
from vidembed.calibration import RerankerConfig
from vidembed.card import model_card, reranker_card
from vidembed.checkpoint import CheckpointConfig
from vidembed.registry import BUNDLED, loading_name, own_name
from vidembed.reproduce import ALIGNED
from vidembed.training.lora import write_facts

GetModel = Callable[[str], Path]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("clips"), 1)[0]


@pytest.fixture(scope="module")
def encoder(tiny_mllm: GetModel) -> VideoEncoder:
    return VideoEncoder(tiny_mllm("qwen2_5_vl"), layer=3, device="cpu")


def card_of(folder: str | Path) -> str:
    return Path(folder, "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ["embedder", "out/embedder", "./out/embedder", "../beside/embedder", 'a "b" \\ é'])
def test_a_relative_path_loads_where_it_was_given(
    encoder: VideoEncoder, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    encoder.save_pretrained(folder)
    assert run_snippets(card_of(folder), clip)["model"].fingerprint == encoder.fingerprint


def test_an_absolute_path_loads_beside_the_folder_and_is_not_told(
    encoder: VideoEncoder, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.save_pretrained(str(tmp_path / "embedder"))
    card = card_of(tmp_path / "embedder")
    assert str(tmp_path) not in card
    assert encoder.fingerprint in card
    assert "sentence_transformers_model_id" not in card
    shutil.move(tmp_path / "embedder", tmp_path / "elsewhere" / "embedder")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run_snippets(card, clip)["model"].fingerprint == encoder.fingerprint


def test_built_where_a_relative_path_says(
    tiny_mllm: GetModel, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = build(tiny_mllm("qwen2_vl"), layer=2, out="models/mine", standalone=True)
    assert run_snippets(card_of(out), clip)["model"].layer == 2
    assert "No weight was trained" in card_of(out)


def test_a_reranker(tiny_mllm: GetModel, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reranker = VideoReranker(tiny_mllm("qwen2_5_vl"), device="cpu")
    monkeypatch.chdir(tmp_path)
    reranker.save_pretrained("judge")
    assert run_snippets(card_of("judge"), clip)["reranker"].fingerprint == reranker.fingerprint


def test_a_copy_of_a_checkpoint_names_itself(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = VideoEncoder("vidembed/shapes", device="cpu")
    monkeypatch.chdir(tmp_path)
    encoder.save_pretrained("copy")
    assert "No weight was trained" in card_of("copy")
    assert "./copy" in run_snippets(card_of("copy"), clip)["model"].tokenizer.name_or_path
    with torch.no_grad():
        next(encoder.parameters()).add_(0.1)
    encoder.save_pretrained("edited")
    assert "No weight was trained" not in card_of("edited")
    assert encoder.fingerprint in card_of("edited")
    assert run_snippets(card_of("edited"), clip)["model"].fingerprint == encoder.fingerprint


def test_a_card_of_another_hand_is_kept(
    encoder: VideoEncoder, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    encoder.save_pretrained("first")
    own = 'Mine.\n\n```python\nfrom vidembed import VideoEncoder\nmodel = VideoEncoder("first", device="cpu")\n```\n'
    Path("first", "README.md").write_text(own, encoding="utf-8")
    VideoEncoder("first", device="cpu").save_pretrained("second")
    assert card_of("second") == own


@dataclass
class Hub:
    """What `HfApi` is asked for when a model is pushed."""

    folder: Path
    token: str | None = None

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        return type("Repo", (), {"repo_id": repo_id})

    def upload_folder(self, folder_path: str, **_: Any) -> Any:
        shutil.copytree(folder_path, self.folder)
        return type("Commit", (), {"commit_url": "https://hub/commit"})


@pytest.mark.parametrize("kind", ["encoder", "reranker"])
def test_on_a_hub_it_names_the_repository(
    encoder: VideoEncoder, tiny_mllm: GetModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("sentence_transformers.base.model.HfApi", lambda token=None: Hub(tmp_path / "repo", token))
    model = VideoEncoder(backbone=encoder.backbone, layer=3) if kind == "encoder" else encoder.reranker()
    model.push_to_hub("someone/clips", replace_model_card=True)
    code = snippets(card_of(tmp_path / "repo"))
    assert set(re.findall(r'(?:Encoder|Transformer|Reranker)\("(.*?)"\)', code)) == {"someone/clips"}
    assert "path of this folder" not in code


def run_alone(card: str, clip: Path, folder: Path) -> None:
    """Run snippets in a process that has imported nothing."""
    for name in ("clip", "a", "b"):
        shutil.copyfile(clip, folder / f"{name}.mp4")
    subprocess.run([sys.executable, "-c", snippets(card)], check=True, cwd=folder, timeout=300)


def test_in_the_store_it_goes_by_its_name(
    tiny_mllm: GetModel, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEMBED_HOME", str(tmp_path / "home"))
    out = build(tiny_mllm("qwen2_vl"), layer=2, name="mine", standalone=True)
    VideoEncoder("vidembed/mine", device="cpu").save_pretrained(str(out.parent / "again"))
    assert own_name(out.parent / "again") == "vidembed/again"
    assert "vidembed/mine" in snippets(card_of(out))
    run_alone(card_of(out.parent / "again"), clip, tmp_path)


@pytest.mark.parametrize("name", ["vidembed/shapes", "vidembed/shapes-rerank"])
def test_of_the_bundled_models(name: str, clip: Path, tmp_path: Path) -> None:
    card = card_of(vidembed.model_path(name))
    assert f'("{name}")' in snippets(card)
    run_alone(card, clip, tmp_path)


def test_those_of_the_bundled_models_are_what_is_written_today(tmp_path: Path) -> None:
    embedder, reranker = (vidembed.model_path(name) for name in ("shapes", "shapes-rerank"))
    config = CheckpointConfig.read(embedder / "vidembed_config.json")
    assert card_of(embedder) == model_card(loading_name(embedder), config, (1.0, 1.0))
    scoring = RerankerConfig.read(reranker / "vidembed_reranker.json")
    assert card_of(reranker).startswith(reranker_card(loading_name(reranker), scoring))
    shutil.copytree(ALIGNED, tmp_path / "aligned")
    write_facts(tmp_path / "aligned", loading_name(ALIGNED), json.loads((ALIGNED / "alignment.json").read_text()))
    assert card_of(tmp_path / "aligned") == card_of(ALIGNED)


# -- what the Hub reads: the front matter, parsed as the Hub's own library does, without a connection -----------------

PIPELINES = {"feature-extraction", "image-text-to-text", "text-ranking"}  # tasks of the Hub that our cards name


def front_matter(card: str) -> dict[str, Any]:
    found = ModelCard(card).data.to_dict()
    assert found["license"] in {"apache-2.0", "other"}
    assert found["library_name"] in {"sentence-transformers", "transformers", "peft"}
    assert found["pipeline_tag"] in PIPELINES
    assert all(isinstance(tag, str) for tag in found["tags"])
    return found


@pytest.mark.parametrize("source", ["Qwen/Qwen3-VL-2B-Instruct", "hf://vidembed/other", "shapes", ""])
@pytest.mark.parametrize("kind", ["encoder", "reranker", "adapter"])
def test_front_matter_names_the_base_model_where_the_hub_has_it(kind: str, source: str, tmp_path: Path) -> None:
    config = CheckpointConfig(24, 28, "qwen3_vl", source, None, {"fps": 2.0}, "0" * 64)
    if kind == "encoder":
        card = model_card("./embedder", config)
    elif kind == "reranker":
        card = reranker_card("./judge", RerankerConfig(source=source, sampling={"fps": 2.0}))
    else:
        config.write(tmp_path)
        write_facts(tmp_path, "./adapter", {"output": "adapter"})
        card = card_of(tmp_path)
    found = front_matter(card)
    hub = source.removeprefix("hf://") if "/" in source else None
    assert found.get("base_model") == hub
    assert found.get("license_link") == (f"https://huggingface.co/{hub}" if hub else None)
    assert (found["license"], found["license_name"]) == ("other", "that-of-the-base-model")
    assert {"video-text-retrieval", "vidembed"} <= set(found["tags"])


@pytest.mark.parametrize("folder", [*(vidembed.model_path(name) for name in BUNDLED), ALIGNED])
def test_front_matter_of_the_bundled_models(folder: Path) -> None:
    found = front_matter(card_of(folder))
    assert found["license"] == "apache-2.0"  # as the package
    assert "base_model" not in found  # trained here, and on no hub


def test_front_matter_of_what_build_writes(tiny_mllm: GetModel, tmp_path: Path) -> None:
    recipe = build(tiny_mllm("qwen2_vl"), layer=2, out=tmp_path / "recipe", device="cpu")
    assert front_matter(card_of(recipe))["library_name"] == "sentence-transformers"
