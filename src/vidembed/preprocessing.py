"""The processor of one call: safe beside other threads, and with the pixels of videos as bytes."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:
    from transformers import ProcessorMixin

    from vidembed.backbone.load import Features

PIXELS = "pixel_values_videos"
BYTES = "pixel_bytes_videos"  # in their place until `normalized`
AS_BYTES = {"do_rescale": False, "do_normalize": False}  # for a video processor: pixels stay uint8
_COMPRESSION = "_get_compression_mask"  # of video_llama_3's video processor
# A fast tokenizer keeps padding and truncation as state, which one thread could change under another.
_TOKENIZER_LOCK = threading.Lock()

T = TypeVar("T")


def processor_for_call(processor: ProcessorMixin, *, as_bytes: bool = False) -> ProcessorMixin:
    """A processor for one call, which any number of threads may make at once, with the settings of `processor`.

    Its image and video processors are shallow copies, and its tokenizer encodes under a lock: what a call changes, no
    other call sees. The frame grid of the video processor is cleared: smolvlm's samples again by it, whatever
    ``do_sample_frames`` says. With `as_bytes`, video_llama_3 chooses the tokens that it keeps as it does with floats.
    """
    parts = {name: shallow_copy(getattr(processor, name)) for name in _PARTS if hasattr(processor, name)}
    if "video_processor" in parts:
        settings = vars(parts["video_processor"])
        settings.update({name: None for name in ("fps", "num_frames") if hasattr(parts["video_processor"], name)})
        if as_bytes:
            compress_bytes(parts["video_processor"])
    tokenizer: Any = processor.tokenizer
    if hasattr(tokenizer, "_encode_plus"):
        parts["tokenizer"] = shallow_copy(tokenizer, _encode_plus=_locked(tokenizer._encode_plus))  # noqa: SLF001
    return shallow_copy(processor, **parts)


_PARTS = ("image_processor", "video_processor")


@functools.cache
def _openmp() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="openmp")


def share_cores(workers: int) -> None:
    """Let torch use as many threads in this thread as it has for each of `workers`, at least one.

    OpenMP keeps the number per thread: others stay as they are.
    """
    threads = torch.get_num_threads()  # before the limit: torch sets its own number in a thread that first asks for it
    _openmp().limit(limits=max(1, threads // workers))


def shallow_copy(of: T, **changed: object) -> T:
    """Another object of the same class with the same attributes, some of them changed.

    copy.copy would ask ``__getstate__``, which leaves out what does not pickle.
    """
    copy = object.__new__(type(of))
    vars(copy).update(vars(of), **changed)
    return copy


def _locked(encode: Callable[..., T]) -> Callable[..., T]:
    def encode_alone(*args: Any, **kwargs: Any) -> T:
        with _TOKENIZER_LOCK:
            return encode(*args, **kwargs)

    return encode_alone


def normalized(features: Features, video_processor: Any) -> Features:  # whose types lack mean and std
    """Features with pixels of videos that were kept as bytes rescaled and normalized, as the processor does it.

    In float32 and on their device, where they arrive in a quarter of the bytes.
    """
    if BYTES not in features:
        return features
    pixels = features[BYTES]  # (N, C * T * P * P) patches, or frames (..., C, H, W)
    scale = 1.0 / video_processor.rescale_factor
    mean, std = (
        torch.tensor(values, device=pixels.device) * scale
        for values in (video_processor.image_mean, video_processor.image_std)
    )  # (C,) each
    if pixels.ndim == 2:
        mean, std = (values.repeat_interleave(pixels.shape[1] // len(values)) for values in (mean, std))
    else:
        mean, std = (values[:, None, None] for values in (mean, std))
    kept = {name: value for name, value in features.items() if name != BYTES}
    return {**kept, PIXELS: pixels.float().sub_(mean).div_(std)}


def compress_bytes(video_processor: Any) -> None:
    """Make video_llama_3's video processor choose the tokens that it keeps from bytes as it does from floats.

    By its own method, which compares each frame with the one before: it gets two normalized frames at a time in the
    place of all of them. Other video processors stay as they are.
    """
    choose: Callable[..., torch.Tensor] | None = getattr(video_processor, _COMPRESSION, None)
    if choose is None:
        return

    def by_pairs(
        pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor, video_merge_sizes: torch.Tensor
    ) -> Any:
        chosen = []
        videos = torch.split(pixel_values_videos, video_grid_thw.prod(1).tolist())
        for patches, grid, merge in zip(videos, video_grid_thw, video_merge_sizes, strict=True):
            pair: list[torch.Tensor] = []  # (H * W, patch) each
            for frame in torch.chunk(patches, int(grid[0])):
                pair = [*pair[-1:], normalized({BYTES: frame}, video_processor)[PIXELS]]
                size = torch.cat([grid.new_tensor([len(pair)]), grid[1:]])[None]
                kept = choose(pixel_values_videos=torch.cat(pair), video_grid_thw=size, video_merge_sizes=merge[None])
                chosen.append(kept.view(len(pair), -1)[-1])
        return torch.cat(chosen)

    vars(video_processor)[_COMPRESSION] = by_pairs
