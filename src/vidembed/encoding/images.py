"""Images as inputs, opened here: what the host opens by name it fetches and decodes without limits.

A URL that is left to the host is fetched from any address, whatever its size; an image as large as Pillow takes (179
million pixels) becomes gigabytes on its way into a tensor.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from vidembed.video.download import UrlAccess
from vidembed.video.errors import VideoError, VideoTooLarge
from vidembed.video.geometry import MAX_AREA, MAX_SIDE, check_size
from vidembed.video.opening import open_source
from vidembed.video.source import is_url, item_name

MAX_IMAGE_BYTES = 2**28
"""Bytes (256 MiB) of an image that is fetched (our choice)."""
IMAGE_TIMEOUT_S = 60.0
"""Seconds to fetch an image (our choice)."""
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF")
"""Pillow's names of what is decoded. Left out are those that run another program (EPS) and those of no suffix here."""

_PARTS = ("text", "image", "video")
_FETCHED_BY_HOST = frozenset({"url", "path", "base64"})


def checked_image(image: Any, *, allow_url: UrlAccess) -> Any:
    """Return an image as the host takes it, with nothing left for it to fetch or to open by name.

    Args:
        image: A path, http(s) URL, ``data:image/`` URI, PIL image or array; or a list of such.
        allow_url: Whether and from where URLs are fetched (see `vidembed.video.download.UrlAccess`).

    Returns:
        A PIL image, RGB and upright, for what has a name; arrays and PIL images as they are.

    Raises:
        FileNotFoundError: There is no such file.
        VideoError: It cannot be fetched, or has more pixels than a frame of a video may have.
        ValueError: It is no image, or a URL was not asked for.
    """
    if isinstance(image, (list, tuple)):
        return [checked_image(one, allow_url=allow_url) for one in image]
    if isinstance(image, Image.Image):
        check_size(*image.size, "<image>")
        return image
    if not isinstance(image, (str, os.PathLike)):
        return image
    name = os.fspath(image)
    if is_url(name):
        if not allow_url:
            raise ValueError(f"image {name!r}: URLs are fetched only with allow_url=True.")
        item = item_name(name)
        with open_source(
            name, item, allow_url=allow_url, timeout_s=IMAGE_TIMEOUT_S, max_bytes=MAX_IMAGE_BYTES
        ) as handle:
            return _decoded(handle, item)
    if name.startswith("data:image/"):
        shown = f"{name[:40]}..."
        try:
            data = base64.b64decode(name.partition(",")[2])
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"image {shown!r}: it is not base64 ({error}).") from error
        return _decoded(io.BytesIO(data), shown)
    if not _is_file(name):
        raise FileNotFoundError(f"image {name!r}: no such file. To embed the words, pass {{'text': ...}}.")
    with Path(name).open("rb") as file:
        return _decoded(file, item_name(name))


def check_part(part: Mapping[str, Any]) -> None:
    """Refuse a part of a chat message in which the host would look for something to fetch or open.

    Args:
        part: Such as ``{"type": "image", "image": ...}``.

    Raises:
        ValueError: Its type is none of text, image and video, it has no content under that name, or it has another
            key that the host fetches from.
    """
    kind = part.get("type")
    if kind not in _PARTS or kind not in part:
        raise ValueError(
            f"message part with type {kind!r} and keys {sorted(map(str, part))}: expected text, image or video, with "
            "the content under that name, such as {'type': 'image', 'image': ...}."
        )
    if found := sorted(_FETCHED_BY_HOST & set(part)):
        raise ValueError(f"message part with key {found[0]!r}: give the {kind} under {kind!r}, a URL or path too.")


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long for a file name, or it holds a NUL
        return False


def _decoded(handle: BinaryIO, item: str) -> Image.Image:
    """Decode an image whose header declares no more than is allowed."""
    try:
        with Image.open(handle, formats=IMAGE_FORMATS) as opened:
            check_size(*opened.size, item)
            return (ImageOps.exif_transpose(opened) or opened).convert("RGB")
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise VideoTooLarge(item, f"the image is above {MAX_SIDE} pixels a side or {MAX_AREA} in all") from error
    except UnidentifiedImageError as error:
        raise ValueError(f"image {item!r}: it is none of {', '.join(IMAGE_FORMATS)}.") from error
    except VideoError:
        raise
    except (OSError, ValueError, SyntaxError, IndexError, TypeError, OverflowError) as error:  # Pillow, at damage
        raise ValueError(f"image {item!r}: it cannot be decoded ({error}).") from error
