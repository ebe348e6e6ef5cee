"""Makes the videos that the tests of reading need. Every frame carries its number, so that it can be told
after lossy compression, scaling, rotation and retiming which one came back, upright and in the right colours.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.stream
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 160, 96
COLOURS = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)], dtype=np.uint8)
BITS, CHECK = 12, 4  # a counter and the bits that guard it: two rows of eight blocks


def _checksum(number: int) -> int:
    return (number ^ (number >> 4) ^ (number >> 8) ^ 0b1010) & 0b1111


def draw(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """Draw a frame ``(height, width, 3)``: a row of red, green, blue, white, then sixteen black or white blocks."""
    code = number | _checksum(number) << BITS
    rows = np.zeros((3, 8, 3), dtype=np.uint8)
    rows[0] = np.repeat(COLOURS, 2, axis=0)
    for bit in range(BITS + CHECK):
        rows[1 + bit // 8, bit % 8] = 255 * (code >> bit & 1)
    y = np.arange(height) * 3 // height
    x = np.arange(width) * 8 // width
    return rows[y[:, None], x[None, :]]


def read(frame: NDArray[np.uint8]) -> int | None:
    """Return the number of a frame, or ``None`` if it is not one of ours, upright and in its colours."""
    height, width = frame.shape[:2]
    blocks = np.zeros((3, 8, 3))
    for row in range(3):
        for column in range(8):
            y0, y1 = (row + 0.3) * height / 3, (row + 0.7) * height / 3
            x0, x1 = (column + 0.3) * width / 8, (column + 0.7) * width / 8
            blocks[row, column] = frame[int(y0) : int(y1) + 1, int(x0) : int(x1) + 1].mean(axis=(0, 1))
    if np.abs(blocks[0] - np.repeat(COLOURS, 2, axis=0)).max() > 90:
        return None
    bits = (blocks[1:].mean(axis=-1).reshape(-1) > 127).astype(int)
    code = int((bits << np.arange(BITS + CHECK)).sum())
    number = code & (1 << BITS) - 1
    return number if code >> BITS == _checksum(number) else None


@dataclass(frozen=True)
class Made:
    """A video that was made.

    Attributes:
        path: Where it lies.
        numbers: The number on each frame, in order of presentation.
        times: When each comes on show, in seconds from the first.
        duration: When the last one ends.
    """

    path: Path
    numbers: NDArray[np.int64]
    times: NDArray[np.float64]
    duration: float

    def shown_at(self, times: Sequence[float] | NDArray[np.float64]) -> list[int]:
        """Return the numbers of the frames on show at ``times``."""
        places = np.searchsorted(self.times, np.asarray(times) + 1e-4, side="right") - 1
        return [int(x) for x in self.numbers[places]]


@dataclass
class Recipe:
    """How a video is encoded; see :func:`encode`."""

    codec: str = "libx264"
    frames: int = 90
    rate: int = 30
    ticks: Sequence[int] | None = None
    gop: int = 30
    b_frames: int = 2
    options: dict[str, str] = field(default_factory=dict)
    pix_fmt: str = "yuv420p"
    size: tuple[int, int] = (WIDTH, HEIGHT)
    format: str | None = None
    muxer: dict[str, str] = field(default_factory=dict)
    aspect: Fraction | None = None
    rotation: int = 0
    audio_s: float = 0.0
    first_tick: int = 0


def _add_audio(container: Any, seconds: float) -> tuple[Any, Callable[[], None]]:
    stream = container.add_stream("aac", rate=16000, layout="mono")

    def write() -> None:
        count = int(seconds * 16000) // 1024
        for i in range(count):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, i * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode())

    return stream, write


def encode(target: Path | Any, recipe: Recipe) -> None:
    """Encode a video to a path or writable file object."""
    ticks = list(range(recipe.frames)) if recipe.ticks is None else list(recipe.ticks)
    width, height = recipe.size
    name = str(target) if isinstance(target, Path) else target
    with av.open(name, "w", format=recipe.format, options=recipe.muxer) as container:
        options = {"threads": "1", **recipe.options}
        if recipe.codec == "libx264":
            options = {"preset": "ultrafast", "crf": "18", "sc_threshold": "0", **options}
        stream: Any = container.add_stream(recipe.codec, rate=recipe.rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, recipe.pix_fmt
        context = stream.codec_context
        context.time_base = Fraction(1, recipe.rate)
        context.gop_size = recipe.gop
        if recipe.codec in {"libx264", "mpeg4", "mpeg2video"}:
            context.max_b_frames = recipe.b_frames
        if recipe.codec in {"mpeg4", "mpeg2video", "wmv2", "mjpeg"}:
            context.bit_rate = 3_000_000
        if recipe.aspect is not None:
            context.sample_aspect_ratio = recipe.aspect
        if recipe.rotation:
            stream.set_display_rotation(recipe.rotation)
        audio = _add_audio(container, recipe.audio_s)[1] if recipe.audio_s else None
        for number, tick in enumerate(ticks):
            picture = draw(number, width, height)
            if recipe.rotation:
                picture = np.ascontiguousarray(np.rot90(draw(number, height, width), -recipe.rotation // 90))
                if recipe.rotation == 180:
                    picture = np.ascontiguousarray(np.rot90(draw(number, width, height), 2))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = tick + recipe.first_tick, Fraction(1, recipe.rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            audio()


_DENSE_THEN_SPARSE = [n for n in range(300) if n < 60 or n % 15 == 0]
_GAP = [*range(30), *range(450, 480)]
_OPEN_GOP = {"x264-params": "keyint=48:open-gop=1:scenecut=0:b-adapt=0", "bf": "4"}
_SVT = {"preset": "10", "svtav1-params": "lp=1", "crf": "8"}
_X265 = {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:frame-threads=1:keyint=30"}
_X265_CLOSED = {**_X265, "x265-params": _X265["x265-params"] + ":open-gop=0"}
_VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0"}

RECIPES: dict[str, Recipe] = {
    "h264.mp4": Recipe(),
    "h264.mkv": Recipe(),
    "h264.mov": Recipe(),
    "h264.flv": Recipe(),
    "vfr.mp4": Recipe(ticks=_DENSE_THEN_SPARSE, b_frames=0),
    "vfr.mkv": Recipe(ticks=_DENSE_THEN_SPARSE, b_frames=0),
    "gap.mp4": Recipe(ticks=_GAP),
    "gap.mkv": Recipe(ticks=_GAP),
    "long_gop.mp4": Recipe(frames=300, gop=600, b_frames=8, options={"preset": "veryfast"}),
    "open_gop.mp4": Recipe(frames=240, b_frames=4, gop=48, options={"preset": "veryfast", **_OPEN_GOP}),
    "open_gop.mkv": Recipe(frames=240, b_frames=4, gop=48, options={"preset": "veryfast", **_OPEN_GOP}),
    "mpeg4_b.avi": Recipe("mpeg4"),
    "mjpeg.avi": Recipe("mjpeg", frames=45, pix_fmt="yuvj420p"),
    "h264.ts": Recipe(frames=150, gop=250),
    "h264.m2ts": Recipe(format="mpegts", muxer={"mpegts_m2ts_mode": "1"}),
    "mpeg2.mpg": Recipe("mpeg2video", format="vob"),
    "wmv2.wmv": Recipe("wmv2"),
    "vp9.webm": Recipe("libvpx-vp9", frames=60, options=_VP9),
    "av1.mp4": Recipe("libsvtav1", frames=60, options=_SVT),
    "hevc.mp4": Recipe("libx265", frames=60, options=_X265),
    "hevc_closed.mp4": Recipe("libx265", frames=60, options=_X265_CLOSED),
    "hevc10.mkv": Recipe("libx265", frames=45, pix_fmt="yuv420p10le", options=_X265),
    "prores10.mov": Recipe("prores_ks", frames=30, pix_fmt="yuv422p10le"),
    "rotated90.mp4": Recipe(rotation=90, frames=45),
    "rotated180.mp4": Recipe(rotation=180, frames=45),
    "rotated270.mp4": Recipe(rotation=270, frames=45),
    "wide_pixels.mp4": Recipe(aspect=Fraction(16, 9), frames=45),
    "narrow_pixels.mkv": Recipe(aspect=Fraction(3, 4), frames=45),
    "odd_size.mkv": Recipe(size=(161, 97), pix_fmt="yuv444p", frames=45),
    "one.mp4": Recipe(frames=1),
    "one.mkv": Recipe(frames=1),
    "one.gif": Recipe("gif", frames=1, rate=10, pix_fmt="rgb8"),
    "loop.gif": Recipe("gif", frames=30, rate=10, pix_fmt="rgb8"),
    "start5.mp4": Recipe(first_tick=150),
    "start5.mkv": Recipe(first_tick=150),
    "start5.ts": Recipe(first_tick=150),
    "with_audio.mp4": Recipe(audio_s=3.0),
    "long_audio.mp4": Recipe(audio_s=10.0),
    "long_audio.mkv": Recipe(audio_s=10.0),
    "fragmented.mp4": Recipe(muxer={"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
    "one_fps.mp4": Recipe(rate=1, frames=12, b_frames=0),
    "faststart.mp4": Recipe(frames=300, muxer={"movflags": "faststart"}),
    "seek.mp4": Recipe(frames=900, gop=15, options={"crf": "24"}),
    "seek.mkv": Recipe(frames=900, gop=15, options={"crf": "24"}),
    "seek_open.mp4": Recipe(
        frames=600,
        gop=24,
        b_frames=4,
        options={"preset": "veryfast", "bf": "4", "x264-params": "keyint=24:open-gop=1:scenecut=0:b-adapt=0"},
    ),
    "raw.h264": Recipe(format="h264"),
}
"""The videos made by encoding alone. Their expected times are ``ticks / rate``."""


class _Pipe(io.RawIOBase):
    """A file object that cannot seek, so that a muxer cannot go back to write a duration."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.data += bytes(data)
        return len(data)


