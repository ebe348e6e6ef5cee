"""Writes videos whose pictures must be converted to be seen as they are meant: turned, mirrored, HDR, interlaced."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.filter import Graph
from numpy.typing import NDArray

ONE = 2**16  # 1 in a display matrix
MATRICES = [
    *((a * ONE, 0, 0, d * ONE) for a in (1, -1) for d in (1, -1)),
    *((0, b * ONE, c * ONE, 0) for b in (1, -1) for c in (1, -1)),
]
"""The eight orthogonal matrices: ``a, b, c, d``, a point goes to ``(a x + c y, b x + d y)``."""
PQ, HLG, BT709 = 16, 18, 1
"""Transfer characteristics by their numbers in ITU-T H.273."""

_BT2020 = 9
_TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # ITU-R BT.2087
_FILTERED = {"libx264": {"preset": "ultrafast", "crf": "12"}, "libx265": {"preset": "ultrafast", "crf": "12"}}


def stored(upright: NDArray[np.uint8], matrix: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Return the picture ``(H, W, 3)`` that one of `MATRICES` shows as ``upright``."""
    height, width = upright.shape[:2]
    a, b, c, d = (value // ONE for value in matrix)
    rows, columns = (height, width) if a else (width, height)
    y, x = np.mgrid[0:rows, 0:columns]
    right, down = a * x + c * y, b * x + d * y
    return upright[down - down.min(), right - right.min()]


def _frames(pictures: NDArray[np.uint8], fps: int, kind: str) -> Iterator[av.VideoFrame]:
    for number, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=kind)
        frame.pts, frame.time_base = number, Fraction(1, fps)
        yield frame


def _encode(
    path: Path,
    frames: Iterator[av.VideoFrame],
    fps: int,
    codec: str,
    matrix: Any = None,
    options: Any = None,
    **fields: Any,
) -> Path:
    with av.open(str(path), "w") as container:
        first = next(frames)
        stream: Any = container.add_stream(codec, rate=fps, options={**_FILTERED.get(codec, {}), **(options or {})})
        stream.width, stream.height = first.width, first.height
        stream.pix_fmt = fields.pop("pix_fmt", "yuv420p")
        for name, value in fields.items():
            setattr(stream.codec_context, name, value)
        if matrix is not None:
            a, b, c, d = matrix
            stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 2**30])
        for frame in (first, *frames):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_plain(
    path: Path, pictures: NDArray[np.uint8], fps: int, *, matrix: Any = None, codec: str = "libx264", **fields: Any
) -> Path:
    """Write ``(T, H, W, 3)`` pictures as they are, with a display matrix ``a, b, c, d`` if one is given."""
    return _encode(path, _frames(pictures, fps, "rgb24"), fps, codec, matrix=matrix, **fields)


def write_turned(path: Path, pictures: NDArray[np.uint8], fps: int, matrix: tuple[int, int, int, int]) -> Path:
    """Write pictures so that one of `MATRICES` shows them as given."""
    return write_plain(path, np.stack([stored(each, matrix) for each in pictures]), fps, matrix=matrix)


def _signal(light: NDArray[np.float64], transfer: int) -> NDArray[np.float64]:
    """Return the signal of BT.2020 light in cd/m2, by the formulas of ITU-R BT.2100 (of SDR: white is 203 cd/m2)."""
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
        root = (light / 10_000) ** m1
        return np.asarray(((c1 + c2 * root) / (1 + c3 * root)) ** m2)
    if transfer == HLG:
        shown = light / 1000
        luma = (shown @ [0.2627, 0.6780, 0.0593])[..., None]
        scene = shown * np.where(luma > 0, luma, 1) ** (-0.2 / 1.2)
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)
    return np.asarray((light / 203) ** (1 / 2.4))


def write_bt2020(
    path: Path, pictures: NDArray[np.uint8], fps: int, transfer: int, *, codec: str = "ffv1", **tags: int
) -> Path:
    """Write SDR pictures ``(T, H, W, 3)`` as BT.2020 with 10 bits and a transfer: what is white there is 203 cd/m2."""

    def frames() -> Iterator[av.VideoFrame]:
        for number, picture in enumerate(pictures):
            light = 203 * (picture / 255) ** 2.4 @ _TO_BT2020.T  # (H, W, 3)
            red, green, blue = np.moveaxis(_signal(light, transfer), -1, 0)
            luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
            planes = (64 + 876 * luma, 512 + 896 * (blue - luma) / 1.8814, 512 + 896 * (red - luma) / 1.4746)
            frame = av.VideoFrame(picture.shape[1], picture.shape[0], "yuv444p10le")
            for plane, values in zip(frame.planes, planes, strict=True):
                rows = np.zeros((plane.height, plane.line_size // 2), dtype="<u2")
                rows[:, : plane.width] = np.rint(values)
                plane.update(rows)
            frame.pts, frame.time_base = number, Fraction(1, fps)
            frame.colorspace, frame.color_range = _BT2020, 1
            frame.color_trc, frame.color_primaries = transfer, _BT2020
            yield frame

    fields = {"colorspace": _BT2020, "color_range": 1, "color_trc": transfer, "color_primaries": _BT2020, **tags}
    options = {"x265-params": "log-level=none:pools=1:frame-threads=1"} if codec == "libx265" else None
    return _encode(path, frames(), fps, codec, options=options, pix_fmt="yuv444p10le", **fields)


def write_interlaced(path: Path, pictures: NDArray[np.uint8], fps: int, *, codec: str = "libx264") -> Path:
    """Write two pictures of ``(T, H, W, 3)`` to a frame, the upper lines first, so that there are T // 2 frames."""
    planes = [list(_frames(pictures[:, field::2], fps, "rgb24")) for field in (0, 1)]

    def frames() -> Iterator[av.VideoFrame]:
        size = pictures.shape[2], pictures.shape[1]
        graph = Graph()
        source = graph.add_buffer(width=size[0], height=size[1], format="yuv420p", time_base=Fraction(1, fps))
        graph.link_nodes(source, graph.add("setfield", "tff"), graph.add("buffersink")).configure()
        for number, fields in enumerate(zip(planes[0][::2], planes[1][1::2], strict=False)):
            frame = av.VideoFrame(*size, "yuv420p")
            halves = [field.reformat(format="yuv420p") for field in fields]
            for plane, *parts in zip(frame.planes, *(half.planes for half in halves), strict=True):
                rows = np.zeros((plane.height, plane.line_size), dtype=np.uint8)
                for first, part in enumerate(parts):
                    found = np.frombuffer(part, dtype=np.uint8).reshape(-1, part.line_size)  # type: ignore[call-overload]
                    rows[first::2, : plane.width] = found[: len(rows[first::2]), : part.width]
                plane.update(rows)
            frame.pts, frame.time_base = number, Fraction(1, fps)
            graph.vpush(frame)
            yield graph.vpull()

    options = {"x264-params": "tff=1"} if codec == "libx264" else {"flags": "+ildct+ilme"}
    return _encode(
        path, frames(), fps, codec, options=options, **({} if codec == "libx264" else {"bit_rate": 8_000_000})
    )
