"""What is tried once on a loaded model: pixels as bytes, batches that are joined."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.backbone import tiny, zoo
from vidembed import VideoEncoder, VideoReranker
from vidembed.inputs import BYTES, PIXELS, normalized
from vidembed.proof import SENTENCES, probe_video

GetModel = Callable[[str], Path]
AS_BYTES = set(tiny.ARCHITECTURES)


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
def test_which_architectures_take_bytes(model_type: str, tiny_mllm: GetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = VideoEncoder(tiny_mllm(model_type), layer=4, device="cpu")
    wanted = torch.uint8 if model_type in AS_BYTES else torch.float32
    assert set(given_to_the_model(encoder, monkeypatch)) == {wanted}
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
