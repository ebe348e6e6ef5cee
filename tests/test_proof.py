"""What is tried once on a loaded model: pixels as bytes, batches that are joined."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import VideoLlama3VideoProcessor
from transformers.image_utils import SizeDict

from tests.backbone import tiny, zoo
from vidembed import VideoEncoder, VideoReranker
from vidembed.inputs import BYTES, PIXELS, compress_bytes, normalized, shallow_copy
from vidembed.proof import SENTENCES, probe_video

GetModel = Callable[[str], Path]
RAW = {"do_rescale": False, "do_normalize": False}


def inputs() -> list[Any]:
    return [probe_video(0, 8), {"text": SENTENCES[0]}, probe_video(1, 5), probe_video(2, 2)]


def given_to_the_model(encoder: VideoEncoder, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The dtypes of pixels before they are normalized."""
    seen: list[torch.dtype] = []

    def spy(features: Any, video_processor: Any) -> Any:
        seen.extend(features[name].dtype for name in (BYTES, PIXELS) if name in features)
        return normalized(features, video_processor)

    monkeypatch.setattr("vidembed.encoder.normalized", spy)
    encoder.encode(inputs())
    return seen


@pytest.mark.parametrize("dtype", ["float32"])
@pytest.mark.parametrize("model_type", [*tiny.ARCHITECTURES, *zoo.MAKERS])
def test_vectors_are_bit_equal_with_pixels_as_bytes_and_as_floats(
    model_type: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny if model_type in tiny.ARCHITECTURES else zoo
    encoder = VideoEncoder(made.save(model_type, tmp_path), layer=4, device="cpu", model_kwargs={"dtype": dtype})
    as_bytes = encoder.encode(inputs())
    monkeypatch.setattr("vidembed.proof.takes_bytes", lambda *_: False)
    assert np.array_equal(as_bytes, encoder.encode(inputs()))


@pytest.mark.parametrize("model_type", tiny.ARCHITECTURES)
def test_scores_are_bit_equal_with_pixels_as_bytes_and_as_floats(
    model_type: str, tiny_mllm: GetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reranker = VideoReranker(tiny_mllm(model_type), device="cpu")
    pairs = [(text, probe_video(seed)) for seed in (0, 1) for text in SENTENCES]
    as_bytes = reranker.predict(pairs)
    monkeypatch.setattr("vidembed.proof.takes_bytes", lambda *_: False)
    assert np.array_equal(as_bytes, reranker.predict(pairs))


@pytest.mark.parametrize("model_type", tiny.ARCHITECTURES)
def test_these_architectures_take_bytes(model_type: str, tiny_mllm: GetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = VideoEncoder(tiny_mllm(model_type), layer=4, device="cpu")
    assert set(given_to_the_model(encoder, monkeypatch)) == {torch.uint8}
    assert encoder.preprocess([probe_video()])[PIXELS].dtype == torch.float32  # as the host has it


def test_who_asks_for_other_pixels_gets_them(tiny_mllm: GetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = VideoEncoder(tiny_mllm("qwen2_vl"), layer=4, device="cpu")
    encoder.encode(probe_video())  # tried
    encoder.processor.video_processor.do_normalize = False
    assert set(given_to_the_model(encoder, monkeypatch)) == {torch.float32}


def test_a_processor_with_other_arithmetic_keeps_floats(tiny_mllm: GetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = VideoEncoder(tiny_mllm("qwen2_vl"), layer=4, device="cpu")
    kind = type(encoder.processor.video_processor)
    plain = kind.rescale_and_normalize

    def brighter(self: Any, images: torch.Tensor, do_rescale: bool, *args: Any, **kwargs: Any) -> torch.Tensor:
        result: torch.Tensor = plain(self, images, do_rescale, *args, **kwargs)
        return result * 1.001 if do_rescale else result

    monkeypatch.setattr(kind, "rescale_and_normalize", brighter)
    assert set(given_to_the_model(encoder, monkeypatch)) == {torch.float32}


def test_tokens_of_bytes_are_compressed_as_those_of_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, side = np.random.default_rng(0), 28  # of a token: 2 x 2 patches of 14
    videos = []
    for frames in (6, 1, 3):
        pixels = np.zeros((frames, 3, 4 * side, 5 * side), dtype=np.uint8)  # (T, C, H, W)
        pixels[:] = rng.integers(0, 200, pixels.shape[1:])
        for frame in range(1, frames):
            pixels[frame] = pixels[frame - 1]
            for token in range(20):  # by so many levels in all: tokens that differ by more than 117.6 are kept
                top, left = token // 5 * side, token % 5 * side
                changed = rng.choice(3 * side * side, 100 + 2 * token - 2 * frame, replace=False)
                channel, place = changed // side**2, changed % side**2
                pixels[frame, channel, top + place // side, left + place % side] += 1
        videos.append(torch.from_numpy(pixels))
    processor = VideoLlama3VideoProcessor(do_resize=False)
    floats = processor(videos=videos, return_tensors="pt")
    sizes: list[int] = []

    def spy(features: Any, video_processor: Any) -> Any:
        sizes.append(features[BYTES].numel())
        return normalized(features, video_processor)

    monkeypatch.setattr("vidembed.inputs.normalized", spy)
    own: Any = shallow_copy(processor)
    compress_bytes(own)
    as_bytes = own(videos=videos, return_tensors="pt", **RAW)
    assert sizes == [video[0].numel() for video in videos for _ in video]  # a frame at a time
    assert torch.equal(as_bytes["video_compression_mask"], floats["video_compression_mask"])
    assert 0.2 < floats["video_compression_mask"].float().mean() < 0.8
    assert as_bytes[PIXELS].dtype == torch.uint8
    with pytest.raises(RuntimeError):  # the processor is as it was
        processor(videos=videos, return_tensors="pt", **RAW)


def test_a_processor_that_keeps_other_tokens_of_bytes_keeps_floats(
    tiny_mllm: GetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = VideoEncoder(tiny_mllm("video_llama_3"), layer=4, device="cpu")
    encoder.processor.video_processor.size = SizeDict(shortest_edge=28 * 28, longest_edge=8 * 112 * 112)
    kind = type(encoder.processor.video_processor)
    choose = kind._get_compression_mask  # noqa: SLF001 - of the host

    def more(self: Any, pixel_values_videos: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        frames = kwargs["video_grid_thw"][0, 0]
        mask: torch.Tensor = choose(self, pixel_values_videos, *args, **kwargs)
        return mask if frames > 2 else torch.ones_like(mask)

    monkeypatch.setattr(kind, "_get_compression_mask", more)
    assert set(given_to_the_model(encoder, monkeypatch)) == {torch.float32}
