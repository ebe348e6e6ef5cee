"""Recall of held-out pairs while training, and the log of a run as a file and as a figure."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments

from vidembed.training import LogFile, PairEvaluator, TextPair, TrainingSettings, plot_curves, read_log
from vidembed.training.trainer import pair_recalls


class FakeEncoder:
    """Embeds by a table; a text in the video's prompt has ``video: `` before it."""

    def __init__(self, table: dict[str, list[float]]) -> None:
        self.table = table
        self.__dict__["processor"] = SimpleNamespace(chat_template="namespace(kind='text'")

    def __getitem__(self, index: int) -> Any:
        return self

    def encode(self, inputs: list[dict[str, str]], processing_kwargs: Any = None, **kwargs: Any) -> np.ndarray:
        stands_in = processing_kwargs and "kind='video'" in processing_kwargs["chat_template"]["chat_template"]
        return np.array([self.table[("video: " if stands_in else "") + item["text"]] for item in inputs])


def test_recalls_of_pairs_each_side_in_its_prompt():
    table = {"video: A": [1, 0], "video: B": [0, 1], "a": [1, 0.1], "b": [1, 0.2]}
    found = PairEvaluator([TextPair("A", "a"), TextPair("B", "b")])(FakeEncoder(table))
    assert found["summary_to_dense_R@1"] == 50.0  # both summaries prefer A
    assert found["dense_to_summary_R@1"] == 50.0  # A ties, which counts against it
    assert found["summary_to_dense_R@5"] == 100.0


def test_equal_texts_are_right_for_each_other():
    table = {"video: A": [1, 0], "video: B": [0.9, 0.1], "a": [0, 1]}
    found = PairEvaluator([TextPair("A", "a"), TextPair("B", "a")])(FakeEncoder(table))
    assert found["summary_to_dense_R@1"] == 100.0


def test_ties_count_against_the_query():
    assert pair_recalls(np.zeros((20, 20)), np.eye(20, dtype=bool)) == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0}


class TestLog:
    @staticmethod
    def write(path: Path) -> LogFile:
        log = LogFile(path)
        state = SimpleNamespace(global_step=0, max_steps=3)
        log.on_train_begin(None, state, None)
        log.on_log(None, state, None, {"eval_summary_to_dense_R@1": 10.0, "eval_runtime": 3.0})
        for step in (1, 2, 3):
            state.global_step = step
            log.on_log(None, state, None, {"loss": 1 / step, "learning_rate": 0.1, "grad_norm": 1.0, "epoch": 0.5})
            log.on_step_end(None, state, None)
        log.on_log(None, state, None, {"train_runtime": 3.0, "total_flos": 1})
        log.on_train_end(None, state, None)
        return log

    def test_lines(self, tmp_path: Path):
        self.write(tmp_path / "log.jsonl")
        lines = read_log(tmp_path / "log.jsonl")
        assert lines[0] == {"step": 0, "eval_summary_to_dense_R@1": 10.0}
        assert lines[1] == {"step": 1, "loss": 1.0, "learning_rate": 0.1, "grad_norm": 1.0}
        assert len(lines) == 4

    def test_a_resumed_run_makes_later_lines_again(self, tmp_path: Path):
        log = self.write(tmp_path / "log.jsonl")
        log.on_train_begin(None, SimpleNamespace(global_step=2, max_steps=3), None)
        assert [line["step"] for line in read_log(log.path)] == [0, 1, 2]
        log.on_train_begin(None, SimpleNamespace(global_step=0, max_steps=3), None)
        assert read_log(log.path) == []

    def test_a_line_cut_off_is_left_out(self, tmp_path: Path):
        log = self.write(tmp_path / "log.jsonl")
        log.path.write_text(log.path.read_text()[:-9])
        assert len(read_log(log.path)) == 3
        assert read_log(tmp_path / "none.jsonl") == []

    @pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
    def test_plot(self, tmp_path: Path, suffix: str):
        self.write(tmp_path / "log.jsonl")
        plot_curves(tmp_path / "log.jsonl", tmp_path / f"curves.{suffix}")
        assert (tmp_path / f"curves.{suffix}").stat().st_size > 2000

    def test_plot_of_another_suffix(self, tmp_path: Path):
        with pytest.raises(ValueError, match=r"curves\.bmp"):
            plot_curves(tmp_path / "log.jsonl", tmp_path / "curves.bmp")


def test_several_gpus_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(SentenceTransformerTrainingArguments, "n_gpu", 4)
    arguments = TrainingSettings(batch_size=6).arguments(tmp_path, every=1, device="cpu")
    assert SentenceTransformerTrainingArguments.n_gpu == 4
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 6)
