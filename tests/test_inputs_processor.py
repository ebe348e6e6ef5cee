"""The processor of one call: threads run it beside one another, and no call changes it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.backbone import zoo
from vidembed import VideoEncoder, VideoFrames
from vidembed.inputs import processor_for_call, share_cores

GetModel = Callable[[str], Path]
VIDEOS = [
    VideoFrames(np.random.default_rng(seed).integers(0, 256, (4, 56, 56, 3), dtype=np.uint8), fps=2.0)
    for seed in range(4)
]
TEXTS = ["a door", "a red square moves down and stops", "two dogs run along the beach in the evening"]


def test_two_videos_are_in_the_processor_at_once(tiny_mllm: GetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = VideoEncoder(tiny_mllm("qwen2_5_vl"), layer=4, device="cpu", decode_workers=2)
    expected = encoder.encode(VIDEOS)  # what is tried once on a model, is now
    kind = type(encoder.processor.video_processor)
    plain, both = kind._preprocess, threading.Barrier(2, timeout=30.0)  # noqa: SLF001 - of the host

    def meet(*args: Any, **kwargs: Any) -> Any:
        both.wait()  # raises BrokenBarrierError where the second never comes
        return plain(*args, **kwargs)

    monkeypatch.setattr(kind, "_preprocess", meet)
    assert np.array_equal(encoder.encode(VIDEOS), expected)


def test_one_thread_at_a_time_is_in_the_tokenizer(tiny_mllm: GetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = VideoEncoder(tiny_mllm("qwen2_5_vl"), layer=4, device="cpu")
    kind = type(encoder.tokenizer)
    plain, inside, most = kind._encode_plus, [], []  # noqa: SLF001 - of the host

    def slow(*args: Any, **kwargs: Any) -> Any:
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.01)
        result = plain(*args, **kwargs)
        inside.pop()
        return result

    monkeypatch.setattr(kind, "_encode_plus", slow)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda text: encoder.preprocess([text]), TEXTS * 4))
    assert len(most) >= 12
    assert set(most) == {1}


@pytest.mark.parametrize("model_type", ["video_llama_3", "qwen3_vl"])
def test_the_processor_stays_as_it_was(tiny_mllm: GetModel, model_type: str) -> None:
    encoder = VideoEncoder(tiny_mllm(model_type), layer=4, device="cpu")
    parts = [encoder.processor, encoder.processor.video_processor, encoder.tokenizer, encoder[0], encoder]
    before = [dict(vars(part)) for part in parts]
    modules = dict(encoder.named_modules())
    encoder.preprocess([VIDEOS[0]])
    encoder.preprocess([VIDEOS[1], "a door"] if model_type == "qwen3_vl" else ["a door"])
    for part, attributes in zip(parts, before, strict=True):
        assert {name: id(value) for name, value in vars(part).items()} == {
            name: id(value) for name, value in attributes.items()
        }
    assert dict(encoder.named_modules()) == modules


def test_the_frame_grid_is_cleared_for_a_call_only() -> None:
    _, processor = zoo.smolvlm()
    processor.video_processor.num_frames, processor.video_processor.fps = 7, 3
    own: Any = processor_for_call(processor)
    assert (own.video_processor.num_frames, own.video_processor.fps) == (None, None)
    assert (processor.video_processor.num_frames, processor.video_processor.fps) == (7, 3)


@pytest.mark.parametrize(("workers", "threads"), [(1, 4), (2, 2), (3, 1), (9, 1)])
def test_workers_share_the_cores(workers: int, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with ThreadPoolExecutor(1, initializer=share_cores, initargs=(workers,)) as pool:
            assert pool.submit(torch.get_num_threads).result() == threads
        assert torch.get_num_threads() == 4  # of every other thread
    finally:
        torch.set_num_threads(before)
