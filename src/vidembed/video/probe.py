"""What a video declares about itself, without decoding more than its first frame."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vidembed.video import colour
from vidembed.video.colour import Colour
from vidembed.video.download import MAX_DOWNLOAD_BYTES, UrlAccess
from vidembed.video.errors import CorruptVideo
from vidembed.video.frames import from_mapping
from vidembed.video.opening import open_source
from vidembed.video.reader import Deadline, FrameReader
from vidembed.video.source import VideoFrames, VideoSegment, VideoSource, item_name


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video before it is decoded.

    Attributes:
        item: Its name in messages.
        duration: Seconds, as the video stream declares it. ``None`` where it does not, or cannot be trusted to
            (transport and program streams, live recordings): ``load_video`` finds it by reading.
        fps: Average frame rate as declared, frames per second, or ``None``.
        width: Pixels, upright and with square pixels: the width of an unscaled frame.
        height: Pixels, likewise.
        codec: FFmpeg's name of the decoder's codec, such as ``"h264"``; ``"raw"`` for frames given as arrays.
        container: FFmpeg's name of the container, such as ``"matroska,webm"``; ``"frames"`` for arrays.
        rotation: Degrees counter-clockwise, 0, 90, 180 or 270, by which decoded pictures are set upright.
        mirrored: Whether they are mirrored left to right before.
        stream: Index of the video stream that is read.
        streams: Indices of all video streams, cover art included.
        colour: The tags of the first frame, and what is done about them; ``None`` for arrays.
        interlaced: Whether the first frame is flagged as interlaced. Such frames are deinterlaced.
        num_frames_estimate: Frames in the stream: declared, else ``round(duration * fps)``, else ``None``.
        has_audio: Whether there is an audio stream.
        start_s: When the first frame comes on show, seconds on the clock of a player, which shows the start of the
            earliest stream as 0. The video ends at ``start_s + duration``.
        discontinuities: How often the clock starts again or jumps, as in joined recordings; times go on without a gap
            there. ``None`` unless ``scan`` was asked for.
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
    timeout_s: float | None = 60.0,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
    stream: int | None = None,
) -> VideoInfo:
    """Describe a video; of a segment, the whole video it is cut from.

    Args:
        source: What to describe (see :data:`vidembed.video.VideoSource`).
        scan: Also read the rest of the file, without decoding it, to count discontinuities of its clock.
        allow_url: Whether http and https addresses may be fetched (whole): ``True`` from public addresses, or names
            of hosts, from these alone. Default False.
        timeout_s: Limit in seconds, ``None`` for none. Default 60.
        max_bytes: Limit on the size of a download. Default 2 GiB.
        stream: As in :func:`vidembed.video.load_video`.

    Raises:
        VideoError: As :func:`vidembed.video.load_video` for what shows by the first frame.
    """
    inner = source.path if isinstance(source, VideoSegment) else source
    item = item_name(inner)
    if isinstance(inner, Mapping):
        inner, _ = from_mapping(inner, item)
    if isinstance(inner, VideoFrames):
        count, height, width = inner.array.shape[:3]
        return VideoInfo(
            item=item,
            duration=count / inner.fps,
            fps=inner.fps,
            width=width,
            height=height,
            codec="raw",
            container="frames",
            rotation=0,
            num_frames_estimate=count,
            has_audio=False,
            discontinuities=0 if scan else None,
        )
    deadline = Deadline(timeout_s, item)
    with (
        open_source(inner, item, allow_url=allow_url, timeout_s=timeout_s, max_bytes=max_bytes) as handle,
        FrameReader(handle, item, deadline, stream=stream) as reader,
    ):
        info = describe(reader, item)
        if not scan:
            return info
        reader.survey()
        return replace(info, discontinuities=reader.discontinuities)


def describe(reader: FrameReader, item: str) -> VideoInfo:
    """Describe what ``reader`` has open; takes its first frame."""
    first = next(reader, None)
    if first is None:
        raise CorruptVideo(item, f"no frame could be decoded ({reader.errors} errors)")
    geometry = reader.geometry(first, None)
    height, width, _ = geometry.shape
    container, stream = reader.container, reader.stream
    fps = None if reader.rate is None else float(reader.rate)
    count = stream.frames or (round(reader.duration * fps) if reader.duration and fps else None)
    return VideoInfo(
        item=item,
        duration=reader.duration,
        fps=fps,
        width=width,
        height=height,
        codec=stream.codec_context.name,
        container=container.format.name,
        rotation=90 * geometry.turns,
        num_frames_estimate=count,
        has_audio=any(other.type == "audio" for other in container.streams),
        start_s=reader.start,
        mirrored=geometry.mirrored,
        stream=stream.index,
        streams=tuple(other.index for other in container.streams if other.type == "video"),
        colour=colour.describe(first.frame),
        interlaced=first.frame.interlaced_frame,
    )
