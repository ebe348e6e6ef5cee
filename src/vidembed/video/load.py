"""A video source becomes a clip: the entry points of reading."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from vidembed.errors import InvalidVideoInput, VideoError
from vidembed.video import clip
from vidembed.video.clip import Clip, Deadline, DecodeLimits, Sampling, VideoFrames, VideoSegment, VideoSource
from vidembed.video.container import DEFAULT_THREADS, open_source
from vidembed.video.decord import require_decord
from vidembed.video.fetch import UrlAccess
from vidembed.video.picture import Colour, describe
from vidembed.video.pool import DecodePool
from vidembed.video.reader import FrameReader, check_options, read_windows
from vidembed.video.segments import packet_extent

DEFAULT_SAMPLING: Final = Sampling()
PROBE_LIMITS: Final = DecodeLimits(timeout_s=60.0)


def load_video(
    source: VideoSource,
    sampling: Sampling = DEFAULT_SAMPLING,
    *,
    backend: str = "pyav",
    allow_url: UrlAccess = False,
    limits: DecodeLimits = clip.DEFAULT_LIMITS,
    threads: int = DEFAULT_THREADS,
    stream: int | None = None,
) -> Clip:
    """Read the frames of a video that a model is to see.

    Frames are chosen by presentation time: for each time of ``sampling``'s grid, the frame on show then. Frames given
    as arrays are sampled on the same grid by their own times. A :class:`Clip` of this sampling is returned as it is.

    Args:
        source: What to read (see :data:`vidembed.video.VideoSource`).
        sampling: How frames are chosen and how large they may be.
        backend: ``"pyav"`` (default) or ``"decord"`` (extra ``decord``; local mp4, mov, mkv, webm files).
        allow_url: Whether http and https addresses may be fetched (see `vidembed.video.fetch.UrlAccess`).
        limits: On time, a download included, and on its bytes (``vidembed.DecodeLimits``). Default: 600 s and 2 GiB.
        threads: Decoding threads of PyAV, at least 1. Default 4; 1 does the least work, for a caller that reads several
            videos at once. Frames are the same.
        stream: Index of a video stream in its container (``VideoInfo.streams`` of :func:`vidembed.video.load`).
            Default ``None``: the one that ffmpeg would choose. For files read with PyAV.

    Returns:
        The clip. Its times count from the start of a segment (see :class:`vidembed.video.Clip`).

    Raises:
        VideoError: If it cannot be read; the subclass says why (`InvalidVideoInput`: it is malformed, or a `Clip` that
            was sampled otherwise), and the message names the item.
        ValueError: If ``backend`` or ``threads`` is none of those allowed.
        TypeError: If ``sampling`` is no :class:`Sampling`.

    Warns:
        VideoTruncated: If the video ends over one second before the duration it declares.
    """
    item = _check(source, sampling, backend, threads, stream)
    if isinstance(source, Clip):
        if source.sampling != sampling:
            known = "does not say how it was sampled" if source.sampling is None else f"was read with {source.sampling}"
            reason = f"the clip {known}, but {sampling} is needed; read it with this sampling, or give the video itself"
            raise InvalidVideoInput(item, reason)
        return source
    inner, start, end = source, 0.0, None
    if isinstance(source, VideoSegment):
        inner, start, end = source.path, source.start, source.end
    if isinstance(inner, (VideoFrames, Mapping)):
        return clip.sample_frames(inner, sampling, item=item, start=start, end=end)
    if backend == "decord":
        require_decord(item)
        if not isinstance(inner, (str, os.PathLike)) or clip.is_url(inner):
            raise InvalidVideoInput(item, "backend='decord' reads local files by their path; use backend='pyav'")
        # in a process that can be killed: decord may loop or crash in native code
        with DecodePool(workers=1, limits=replace(limits, max_memory_bytes=None), backend="decord") as pool:
            (found,) = pool.submit(source if isinstance(source, VideoSegment) else inner, sampling)
        if isinstance(found, VideoError):
            raise found
        return found
    windows = [(start, end, item)]
    (read,) = read_windows(
        inner, windows, sampling, item=item, allow_url=allow_url, limits=limits, threads=threads, stream=stream
    )
    return read


def _check(source: VideoSource, sampling: object, backend: str, threads: int, stream: object) -> str:
    check_options(backend, threads)
    clip.check_sampling(sampling)
    item = clip.item_name(source)
    if stream is None:
        return item
    if isinstance(stream, bool) or not isinstance(stream, int):
        raise InvalidVideoInput(item, f"stream={stream!r}: expected the index of a video stream, or None")
    inner = source.path if isinstance(source, VideoSegment) else source
    if backend != "pyav" or isinstance(inner, (Clip, VideoFrames, Mapping)):
        reason = f"stream={stream}: a stream can be chosen only with a file and backend='pyav'"
        raise InvalidVideoInput(item, reason)
    return item


def load_segments(
    path: VideoSource,
    segments: Sequence[tuple[float, float | None]],
    sampling: Sampling = DEFAULT_SAMPLING,
    *,
    backend: str = "pyav",
    allow_url: UrlAccess = False,
    limits: DecodeLimits = clip.DEFAULT_LIMITS,
    threads: int = DEFAULT_THREADS,
    stream: int | None = None,
) -> Iterator[Clip]:
    """Read several segments of one video in one decoding pass.

    Each clip equals ``load_video(VideoSegment(path, start, end), sampling)``, and what is not named here is as there.
    ``"decord"`` opens and decodes the file anew for each. The video is any single source that is no segment; segments
    are in order of their starts, and may overlap. The limit of time is that of the whole pass, what the caller does
    between clips included; with ``"decord"``, that of each segment.

    Yields:
        One clip a segment, in the order given. Only the segments being read at one moment are held in memory.

    Raises:
        InvalidVideoInput: If a segment is malformed, lies outside the video, or they are not ordered by start.
        VideoError: As in :func:`load_video`; it ends the pass.
    """
    item = _check(path, sampling, backend, threads, stream)
    if isinstance(path, (VideoSegment, Clip)):
        raise InvalidVideoInput(item, "load_segments needs the whole video; give the times in `segments`")
    parts = clip.ordered_segments(path, segments)
    if not parts or backend == "decord" or isinstance(path, (VideoFrames, Mapping)):
        return (load_video(part, sampling, backend=backend, limits=limits) for part in parts)
    windows = [(part.start, part.end, clip.item_name(part)) for part in parts]
    return read_windows(
        path, windows, sampling, item=item, allow_url=allow_url, limits=limits, threads=threads, stream=stream
    )


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video before it is decoded.

    Attributes:
        item: Its name in messages.
        duration: Seconds, as the video stream declares it. ``None`` where it does not, or cannot be trusted to
            (transport and program streams, live recordings): ``load_video`` finds it by reading.
        fps: Average frame rate as declared, frames per second, or ``None``.
        width, height: Pixels of an unscaled frame, upright and with square pixels.
        codec: FFmpeg's name, such as ``"h264"``; ``"raw"`` for frames given as arrays.
        container: FFmpeg's name, such as ``"matroska,webm"``; ``"frames"`` for arrays.
        rotation: Degrees counter-clockwise, 0, 90, 180 or 270, by which decoded pictures are set upright.
        mirrored: Whether they are mirrored left to right before.
        stream, streams: Index of the video stream that is read, and of all video streams, cover art included.
        colour: The tags of the first frame, and what is done about them; ``None`` for arrays.
        interlaced: Whether the first frame is flagged as interlaced. Such frames are deinterlaced.
        num_frames_estimate: Frames in the stream: declared, else ``round(duration * fps)``, else ``None``.
        start_s: When the first frame comes on show, seconds on the clock of a player. It ends ``duration`` later.
        discontinuities: How often the clock starts again or jumps, as in joined recordings; ``None`` without ``scan``.
    """

    item: str
    duration: float | None
    fps: float | None
    width: int
    height: int
    codec: str
    container: str
    rotation: int
    num_frames_estimate: int | None
    has_audio: bool
    start_s: float = 0.0
    discontinuities: int | None = None
    mirrored: bool = False
    stream: int = 0
    streams: tuple[int, ...] = (0,)
    colour: Colour | None = None
    interlaced: bool = False


