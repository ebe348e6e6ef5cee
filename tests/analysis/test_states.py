"""The states of every layer: by definition, as encoders of each layer give them, once per input, and nothing longer."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.backbone import tiny
from vidembed import VideoEncoder, VideoError
from vidembed.analysis.layers import every_layer, open_mllm, read_states, with_prefix
from vidembed.backbone.architectures import capture_block, find_parts
from vidembed.backbone.templates import ZERO_SHOT_PREFIX
from vidembed.captions import CaptionedVideo
from vidembed.errors import BackboneError, InputError

GetModel = Callable[[str], Path]
Pairs = list[CaptionedVideo]
STATES = tiny.DEPTH + 1


def open_tiny(folder: Path) -> VideoEncoder:
    return open_mllm(folder, device="cpu", dtype=None, prefix=None)


@pytest.fixture(scope="module")
def encoder(tiny_mllm: GetModel) -> VideoEncoder:
    return open_tiny(tiny_mllm("qwen2_5_vl"))


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """The greatest 1 - cosine of rows."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float((1 - (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)).max())


@torch.inference_mode()
def by_definition(encoder: VideoEncoder, item: Any) -> np.ndarray:
    """Each block's output at the last token by `capture_block`, and the trained norm's (L + 1, D)."""
    assert encoder.backbone is not None
    parts = find_parts(encoder.backbone.model)
    features = encoder.preprocess([item])
    inputs = {
        key: value
        for key, value in features.items()
        if key not in ("modality", "num_images_per_sample", "num_videos_per_sample")
    }
    with ExitStack() as stack:
        captured = [stack.enter_context(capture_block(parts, block)) for block in range(1, parts.depth + 1)]
        parts.base(**inputs, use_cache=False)
    hidden = [box.hidden for box in captured if box.hidden is not None]
    rows = [*hidden, parts.norm(hidden[-1])]
    return torch.stack([row[0, -1] for row in rows]).numpy()


def test_equal_the_definition_and_the_encoders(each_mllm: Path, pairs: Pairs) -> None:
    encoder = open_tiny(each_mllm)
    videos, texts = [pair.video for pair in pairs[:2]], [pair.text for pair in pairs[:2]]
    of_videos, of_texts, failed = read_states(encoder, videos, texts)
    assert of_videos.shape == of_texts.shape == (STATES, 2, tiny.HIDDEN)
    assert (of_videos.dtype, failed) == (np.float32, {})
    for index in range(2):
        assert gap(of_videos[:, index], by_definition(encoder, videos[index])) <= 1e-6
        assert gap(of_texts[:, index], by_definition(encoder, texts[index])) <= 1e-6
    states = np.concatenate([of_videos, of_texts], axis=1)
    for layer, place in ((1, 0), (3, 2), (tiny.DEPTH, tiny.DEPTH - 1), (-1, -1)):
        cut = VideoEncoder(backbone=encoder.backbone, layer=layer, prefix=None)
        assert gap(states[place], cut.encode([*videos, *texts])) <= 1e-6
    # no two layers and no two inputs are alike: the comparisons above bite
    assert gap(states[2], states[3]) > 1e-3
    assert gap(states[:, 0], states[:, 1]) > 1e-5


def test_one_pass_an_input_whatever_the_batches(
    encoder: VideoEncoder, pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, texts = [pair.video for pair in pairs], [pair.text for pair in pairs]
    wanted = read_states(encoder, videos, texts)
    for batch_size, budget in ((1, 100_000), (32, 150), (5, 100_000)):
        rows: list[int] = []
        block = encoder[0].model.language_model.layers[0]
        handle = block.register_forward_hook(lambda _m, _a, output, rows=rows: rows.append(len(output)))
        monkeypatch.setattr(encoder, "max_batch_tokens", budget)
        got = read_states(encoder, videos, texts, batch_size=batch_size)
        handle.remove()
        assert sum(rows) == len(videos) + len(texts)
        assert max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(got[:2], wanted[:2], strict=True)) <= 1e-5


def test_nothing_grows_with_the_tokens(encoder: VideoEncoder) -> None:
    """What the hooks hold when the decoder ends is (B, D) a layer, in storage of its own, however long the input."""
    seen: list[list[tuple[tuple[int, ...], int]]] = []
    outputs: list[weakref.ref[Any]] = []
    parts = find_parts(encoder[0].model)
    for words in (1, 400):
        texts = ["word " * words, "short"]
        with every_layer(encoder) as held, torch.inference_mode():
            handles = [
                parts.norm.register_forward_hook(
                    lambda *_: seen.append(
                        [(tuple(t.shape), t.untyped_storage().nbytes()) for t in held if t is not None]
                    )
                ),
                parts.blocks[2].register_forward_hook(
                    lambda _m, _a, output: outputs.append(weakref.ref(output.untyped_storage()))
                ),
            ]
            result = encoder(encoder.preprocess(texts))["sentence_embedding"]
            for handle in handles:
                handle.remove()
            assert held == [None] * STATES  # nothing is kept between passes
        assert result.shape == (2, STATES, tiny.HIDDEN)
        assert result.untyped_storage().nbytes() == 2 * STATES * tiny.HIDDEN * 4
    assert seen == [[((2, tiny.HIDDEN), 2 * tiny.HIDDEN * 4)] * STATES] * 2
    gc.collect()
    assert [output() for output in outputs] == [None, None]  # the full output of a block is gone


