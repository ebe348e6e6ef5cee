"""Any input becomes what a processor takes, and what processors made becomes batches that fit into memory.

sentence-transformers embeds the name of a missing file as text, guesses frame rates and fetches URLs: errors here.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from sentence_transformers.base.modality import infer_modality
from threadpoolctl import ThreadpoolController
from torch.nn.functional import pad

from vidembed.video import (
    VIDEO_SUFFIXES,
    Clip,
    InvalidVideoInput,
    Sampling,
    VideoError,
    VideoFrames,
    VideoSegment,
    load_video,
)
from vidembed.video.clip import item_name
from vidembed.video.still import checked_image

if TYPE_CHECKING:
    from sentence_transformers.base.modality_types import SingleInput, VideoDict
    from transformers import ProcessorMixin

    from vidembed.backbone.load import Features
    from vidembed.video.fetch import UrlAccess

logger = logging.getLogger(__name__)

PIXELS = "pixel_values_videos"
BYTES = "pixel_bytes_videos"  # in their place until `normalized`
AS_BYTES = {"do_rescale": False, "do_normalize": False}  # for a video processor: pixels stay uint8
PATCH_SIZES = ("patch_size", "merge_size", "temporal_patch_size")  # settings of a video processor that cuts patches
_COMPRESSION = "_get_compression_mask"  # of video_llama_3's video processor
# A fast tokenizer keeps padding and truncation as state, which one thread could change under another.
_TOKENIZER_LOCK = threading.Lock()
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tiff", ".webp"})  # .gif is a video here

T = TypeVar("T")
R = TypeVar("R")
B = TypeVar("B", bound="InBatch")

Kind = Literal["text", "image", "video", "mixed", "message"]
Input: TypeAlias = (
    "SingleInput | os.PathLike[str] | VideoSegment | VideoFrames | Clip | bytes | bytearray | memoryview | IO[bytes]"
    " | Mapping[str, object]"
)
"""One input of `VideoEncoder.encode`: what sentence-transformers takes, and the other forms of a video."""

# padded tokens per batch: the context length of the supported models, so that their longest video still fits
MAX_BATCH_TOKENS = 32_768
TEXT_CHUNK = 64  # texts per call of the tokenizer: rendering is per text, the call is not
_PARTS = ("text", "image", "video")
_FETCHED_FROM = frozenset({"url", "path", "base64"})  # keys of a message part that processors look behind
_PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")  # each (1, S)
_COUNTS = ("num_images_per_sample", "num_videos_per_sample")  # each (1,)
_OF_TEXT = frozenset({*_PER_TOKEN, *_COUNTS, "modality", "logits_to_keep"})


def kind_of(item: object) -> Kind:
    """Say what one input is, opening nothing. Raises ValueError for what sentence-transformers does not take."""
    if isinstance(item, str):
        return _kind_of_name(item)
    if isinstance(item, os.PathLike):
        return "image" if Path(item).suffix.lower() in IMAGE_SUFFIXES else "video"
    if isinstance(item, (VideoSegment, VideoFrames, Clip, bytes, bytearray, memoryview)) or hasattr(item, "read"):
        return "video"
    if isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim >= 4:
        why = "the model needs the time of each frame, and a guess would change the vector"
        remedy = "Pass VideoFrames(array, fps=...) or {'array': array, 'video_metadata': {'fps': ...}}."
        name = f"<array of shape {tuple(item.shape)}>"
        raise InvalidVideoInput(name, f"frames without a frame rate: {why}. {remedy}")
    if isinstance(item, Mapping) and set(item) in ({"text"}, {"image"}, {"video"}):
        kind: Kind = next(iter(item))
        return kind
    modality = infer_modality(item)
    if isinstance(modality, tuple):
        return "mixed"
    if modality == "audio":
        raise ValueError(f"inputs of type {type(item).__name__} look like audio, which this model does not accept.")
    if modality == "text" and isinstance(item, Sequence):
        _check_texts(item)
    return modality


def _check_texts(pair: Sequence[str]) -> None:
    """Raise ValueError for a pair of strings, which sentence-transformers takes for texts, if one names a file."""
    for part in pair:
        if (kind := _kind_of_name(part)) != "text":
            raise ValueError(
                f"a {type(pair).__name__} of two strings is a pair of texts, and {part!r} names a file. Pass "
                f"{{'{kind}': ..., 'text': ...}} for both in one input, or each as an input of its own."
            )


def _kind_of_name(text: str) -> Kind:
    suffix = Path(text.split("?", maxsplit=1)[0] if "://" in text else text).suffix.lower()
    if suffix not in VIDEO_SUFFIXES and suffix not in IMAGE_SUFFIXES:
        if text.startswith("/") and text.strip("/.") and os.path.exists(text):  # noqa: PTH110 - Path refuses some names
            raise ValueError(
                f"{text!r} is a file or folder, and its suffix is not that of a video or image. Pass Path(...) for a "
                f"video, the files of a folder one by one, or {{'text': ...}} for words."
            )
        return "image" if text.startswith("data:image/") else "text"
    # a name with a media suffix is a file, there or missing; words that merely end in one are text
    if any(map(str.isspace, text)) and not Path(text).is_absolute() and not os.path.isfile(text):  # noqa: PTH113
        return "text"
    return "video" if suffix in VIDEO_SUFFIXES else "image"


def is_text(item: object) -> bool:
    """Whether an input is plain text. One of no known kind is not: preparing it raises its error."""
    try:
        return kind_of(item) == "text"
    except (ValueError, VideoError):
        return False


def name_of(item: object) -> str:
    """Name an input for messages."""
    if isinstance(item, Mapping) and "video" in item:
        item = item["video"]
    try:
        kind = kind_of(item)
    except (ValueError, TypeError, VideoError):
        return f"<{type(item).__name__}>"
    if kind == "video":
        return item_name(item)
    text = repr(item["text"] if isinstance(item, Mapping) and "text" in item else item)
    return text if len(text) <= 80 else text[:77] + "..."


def load_input(
    item: Any,
    sampling: Sampling,
    *,
    backend: str = "pyav",
    allow_url: UrlAccess = False,
    min_frames: int = 1,
    threads: int = 1,
) -> tuple[Any, list[dict[str, Any]]]:
    """Decode an input, and return it as sentence-transformers takes it, and the metadata of videos in chat messages."""

    def video(source: Any) -> VideoDict:
        clip = load_video(source, sampling, backend=backend, allow_url=allow_url, threads=threads)
        array, metadata = torch.from_numpy(clip.frames), clip.metadata()  # (T, H, W, C)
        if (short := min_frames - len(array)) > 0:  # as processors that take one frame do themselves
            array = torch.cat([array, array[-1:].expand(short, -1, -1, -1)])
            metadata["frames_indices"] += metadata["frames_indices"][-1:] * short
        # (T, C, H, W) is the layout that processors cannot mistake
        return {"array": array.permute(0, 3, 1, 2), "video_metadata": dict(metadata)}

    kind = kind_of(item)
    if kind == "message":
        return _load_messages([item] if isinstance(item, Mapping) else item, video, allow_url)
    if kind == "video" and not (isinstance(item, Mapping) and set(item) == {"video"}):
        return {"video": video(item)}, []
    values = dict(item) if isinstance(item, Mapping) else {kind: item}
    if "video" in values:
        values["video"] = video(values["video"])
    if "image" in values:
        values["image"] = checked_image(values["image"], allow_url=allow_url)
    return values, []


def _load_messages(
    messages: Iterable[Mapping[str, Any]], video: Callable[[object], VideoDict], allow_url: UrlAccess
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    metadata, loaded = [], []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [dict(part) for part in content]
            for part in content:
                check_part(part)
                if part["type"] == "video":
                    decoded = video(part["video"])
                    part["video"] = decoded["array"]
                    metadata.append(decoded["video_metadata"] or {})
                elif part["type"] == "image":
                    part["image"] = checked_image(part["image"], allow_url=allow_url)
        loaded.append({**message, "content": content})
    return loaded, metadata


def check_part(part: Mapping[str, object]) -> None:
    """Raise ValueError for a part of a chat message in which sentence-transformers would find something to fetch."""
    kind = part.get("type")
    if kind not in _PARTS or kind not in part:
        allowed = "text, image or video, with the content under that name, such as {'type': 'image', 'image': ...}."
        raise ValueError(f"message part with type {kind!r} and keys {sorted(map(str, part))}: expected {allowed}")
    if found := sorted(_FETCHED_FROM & set(part)):
        raise ValueError(f"message part with key {found[0]!r}: give the {kind} under {kind!r}, a URL or path too.")


@dataclass(frozen=True)
class Prepared:
    """One input, ready for the model."""

    index: int  # position among the inputs of the call
    name: str  # in messages
    features: Features  # of it alone: per-token tensors (1, S) and the visual tensors

    @property
    def has_media(self) -> bool:
        """Whether it holds a video or an image."""
        return any(name not in _OF_TEXT for name in self.features)

    @property
    def tokens(self) -> int:
        """Number of prompt tokens S, visual ones included."""
        return int(self.features["input_ids"].shape[1])

    @property
    def float_bytes(self) -> int:
        """Bytes of its tensors on the device, pixels as float32."""
        return 4 * sum(value.numel() for value in self.features.values() if isinstance(value, torch.Tensor))


@dataclass(frozen=True)
class Failed:
    """An input that could not be prepared or embedded."""

    index: int  # position among the inputs of the call
    name: str  # in messages
    error: Exception


def chunks(inputs: Iterable[T], *, texts_together: bool) -> Iterator[list[tuple[int, T]]]:
    """Runs of up to `TEXT_CHUNK` texts, and every other input by itself, with their positions."""
    for together, run in itertools.groupby(enumerate(inputs), lambda place: texts_together and is_text(place[1])):
        while chunk := list(itertools.islice(run, TEXT_CHUNK if together else 1)):
            yield chunk


def token_batches(
    prepared: Iterable[Prepared | Failed], *, max_items: int, max_tokens: int, joins: Callable[[], bool] = lambda: True
) -> Iterator[list[Prepared | Failed]]:
    """Group inputs, in order, into batches of at most `max_items` prepared rows and `max_tokens` padded tokens.

    A longer input is a batch of its own, and so is one with media where `joins` says that such cannot be joined. Failed
    inputs stay in their places and count for nothing.
    """
    batch: list[Prepared | Failed] = []
    rows = width = 0
    media = False  # in the batch
    for item in prepared:
        if isinstance(item, Prepared):
            width = max(width, item.tokens)
            apart = rows and (media or item.has_media) and not joins()
            if rows and (apart or rows == max_items or width * (rows + 1) > max_tokens):
                yield batch
                batch, rows, width, media = [], 0, item.tokens, False
            rows += 1
            media |= item.has_media
        batch.append(item)
    if batch:
        yield batch


def collate(batch: Sequence[Prepared], *, pad_token_id: int) -> Features:
    """Join inputs into one left-padded batch, as the processor would have made it from all of them at once."""
    width = max(item.tokens for item in batch)
    joined: Features = {}
    for key in dict.fromkeys(key for item in batch for key in item.features):
        values = [item.features.get(key) for item in batch]
        present = [value for value in values if value is not None]
        if key in _PER_TOKEN:
            fill = pad_token_id if key == "input_ids" else 0
            rows = [
                torch.zeros((1, item.tokens), dtype=torch.long) if value is None else value
                for item, value in zip(batch, values, strict=True)
            ]
            # left padding: the last column is the readout position of every row
            joined[key] = torch.cat([pad(row, (width - row.shape[1], 0), value=fill) for row in rows])  # (B, S_max)
        elif key in _COUNTS:
            joined[key] = torch.cat([torch.zeros(1, dtype=torch.long) if value is None else value for value in values])
        elif key == "modality":
            joined[key] = "message"
        elif key == "logits_to_keep":
            joined[key] = max(present)
        elif isinstance(present[0], torch.Tensor):
            joined[key] = present[0] if len(present) == 1 else torch.cat(present)  # one needs no copy
        else:
            joined[key] = [entry for value in present for entry in value]
    return joined


class InBatch(Protocol):
    """What a batch holds."""

    @property
    def name(self) -> str:
        """In messages."""

    @property
    def tokens(self) -> int:
        """Number of tokens that it takes."""


class HalvingRunner(Generic[B, R]):
    """Runs batches with `run`, and halves a batch that does not fit into memory. Logs it, and remembers.

    Where not even a single input fits, `alone` gives the result from it and the error; without it, the error is raised.
    """

    def __init__(
        self,
        run: Callable[[list[B], Features], Sequence[R]],
        join: Callable[[list[B]], Features],
        alone: Callable[[B, torch.OutOfMemoryError], R] | None = None,
    ) -> None:
        self._run, self._join, self._alone = run, join, alone
        self._max_tokens: int | None = None  # padded tokens of the largest half that a failure led to

    def __call__(self, batch: list[B], joined: Features | None = None) -> list[R]:
        """Run one batch, which may be joined already.

        Raises torch.OutOfMemoryError if a single input does not fit; the message names it.
        """
        if not batch:
            return []
        padded = max(item.tokens for item in batch) * len(batch)
        if self._max_tokens is None or padded <= self._max_tokens or len(batch) == 1:
            try:
                return list(self._run(batch, self._join(batch) if joined is None else joined))
            except torch.OutOfMemoryError as error:
                too_large = no_room(batch[0], error)
                if len(batch) == 1 and self._alone is None:
                    raise too_large from error
            # outside the except block: the traceback would keep the failed batch's memory alive
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(batch) == 1 and self._alone is not None:
                return [self._alone(batch[0], too_large)]
            self._max_tokens = padded // 2
            logger.warning("out of memory on a batch of %d inputs (%d tokens): halving it", len(batch), padded)
        middle = len(batch) // 2
        return self(batch[:middle]) + self(batch[middle:])


def no_room(item: InBatch, error: torch.OutOfMemoryError) -> torch.OutOfMemoryError:
    """The error of a single input that does not fit into memory, named."""
    return torch.OutOfMemoryError(
        f"{item.name}: out of memory on this input alone ({item.tokens} tokens). Lower Sampling.max_frames or "
        f"Sampling.max_pixels, or load the model in a smaller dtype. ({error})"
    )


def processor_for_call(processor: ProcessorMixin, *, as_bytes: bool = False) -> ProcessorMixin:
    """A processor for one call, which any number of threads may make at once, with the settings of `processor`.

    Its image and video processors are shallow copies, and its tokenizer encodes under a lock: what a call changes, no
    other call sees. The frame grid of the video processor is cleared: smolvlm's samples again by it, whatever
    ``do_sample_frames`` says. With `as_bytes`, frames are not cut into patches (`uncut_patches`), and video_llama_3
    chooses the tokens that it keeps as it does with floats.
    """
    parts = {
        name: shallow_copy(getattr(processor, name))
        for name in ("image_processor", "video_processor")
        if hasattr(processor, name)
    }
    if "video_processor" in parts:
        settings = vars(parts["video_processor"])
        settings.update({name: None for name in ("fps", "num_frames") if hasattr(parts["video_processor"], name)})
        if as_bytes and hasattr(parts["video_processor"], "patchify"):
            settings["patchify"] = uncut_patches
            compress_bytes(parts["video_processor"])
    tokenizer: Any = processor.tokenizer
    if hasattr(tokenizer, "_encode_plus"):
        parts["tokenizer"] = shallow_copy(tokenizer, _encode_plus=_locked(tokenizer._encode_plus))  # noqa: SLF001
    return shallow_copy(processor, **parts)


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
    """Features with pixels of videos that were kept as bytes as the processor makes them: in patches, normalized.

    In float32 and on their device, where they arrive in a quarter of the bytes.
    """
    if BYTES not in features:
        return features
    pixels = features[BYTES]  # (N, C * T * P * P) as `uncut_patches` has them, or frames (..., C, H, W)
    scale = 1.0 / video_processor.rescale_factor
    mean, std = (
        torch.tensor(values, device=pixels.device) * scale
        for values in (video_processor.image_mean, video_processor.image_std)
    )  # (C,) each
    if pixels.ndim == 2:
        pixels = _patches(pixels, features["video_grid_thw"].tolist(), video_processor)
        mean, std = (values.repeat_interleave(pixels.shape[1] // len(values)) for values in (mean, std))
    else:
        mean, std = (values[:, None, None] for values in (mean, std))
    kept = {name: value for name, value in features.items() if name != BYTES}
    return {**kept, PIXELS: pixels.float().sub_(mean).div_(std)}


def _patches(rows: torch.Tensor, grids: Sequence[tuple[int, int, int]], video_processor: Any) -> torch.Tensor:
    """Patches (N, C * T * P * P) of the frames that `uncut_patches` left as they are, by the processor's own method."""
    sizes: dict[str, int] = {name: getattr(video_processor, name) for name in PATCH_SIZES}
    patch, deep = sizes["patch_size"], sizes["temporal_patch_size"]
    patches, counts = [], [math.prod(grid) for grid in grids]
    for of_video, (times, down, across) in zip(torch.split(rows, counts), grids, strict=True):
        frames = of_video.view(1, times * deep, down * patch, across * patch, -1)  # (1, T, H, W, C)
        patches.append(video_processor.patchify(frames.permute(0, 1, 4, 2, 3), **sizes)[0][0])
    return patches[0] if len(patches) == 1 else torch.cat(patches)


