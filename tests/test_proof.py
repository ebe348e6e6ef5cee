"""What is tried once on a loaded model: pixels as bytes, batches that are joined."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2VLVideoProcessor, VideoLlama3VideoProcessor
from transformers.image_utils import SizeDict

from tests.backbone import tiny, zoo
from vidembed import VideoEncoder, VideoReranker
from vidembed.inputs import BYTES, PIXELS, normalized, processor_for_call
from vidembed.proof import SENTENCES, probe_video

GetModel = Callable[[str], Path]
RAW = {"do_rescale": False, "do_normalize": False}


class Whole:
    """A processor of nothing but videos."""


def for_bytes(video_processor: Any) -> Any:
    """A video processor as the threads of an encoder call it."""
    whole: Any = Whole()
    whole.video_processor, whole.tokenizer = video_processor, None
    return processor_for_call(whole, as_bytes=True).video_processor


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
    own = for_bytes(processor)
    as_bytes = own(videos=videos, return_tensors="pt", **RAW)
    assert as_bytes[PIXELS].dtype == torch.uint8
    as_bytes[BYTES] = as_bytes.pop(PIXELS)
    found = normalized(as_bytes, processor)
    for name in (PIXELS, "video_grid_thw", "video_merge_sizes", "video_compression_mask"):
        assert torch.equal(found[name], floats[name]), name
    assert 0.2 < floats["video_compression_mask"].float().mean() < 0.8
    with pytest.raises(RuntimeError):  # the processor is as it was
        processor(videos=videos, return_tensors="pt", **RAW)


def test_channels_of_different_deviations_keep_floats(tiny_mllm: GetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"image_std=\(0.5, 0.5, 0.4\): expected one value"):
        for_bytes(VideoLlama3VideoProcessor(image_std=[0.5, 0.5, 0.4]))
    encoder = VideoEncoder(tiny_mllm("video_llama_3"), layer=4, device="cpu")
    encoder.processor.video_processor.image_std = [0.5, 0.5, 0.4]
    assert set(given_to_the_model(encoder, monkeypatch)) == {torch.float32}


def test_who_asks_for_other_patches_gets_them(tiny_mllm: GetModel) -> None:
    encoder = VideoEncoder(tiny_mllm("qwen2_5_vl"), layer=4, device="cpu")
    video, asked = probe_video(), {"video": {"temporal_patch_size": 2}}
    assert np.array_equal(encoder.encode([video], processing_kwargs=asked), encoder.encode([video]))


@settings(deadline=None)
@given(
    frames=st.integers(1, 7),
    sides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)),
)
def test_patches_of_uncut_frames_are_those_of_the_processor(
    frames: int, sides: tuple[int, int], sizes: tuple[int, int, int]
) -> None:
    merge, patch, deep = sizes
    shape = (frames, merge * patch * sides[0], merge * patch * sides[1], 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)  # (T, H, W, C)
    videos = [torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(255 - pixels[:1]).permute(0, 3, 1, 2)]
    processor = Qwen2VLVideoProcessor(
        do_resize=False, patch_size=patch, merge_size=merge, temporal_patch_size=deep, cap_pixels_per_frame=False
    )
    floats = processor(videos=videos, return_tensors="pt")
    as_bytes = for_bytes(processor)(videos=videos, return_tensors="pt", **RAW)
    as_bytes[BYTES] = as_bytes.pop(PIXELS)
    assert torch.equal(normalized(as_bytes, processor)[PIXELS], floats[PIXELS])


def test_a_processor_that_keeps_other_tokens_of_bytes_keeps_floats(
    tiny_mllm: GetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = VideoEncoder(tiny_mllm("video_llama_3"), layer=4, device="cpu")
    encoder.processor.video_processor.size = SizeDict(shortest_edge=28 * 28, longest_edge=8 * 112 * 112)
    kind = type(encoder.processor.video_processor)
    choose = kind._get_compression_mask  # noqa: SLF001 - of the host

    def more(self: Any, pixel_values_videos: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        mask: torch.Tensor = choose(self, pixel_values_videos, *args, **kwargs)
        return mask if pixel_values_videos.shape[1] > 1 else torch.ones_like(mask)

    monkeypatch.setattr(kind, "_get_compression_mask", more)
    assert set(given_to_the_model(encoder, monkeypatch)) == {torch.float32}
