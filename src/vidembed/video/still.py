"""Single pictures: as inputs beside videos, and as clips of one frame."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vidembed.errors import CorruptVideo, NotAVideo, VideoTooLarge
from vidembed.video.clip import Clip, DecodeLimits, Sampling, assemble, is_url, item_name
from vidembed.video.container import open_source
from vidembed.video.picture import MAX_AREA, MAX_SIDE, check_size, fit, shrink

if TYPE_CHECKING:
    from vidembed.video.fetch import UrlAccess

# What Pillow decodes by itself; another one, such as EPS, would run a program. GIF is a video here.
FORMATS: Final = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
IMAGE_FORMATS: Final = (*FORMATS, "GIF")  # of an image among inputs
IMAGE_LIMITS: Final = DecodeLimits(timeout_s=60.0, max_bytes=2**28)  # of an image that is fetched (our choice)


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
    return assemble(
        [shrink(np.asarray(upright), *fit(*upright.size, sampling.max_pixels))],  # (H, W, 3)
        np.zeros(1),
        ordinals=np.zeros(1, dtype=np.int64),
        count=1,
        declared_fps=1.0,
        start=0.0,
        end=None,
        video_end=1.0,
        declared_duration=None,
        start_s=0.0,
        damaged=False,
        item=item,
        backend="frames",
        sampling=sampling,
    )


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