def test_hooks_are_gone_afterwards(encoder: VideoEncoder, pairs: Pairs) -> None:
    before = encoder.encode([pairs[0].video, "words"])
    with pytest.raises(RuntimeError, match="stop"), every_layer(encoder):
        raise RuntimeError("stop")
    after = encoder.encode([pairs[0].video, "words"])
    assert after.shape == (2, tiny.HIDDEN)
    assert np.array_equal(before, after)


def test_out_of_memory_halves_the_batch(encoder: VideoEncoder, pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    videos, texts = [pair.video for pair in pairs], [pair.text for pair in pairs]
    wanted = read_states(encoder, videos, texts)
    norm = encoder[0].model.language_model.norm
    forward = type(norm).forward

    def limited(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        if self is norm and len(hidden) > 3:  # after all blocks have run: what they left must not be used
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, hidden)

    monkeypatch.setattr(type(norm), "forward", limited)
    got = read_states(encoder, videos, texts)
    assert max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(got[:2], wanted[:2], strict=True)) <= 1e-5


def test_failures(encoder: VideoEncoder, pairs: Pairs, tmp_path: Path) -> None:
    bad = tmp_path / "broken.mp4"
    bad.write_bytes(b"no video")
    videos = [pairs[0].video, bad, pairs[1].video]
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        read_states(encoder, videos, ["a"])
    of_videos, of_texts, failed = read_states(encoder, videos, ["a"], on_error="skip")
    assert list(failed) == [1]
    assert isinstance(failed[1], VideoError)
    assert np.isnan(of_videos[:, 1]).all()
    assert np.isfinite(of_videos[:, [0, 2]]).all()
    assert np.isfinite(of_texts).all()


def test_a_layer_that_is_not_finite(tiny_mllm: GetModel, pairs: Pairs) -> None:
    encoder = open_tiny(tiny_mllm("qwen2_vl"))

    def overflow(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * float("inf")

    handle = encoder[0].model.language_model.layers[2].register_forward_hook(overflow)
    with pytest.raises(InputError, match=r"clip00.*not finite.*bfloat16"):
        read_states(encoder, [pairs[0].video], ["a"])
    handle.remove()


class TestOpening:
    def test_a_backbone_is_shared(self, encoder: VideoEncoder) -> None:
        assert encoder.backbone is not None
        again = open_mllm(encoder.backbone, device=None, dtype=None, prefix="Say:")
        assert again.backbone is encoder.backbone
        assert again.checkpoint_config is not None
        assert again.checkpoint_config.prefix == "Say:"
        zero_shot = with_prefix(encoder, "zero-shot").checkpoint_config
        assert zero_shot is not None
        assert zero_shot.prefix == ZERO_SHOT_PREFIX
        with pytest.raises(ValueError, match=r"dtype='bfloat16': the backbone is already loaded"):
            open_mllm(encoder.backbone, device=None, dtype="bfloat16", prefix=None)

    @pytest.mark.parametrize("layer", [3, -1])
    def test_a_cut_checkpoint_is_refused(self, encoder: VideoEncoder, tmp_path: Path, layer: int) -> None:
        VideoEncoder(backbone=encoder.backbone, layer=layer).save_pretrained(str(tmp_path))
        with pytest.raises(BackboneError, match=r"reads one layer.*Give the full MLLM"):
            open_tiny(tmp_path)

    def test_the_bundled_checkpoint_is_refused(self) -> None:
        with pytest.raises(BackboneError, match=r"vidembed/shapes is a checkpoint.*Give the full MLLM"):
            open_mllm("vidembed/shapes", device="cpu", dtype=None, prefix="zero-shot")

    def test_device_that_is_not_there(self, tiny_mllm: GetModel) -> None:
        with pytest.raises(ValueError, match=r"device='nonsense'"):
            open_mllm(tiny_mllm("qwen2_vl"), device="nonsense", dtype=None, prefix=None)

    def test_dtype(self, tiny_mllm: GetModel, pairs: Pairs) -> None:
        low = open_mllm(tiny_mllm("qwen2_vl"), device="cpu", dtype="bfloat16", prefix=None)
        got, _, _ = read_states(low, [pairs[0].video], ["a"])
        full, _, _ = read_states(open_tiny(tiny_mllm("qwen2_vl")), [pairs[0].video], ["a"])
        assert low.dtype == torch.bfloat16
        assert got.dtype == np.float32
        assert gap(got[:, 0], full[:, 0]) < 0.05
