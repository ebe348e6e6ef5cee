"""Decoded pictures become upright RGB with square pixels, progressive and SDR, within limits of size."""

from __future__ import annotations

import errno
import logging
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias, cast

import av.error
import numpy as np
from av import VideoFrame
from av.filter import Graph
from av.sidedata.sidedata import SideData, SideDataContainer
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc
from numpy.typing import NDArray
from PIL import Image

from vidembed.errors import UnsupportedCodec, VideoTooLarge

logger = logging.getLogger(__name__)

MAX_SIDE = 16384  # pixels. A picture with a longer side is refused (twice 8K's width; our choice)
MAX_AREA = 64 * 2**20  # pixels. A picture of a larger area is refused (about twice 8K's; our choice)
MAX_ASPECT = Fraction(16)  # sample aspect ratios beyond this or its inverse are taken for broken headers and ignored
PICTURE_VERSION: Final = 2
"""Of how a file becomes pictures, for what is stored by file. 2 differs from 1 for files that are mirrored, HDR,
BT.2020 or interlaced, hold several video streams, or change their shape."""
# FFmpeg allocates no more at once (`av_max_alloc`, by default `INT_MAX`): what fails while the limit on memory leaves
# this much was refused for its size.
MEMORY_HEADROOM_BYTES = 2**31
# `a, b, c, d` of a display matrix: a point goes to `(a x + c y, b x + d y)`, y downwards (libavutil/display.h)
Matrix: TypeAlias = tuple[int, int, int, int]
_MATRIX = struct.Struct("=9i")  # a b u, c d v, x y w
_side_data = cast("Callable[[VideoFrame], Mapping[str, SideData]]", SideDataContainer)


def is_memory_error(error: BaseException | None) -> bool:
    """Whether an error says that there was no memory, for data or (``EAGAIN``) for the stack of a thread."""
    return isinstance(error, MemoryError) or getattr(error, "errno", None) in (errno.ENOMEM, errno.EAGAIN)


def check_memory(error: BaseException) -> None:
    """Raise a ``MemoryError`` if `error` comes of the limit on this process; else it is damage (a garbled length)."""
    if not is_memory_error(error):
        return
    try:
        import resource  # noqa: PLC0415 - not on Windows

        used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit - used < MEMORY_HEADROOM_BYTES:
        raise MemoryError("the limit on the address space of this process is reached") from error


