from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tools.shapes import train
from tools.shapes.dataset import Mixture
from tools.shapes.train import Run, Training, export, learning_rate

CPU = torch.device("cpu")
TINY = Run(seed=5, steps=(1, 1, 2), layers=2, hidden=64)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    mixtures = {
        "tags": (1, Mixture(clips=4, texts=2)),
        "describe": (1, Mixture(clips=3, texts=2, captions=1, questions=1, text_answers=("tags", "short", "dense"))),
        "match": (2, Mixture(clips=3, texts=2, statements=2)),
    }
    monkeypatch.setattr(train, "STAGES", mixtures)


def test_resumed_training_equals_uninterrupted_training(tmp_path):
    whole = Training(TINY, device=CPU)
    before = {name: value.clone() for name, value in whole.model.state_dict().items()}
    whole.fit(tmp_path / "whole", probe_clips=2)
    parts = Training(TINY, device=CPU)
    parts.fit(tmp_path / "parts", until=2, probe_clips=2)
    parts = Training.resume(tmp_path / "parts" / "state", device=CPU)
    assert parts.step == 2
    parts.fit(tmp_path / "parts", probe_clips=2)
    one, two = whole.model.state_dict(), parts.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    still = [name for name, value in one.items() if torch.equal(value, before[name]) and value.ndim > 1]
    assert still == []  # every matrix was trained
    log = [json.loads(line) for line in (tmp_path / "parts" / "train_log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in log] == [2, 4]
    assert log[-1]["stage"] == "match"
    assert len(log[-1]["t2v_r1"]) == 2


def test_loss_falls(tmp_path):
    training = Training(Run(seed=1, steps=(1, 1, 100), layers=2, hidden=64), device=CPU)
    batch = training.batch(0)
    losses = [training.train_step(batch)["clip_loss"] for _ in range(12)]
    assert losses[-1] < losses[0] - 0.3


def test_resume_without_a_state_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="without --resume"):
        Training.resume(tmp_path, device=CPU)


def test_exported_weights_load_as_float32_rounded_to_float16(tmp_path):
    from transformers import AutoModelForImageTextToText

    training = Training(TINY, device=CPU)
    export(training.model, training.processor, tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="auto")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    for (name, kept), value in zip(loaded.state_dict().items(), training.model.state_dict().values(), strict=True):
        assert torch.equal(kept, value.half().float()), name
    assert {p.dtype for p in training.model.parameters()} == {torch.float32}


def test_learning_rate_warms_up_holds_and_falls():
    rates = [learning_rate(step, 1000, peak=1.0) for step in range(1000)]
    assert rates[0] < rates[30] < rates[59] == 1.0
    assert rates[500] == 1.0
    assert rates[600:] == sorted(rates[600:], reverse=True)
    assert rates[-1] == 0.02


def test_a_run_can_begin_with_the_weights_of_a_checkpoint(tmp_path):
    trained = Training(Run(seed=6, steps=(1, 1, 2), layers=2, hidden=64), device=CPU)
    export(trained.model, trained.processor, tmp_path)
    training = Training(TINY, device=CPU)
    training.begin_with(tmp_path)
    for (name, value), wanted in zip(
        training.model.state_dict().items(), trained.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, wanted.half().float()), name


def test_weights_of_another_shape_are_refused(tmp_path):
    other = Training(Run(seed=6, steps=(1, 1, 2), layers=1, hidden=64), device=CPU)
    export(other.model, other.processor, tmp_path)
    with pytest.raises(RuntimeError, match="Missing key"):
        Training(TINY, device=CPU).begin_with(tmp_path)
