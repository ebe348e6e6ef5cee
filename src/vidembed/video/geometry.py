"""The size and orientation of frames: rotation, sample aspect ratio, the bound on pixels."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vidembed.video.errors import VideoTooLarge

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

MAX_SIDE = 16384
"""Pixels. A picture with a longer side is refused (twice 8K's width; our choice)."""
MAX_AREA = 64 * 2**20
"""Pixels. A picture of a larger area is refused (about twice 8K's; our choice)."""
MAX_ASPECT = Fraction(16)
"""Sample aspect ratios beyond this or its inverse are taken for broken headers and ignored."""


@dataclass(frozen=True)
class Geometry:
    """What is done to every decoded picture of one stream.

    Attributes:
        width: Width of the scaled picture before rotation, in pixels.
        height: Height of the scaled picture before rotation, in pixels.
        turns: Quarter turns counter-clockwise that set it upright, 0 to 3.
    """

    width: int
    height: int
    turns: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(H, W, 3)`` of the upright picture."""
        if self.turns % 2:
            return self.width, self.height, 3
        return self.height, self.width, 3


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


def quarter_turns(rotation: float) -> int:
    """Return the number of counter-clockwise quarter turns nearest to ``rotation`` degrees."""
    return round(rotation / 90) % 4


def plan(
    width: int, height: int, *, aspect: Fraction | None, rotation: float, max_pixels: int | None, item: str
) -> Geometry:
    """Decide the one size of all frames of a stream.

    Args:
        width: Width of the decoded pictures, in pixels.
        height: Height of the decoded pictures, in pixels.
        aspect: Sample aspect ratio (width of a pixel over its height), or ``None``.
        rotation: Counter-clockwise degrees that set the picture upright.
        max_pixels: Bound on the area, or ``None``.
        item: The item's name, for messages.

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
    return Geometry(*fit(shown_width, height, max_pixels), turns=quarter_turns(rotation))


def picture(frame: VideoFrame, geometry: Geometry) -> NDArray[np.uint8]:
    """Convert a decoded frame to an upright RGB array of ``geometry.shape``."""
    rgb = frame.reformat(width=geometry.width, height=geometry.height, format="rgb24", interpolation="BICUBIC")
    array = np.asarray(rgb.to_ndarray(), dtype=np.uint8)  # (H, W, 3)
    return np.ascontiguousarray(np.rot90(array, geometry.turns))


def shrink(frame: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """Scale one ``(H, W, 3)`` RGB array to ``(height, width, 3)``."""
    if frame.shape[:2] == (height, width):
        return frame
    image = Image.fromarray(np.ascontiguousarray(frame), "RGB").resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)
