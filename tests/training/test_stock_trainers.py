"""The trainers of sentence-transformers on our models: identities, stored ones and cards follow the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from tests.cards import run_snippets
from vidembed import VideoEncoder, VideoReranker
from vidembed.errors import BackboneError
from vidembed.index import IndexMismatchError, VideoIndex, index_videos, search
from vidembed.shapes import ClipRecord, write_clips

pytest.importorskip("accelerate")
datasets = pytest.importorskip("datasets")

Clips = list[tuple[Path, ClipRecord]]
ARGUMENTS: dict[str, Any] = {
    "max_steps": 4,
    "save_steps": 2,
    "save_strategy": "steps",
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return write_clips(tmp_path_factory.mktemp("clips"), 8, "train", 0)


def train_encoder(encoder: VideoEncoder, clips: Clips, out: Path | str, **how: Any) -> None:
    rows = {"anchor": [record.summary for _, record in clips], "positive": [str(path) for path, _ in clips]}
    SentenceTransformerTrainer(
        model=encoder,
        args=SentenceTransformerTrainingArguments(output_dir=str(out), **{**ARGUMENTS, **how}),
        train_dataset=datasets.Dataset.from_dict(rows),
        loss=MultipleNegativesRankingLoss(encoder),
    ).train()


def train_reranker(reranker: VideoReranker, clips: Clips, out: Path | str, **how: Any) -> None:
    rows = {
        "query": [record.summary for _, record in clips],
        "video": [str(path) for path, _ in clips],
        "label": [1.0, 0.0] * (len(clips) // 2),
    }
    CrossEncoderTrainer(
        model=reranker,
        args=CrossEncoderTrainingArguments(output_dir=str(out), **{**ARGUMENTS, **how}),
        train_dataset=datasets.Dataset.from_dict(rows),
        loss=BinaryCrossEntropyLoss(reranker),
    ).train()


def test_an_index_refuses_the_encoder_that_made_it_once_it_is_trained(clips: Clips, tmp_path: Path) -> None:
    encoder = VideoEncoder("vidembed/shapes", device="cpu")
    paths, query = [path for path, _ in clips], clips[0][1].summary
    index_videos(paths[:-1], tmp_path / "index", encoder, model="mine", progress=False)
    index = VideoIndex.open(tmp_path / "index")
    assert search(index, encoder, query)
    train_encoder(encoder, clips, tmp_path / "out", save_strategy="no", max_steps=1)
    with pytest.raises(IndexMismatchError, match=r"made by 'mine'.*cannot be compared \(weights"):
        search(index, encoder, query)
    with pytest.raises(IndexMismatchError, match="cannot be compared"):  # also for the files that are there already
        index_videos(paths, tmp_path / "index", encoder, model="mine", progress=False)
    assert len(VideoIndex.open(tmp_path / "index")) == len(paths) - 1


def test_checkpoints_of_an_encoder(clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = VideoEncoder("vidembed/shapes", device="cpu")
    found = [encoder.fingerprint]
    monkeypatch.chdir(tmp_path)
    train_encoder(encoder, clips, "out")
    for step in (2, 4):
        folder = Path("out", f"checkpoint-{step}")
        stored = json.loads((folder / "vidembed_config.json").read_text())["fingerprint"]
        again = VideoEncoder(str(folder), device="cpu")
        assert again.fingerprint == stored
        found.append(stored)
    assert len(set(found)) == 3
    assert encoder.fingerprint == found[-1]
    video = clips[0][0]
    assert np.abs(again.encode(video) - encoder.encode(video)).max() <= 1e-6

    card = Path("out", "checkpoint-4", "README.md").read_text()
    for part in ("MultipleNegativesRankingLoss", "### Training Hyperparameters", "#### Unnamed Dataset", found[-1]):
        assert part in card
    assert '_model_id")' not in card
    assert "No weight was trained" not in card
    namespace = run_snippets(card, video)
    assert np.allclose(namespace["model"].encode(video), encoder.encode(video), atol=1e-6)
    again.save_pretrained("copy")  # keeps what the card says of the training
    copied = Path("copy", "README.md").read_text()
    assert copied == card.replace("./out/checkpoint-4", "./copy")
    assert run_snippets(copied, video)["model"].fingerprint == found[-1]


def test_checkpoints_of_a_reranker(
    clips: Clips, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reranker = VideoReranker("vidembed/shapes-rerank", device="cpu")
    assert reranker.calibration is not None
    pairs = [(clips[0][1].summary, path) for path, _ in clips[:2]]
    before, found = reranker.predict(pairs), [reranker.fingerprint]
    monkeypatch.chdir(tmp_path)
    train_reranker(reranker, clips, "out")
    for step in (2, 4):
        folder = Path("out", f"checkpoint-{step}")
        stored = json.loads((folder / "vidembed_reranker.json").read_text())
        again = VideoReranker(str(folder), device="cpu")
        assert json.loads(json.dumps(again.fingerprint_fields())) == stored["made_for"]
        assert again.calibration is again.fusion is None  # fitted on other weights
        found.append(again.fingerprint)
    assert len(set(found)) == 3
    assert reranker.fingerprint == found[-1]
    assert "calibration and fusion are not saved" in caplog.text

    caplog.clear()
    after = reranker.predict(pairs)
    assert "they are not used; call calibrate again" in caplog.text
    assert np.abs(after - again.predict(pairs)).max() <= 1e-6
    assert np.abs(after - before).max() > 1e-3

    card = Path("out", "checkpoint-4", "README.md").read_text()
    for part in ("BinaryCrossEntropyLoss", "### Training Hyperparameters", "| calibration | none |"):
        assert part in card
    assert '_model_id")' not in card
    assert run_snippets(card, clips[0][0])["reranker"].fingerprint == found[-1]


def test_training_one_leaves_the_other_on_the_same_weights(
    clips: Clips, tiny_mllm: Callable[[str], Path], tmp_path: Path
) -> None:
    reranker = VideoReranker(tiny_mllm("qwen2_5_vl"), device="cpu")
    encoder = reranker.encoder(layer=3)
    pairs = [(record.summary, path) for path, record in clips[:4]]
    reranker.calibrate(pairs, [1, 0, 1, 0], folds=2)
    before, scores = (reranker.fingerprint, encoder.fingerprint), reranker.predict(pairs)
    train_encoder(encoder, clips, tmp_path / "out", save_strategy="no", max_steps=1)
    assert encoder.fingerprint != before[1]
    assert reranker.fingerprint == before[0]
    assert np.array_equal(reranker.predict(pairs), scores)  # its calibration still fits
    with torch.no_grad():
        next(reranker.parameters()).mul_(2)
    with pytest.raises(BackboneError, match=r"before it changed \(weights differ\).*Call calibrate again"):
        reranker.predict(pairs)
    reranker.save_calibration(tmp_path / "later.json")  # what they were fitted on is still what it says
    with pytest.raises(BackboneError, match="fitted on another model"):
        VideoReranker(backbone=reranker.backbone, calibration=tmp_path / "later.json")
    same = VideoReranker(tiny_mllm("qwen2_5_vl"), device="cpu", calibration=tmp_path / "later.json")
    assert same.calibration == reranker.calibration