@dataclass(frozen=True)
class Geometry:
    """How the decoded pictures of one shape become upright ones with square pixels."""

    width: int  # of the scaled picture before it is set upright, in pixels
    height: int
    turns: int  # quarter turns counter-clockwise that set it upright, 0 to 3
    mirrored: bool = False  # left to right, before it is turned

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape ``(H, W, 3)`` of the upright picture."""
        return (self.width, self.height, 3) if self.turns % 2 else (self.height, self.width, 3)

    def inside(self, shape: tuple[int, int, int]) -> Geometry:
        """Return this geometry scaled, up or down, to fit an upright shape ``(H, W, 3)``, with its aspect kept."""
        height, width, _ = self.shape
        scale = min(Fraction(shape[0], height), Fraction(shape[1], width))
        return replace(self, width=max(1, round(self.width * scale)), height=max(1, round(self.height * scale)))


def check_size(width: int, height: int, item: str) -> None:
    """Raise `VideoTooLarge` for pictures no video plausibly has."""
    if width > MAX_SIDE or height > MAX_SIDE or width * height > MAX_AREA:
        allowed = f"at most {MAX_SIDE} per side and {MAX_AREA} per frame are allowed. Scale the video down first."
        raise VideoTooLarge(item, f"its pictures are {width}x{height} pixels; {allowed}")


def fit(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    """Return ``(width, height)`` scaled down to at most ``max_pixels``, with the aspect kept; never scaled up."""
    if max_pixels is None or width * height <= max_pixels:
        return width, height
    scale = math.sqrt(max_pixels / (width * height))
    new_width, new_height = max(1, math.floor(width * scale)), max(1, math.floor(height * scale))
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
    """Return `Geometry.turns` and `Geometry.mirrored` for a display matrix; one without an inverse is ignored."""
    if matrix is None:
        return 0, False
    a, b, c, d = matrix
    if a * d == b * c:
        logger.warning("%s: its display matrix is ignored: it has no inverse %s", item, matrix)
        return 0, False
    mirrored = a * d < b * c  # a negative determinant; the rest is a rotation, rounded to quarter turns
    if mirrored:
        a, b = -a, -b  # what is left when x was mirrored before
    # As FFmpeg's av_display_rotation_get: how the axes are scaled does not count.
    angle = math.atan2(b / math.hypot(b, d), a / math.hypot(a, c))
    return round(-angle / (math.pi / 2)) % 4, mirrored


def fit_shown(width: int, height: int, aspect: Fraction | None, max_pixels: int | None, item: str) -> tuple[int, int]:
    """Return ``(width, height)`` of pictures of a sample aspect ratio with square pixels, fitted. Checks their size."""
    check_size(width, height, item)
    if aspect is not None and aspect > 0 and not 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
        logger.warning("%s: sample aspect ratio %s ignored: outside 1/%s to %s", item, aspect, MAX_ASPECT, MAX_ASPECT)
        aspect = None
    shown_width = max(1, round(width * aspect)) if aspect is not None and aspect > 0 else width
    check_size(shown_width, height, item)
    return fit(shown_width, height, max_pixels)


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


class Undecoded(NamedTuple):
    """A frame that was not decoded, as its packet describes it."""

    pts: int
    time_base: Fraction
    duration: int
    key_frame: bool = False
    is_corrupt: bool = False


@dataclass
class TimedFrame:
    """A frame of a video, at its time."""

    shown: VideoFrame | Undecoded
    time: float  # seconds from the first frame of the video; never falls within a pass
    duration: float  # seconds it lasts, by its own word; 0 if it says nothing
    ordinal: int | None  # its place in the stream, or None after a seek
    errors: int  # met up to here in this pass
    errors_at_key: int  # met up to the last key frame
    attempt: int  # how often the pass had begun again from the first frame
    aspect: Fraction | None = None  # width of a pixel over its height
    before: VideoFrame | None = None  # of an interlaced frame, the one before it, if that was decoded
    after: VideoFrame | None = None  # of an interlaced frame, the one after it, once that is decoded
    _converted: tuple[Geometry, NDArray[np.uint8]] | None = None

    @property
    def frame(self) -> VideoFrame:
        """The decoded frame; RuntimeError if it was left undecoded, as only those are that nobody asks for."""
        if isinstance(self.shown, Undecoded):
            raise RuntimeError(f"the frame at {self.time:.3f} s is asked for, and was not decoded")  # noqa: TRY004
        return self.shown

    @property
    def is_interlaced(self) -> bool:
        """Whether it is flagged as interlaced."""
        return isinstance(self.shown, VideoFrame) and self.shown.interlaced_frame

    def array(self, geometry: Geometry, shape: tuple[int, int, int], item: str) -> NDArray[np.uint8]:
        """Return the upright RGB picture, converted once and laid into ``shape`` (H, W, 3) with its aspect kept."""
        if geometry.shape != shape:
            geometry = geometry.inside(shape)
        if self._converted is None or self._converted[0] != geometry:
            size = geometry.width, geometry.height
            pixels = to_rgb(self.frame, *size, item, before=self.before, after=self.after)  # (H, W, 3)
            self._converted = geometry, upright(pixels, geometry)
        return letterbox(self._converted[1], shape)


SDR_WHITE: Final = 203.0  # cd/m2. What SDR shows as white: the reference white of HDR (ITU-R BT.2408-7, section 2.1)
HLG_PEAK: Final = 1000.0  # cd/m2. Peak of a display for HLG of system gamma 1.2 (ITU-R BT.2100-2, table 5)
SDR_GAMMA: Final = 2.4  # exponent of an SDR display (ITU-R BT.1886)

_UNSPECIFIED: Final = 2  # the same number in all of FFmpeg's lists of tags (libavutil/pixfmt.h)
_BT709, _BT2020, _PQ, _HLG = 1, 9, int(ColorTrc.SMPTE2084), int(ColorTrc.ARIB_STD_B67)
# The numbers of ITU-T H.273, table 4, by the names that FFmpeg has for them.
_MATRICES: Final = (
    *("rgb", "bt709", "unspecified", "reserved", "fcc", "bt470bg", "smpte170m", "smpte240m", "ycgco", "bt2020nc"),
    *("bt2020c", "smpte2085", "chroma-derived-nc", "chroma-derived-c", "ictcp", "ipt-c2", "ycgco-re", "ycgco-ro"),
)
_BT2020_CONSTANT, _ICTCP, _CHROMA_DERIVED = 10, 14, (12, 13)
# A reserved value says nothing. Constant luminance is read as the other kind: grey is exact, saturated edges are not.
_MEANT: Final = {3: _UNSPECIFIED, _BT2020_CONSTANT: _BT2020}
_CONVERTED: Final = frozenset([0, 1, 2, 4, 5, 6, 7, 9])  # matrices that swscale converts (libswscale/format.c)
_WHITE_16: Final = 255 * 2**8  # what swscale makes of white in 16-bit RGB (of full range in 10 bits, 0.3 % more)
_MIN_DEINTERLACED: Final = 4  # pixels: bwdif refuses less than 3, and 4:2:0 chroma has half of them
_LUMA: Final = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020 (ITU-R BT.2020-2, table 4)
_TO_BT709: Final = np.array(  # linear BT.2020 to linear BT.709 (ITU-R BT.2087-0, inverse of its M2)
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)


@dataclass(frozen=True)
class Colour:
    """What a frame says of its colours, by FFmpeg's names, and what is done about it."""

    matrix: str  # how its luma and chroma are made of RGB, such as "bt709"
    range: str  # "mpeg" (limited), "jpeg" (full) or "unspecified"
    transfer: str  # such as "smpte2084" (PQ) or "arib_std_b67" (HLG)
    primaries: str  # such as "bt2020"
    conversion: str  # what is done beyond what every video gets (matrix and range to RGB), or "none"