def probe(
    source: VideoSource,
    *,
    scan: bool = False,
    allow_url: UrlAccess = False,
    limits: DecodeLimits = PROBE_LIMITS,
    stream: int | None = None,
) -> VideoInfo:
    """Describe a video; of a segment, the whole video it is cut from.

    Args:
        source: What to describe (see :data:`vidembed.video.VideoSource`).
        scan: Also read the rest of the file, without decoding it, to count discontinuities of its clock.
        allow_url: Whether http and https addresses may be fetched (whole; see `vidembed.video.fetch.UrlAccess`).
        limits: On time, a download included, and on its bytes. Default: 60 s and 2 GiB.
        stream: As in :func:`vidembed.video.load_video`.

    Raises:
        VideoError: As :func:`vidembed.video.load_video` for what shows by the first frame.
    """
    inner = source.path if isinstance(source, VideoSegment) else source
    item = clip.item_name(inner)
    if isinstance(inner, (VideoFrames, Mapping)):
        frames, _ = clip.as_frames(inner, item)
        count, height, width = frames.array.shape[:3]
        known = item, count / frames.fps, frames.fps, width, height
        return VideoInfo(*known, "raw", "frames", 0, count, has_audio=False, discontinuities=0 if scan else None)
    deadline = Deadline(limits.timeout_s, item)
    with (
        open_source(inner, item, allow_url=allow_url, limits=limits) as handle,
        FrameReader(handle, item, deadline, index=stream) as reader,
    ):
        first = reader.first()
        geometry = reader.geometry(first, None)
        height, width, _ = geometry.shape
        streams, duration = reader.container.streams, reader.duration
        fps = None if reader.rate is None else float(reader.rate)
        if scan:
            packet_extent(reader)
        count = reader.stream.frames or (round(duration * fps) if duration and fps else None)
        return VideoInfo(
            *(item, duration, fps, width, height, reader.stream.codec_context.name, reader.container.format.name),
            rotation=90 * geometry.turns,
            num_frames_estimate=count,
            has_audio=any(other.type == "audio" for other in streams),
            start_s=reader.start,
            discontinuities=reader.discontinuities if scan else None,
            mirrored=geometry.mirrored,
            stream=reader.stream.index,
            streams=tuple(other.index for other in streams if other.type == "video"),
            colour=describe(first.frame),
            interlaced=first.frame.interlaced_frame,
        )
