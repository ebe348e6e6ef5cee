"""Models are fed a batch ahead: the same vectors as without, and as many workers as the machine has room for."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.index.fakes import FakeEncoder, write_videos
from vidembed import VideoEncoder, VideoFrames, VideoReranker
from vidembed.index import index_videos
from vidembed.inputs import Prepared, collate, on_device, pinned
from vidembed.ray import indexer
from vidembed.video import clip
from vidembed.video.clip import core_count
from vidembed.video.pool import DecodePool
from vidembed.video.worker import worker_count

GetModel = Callable[[str], Path]
VIDEOS = [
    VideoFrames(np.random.default_rng(seed).integers(0, 256, (frames, 56, 56, 3), dtype=np.uint8), fps=2.0)
    for seed, frames in enumerate((4, 8, 2, 4, 6, 4, 4))
]
MIXED: list[Any] = [VIDEOS[0], "a red square", *VIDEOS[1:4], "two dogs run along the beach", "a door", *VIDEOS[4:]]


class WithoutThreads:
    """Does the work of a `Feeder` in the thread of the caller, each batch when it is asked for."""

    waiting = ""

    def __init__(self, inputs: Any, prepare: Any, prepare_texts: Any = None, **_options: Any) -> None:
        self.inputs, self.prepare, self.texts = inputs, prepare, prepare_texts

    def prepared(self) -> Iterator[Prepared]:
        for index, item in enumerate(self.inputs):
            is_text = self.texts is not None and isinstance(item, str)
            yield self.texts([index], [item])[0] if is_text else self.prepare(index, item)

    def batches(self, group: Any, join: Any) -> Iterator[Any]:
        for batch in group(self.prepared()):
            yield batch, join(batch)


@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl", "video_llama_3"])
def test_vectors_and_scores_are_those_without_threads(
    tiny_mllm: GetModel, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = VideoEncoder(tiny_mllm(model_type), layer=4, device="cpu", decode_workers=3)
    reranker = VideoReranker(tiny_mllm(model_type), device="cpu", decode_workers=3)
    pairs = [(text, video) for video in VIDEOS[:3] for text in ("a door", "a red square")]
    before = threading.active_count()
    vectors = encoder.encode(MIXED, batch_size=3)
    streamed = np.stack([item.embedding for item in encoder.encode_stream(iter(MIXED), batch_size=3)])
    scores = reranker.predict(pairs)
    assert threading.active_count() == before
    monkeypatch.setattr("vidembed.encoder.Feeder", WithoutThreads)
    monkeypatch.setattr("vidembed.cross_encoder.Feeder", WithoutThreads)
    assert np.array_equal(vectors, encoder.encode(MIXED, batch_size=3))
    assert np.array_equal(streamed, vectors)
    assert np.array_equal(scores, reranker.predict(pairs))


def test_out_of_memory_while_the_next_batch_is_made(
    tiny_mllm: GetModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = VideoEncoder(tiny_mllm("qwen3_vl"), layer=4, device="cpu")
    alone = encoder.encode(MIXED, batch_size=1)
    run, sizes = encoder.forward, []

    def small(features: Any, **options: Any) -> Any:
        sizes.append(len(features["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("no room")
        return run(features, **options)

    monkeypatch.setattr(encoder, "forward", small)
    with caplog.at_level(logging.WARNING):
        vectors = encoder.encode(MIXED, batch_size=4)
    assert np.abs(vectors - alone).max() <= 1e-5
    assert max(sizes) == 4
    assert "out of memory on a batch of 4 inputs" in caplog.text


def test_one_video_is_not_copied_on_the_cpu(tiny_mllm: GetModel) -> None:
    encoder = VideoEncoder(tiny_mllm("qwen3_vl"), layer=4, device="cpu")
    features, cpu = encoder.preprocess([VIDEOS[0]]), torch.device("cpu")
    joined = on_device(pinned(collate([Prepared(0, "", features)], pad_token_id=0), cpu), cpu)
    assert joined["pixel_values_videos"].data_ptr() == features["pixel_values_videos"].data_ptr()


def test_memory_is_pinned_for_a_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"input_ids": torch.ones(1, 3), "modality": "message"}
    asked: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        asked.append(tensor)
        return tensor + 1

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    assert pinned(features, torch.device("cpu")) is features
    assert asked == []
    there = pinned(features, torch.device("cuda"))
    assert there["modality"] == "message"
    assert torch.equal(there["input_ids"], torch.full((1, 3), 2.0))

    def refuse(_tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    assert pinned(features, torch.device("cuda")) is features


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    def have(cores: int, gib: int, quota: str | None = None) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)), raising=False)
        monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else gib * 2**30 // 4096)
        monkeypatch.setattr(clip, "CPU_QUOTA", tmp_path / "cpu.max")
        if quota is not None:
            (tmp_path / "cpu.max").write_text(quota)

    return have


@pytest.mark.parametrize(
    ("cores", "gib", "quota", "reserved", "expected"),
    [
        (2, 24, None, 0, 2),
        (2, 24, None, 1, 1),
        (1, 24, None, 1, 1),  # never none
        (64, 256, None, 1, 63),  # no cap of 8
        (64, 16, None, 1, 16),  # memory
        (64, 256, "max 100000\n", 0, 64),
        (64, 256, "400000 100000\n", 1, 3),  # a container with 4 cores
        (16, 64, "150000 100000\n", 0, 2),
        (16, 64, None, 2.5, 13),
    ],
)
def test_default_of_workers(
    machine: Callable[..., None], cores: int, gib: int, quota: str | None, reserved: float, expected: int
) -> None:
    machine(cores, gib, quota)
    assert worker_count(reserved) == expected


def test_everything_that_decodes_has_that_default(machine: Callable[..., None], tiny_mllm: GetModel) -> None:
    machine(12, 64)
    assert core_count() == 12
    assert DecodePool().workers == 12
    encoder = VideoEncoder(tiny_mllm("qwen3_vl"), layer=4, device="cpu")
    assert encoder.decode_workers == 12
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoEncoder, "device", property(lambda _self: torch.device("cuda")))
        on_gpu = VideoEncoder(backbone=encoder.backbone, layer=4, device="cpu")
    assert on_gpu.decode_workers == 11  # one core drives the model
    assert VideoEncoder(backbone=encoder.backbone, layer=4, decode_workers=3).decode_workers == 3
    assert indexer.worker_count is worker_count


def test_progress_says_the_pace_and_who_waits(
    tiny_mllm: GetModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    VideoEncoder(tiny_mllm("qwen3_vl"), layer=4, device="cpu").encode(VIDEOS, batch_size=2, show_progress_bar=True)
    shown = capsys.readouterr().err
    assert " inputs/s, " in shown
    assert "waits for " in shown
    write_videos(tmp_path / "clips", 4)
    index_videos([tmp_path / "clips"], tmp_path / "index", FakeEncoder(), model="fake", progress=True)  # type: ignore[arg-type]
    shown = capsys.readouterr().err
    assert " clips/s, waits for decoding" in shown  # a model that takes no time
