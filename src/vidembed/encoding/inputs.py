"""Telling inputs apart, and turning each into the form that sentence-transformers takes.

sentence-transformers takes a string for a video only if a file of that name exists, and otherwise embeds the name as
text, guesses a frame rate for bare arrays, and fetches URLs unasked. Here each of these is an error.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch
from sentence_transformers.base.modality import infer_modality

from vidembed.encoding.images import check_part, checked_image
from vidembed.video import VIDEO_SUFFIXES, Clip, InvalidVideoInput, VideoError, VideoFrames, VideoSegment, load_video

if TYPE_CHECKING:
    from sentence_transformers.base.modality_types import SingleInput

    from vidembed.video import Sampling
    from vidembed.video.download import UrlAccess

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tiff", ".webp"})
"""The suffixes that sentence-transformers takes for images, less .gif, which is a video here."""

Kind = Literal["text", "image", "video", "mixed", "message"]
Input: TypeAlias = (
    "SingleInput | os.PathLike[str] | VideoSegment | VideoFrames | Clip | bytes | bytearray | memoryview | IO[bytes]"
    " | Mapping[str, Any]"
)
"""One input of `VideoEncoder.encode`: what sentence-transformers takes, and the other forms of a video."""


def kind_of(item: Any) -> Kind:
    """Say what one input is.

    Args:
        item: A string, path, `VideoSegment`, `VideoFrames`, `Clip`, bytes, binary file object, PIL image, frames
            dict, multimodal dict (``{"text": ..., "video": ...}``) or chat message(s).

    Raises:
        InvalidVideoInput: A frames array without its frame rate.
        ValueError: Anything that sentence-transformers does not take either.
    """
    if isinstance(item, str):
        return _kind_of_name(item)
    if isinstance(item, os.PathLike):
        return "image" if Path(item).suffix.lower() in IMAGE_SUFFIXES else "video"
    if isinstance(item, (VideoSegment, VideoFrames, Clip, bytes, bytearray, memoryview)) or hasattr(item, "read"):
        return "video"
    if isinstance(item, (np.ndarray, torch.Tensor)) and item.ndim >= 4:
        raise InvalidVideoInput(
            f"<array of shape {tuple(item.shape)}>",
            "frames without a frame rate: the model is told the time of each frame, and a guess would change the "
            "vector. Pass VideoFrames(array, fps=...) or {'array': array, 'video_metadata': {'fps': ...}}.",
        )
    if isinstance(item, Mapping) and set(item) in ({"text"}, {"image"}, {"video"}):
        return next(iter(item))
    modality = infer_modality(item)
    if isinstance(modality, tuple):
        return "mixed"
    if modality == "audio":
        raise ValueError(f"inputs of type {type(item).__name__} were taken for audio, which this model does not take.")
    return modality


def check_one(inputs: Any) -> None:
    """Refuse a collection that would be taken for one input: a Series, a generator, a set, a map.

    Raises:
        ValueError: It is neither one input nor a list of inputs.
    """
    if isinstance(inputs, Mapping) or not isinstance(inputs, Iterable):
        return
    try:
        kind_of(inputs)
    except VideoError:
        return  # it has its own error
    except ValueError as error:
        raise ValueError(
            f"inputs: got a {type(inputs).__name__}, which is neither one input nor a list of inputs. Pass "
            "list(inputs), or give it to encode_stream, which reads any iterable lazily."
        ) from error


def _kind_of_name(text: str) -> Kind:
    suffix = Path(text.split("?", maxsplit=1)[0] if "://" in text else text).suffix.lower()
    if suffix not in VIDEO_SUFFIXES and suffix not in IMAGE_SUFFIXES:
        return "image" if text.startswith("data:image/") else "text"
    # a name with a media suffix is a file, there or missing; words that merely end in one are text
    is_file_name = not any(character.isspace() for character in text) or Path(text).is_absolute() or _is_file(text)
    if not is_file_name:
        return "text"
    return "video" if suffix in VIDEO_SUFFIXES else "image"


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a sentence can be too long for a file name, or hold a NUL
        return False


def to_host_input(
    item: Any, sampling: Sampling, *, backend: str, allow_url: UrlAccess, min_frames: int = 1, threads: int = 1
) -> tuple[Any, list[dict[str, Any]]]:
    """Decode what has to be decoded, and write the input as sentence-transformers takes it.

    Args:
        item: One input of any kind.
        sampling: The frame grid.
        backend: Video decoder.
        allow_url: Whether and from where http(s) sources are fetched.
        min_frames: Fewest frames that the processor takes; a shorter video is extended by its last frame, as
            processors that take one do themselves.
        threads: Decoding threads for this input.

    Returns:
        The input with its frames in place, and the video metadata of each video inside chat messages, which
        sentence-transformers does not collect from there.

    Raises:
        VideoError: The video cannot be decoded.
        ValueError: The input is malformed, an image is missing, or a URL was not asked for.
    """
    load = functools.partial(
        _frames, sampling=sampling, backend=backend, allow_url=allow_url, min_frames=min_frames, threads=threads
    )
    kind = kind_of(item)
    if kind == "text":
        return {"text": item["text"] if isinstance(item, Mapping) else item}, []
    if kind == "image":
        return {"image": checked_image(item["image"] if isinstance(item, Mapping) else item, allow_url=allow_url)}, []
    if kind == "video":
        is_wrapped = isinstance(item, Mapping) and set(item) == {"video"}
        return {"video": load(item["video"] if is_wrapped else item)}, []
    if kind == "mixed":
        values = dict(item)
        if "video" in values:
            values["video"] = load(values["video"])
        if "image" in values:
            values["image"] = checked_image(values["image"], allow_url=allow_url)
        return values, []
    return _messages([item] if isinstance(item, Mapping) else item, load, allow_url)


def _frames(
    source: Any, *, sampling: Sampling, backend: str, allow_url: UrlAccess, min_frames: int, threads: int
) -> dict[str, Any]:
    clip = load_video(source, sampling, backend=backend, allow_url=allow_url, threads=threads)
    array, metadata = torch.from_numpy(clip.frames), clip.metadata()  # (T, H, W, C)
    if (short := min_frames - len(array)) > 0:
        array = torch.cat([array, array[-1:].expand(short, -1, -1, -1)])
        metadata["frames_indices"] += metadata["frames_indices"][-1:] * short
    # (T, C, H, W) is the layout that processors cannot mistake
    return {"array": array.permute(0, 3, 1, 2), "video_metadata": metadata}


def _messages(
    messages: Iterable[Any], load: Callable[[Any], dict[str, Any]], allow_url: UrlAccess
) -> tuple[list[Any], list[dict[str, Any]]]:
    metadata: list[dict[str, Any]] = []
    loaded = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [dict(part) for part in content]
            for part in content:
                check_part(part)
                if part.get("type") == "video":
                    decoded = load(part["video"])
                    part["video"] = decoded["array"]
                    metadata.append(decoded["video_metadata"])
                elif part.get("type") == "image":
                    part["image"] = checked_image(part["image"], allow_url=allow_url)
        loaded.append({**message, "content": content})
    return loaded, metadata
