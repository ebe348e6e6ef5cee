"""Opening a video container safely, and what it declares about its video stream."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import av
import av.container
import av.error
import av.stream
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from vidembed.video.boxes import ENCRYPTED, MAX_STREAMS, check_boxes, check_streams
from vidembed.video.errors import (
    CorruptVideo,
    EncryptedVideo,
    NotAVideo,
    NoVideoStream,
    UnsupportedCodec,
    VideoError,
    VideoTooLarge,
)
from vidembed.video.geometry import MAX_AREA, check_size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from fractions import Fraction

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,asf,gif,ogg,mxf,nut,rm,dv,ivf,wtv,yuv4mpegpipe"
)
"""Containers that FFmpeg may recognize. Left out: playlists and concatenation lists, which open other files;
single pictures; audio; and raw streams, which have no times."""
SEEKABLE_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
"""Containers whose index is good enough to seek by (elsewhere seeking was seen to overshoot)."""
MAX_TIME = 1e6
"""Seconds (11 days). A later time is taken for a broken clock."""
DEFAULT_THREADS = 4
"""Decoding threads of one reader: more add memory and delay."""
BUFFER_BYTES = 2**18

_NO_CLOCK = ("mpegts", "mpeg")  # durations there are differences of clocks, which restart in joined files


def _is_raw_stream(head: bytes) -> bool:
    """Whether ``head`` starts like an H.264, HEVC, MPEG-1/2/4 or AV1 elementary stream."""
    match = re.match(rb"\x00\x00\x00?\x01(.)", head, re.DOTALL)
    if match is None:
        return head[:3] == b"\x12\x00\x0a"  # AV1: temporal delimiter, then a sequence header
    code = match[1][0]
    h264 = code & 0x1F in (6, 7, 9) and code < 0x80
    hevc = code in (0x40, 0x42, 0x44, 0x46, 0x4E)
    return h264 or hevc or code in (0xB0, 0xB3, 0xB5)


def _is_picture(head: bytes) -> bool:
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return webp or head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\x00", b"MM\x00*"))


def _is_audio(head: bytes) -> bool:
    wave = head[:4] == b"RIFF" and head[8:12] == b"WAVE"
    return wave or head.startswith((b"ID3", b"fLaC", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b"\xff\xf1"))


def _is_list(head: bytes) -> bool:
    return head.lstrip().startswith((b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD"))


def _is_video_start(head: bytes) -> bool:
    mp4 = head[4:8] in {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"}
    avi = head[:4] == b"RIFF" and head[8:12] == b"AVI "
    others = (b"\x1a\x45\xdf\xa3", b"FLV\x01", b"GIF8", b"\x30\x26\xb2\x75", b"OggS", b"\x00\x00\x01\xba")
    return mp4 or avi or head.startswith(others)


_REFUSALS: tuple[tuple[Callable[[bytes], bool], type[VideoError], str], ...] = (
    (_is_picture, NotAVideo, "a single picture; give it as an image instead"),
    (_is_audio, NoVideoStream, "an audio file, with no video stream"),
    (_is_list, NotAVideo, "a list of other files; such lists are not followed: give the videos themselves"),
    (
        _is_raw_stream,
        NotAVideo,
        (
            "a raw video stream without a container: it has no times, and a frame rate is never guessed. Put it into a "
            "container (ffmpeg -framerate RATE -i FILE -c copy out.mp4), or decode it and give VideoFrames(array, fps)"
        ),
    ),
    (_is_video_start, CorruptVideo, "it starts as a video and cannot be opened: cut short, or its index is lost"),
)


def _refusal(head: bytes, item: str, error: BaseException) -> VideoError:
    """Say by the first bytes why no allowed container was recognized."""
    for matches, kind, reason in _REFUSALS:
        if matches(head):
            return kind(item, reason)
    return NotAVideo(
        item, f"no video container was recognized in its content: text, noise, or an unknown format ({error})"
    )


@contextmanager
def open_container(handle: BinaryIO, item: str) -> Iterator[av.container.InputContainer]:
    """Open ``handle`` with the allowed containers only, and close it on every way out.

    Args:
        handle: Seekable, binary. It is handed over instead of a path, so that no name is taken for a protocol.
        item: Its name, for messages.

    Raises:
        NotAVideo: If the content is no video container.
        NoVideoStream: If it is an audio file.
        CorruptVideo: If it is a container that cannot be opened.
        EncryptedVideo: If its pictures are encrypted.
        VideoTooLarge: If it declares more than the limits of this package.
    """
    handle.seek(0)
    head = handle.read(64)
    check_boxes(handle, item)
    try:
        container = _open(handle, max_pixels=str(MAX_AREA))  # FFmpeg decodes first frames while it opens a file
    except av.error.MemoryError as error:
        raise VideoTooLarge(
            item, "opening it takes more memory than FFmpeg allocates, or than this process may have"
        ) from error
    except av.error.FFmpegError as error:
        raise _refusal(head, item, error) from error
    with container:
        check_streams(len(container.streams), item)
        videos = [stream for stream in container.streams if stream.type == "video"]
        if videos and all("enc_key_id" in map(str.lower, stream.metadata) for stream in videos):  # of Matroska, WebM
            raise EncryptedVideo(item, ENCRYPTED)
        yield container


def _open(handle: BinaryIO, **options: str) -> av.container.InputContainer:
    handle.seek(0)
    return av.open(
        handle,
        mode="r",
        options={"format_whitelist": FORMATS, "max_streams": str(MAX_STREAMS + 1), **options},
        metadata_errors="replace",
        buffer_size=BUFFER_BYTES,
    )


def check_declared_size(handle: BinaryIO, index: int, item: str) -> None:
    """Raise :class:`VideoTooLarge` for a stream whose header declares larger pictures than are read.

    For a stream of which FFmpeg decoded nothing while it opened the file, as it does not know such a one's size
    after. Here no decoder is opened.

    Args:
        handle: Of a file that could be opened.
        index: The stream's.
        item: Name for messages.
    """
    place = handle.tell()
    with _open(handle, codec_whitelist="none") as container:
        context = container.streams[index].codec_context if index < len(container.streams) else None
        if isinstance(context, VideoCodecContext):
            check_size(context.width, context.height, item)
    handle.seek(place)


def video_stream(container: av.container.InputContainer, item: str, threads: int = DEFAULT_THREADS) -> VideoStream:
    """Return the first video stream that is not cover art, ready to decode.

    Raises:
        NoVideoStream: If there is none.
        UnsupportedCodec: If it has no decoder.
        VideoTooLarge: If its pictures are above the limits of :mod:`vidembed.video.geometry`.
    """
    cover = av.stream.Disposition.attached_pic
    streams = [stream for stream in container.streams if stream.type == "video"]
    moving = [stream for stream in streams if not stream.disposition & cover]
    if not moving:
        kinds = sorted({stream.type for stream in container.streams if stream.type})
        found = "cover art but no moving pictures" if streams else f"streams of kind: {', '.join(kinds) or 'none'}"
        raise NoVideoStream(item, f"no video stream ({found})")
    stream = moving[0]
    if stream.codec_context is None:
        raise UnsupportedCodec(item, "the codec of its video stream has no decoder here; convert it to H.264 first")
    if not isinstance(stream, VideoStream):
        raise UnsupportedCodec(item, "its video stream cannot be decoded; convert it to H.264 first")
    context = stream.codec_context
    check_size(context.width, context.height, item)
    context.options = {"max_pixels": str(MAX_AREA)}
    context.thread_type = "AUTO"
    context.thread_count = threads
    return stream


def declared_rate(stream: VideoStream) -> Fraction | None:
    """Return the stream's average frame rate as declared or measured by FFmpeg, or ``None``."""
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate is not None and 0 < rate <= 10_000:
            return rate
    return None


def _clock(text: str) -> float | None:
    """Parse ``HH:MM:SS.fraction`` into seconds."""
    match = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)\s*", text.rstrip("\x00"))
    return None if match is None else int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def _plausible(seconds: float | None) -> float | None:
    return seconds if seconds is not None and 0 < seconds <= MAX_TIME else None


def declared_duration(container: av.container.InputContainer, stream: VideoStream) -> float | None:
    """Return the duration of the *video stream* as its container declares it, in seconds, or ``None``.

    Never the container's where other streams could be longer, and none of formats whose durations are
    differences between clocks.
    """
    if container.format.name in _NO_CLOCK:
        return None
    if stream.duration is not None and stream.time_base is not None:
        return _plausible(float(stream.duration * stream.time_base))
    start = 0.0
    if stream.start_time is not None and stream.time_base is not None:
        start = max(0.0, float(stream.start_time * stream.time_base))
    tag = next((value for key, value in stream.metadata.items() if key.upper().startswith("DURATION")), None)
    if tag is not None and (seconds := _clock(tag)) is not None:
        return _plausible(seconds - start)  # Matroska's tag is the time at which the track ends
    if len(container.streams) == 1 and container.duration is not None:
        return _plausible(container.duration / av.time_base - start)
    return None