def describe(frame: VideoFrame) -> Colour:
    """Return the colours of a frame and what is done about them."""
    matrix, kind = _matrix(frame), _kind(frame)
    steps = [] if kind is None else [f"{kind} to SDR BT.709"]
    if matrix is None:
        steps = ["refused: its matrix is not converted"]
    elif matrix != frame.colorspace:
        steps.insert(0, f"matrix read as {_MATRICES[matrix]}")
    return Colour(
        matrix=_MATRICES[number] if (number := int(frame.colorspace)) < len(_MATRICES) else str(number),
        range=_name(ColorRange, frame.color_range),
        transfer=_name(ColorTrc, frame.color_trc),
        primaries=_name(ColorPrimaries, frame.color_primaries),
        conversion=", ".join(steps) or "none",
    )


def _name(kind: Callable[[int], ColorRange | ColorTrc | ColorPrimaries], value: int) -> str:
    try:
        return kind(value).name.lower()
    except ValueError:
        return str(int(value))


def _is_bt2020(frame: VideoFrame) -> bool:
    """Whether its primaries are those of BT.2020; where it does not say, its matrix or an HDR transfer does."""
    if frame.color_primaries == _UNSPECIFIED:
        return frame.colorspace in (_BT2020, _BT2020_CONSTANT, _ICTCP) or frame.color_trc in (_PQ, _HLG)
    return frame.color_primaries == _BT2020


def _kind(frame: VideoFrame) -> str | None:
    """Return what a frame is converted from, or ``None`` for SDR in BT.709 or its like, which is taken as it is."""
    if frame.color_trc in (_PQ, _HLG):
        return "PQ" if frame.color_trc == _PQ else "HLG"
    return "BT.2020" if _is_bt2020(frame) else None


def _matrix(frame: VideoFrame) -> int | None:
    """Return the matrix by which a frame is read: its own, or one near it, or ``None`` if there is none."""
    if frame.colorspace in _CONVERTED:
        return frame.colorspace
    if frame.colorspace in _CHROMA_DERIVED:
        return _BT2020 if _is_bt2020(frame) else _BT709
    return _MEANT.get(frame.colorspace)


