"""What is not known from the code of a model: tried once on it, against the processor's own whole prompts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, cast, get_args
from weakref import WeakKeyDictionary

import numpy as np
import torch
from sentence_transformers.util import batch_to_device
from torch.nn.functional import cosine_similarity

from vidembed.backbone.prefix import Sharing, can_pack, encode_visual, model_inputs
from vidembed.errors import UnsupportedBackboneError
from vidembed.inputs import BYTES, Prepared, collate, normalized
from vidembed.video import VideoFrames

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.video_processing_utils import BaseVideoProcessor

    from vidembed.backbone.load import Features
    from vidembed.yes_no import HeadReader

logger = logging.getLogger(__name__)

SENTENCES = ("a dog runs along the beach", "a person in a red coat closes the door of a small shop in the evening")

# most 1 - cosine between the hidden states of one whole prompt and of a shared prefix (ours: about 100 times rounding)
_APART = {torch.float32: 1e-4, torch.bfloat16: 5e-3, torch.float16: 5e-3}

# what a model raises for inputs that it cannot take
_REFUSALS = (RuntimeError, ValueError, AttributeError, TypeError, NotImplementedError, IndexError)

_sharing: WeakKeyDictionary[PreTrainedModel, dict[str, Sharing | None]] = WeakKeyDictionary()
_batches: WeakKeyDictionary[PreTrainedModel, dict[tuple[str, bool], bool]] = WeakKeyDictionary()
_bytes: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()
_joins: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def probe_video(seed: int = 0, frames: int = 8, *, height: int = 112, still: int = 0) -> VideoFrames:
    """A video 112 pixels wide at 2 frames per second in which nothing is constant in time or space.

    But for its `still` columns at the left, which are those of the first frame.
    """
    noise = np.random.default_rng(seed).integers(0, 128, (frames, height, 112, 3), dtype=np.uint8)  # (T, H, W, C)
    for index, frame in enumerate(noise):
        frame[:, : 14 * (index + 1)] += 100
    noise[:, :, :still] = noise[:1, :, :still]
    return VideoFrames(noise, fps=2.0)


@torch.inference_mode()
def find_sharing(reader: HeadReader, prompt_of: Callable[[str], Features]) -> Sharing | None:
    """How sentences can share the prefix of a video in a model, so that they read as their whole prompts do.

    Args:
        reader: Of the model, without sharing.
        prompt_of: Makes the processor's features of the probe video's whole prompt with a sentence, on the device.

    Returns:
        The first way that gives the hidden states of whole prompts; None if none does, which is logged: every pair is
        then one whole pass. Remembered with the model.

    Raises:
        UnsupportedBackboneError: The prompt that is put together of a video and a sentence is not the processor's.
    """
    base = reader.parts.base
    known, attention = _sharing.setdefault(base, {}), str(reader.parts.attention)
    if attention not in known:
        known[attention] = _try_sharing(reader, prompt_of)
    return known[attention]


def _try_sharing(reader: HeadReader, prompt_of: Callable[[str], Features]) -> Sharing | None:
    parts = reader.parts
    name = type(parts.base).__name__
    whole = torch.stack(
        [parts.base(**model_inputs(prompt_of(text)), use_cache=False).last_hidden_state[0, -1] for text in SENTENCES]
    ).float()  # (N, D)
    most = _APART.get(parts.base.dtype, max(_APART.values()))

    def differs(hidden: torch.Tensor) -> bool:
        return not bool((1 - cosine_similarity(hidden.float(), whole, dim=1) <= most).all())

    video = reader.video_prompt(prompt_of(""))
    suffixes = [reader.after(video, text) for text in SENTENCES]
    if differs(torch.cat([reader.read_whole(video.followed_by(suffix)) for suffix in suffixes])):
        raise UnsupportedBackboneError(
            f"{name}: its processor does not write a sentence after a video as vidembed does, so it cannot rerank. "
            f"Embeddings are not affected. Please report it with the version of transformers."
        )
    ways = get_args(Sharing) if can_pack(parts) else ("repeated",)
    for way in cast("tuple[Sharing, ...]", ways):
        try:
            if not differs(reader.read_shared(video, suffixes, way)):
                return way
            reason = "its hidden states are not those of whole prompts"
        except _REFUSALS as error:
            reason = f"{type(error).__name__}: {error}"
        logger.info("%s: a prefix that is %s gives other results (%s)", name, way, reason)
    logger.warning("%s: texts cannot share the prefix of a video, so every pair takes a whole forward pass.", name)
    return None


@torch.inference_mode()
def can_batch(reader: HeadReader, prompt_of: Callable[[str, VideoFrames], Features], *, seen: bool) -> bool:
    """Whether whole prompts about several videos read in one padded pass as each does alone; remembered with the model.

    Args:
        reader: Of the model, without sharing.
        prompt_of: Makes the processor's features of a sentence about a video, on the device.
        seen: Whether prompts hold visual tokens in the place of pixels.
    """
    base = reader.parts.base
    known, key = _batches.setdefault(base, {}), (str(reader.parts.attention), seen)
    if key not in known:
        name, prompts = type(base).__name__, list[Prepared]()
        for index, text in enumerate(SENTENCES):  # of other lengths and sizes
            features = prompt_of("", probe_video(index, 8 - 4 * index, height=112 - 56 * index))
            video = reader.video_prompt(encode_visual(reader.parts, features) if seen else features)
            prompts.append(Prepared(index, "", video.followed_by(reader.after(video, text))))
        alone = torch.cat([reader.read_whole(prompt.features) for prompt in prompts]).float()  # (B, D)
        try:
            together = reader.read_whole(collate(prompts, pad_token_id=reader.pad_token_id)).float()
            apart = float((1 - cosine_similarity(together, alone, dim=1)).max())
            known[key] = apart <= _APART.get(base.dtype, max(_APART.values()))
            reason = f"1 - cosine {apart:.1e}"
        except _REFUSALS as error:
            known[key], reason = False, f"{type(error).__name__}: {error}"
        if not known[key]:
            logger.info("%s: reranking runs one video at a time, because batches give other results (%s)", name, reason)
    return known[key]


def can_join(model: PreTrainedModel, prepare: Callable[[list[VideoFrames]], Features], *, pad_token_id: int) -> bool:
    """Whether `collate` joins prompts with media as the processor does; remembered with the model.

    `prepare` makes the processor's features of some videos at once. molmo2, for one, counts into the whole batch.
    """
    if model not in _joins:
        videos = [probe_video(0, 8), probe_video(1, 4)]
        try:
            whole = prepare(videos)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError) as error:
            logger.info("%s: its processor takes one video at a time (%s)", type(model).__name__, error)
            _joins[model] = False
            return False
        alone = [Prepared(index, "", prepare([video])) for index, video in enumerate(videos)]
        _joins[model] = _equal(whole, alone, pad_token_id)
        if not _joins[model]:
            name = type(model).__name__
            logger.info("%s: videos and images run one at a time, because its inputs cannot be batched", name)
    return _joins[model]


def takes_bytes(
    model: PreTrainedModel, prepare: Callable[[bool], Features], video_processor: BaseVideoProcessor
) -> bool:
    """Whether `normalized` makes of a processor's bytes, bit for bit, what the processor makes; remembered.

    `prepare` makes the features of the probe video, as bytes or as the processor has them. A part of the video should
    stand still: video_llama_3 chooses tokens by normalized pixels (`vidembed.inputs.compress_bytes`).
    """
    if model not in _bytes:
        try:
            moved = batch_to_device(prepare(True), model.device)
            is_bytes = moved[BYTES].dtype == torch.uint8
            _bytes[model] = is_bytes and _same(normalized(moved, video_processor), prepare(False))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.info("%s: pixels go to the model as floats (%s)", type(model).__name__, error)
            _bytes[model] = False
    return _bytes[model]


def _same(one: Features, other: Features) -> bool:
    """Whether two features hold equal tensors, on whatever devices."""
    tensors = {name: value for name, value in other.items() if isinstance(value, torch.Tensor)}
    return one.keys() == other.keys() and all(
        one[name].dtype == value.dtype and torch.equal(one[name].cpu(), value) for name, value in tensors.items()
    )


def _equal(whole: Features, alone: list[Prepared], pad_token_id: int) -> bool:
    try:
        joined = collate(alone, pad_token_id=pad_token_id)
    except (RuntimeError, TypeError, ValueError):  # shapes that do not fit one another
        return False
    pairs = [(value, joined.get(name)) for name, value in whole.items() if isinstance(value, torch.Tensor)]
    return all(isinstance(other, torch.Tensor) and torch.equal(one, other) for one, other in pairs)
