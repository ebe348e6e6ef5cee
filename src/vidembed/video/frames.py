"""Frames that come decoded: checked, and sampled on the same grid as a file's."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from vidembed.video.clip import Clip
from vidembed.video.errors import InvalidVideoInput
from vidembed.video.geometry import check_size, fit, shrink
from vidembed.video.sampling import TIME_EPSILON, GridPicker, Sampling
from vidembed.video.source import VideoFrames

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_RATE_MARGIN = 1.001  # 2.0 fps cut from 29.97 is a little under or over 2.0


def _as_array(value: Any, item: str) -> NDArray[np.uint8]:
    """Return frames of any array type, or a list of pictures, as ``(T, H, W, 3)`` uint8."""
    try:
        array = np.stack([np.asarray(x) for x in value]) if isinstance(value, (list, tuple)) else np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidVideoInput(item, f"'array' is not one stack of frames of one size ({error})") from error
    if array.ndim == 4 and array.shape[-1] != 3 and array.shape[1] == 3:
        array = np.moveaxis(array, 1, -1)  # (T, C, H, W) -> (T, H, W, C)
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise InvalidVideoInput(
            item,
            f"'array' has shape {array.shape} and dtype {array.dtype}; "
            "expected (T, H, W, 3) or (T, 3, H, W), uint8, values 0 to 255",
        )
    return array


def from_mapping(value: Mapping[str, Any], item: str) -> tuple[VideoFrames, dict[str, Any]]:
    """Read the dictionary form ``{"array": ..., "video_metadata": {"fps": ..., ...}}``.

    Of the metadata, ``fps`` is required; ``frames_indices`` (ordinals of the frames in the video they come
    from, so their times are ``index / fps``), ``duration`` and ``total_num_frames`` are used where given.

    Raises:
        InvalidVideoInput: If a key is missing or its value is not of the stated form.
    """
    if "array" not in value:
        raise InvalidVideoInput(item, f"keys {sorted(map(str, value))}; expected 'array' and 'video_metadata'")
    metadata = value.get("video_metadata")
    try:
        metadata = dict(metadata or {})
    except (TypeError, ValueError) as error:
        raise InvalidVideoInput(item, "'video_metadata' is no mapping; expected {'fps': ...}") from error
    if metadata.get("fps") is None:
        raise InvalidVideoInput(item, "'video_metadata' has no 'fps'; give it: a frame rate is never guessed")
    array = _as_array(value["array"], item)
    plain = VideoFrames(array, metadata["fps"])
    indices = metadata.get("frames_indices")
    if indices is None:
        return plain, metadata
    ordinals = np.asarray(indices)
    if (
        ordinals.shape != (len(array),)
        or not np.issubdtype(ordinals.dtype, np.integer)
        or (np.diff(ordinals) < 0).any()
    ):
        raise InvalidVideoInput(item, f"'frames_indices' is not {len(array)} whole numbers that never fall")
    return VideoFrames(array, plain.fps, timestamps=ordinals / plain.fps), metadata


def _number(metadata: Mapping[str, Any], key: str) -> float | None:
    value = metadata.get(key)
    valid = isinstance(value, (int, float, np.number)) and math.isfinite(value) and value > 0
    return float(value) if valid and value is not None else None


def sample_frames(
    source: VideoFrames,
    sampling: Sampling,
    *,
    item: str,
    metadata: Mapping[str, Any] | None = None,
    start: float = 0.0,
    end: float | None = None,
) -> Clip:
    """Choose from given frames as from a file's, by their own times.

    Frames that already come no more often than ``sampling.fps`` and are no more than ``max_frames`` are all
    kept: a grid finer than the frames could only repeat some and miss others.

    Args:
        source: The frames.
        sampling: How to choose; ``max_pixels`` applies too.
        item: Name for messages.
        metadata: The dictionary form's metadata, if that is how they came.
        start: Start of the segment wanted, in seconds from the first frame.
        end: Its end (exclusive), or ``None``.

    Raises:
        InvalidVideoInput: If the segment lies outside.
    """
    metadata = metadata or {}
    count, height, width = source.array.shape[:3]
    check_size(width, height, item)
    times = np.arange(count) / source.fps if source.timestamps is None else source.timestamps - source.timestamps[0]
    spacing = times[-1] / (count - 1) if count > 1 and times[-1] > 0 else 1.0 / source.fps
    video_end = max(float(times[-1] + spacing), _number(metadata, "duration") or 0.0)
    if start + TIME_EPSILON >= video_end:
        raise InvalidVideoInput(item, f"the segment starts at {start:g} s, and the frames last {video_end:.3f} s")
    stop = video_end if end is None else min(end, video_end)
    before = max(stop - TIME_EPSILON, start + TIME_EPSILON)  # a segment may be shorter
    inside = np.flatnonzero((times < before) & (np.append(times[1:], video_end) > start + TIME_EPSILON))
    sparse = len(inside) <= sampling.max_frames and 1.0 / spacing <= sampling.fps * _RATE_MARGIN
    if sparse:
        picked = inside.tolist()
    else:
        picker: GridPicker[int] = GridPicker(sampling, start=start, end=stop, duration=video_end)
        for i in inside.tolist():
            picker.keep(i, float(times[i + 1]) if i + 1 < count else video_end)
        picked = picker.finish()
    new_width, new_height = fit(width, height, sampling.max_pixels)
    frames = np.stack([shrink(source.array[i], new_width, new_height) for i in picked])  # (T, H, W, 3)
    shown = np.maximum(times[picked] - start, 0.0).astype(np.float64)
    duration = stop - start
    whole = start == 0 and end is None
    if whole and source.timestamps is None:
        indices, total = np.array(picked, dtype=np.int64), count
    else:
        indices, total = np.rint(shown * source.fps).astype(np.int64), round(duration * source.fps)
    return Clip(
        frames=frames,
        timestamps=shown,
        fps=source.fps,
        duration=duration,
        frames_indices=indices,
        total_num_frames=max(total, int(indices[-1]) + 1, 1),
        damaged=False,
        truncated=False,
        item=item,
        start_s=start,
        video_backend="frames",
    )