class Zoo:
    """Makes videos on demand, once each, in a folder.

    Args:
        root: An empty folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: dict[str, Made] = {}

    def __getitem__(self, name: str) -> Made:
        """Return the video ``name``, one of :data:`RECIPES` or of the methods ``_make_*`` (dots become underscores)."""
        if name not in self._made:
            if name in RECIPES:
                encode(self.root / name, RECIPES[name])
                self._made[name] = self._describe(self.root / name, RECIPES[name])
            else:
                self._made[name] = getattr(self, "_make_" + name.replace(".", "_"))(self.root / name)
        return self._made[name]

    def path(self, name: str) -> Path:
        """Return the path of the video ``name``."""
        return self[name].path

    def _describe(self, path: Path, recipe: Recipe) -> Made:
        ticks = np.arange(recipe.frames) if recipe.ticks is None else np.asarray(recipe.ticks)
        return Made(path, np.arange(len(ticks)), ticks / recipe.rate, float(ticks[-1] + 1) / recipe.rate)

    def _same(self, path: Path, data: bytes, model: str) -> Made:
        path.write_bytes(data)
        made = self[model]
        return Made(path, made.numbers, made.times, made.duration)

    def _make_live_mkv(self, path: Path) -> Made:
        """Matroska written to a pipe: no duration anywhere, 300 frames."""
        recipe, pipe = Recipe(frames=300, format="matroska", muxer={"live": "1"}), _Pipe()
        encode(pipe, recipe)
        path.write_bytes(bytes(pipe.data))
        return self._describe(path, recipe)

    def _make_cut_mp4(self, path: Path) -> Made:
        """A stream copy from 3.3 s on, whose edit list hides the frames from the key frame to there."""
        source, skip = self["long_gop.mp4"], Fraction(33, 10)
        with av.open(str(source.path)) as old, av.open(str(path), "w") as new:
            stream = new.add_stream_from_template(old.streams.video[0])
            for packet in old.demux(old.streams.video[0]):
                if packet.dts is None or packet.pts is None:
                    continue
                shift = int(skip / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                new.mux(packet)
        times = source.times[99:] - 3.3
        return Made(path, source.numbers[99:], times, source.duration - 3.3)

    def _make_joined_ts(self, path: Path) -> Made:
        """Two transport streams end to end: the clock starts again."""
        part = self["start5.ts"]
        data = part.path.read_bytes()
        path.write_bytes(data + data)
        times = np.concatenate([part.times, part.times + part.duration])
        return Made(path, np.concatenate([part.numbers, part.numbers]), times, 2 * part.duration)

    def _make_resized_ts(self, path: Path) -> Made:
        """Two transport streams of different picture sizes end to end."""
        small, part = self.root / "small.ts", self["start5.ts"]
        encode(small, Recipe(size=(128, 80)))
        path.write_bytes(part.path.read_bytes() + small.read_bytes())
        times = np.concatenate([part.times, part.times + part.duration])
        return Made(path, np.concatenate([part.numbers, part.numbers]), times, 2 * part.duration)

    def _make_two_streams_mkv(self, path: Path) -> Made:
        """A small first video stream, numbered from 1000, and a larger second one, both of them default."""
        with av.open(str(path), "w") as container:
            streams: list[Any] = []
            for size in ((WIDTH, HEIGHT), (2 * WIDTH, 2 * HEIGHT)):
                stream: Any = container.add_stream("mpeg4", rate=30)
                stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 4_000_000
                streams.append(stream)
            for i in range(45):
                for stream, number in zip(streams, (1000 + i, i), strict=True):
                    frame = av.VideoFrame.from_ndarray(draw(number, stream.width, stream.height), format="rgb24")
                    frame.pts, frame.time_base = i, Fraction(1, 30)
                    container.mux(stream.encode(frame))
            for stream in streams:
                container.mux(stream.encode())
        return Made(path, np.arange(45), np.arange(45) / 30, 1.5)

    def _cover(self, path: Path, codec: str) -> None:
        with av.open(str(path), "w") as container:
            audio: Any = container.add_stream(codec, rate=16000, layout="mono")
            cover: Any = container.add_stream("mjpeg", rate=25)
            cover.width, cover.height, cover.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
            frame = av.VideoFrame.from_ndarray(draw(1), format="rgb24")
            frame.pts, frame.time_base = 0, Fraction(1, 25)
            container.mux(cover.encode(frame))
            container.mux(cover.encode())
            sound = "fltp" if codec == "aac" else "s16p"
            for i in range(20):
                silence = np.zeros((1, 1024), dtype=np.float32 if sound == "fltp" else np.int16)
                chunk = av.AudioFrame.from_ndarray(silence, format=sound, layout="mono")
                chunk.sample_rate, chunk.pts = 16000, i * 1024
                container.mux(audio.encode(chunk))
            container.mux(audio.encode())

    def _nothing(self, path: Path) -> Made:
        return Made(path, np.arange(0), np.zeros(0), 0.0)

    def _make_cover_mp3(self, path: Path) -> Made:
        self._cover(path, "libmp3lame")
        return self._nothing(path)

    def _make_cover_mp4(self, path: Path) -> Made:
        self._cover(path, "aac")
        return self._nothing(path)

    def _make_audio_m4a(self, path: Path) -> Made:
        with av.open(str(path), "w", format="mp4") as container:
            _add_audio(container, 2.0)[1]()
        return self._nothing(path)

    def cut(self, name: str, share: float) -> Path:
        """Return a copy of the video ``name`` of which only the first ``share`` of the bytes is there."""
        whole = self.path(name)
        path = self.root / f"cut{round(100 * share)}_{name}"
        path.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * share)])
        return path

    def zeroed(self, name: str, begin: float, end: float) -> Path:
        """Return a copy of the video ``name`` with the bytes between two shares of its length zeroed."""
        data = bytearray(self.path(name).read_bytes())
        first, last = int(len(data) * begin), int(len(data) * end)
        data[first:last] = bytes(last - first)
        path = self.root / f"zeroed{round(100 * begin)}_{name}"
        path.write_bytes(bytes(data))
        return path

    def patched(self, name: str, old: bytes, new: bytes) -> Path:
        """Return a copy of the video ``name`` with some bytes replaced, wherever they occur."""
        data = self.path(name).read_bytes()
        if old not in data or len(old) != len(new):
            raise ValueError(f"{old!r} is not in {name}, or {new!r} is of another length")
        path = self.root / f"patched_{name}"
        path.write_bytes(data.replace(old, new))
        return path


def open_files() -> int:
    """Return the number of file descriptors this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def native_threads() -> int:
    """Return the number of threads of this process, those of native libraries included."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())
