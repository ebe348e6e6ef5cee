"""What needs no video decoder: frames given as arrays, and single pictures, as inputs and as clips of one frame."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vidembed.errors import CorruptVideo, InvalidVideoInput, NotAVideo, VideoTooLarge
from vidembed.video.clip import (
    TIME_EPSILON,
    Clip,
    DecodeLimits,
    Sampling,
    VideoFrames,
    is_finite_number,
    is_rgb,
    is_url,
    item_name,
)
from vidembed.video.container import open_source
from vidembed.video.picture import MAX_AREA, MAX_SIDE, check_size, fit, shrink
from vidembed.video.reader import GridPicker

if TYPE_CHECKING:
    from vidembed.video.fetch import UrlAccess

_RATE_MARGIN = 1.001  # 2.0 fps cut from 29.97 is a little under or over 2.0
# What Pillow decodes by itself; another one, such as EPS, would run a program. GIF is a video here.
FORMATS: Final = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
IMAGE_FORMATS: Final = (*FORMATS, "GIF")  # of an image among inputs
IMAGE_LIMITS: Final = DecodeLimits(timeout_s=60.0, max_bytes=2**28)  # of an image that is fetched (our choice)


def _as_array(value: object, item: str) -> NDArray[np.uint8]:
    """Return frames of any array type, or a list of pictures, as ``(T, H, W, 3)`` uint8."""
    try:
        array = np.stack([np.asarray(x) for x in value]) if isinstance(value, (list, tuple)) else np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InvalidVideoInput(item, f"'array' is not one stack of frames of one size ({error})") from error
    if array.ndim == 4 and array.shape[-1] != 3 and array.shape[1] == 3:
        array = np.moveaxis(array, 1, -1)  # (T, C, H, W) -> (T, H, W, C)
    if not is_rgb(array):
        found = f"'array' has shape {array.shape} and dtype {array.dtype}"
        raise InvalidVideoInput(item, f"{found}; expected (T, H, W, 3) or (T, 3, H, W), uint8, values 0 to 255")
    return array


def as_frames(source: VideoFrames | Mapping[str, object], item: str) -> tuple[VideoFrames, float]:
    """Return frames, and the duration in seconds that they come with, or 0."""
    if isinstance(source, VideoFrames):
        return source, 0.0
    if "array" not in source:
        raise InvalidVideoInput(item, f"keys {sorted(map(str, source))}; expected 'array' and 'video_metadata'")
    metadata = source.get("video_metadata") or {}
    if not isinstance(metadata, Mapping):
        raise InvalidVideoInput(item, "'video_metadata' is not a mapping; expected {'fps': ...}")
    if metadata.get("fps") is None:
        raise InvalidVideoInput(item, "'video_metadata' has no 'fps'; give it: a frame rate is never guessed")
    duration = metadata.get("duration")
    frames = VideoFrames(_as_array(source["array"], item), metadata["fps"])
    if (indices := metadata.get("frames_indices")) is not None:
        ordinals, count = np.asarray(indices), len(frames.array)  # (T,)
        if ordinals.shape != (count,) or ordinals.dtype.kind not in "iu" or (np.diff(ordinals) < 0).any():
            raise InvalidVideoInput(item, f"'frames_indices' is not {count} whole numbers in ascending order")
        frames = VideoFrames(frames.array, frames.fps, timestamps=ordinals / frames.fps)
    return frames, duration if is_finite_number(duration) and duration > 0 else 0.0


def sample_frames(
    source: VideoFrames | Mapping[str, object], sampling: Sampling, *, item: str, start: float, end: float | None
) -> Clip:
    """Choose from given frames as from a file's, by their own times, in seconds from the first."""
    given, declared = as_frames(source, item)
    count, height, width = given.array.shape[:3]
    check_size(width, height, item)
    times = np.arange(count) / given.fps if given.timestamps is None else given.timestamps - given.timestamps[0]  # (T,)
    spacing = times[-1] / (count - 1) if count > 1 and times[-1] > 0 else 1.0 / given.fps
    video_end = max(float(times[-1] + spacing), declared)
    if start + TIME_EPSILON >= video_end:
        reason = f"the segment starts at {start:g} s, and the frames last {video_end:.3f} s"
        raise InvalidVideoInput(item, reason)
    stop = video_end if end is None else min(end, video_end)
    before = max(stop - TIME_EPSILON, start + TIME_EPSILON)  # a segment may be shorter
    behind = np.append(times[1:], video_end)  # (T,) when each is no longer on show
    picked = np.flatnonzero((times < before) & (behind > start + TIME_EPSILON)).tolist()
    # else all are kept: a grid finer than the frames could only repeat some and miss others
    if len(picked) > sampling.max_frames or 1.0 / spacing > sampling.fps * _RATE_MARGIN:
        picker: GridPicker[int] = GridPicker(sampling, start=start, end=stop, duration=video_end)
        for i in picked:
            picker.keep(i, float(behind[i]))
        picked = picker.finish()
    new_width, new_height = fit(width, height, sampling.max_pixels)
    shown = np.maximum(times[picked] - start, 0.0).astype(np.float64)  # (T,)
    duration = stop - start
    if start == 0 and end is None and given.timestamps is None:
        indices, total = np.array(picked, dtype=np.int64), count
    else:
        indices, total = np.rint(shown * given.fps).astype(np.int64), round(duration * given.fps)
    frames = np.stack([shrink(given.array[i], new_width, new_height) for i in picked])  # (T, H, W, 3)
    known = frames, shown, given.fps, duration, indices, max(total, int(indices[-1]) + 1)
    return Clip(*known, False, False, item, start, "frames", sampling)