def to_rgb(
    frame: VideoFrame,
    width: int,
    height: int,
    item: str,
    *,
    before: VideoFrame | None = None,
    after: VideoFrame | None = None,
) -> NDArray[np.uint8]:
    """Return a frame, deinterlaced by those beside it, as SDR RGB of BT.709 primaries, ``(height, width, 3)``."""
    try:
        shown = _deinterlaced(frame, before, after) if frame.interlaced_frame else frame
        kind, matrix, is_wide = _kind(shown), _matrix(shown), _is_bt2020(shown)
        if matrix is None:
            reason = f"its colours are in the matrix {describe(shown).matrix}, which is not converted; use bt709"
            raise UnsupportedCodec(item, reason)
        tags = shown.colorspace, shown.color_trc, shown.color_primaries
        try:
            shown.colorspace = matrix
            # PyAV 17 hands these to swscale, which refuses some of them, and would convert nothing by the others.
            shown.color_trc = shown.color_primaries = _UNSPECIFIED
            layout = "rgb24" if kind is None else "rgb48le"
            pixels = shown.reformat(width=width, height=height, format=layout, interpolation="BICUBIC").to_ndarray()
        finally:
            shown.colorspace, shown.color_trc, shown.color_primaries = tags
    except av.error.FFmpegError as error:
        check_memory(error)
        found = f"its pictures ({frame.format.name}, {frame.width}x{frame.height}) cannot be converted to RGB of "
        reason = f"{found}{width}x{height} ({error.strerror}); convert it to H.264 first"
        raise UnsupportedCodec(item, reason) from error
    if kind is None:
        return np.asarray(pixels, dtype=np.uint8)  # (H, W, 3)
    return _to_sdr(np.asarray(pixels, dtype=np.uint16), kind, wide=is_wide)


@cache
def _curve(kind: str) -> NDArray[np.float32]:
    """Return the linear light of each 16-bit value: of a display, where SDR white is 1; of HLG, of the scene."""
    signal = np.minimum(np.arange(2**16) / _WHITE_16, 1)
    if kind == "PQ":  # ITU-R BT.2100-2, table 4
        root = signal ** (32 / 2523)
        light = (np.maximum(root - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * root)) ** (16384 / 2610)
        return (light * 10_000 / SDR_WHITE).astype(np.float32)
    if kind == "HLG":  # table 5
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)
    return (signal**SDR_GAMMA).astype(np.float32)


def _to_sdr(signal: NDArray[np.uint16], kind: str, *, wide: bool) -> NDArray[np.uint8]:
    """Convert RGB ``(H, W, 3)`` of a kind: up to SDR white exactly; what is brighter is clipped, its hue kept."""
    light: NDArray[np.float32] = _curve(kind)[signal]  # (H, W, 3)
    if kind == "HLG":
        luma = np.maximum(light @ _LUMA, 0)[..., None]  # (H, W, 1)
        light *= luma**0.2 * (HLG_PEAK / SDR_WHITE)
    if wide:
        light = light @ _TO_BT709.T
    np.maximum(light, 0, out=light)
    peak = np.maximum(np.maximum(light[..., 0], light[..., 1]), light[..., 2])  # (H, W)
    light /= np.maximum(peak, 1)[..., None]
    return np.asarray(np.rint(255 * light ** np.float32(1 / SDR_GAMMA)), dtype=np.uint8)


def _deinterlaced(frame: VideoFrame, before: VideoFrame | None, after: VideoFrame | None) -> VideoFrame:
    """Return a frame as it was when the first of its two fields was taken, by FFmpeg's ``bwdif``."""
    name, options, frames = "setfield", "prog", [frame]
    if min(frame.width, frame.height) >= _MIN_DEINTERLACED:
        name, options = "bwdif", "mode=send_frame:deint=interlaced"
        shape = frame.width, frame.height, frame.format.name
        frames = [
            each for each in (before, frame, after) if each and (each.width, each.height, each.format.name) == shape
        ]
    graph = Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frames[0].time_base or Fraction(1, 1000)
    )
    graph.link_nodes(source, graph.add(name, options), graph.add("buffersink")).configure()
    for each in [*frames, None]:
        graph.vpush(each)
    for _ in range(frames.index(frame)):
        graph.vpull()
    return graph.vpull()