def uncut_patches(
    videos: torch.Tensor, patch_size: int, merge_size: int, temporal_patch_size: int
) -> tuple[torch.Tensor, int, int, int]:
    """In the place of a video processor's `patchify`: frames as they lie in memory, in the shape of its patches.

    `normalized` cuts them on the model's device. For videos (B, T, C, H, W), the rows are (B, N, C * T_p * P * P).
    """
    del merge_size
    frames = videos.permute(0, 1, 3, 4, 2)  # (B, T, H, W, C), as decoded frames lie in memory: nothing is copied
    if missing := -frames.shape[1] % temporal_patch_size:
        frames = torch.cat([frames, frames[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
    batch, length, height, width, _ = frames.shape
    times, down, across = length // temporal_patch_size, height // patch_size, width // patch_size
    return frames.reshape(batch, times * down * across, -1), times, down, across


def compress_bytes(video_processor: Any) -> None:
    """Make video_llama_3's video processor choose the tokens that it keeps from uncut bytes as from floats in patches.

    Its own method compares the normalized pixels of each token with those of the frame before, by the mean difference.
    It gets one number a token in their place, whose differences are those means: sums of whole numbers, times a scale.
    Other video processors stay as they are.

    Raises:
        ValueError: Channels have different standard deviations, so that such sums are not those means.
    """
    choose: Callable[..., torch.Tensor] | None = getattr(video_processor, _COMPRESSION, None)
    if choose is None:
        return
    if len(set(video_processor.image_std)) > 1:
        raise ValueError(f"image_std={video_processor.image_std}: expected one value for all channels")

    def by_sums(
        pixel_values_videos: torch.Tensor, video_grid_thw: torch.Tensor, video_merge_sizes: torch.Tensor
    ) -> torch.Tensor:
        changes = []
        videos = torch.split(pixel_values_videos, video_grid_thw.prod(1).tolist())
        for rows, (times, down, across), merge in zip(
            videos, video_grid_thw.tolist(), video_merge_sizes.tolist(), strict=True
        ):
            shape = (times, video_processor.temporal_patch_size, down // merge, merge * video_processor.patch_size, -1)
            frames = rows.cpu().numpy().reshape(shape)  # (T, T_p, H_t, P_t, W * C), with H_t tokens of P_t lines
            sums = np.zeros((times, down // merge, across // merge))  # of differences so far, whole numbers
            for time, (before, after) in enumerate(itertools.pairwise(frames), start=1):
                change = np.maximum(before, after) - np.minimum(before, after)  # uint8: no overflow
                lines = change.sum(axis=2, dtype=np.uint16).sum(axis=0, dtype=np.uint32)  # (H_t, W * C)
                sums[time] = sums[time - 1] + lines.reshape(*sums.shape[1:], -1).sum(axis=2)
            pixels = frames[0].size // sums[0].size
            scale = video_processor.rescale_factor / video_processor.image_std[0] / pixels
            changes.append(torch.from_numpy(sums.reshape(-1, 1) * scale).to(rows.device))
        tokens = torch.stack([video_grid_thw[:, 0], *(video_grid_thw[:, 1:] // video_merge_sizes[:, None]).T], dim=1)
        return choose(
            pixel_values_videos=torch.cat(changes),
            video_grid_thw=tokens,
            video_merge_sizes=torch.ones_like(video_merge_sizes),
        )

    vars(video_processor)[_COMPRESSION] = by_sums


def pinned(features: Features, device: torch.device) -> Features:
    """Features in memory that a GPU copies from by itself, where `device` is one; else as they are."""
    if device.type != "cuda":
        return features
    try:
        return {
            name: value.pin_memory() if isinstance(value, torch.Tensor) else value for name, value in features.items()
        }
    except RuntimeError:  # there is no more of it, and any other does
        return features


def on_device(features: Features, device: torch.device) -> Features:
    """Features on a device. Nothing waits for a copy out of pinned memory but what reads it there."""
    return {
        name: value.to(device, non_blocking=device.type == "cuda") if isinstance(value, torch.Tensor) else value
        for name, value in features.items()
    }


def split_rows(features: Features, indices: Sequence[int], names: Sequence[str]) -> list[Prepared]:
    """Take a padded batch of texts apart into one `Prepared` per row, padding dropped."""
    real = features["attention_mask"].bool()  # (B, S)
    rows = []
    for row, (index, name) in enumerate(zip(indices, names, strict=True)):
        kept = {key: features[key][row][real[row]][None] for key in _PER_TOKEN if key in features}  # (1, S_row)
        rows.append(Prepared(index, name, {**kept, "modality": "message"}))
    return rows
