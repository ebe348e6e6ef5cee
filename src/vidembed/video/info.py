"""What is known of a video before it is decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from vidembed.video import clip
from vidembed.video.clip import Deadline, DecodeLimits, VideoFrames, VideoSegment, VideoSource
from vidembed.video.container import open_source
from vidembed.video.fetch import UrlAccess
from vidembed.video.load import as_frames
from vidembed.video.picture import Colour, describe
from vidembed.video.reader import FrameReader
from vidembed.video.segments import packet_extent

PROBE_LIMITS: Final = DecodeLimits(timeout_s=60.0)


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
        source: What to describe (see `vidembed.video.VideoSource`).
        scan: Also read the rest of the file, without decoding it, to count discontinuities of its clock.
        allow_url: Whether http and https addresses may be fetched (whole; see `vidembed.video.fetch.UrlAccess`).
        limits: On time, a download included, and on its bytes. Default: 60 s and 2 GiB.
        stream: As in `vidembed.video.load_video`.

    Raises:
        VideoError: As `vidembed.video.load_video` for what shows by the first frame.
    """
    inner = source.path if isinstance(source, VideoSegment) else source
    item = clip.item_name(inner)
    if isinstance(inner, (VideoFrames, Mapping)):
        frames, _ = as_frames(inner, item)
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
