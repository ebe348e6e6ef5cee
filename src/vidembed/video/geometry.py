"""The size and orientation of frames: display matrix, sample aspect ratio, the bound on pixels."""

from __future__ import annotations

import logging
import math
import struct
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias, cast

import numpy as np
from av.sidedata.sidedata import SideDataContainer
from PIL import Image

from vidembed.video.errors import VideoTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from av.sidedata.sidedata import SideData
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

MAX_SIDE = 16384
"""Pixels. A picture with a longer side is refused (twice 8K's width; our choice)."""
MAX_AREA = 64 * 2**20
"""Pixels. A picture of a larger area is refused (about twice 8K's; our choice)."""
MAX_ASPECT = Fraction(16)
"""Sample aspect ratios beyond this or its inverse are taken for broken headers and ignored."""
_MATRIX = struct.Struct("=9i")  # a b u, c d v, x y w
_side_data = cast("Callable[[VideoFrame], Mapping[str, SideData]]", SideDataContainer)

Matrix: TypeAlias = tuple[int, int, int, int]
"""``a, b, c, d`` of a display matrix: a point goes to ``(a x + c y, b x + d y)``, y downwards (libavutil/display.h)."""


@dataclass(frozen=True)
class Geometry:
    """How the decoded pictures of one shape become upright ones with square pixels.

    Attributes:
        width: Width of the scaled picture before it is set upright, in pixels.
        height: Height of the scaled picture before it is set upright, in pixels.
        turns: Quarter turns counter-clockwise that set it upright, 0 to 3.
        mirrored: Whether it is mirrored left to right before it is turned.
    """

    width: int
    height: int
    turns: int
    mirrored: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(H, W, 3)`` of the upright picture."""
        if self.turns % 2:
            return self.width, self.height, 3
        return self.height, self.width, 3

    def inside(self, shape: tuple[int, int, int]) -> Geometry:
        """Return this geometry scaled, up or down, to fit an upright shape ``(H, W, 3)``, with its aspect kept."""
        height, width, _ = self.shape
        scale = min(Fraction(shape[0], height), Fraction(shape[1], width))
        return replace(self, width=max(1, round(self.width * scale)), height=max(1, round(self.height * scale)))


def check_size(width: int, height: int, item: str) -> None:
    """Raise :class:`VideoTooLarge` for pictures no video plausibly has."""
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_AREA:
        raise VideoTooLarge(
            item,
            f"its pictures are {width}x{height} pixels; at most {MAX_SIDE} a side and {MAX_AREA} in all are read. "
            "Scale the video down first.",
        )


def fit(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    """Return ``(width, height)`` scaled down to at most ``max_pixels``, with the aspect kept; never scaled up."""
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    new_width = max(1, math.floor(width * scale))
    new_height = max(1, math.floor(height * scale))
    return min(new_width, max_pixels // new_height), min(new_height, max_pixels // new_width)


def display_matrix(frame: VideoFrame) -> Matrix | None:
    """Return the linear part of the display matrix of a frame, or ``None`` if it has none."""
    try:
        # Not `frame.side_data`, which would keep the frame alive: the frame would hold it, and it holds the frame.
        data = _side_data(frame).get("DISPLAYMATRIX")
    except ValueError:  # PyAV does not know all kinds of data that FFmpeg puts beside a frame
        radians = math.radians(frame.rotation if abs(frame.rotation) <= 180 else 0)
        sine, cosine = round(2**16 * math.sin(radians)), round(2**16 * math.cos(radians))
        return cosine, -sine, sine, cosine
    if data is None or data.buffer_size != _MATRIX.size:
        return None
    a, b, _, c, d, *_ = _MATRIX.unpack(bytes(data))
    return a, b, c, d


def orientation(matrix: Matrix | None, item: str) -> tuple[int, bool]:
    """Return `Geometry.turns` and `Geometry.mirrored` for a display matrix.

    A negative determinant mirrors. The rest is a rotation, which is rounded to quarter turns. What is neither, such as
    zeros, is ignored.
    """
    if matrix is None:
        return 0, False
    a, b, c, d = matrix
    if a * d == b * c:
        logger.warning("%s: its display matrix is ignored: it has no inverse %s", item, matrix)
        return 0, False
    mirrored = a * d < b * c
    if mirrored:
        a, b = -a, -b  # what is left when x was mirrored before
    # As FFmpeg's av_display_rotation_get: how the axes are scaled does not count.
    angle = math.atan2(b / math.hypot(b, d), a / math.hypot(a, c))
    return round(-angle / (math.pi / 2)) % 4, mirrored


def plan(
    width: int,
    height: int,
    *,
    aspect: Fraction | None,
    max_pixels: int | None,
    item: str,
    turns: int = 0,
    mirrored: bool = False,
) -> Geometry:
    """Decide the size of pictures of one shape.

    Args:
        width: Width of the decoded pictures, in pixels.
        height: Height of the decoded pictures, in pixels.
        aspect: Sample aspect ratio (width of a pixel over its height), or ``None``.
        max_pixels: Bound on the area, or ``None``.
        item: The item's name, for messages.
        turns: As :attr:`Geometry.turns`.
        mirrored: As :attr:`Geometry.mirrored`.

    Raises:
        VideoTooLarge: If the picture is above :data:`MAX_SIDE` or :data:`MAX_AREA`.
    """
    check_size(width, height, item)
    if aspect is None or aspect <= 0:
        aspect = Fraction(1)
    elif not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        logger.warning("%s: sample aspect ratio %s ignored: outside 1/%s to %s", item, aspect, MAX_ASPECT, MAX_ASPECT)
        aspect = Fraction(1)
    shown_width = max(1, round(width * aspect))
    check_size(shown_width, height, item)
    return Geometry(*fit(shown_width, height, max_pixels), turns=turns, mirrored=mirrored)


def upright(picture: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Mirror and turn a picture of ``(geometry.height, geometry.width, 3)`` to one of ``geometry.shape``."""
    mirrored = picture[:, ::-1] if geometry.mirrored else picture
    return np.ascontiguousarray(np.rot90(mirrored, geometry.turns))


def letterbox(picture: NDArray[np.uint8], shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Lay a picture in the middle of a black one of ``shape``, which is at least as large."""
    if picture.shape == shape:
        return picture
    canvas = np.zeros(shape, dtype=np.uint8)  # (H, W, 3)
    height, width, _ = picture.shape
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    canvas[top : top + height, left : left + width] = picture
    return canvas


def shrink(frame: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Scale one ``(H, W, 3)`` RGB array to ``(height, width, 3)``."""
    if frame.shape[:2] == (height, width):
        return frame
    image = Image.fromarray(np.ascontiguousarray(frame), "RGB").resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)
