"""One sentence about many videos: a pass over several of them gives the answers of one for each."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.clips import moving_square
from tests.fixtures import loud
from vidembed import VideoFrames, VideoReranker, VideoSegment, VisualTokenCache
from vidembed.errors import InputError, VideoError
from vidembed.inputs import Prepared
from vidembed.yes_no import HeadReader

TEXT = "a red square moves to the right"
PLENTY = 100_000
GetModel = Callable[[str], Path]


def videos(clips: list[Path]) -> list[Any]:
    """Of mixed lengths and frame sizes, files and frames."""
    wide = VideoFrames(moving_square(9, seed=3)[:, :, :48], fps=4.0)
    return [clips[0], VideoSegment(clips[1], 0.2, 1.5), wide, clips[2], VideoFrames(moving_square(2, seed=5), fps=1.0)]


def passes(reranker: VideoReranker, call: Callable[[], Any]) -> list[int]:
    """How many rows each pass of the decoder has during a call."""
    reranker.can_batch()  # tried here, and not in the call
    seen: list[int] = []
    hook = reranker.parts.blocks[0].register_forward_hook(lambda _m, args, _o: seen.append(args[0].shape[0]))
    call()
    hook.remove()
    return seen


@pytest.mark.parametrize("cached", [False, True])
def test_answers_equal_those_of_a_pass_for_each(each_reranker: VideoReranker, clips: list[Path], cached: bool) -> None:
    pairs = [(TEXT, video) for video in videos(clips)]
    alone = each_reranker.answers(pairs)
    each_reranker.max_batch_tokens = PLENTY
    if cached:
        each_reranker.visual_cache = VisualTokenCache()
    assert each_reranker.can_batch()
    for _ in range(1 + cached):  # with a cache: made, then found
        together = each_reranker.answers(pairs)
        assert np.abs(together.yes - alone.yes).max() <= 1e-4
        assert np.abs(together.yes_no - alone.yes_no).max() <= 1e-4
    assert np.abs(alone.yes_no[:, None] - alone.yes_no)[~np.eye(len(pairs), dtype=bool)].min() > 1e-3  # order shows
    assert passes(each_reranker, lambda: each_reranker.predict(pairs)) == [len(pairs)]
    if cached and each_reranker.visual_cache is not None:
        assert each_reranker.visual_cache.stats.hits == 2 * 3  # the files
        each_reranker.max_batch_tokens = 0
        assert np.abs(each_reranker.answers(pairs).yes_no - alone.yes_no).max() <= 1e-4  # what was kept is no batch's


def test_videos_with_several_sentences_keep_their_prefix(reranker: VideoReranker, clips: list[Path]) -> None:
    pairs = [("b", clips[1]), (TEXT, clips[0]), ("c", clips[1]), (TEXT, clips[2])]
    alone = reranker.answers(pairs).yes_no
    reranker.max_batch_tokens = PLENTY
    assert np.abs(reranker.answers(pairs).yes_no - alone).max() <= 1e-4
    assert passes(reranker, lambda: reranker.predict(pairs)) == [1, 1, 2]  # prefix, two sentences, two videos


def test_priors_and_one_pass_per_pair_stay_one_by_one(reranker: VideoReranker, clips: list[Path]) -> None:
    reranker.max_batch_tokens = PLENTY
    pairs = [(TEXT, clip) for clip in clips]
    assert set(passes(reranker, lambda: reranker.answers(pairs, priors=True))) == {1}
    reranker.shared_prefix = False
    assert passes(reranker, lambda: reranker.predict(pairs)) == [1, 1, 1]


def test_the_cpu_asks_one_by_one_by_default_and_a_gpu_does_not(
    reranker: VideoReranker, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(TEXT, clip) for clip in clips]
    assert reranker.max_batch_tokens is None
    assert passes(reranker, lambda: reranker.predict(pairs)) == [1] * 6  # prefix and sentence of each
    monkeypatch.setattr(reranker, "_resolve_inference_device", lambda _device: torch.device("cuda"))
    for name in ("on_device", "pinned"):  # there is none
        monkeypatch.setattr(f"vidembed.cross_encoder.{name}", lambda features, _device: features)
    assert passes(reranker, lambda: reranker.predict(pairs)) == [3]
    assert passes(reranker, lambda: reranker.predict(pairs, batch_size=1)) == [1] * 6


def test_a_pass_is_bounded_by_videos_tokens_and_bytes(
    reranker: VideoReranker, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker.max_batch_tokens = PLENTY
    frames = [VideoFrames(moving_square(8, seed=seed), fps=4.0) for seed in range(5)]
    pairs = [(TEXT, video) for video in frames]
    assert passes(reranker, lambda: reranker.predict(pairs, batch_size=2)) == [2, 2, 1]
    assert passes(reranker, lambda: reranker.rank(TEXT, frames, batch_size=4)) == [4, 1]
    tokens = reranker.preprocess([pairs[0]])["input_ids"].shape[1]
    reranker.max_batch_tokens = 3 * tokens
    assert passes(reranker, lambda: reranker.predict(pairs)) == [3, 2]
    reranker.max_batch_tokens = PLENTY
    size = Prepared(0, "", reranker.preprocess([pairs[0]])).float_bytes
    monkeypatch.setattr("vidembed.cross_encoder.BATCH_BYTES", 2 * size)
    assert passes(reranker, lambda: reranker.predict(pairs)) == [2, 2, 1]


def test_what_fails_among_them_is_named_or_left_out(reranker: VideoReranker, clips: list[Path]) -> None:
    pairs = [
        (TEXT, clips[0]),
        (TEXT, "gone.mp4"),
        ("x" * 5000, clips[1]),
        ("a <|video_pad|> b", videos(clips)[4]),
        (TEXT, clips[2]),
    ]
    alone = reranker.predict(pairs, on_error="skip")
    reranker.max_batch_tokens = PLENTY
    together = reranker.predict(pairs, on_error="skip")
    assert together.mask.tolist() == [False, True, True, True, False]
    assert np.abs(together - alone).max() <= 1e-5
    with pytest.raises(VideoError, match=r"gone\.mp4"):
        reranker.predict(pairs)
    with pytest.raises(InputError, match=r"pairs\[1\]: the video takes \d+ tokens.*the limit of the model is 4096"):
        reranker.predict([pairs[0], pairs[2]])


def test_an_answer_that_is_not_finite_fails_its_own_pair(
    reranker: VideoReranker, clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker.max_batch_tokens = PLENTY
    pairs = [(TEXT, clip) for clip in clips]
    assert reranker.can_batch()
    read = HeadReader.read_whole

    def overflowing(self: HeadReader, features: Any) -> torch.Tensor:
        hidden = read(self, features)
        hidden[1] = torch.inf
        return hidden

    monkeypatch.setattr(HeadReader, "read_whole", overflowing)
    assert reranker.predict(pairs, on_error="skip").mask.tolist() == [False, True, False]
    with pytest.raises(InputError, match=rf"pairs\[1\] .*{clips[1].name}.*not finite"):
        reranker.predict(pairs)


def test_a_batch_that_does_not_fit_is_halved(
    reranker: VideoReranker, clips: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [(TEXT, video) for video in videos(clips)]
    alone = reranker.answers(pairs).yes_no
    reranker.max_batch_tokens = PLENTY
    assert reranker.can_batch()
    read = HeadReader.read_whole

    def small(self: HeadReader, features: Any) -> torch.Tensor:
        if len(features["input_ids"]) > 2:
            raise torch.OutOfMemoryError("full")
        return read(self, features)

    monkeypatch.setattr(HeadReader, "read_whole", small)
    assert np.abs(reranker.answers(pairs).yes_no - alone).max() <= 1e-4
    assert "out of memory on a batch of 5 inputs" in caplog.text

    def none(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(HeadReader, "read_whole", none)
    with pytest.raises(torch.OutOfMemoryError, match="on this input alone"):
        reranker.predict(pairs)


def test_a_model_that_reads_batches_otherwise_is_asked_one_by_one(
    tiny_mllm: GetModel, clips: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vidembed")
    reranker = loud(VideoReranker(tiny_mllm("qwen2_5_vl"), device="cpu", max_batch_tokens=PLENTY))
    read = HeadReader.read_whole
    monkeypatch.setattr(
        HeadReader, "read_whole", lambda self, features: read(self, {**features, "attention_mask": None})
    )
    pairs = [(TEXT, video) for video in videos(clips)]
    assert not reranker.can_batch()
    assert "one video at a time, because batches give other results (1 - cosine" in caplog.text
    assert set(passes(reranker, lambda: reranker.predict(pairs))) == {1}


def test_batch_size_is_checked(reranker: VideoReranker, clips: list[Path]) -> None:
    for call in (reranker.predict, reranker.answers):
        with pytest.raises(ValueError, match="batch_size must be a positive integer, got 0"):
            call([(TEXT, clips[0])], batch_size=0)