def read_still(path: str | os.PathLike[str], sampling: Sampling, *, item: str) -> Clip:
    """Return a picture as a clip of one frame, upright, RGB, that lasts a second.

    Raises:
        NotAVideo: It is no picture of `FORMATS`, or several in one file.
        VideoTooLarge: It has more pixels than a frame may have.
        CorruptVideo: It cannot be decoded.
    """
    try:
        with Image.open(Path(path), formats=FORMATS) as opened:
            check_size(*opened.size, item)
            if (count := getattr(opened, "n_frames", 1)) > 1:
                raise NotAVideo(item, f"a {opened.format} file with {count} pictures; give a file with one picture")
            upright = (ImageOps.exif_transpose(opened) or opened).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VideoTooLarge(
            item, f"the picture has more than {MAX_SIDE} pixels on a side or {MAX_AREA} pixels; scale it down"
        ) from error
    except UnidentifiedImageError as error:
        raise NotAVideo(item, f"neither a video nor a picture of {', '.join(FORMATS)}") from error
    except (OSError, ValueError, SyntaxError, IndexError, TypeError, OverflowError) as error:  # Pillow, at damage
        raise CorruptVideo(item, f"the picture cannot be decoded ({error}); get an intact copy") from error
    frames = VideoFrames(np.asarray(upright)[None], fps=1.0)  # (1, H, W, 3)
    return sample_frames(frames, sampling, item=item, start=0.0, end=None)


def checked_image(image: Any, *, allow_url: UrlAccess) -> Any:
    """Open an image, or each of a list, as RGB and upright: sentence-transformers would fetch or open it unchecked."""
    if isinstance(image, (list, tuple)):
        return [checked_image(one, allow_url=allow_url) for one in image]
    if isinstance(image, Image.Image):
        check_size(*image.size, "<image>")
    if not isinstance(image, (str, os.PathLike)):
        return image
    name = os.fspath(image)
    if is_url(name):
        if not allow_url:
            raise ValueError(f"image {name!r}: URLs are fetched only with allow_url=True.")
        item = item_name(name)
        with open_source(name, item, allow_url=allow_url, limits=IMAGE_LIMITS) as handle:
            return _decoded(handle, item)
    if name.startswith("data:image/"):
        shown = f"{name[:40]}..."
        try:
            data = base64.b64decode(name.partition(",")[2])
        except ValueError as error:
            raise ValueError(f"image {shown!r}: it is not valid base64 ({error}).") from error
        return _decoded(io.BytesIO(data), shown)
    if not os.path.isfile(name):  # noqa: PTH113 - Path raises for a name that is too long, or holds a NUL
        raise FileNotFoundError(f"image {name!r}: no such file. To embed it as text, pass {{'text': ...}}.")
    with Path(name).open("rb") as file:
        return _decoded(file, item_name(name))


def _decoded(handle: BinaryIO, item: str) -> Image.Image:
    """Decode an image whose header declares no more than is allowed."""
    try:
        with Image.open(handle, formats=IMAGE_FORMATS) as opened:
            check_size(*opened.size, item)
            return (ImageOps.exif_transpose(opened) or opened).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VideoTooLarge(
            item, f"the image has more than {MAX_SIDE} pixels on a side or {MAX_AREA} pixels; scale it down"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"image {item!r}: it is not an image of a supported format: {', '.join(IMAGE_FORMATS)}."
        ) from error
    except (OSError, ValueError, SyntaxError, IndexError, TypeError, OverflowError) as error:  # Pillow, at damage
        raise ValueError(f"image {item!r}: it cannot be decoded ({error}).") from error
