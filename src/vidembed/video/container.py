"""Opening a video container safely, and what it declares about its video stream."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import av
import av.container
import av.error
import av.format
import av.stream
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from vidembed.errors import (
    CorruptVideo,
    EmptyFile,
    EncryptedVideo,
    InvalidVideoInput,
    NotAVideo,
    NoVideoStream,
    UnsupportedCodec,
    VideoError,
    VideoNotFound,
    VideoPermission,
    VideoTooLarge,
)
from vidembed.video.boxes import ENCRYPTED, MAX_STREAMS, check_boxes, check_streams
from vidembed.video.fetch import MAX_DOWNLOAD_BYTES, UrlAccess, fetch
from vidembed.video.picture import MAX_AREA, check_size
from vidembed.video.source import check_regular, is_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,asf,gif,apng,ogg,mxf,nut,rm,dv,ivf,wtv,"
    "yuv4mpegpipe"
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
_DEFAULT_BONUS = 5_000_000  # pixels, as in ffmpeg (fftools/ffmpeg_mux_init.c, map_auto_video)
_LOOK_BYTES = 5_000_000  # of packets: FFmpeg's own `probesize`

START_TOLERANCE_S = 0.025
"""Seconds. A video that begins no later than this after the earliest stream begins with it: encoders put up to a packet
of sound before the first frame (AAC 21 to 23 ms, Opus 6.5 ms)."""

_NO_CLOCK = ("mpegts", "mpeg")  # durations there are differences of clocks, which restart in joined files
_TS_DISCONT = cast("int", av.format.Flags.ts_discont.value)
_OWN_DURATIONS = ("mov,mp4,m4a,3gp,3g2,mj2", "avi", "ogg", "mxf", "rm", "dv")
# Containers that declare a duration for each stream. In others FFmpeg can give a stream that of the whole container.


def _is_raw_stream(head: bytes) -> bool:
    """Whether ``head`` starts like an H.264, HEVC, MPEG-1/2/4 or AV1 elementary stream."""
    match = re.match(rb"\x00\x00\x00?\x01(.)", head, re.DOTALL)
    if match is None:
        return head[:3] == b"\x12\x00\x0a"  # AV1: temporal delimiter, then a sequence header
    code = match[1][0]
    h264 = code & 0x1F in (6, 7, 9) and code < 0x80
    hevc = code in (0x40, 0x42, 0x44, 0x46, 0x4E)
    return h264 or hevc or code in (0xB0, 0xB3, 0xB5)


def _is_animated_webp(head: bytes) -> bool:
    return head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20:21] and head[20] & 2)


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


_PICTURE = "a single picture; give it as an image instead"
_PICTURE_BRANDS = frozenset([b"avif", b"heic", b"heix", b"mif1"])
"""First words of AVIF and HEIF files (https://mp4ra.org/registered-types/brands), which FFmpeg opens as it does MP4."""
_REFUSALS: tuple[tuple[Callable[[bytes], bool], type[VideoError], str], ...] = (
    (
        _is_animated_webp,
        NotAVideo,
        "an animated WebP picture, which FFmpeg does not decode; convert it to MP4, GIF or APNG first",
    ),
    (_is_picture, NotAVideo, _PICTURE),
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
        if head[4:8] == b"ftyp" and head[8:12] in _PICTURE_BRANDS and max(s.frames for s in container.streams) <= 1:
            raise NotAVideo(item, _PICTURE)
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


def video_stream(
    container: av.container.InputContainer,
    handle: BinaryIO,
    item: str,
    threads: int = DEFAULT_THREADS,
    index: int | None = None,
) -> VideoStream:
    """Return the video stream to read, ready to decode.

    Of several, one that can be decoded and holds more than a single picture, and of these the one that ffmpeg would
    choose: the largest picture, where being marked as default counts for `_DEFAULT_BONUS` pixels; then the first.

    Args:
        container: As opened.
        handle: What it was opened from. Of several streams, the first packets are counted.
        item: Name for messages.
        threads: Decoding threads.
        index: The stream's, to have no other.

    Raises:
        NoVideoStream: If there is none.
        InvalidVideoInput: If `index` is of none of its video streams.
        UnsupportedCodec: If it has no decoder.
        VideoTooLarge: If its pictures are above the limits of :mod:`vidembed.video.picture`.
    """
    streams = [stream for stream in container.streams if stream.type == "video"]
    if index is None:
        stream = _best(streams, container, handle, item)
    else:
        found = {stream.index: stream for stream in streams}
        if index not in found:
            raise InvalidVideoInput(item, f"stream={index!r}: its video streams are {sorted(found)}")
        stream = found[index]
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


def _best(
    streams: Sequence[av.stream.Stream], container: av.container.InputContainer, handle: BinaryIO, item: str
) -> av.stream.Stream:
    kinds = av.stream.Disposition
    still = kinds.attached_pic | kinds.timed_thumbnails | kinds.still_image
    moving = [stream for stream in streams if not stream.disposition & still]
    if not moving:
        kinds_found = sorted({stream.type for stream in container.streams if stream.type})
        found = (
            "cover art but no moving pictures" if streams else f"streams of kind: {', '.join(kinds_found) or 'none'}"
        )
        raise NoVideoStream(item, f"no video stream ({found})")
    if len(moving) == 1:
        return moving[0]
    packets = _packets(handle, {stream.index: stream.frames for stream in moving})

    def worth(stream: av.stream.Stream) -> tuple[bool, int, int]:
        context = stream.codec_context
        decodable = isinstance(stream, VideoStream) and context is not None
        area = context.width * context.height if isinstance(context, VideoCodecContext) else 0
        default = _DEFAULT_BONUS if stream.disposition & kinds.default else 0
        return decodable, min(packets[stream.index], 2), area + default

    return max(moving, key=worth)  # the first of equals


def _packets(handle: BinaryIO, declared: dict[int, int]) -> dict[int, int]:
    """Return the number of packets of streams, as declared, or where some declare none, of those that come first."""
    found = dict(declared)
    if all(found.values()):
        return found
    place, left = handle.tell(), _LOOK_BYTES
    with _open(handle) as container:
        try:
            for packet in container.demux([container.streams[index] for index in declared]):
                found[packet.stream.index] += packet.size > 0
                left -= packet.size
                if left < 0 or min(found.values()) > 1:
                    break
        except av.error.FFmpegError:
            pass  # what cannot be read counts for nothing
    handle.seek(place)
    return found


def sample_aspect(container: av.container.InputContainer, stream: VideoStream) -> Fraction | None:
    """Return the shape of the pixels that are decoded now: width over height, or ``None``.

    A container's own word holds for all of a stream, as in FFmpeg. Transport and program streams have none: there the
    codec's may change, with a key frame.
    """
    changing = stream.codec_context.sample_aspect_ratio if container.format.name in _NO_CLOCK else None
    return changing or stream.sample_aspect_ratio


def gif_delay(ticks: int) -> int:
    """Return how long browsers show a picture of a GIF, in 1/100 s: those of 0 and 1 for 10."""
    return ticks if ticks > 1 else 10


def gif_times(handle: BinaryIO) -> tuple[float, Fraction] | None:
    """Return the duration in seconds and the mean frame rate of a GIF that has delays to lengthen, else ``None``."""
    place, delays = handle.tell(), []
    with _open(handle) as container, suppress(av.error.FFmpegError):  # damage is seen when it is decoded
        delays = [packet.duration or 0 for packet in container.demux(video=0) if packet.size]
    handle.seek(place)
    hundredths = sum(map(gif_delay, delays))
    return (hundredths / 100, Fraction(100 * len(delays), hundredths)) if hundredths > sum(delays) else None


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


def declared_duration(
    container: av.container.InputContainer, stream: VideoStream, first: Fraction | None = None
) -> float | None:
    """Return the duration of the *video stream* as its container declares it, in seconds, or ``None``.

    A hint: containers were seen that declare too much and too little. Never the container's where other streams could
    be longer, and none of formats whose durations are differences between clocks.

    Args:
        container: An open container.
        stream: Its video stream.
        first: When its first frame comes on show, seconds on the container's clock. Default: the stream's start time.
    """
    name = container.format.name
    if name in _NO_CLOCK:
        return None
    alone = len(container.streams) == 1
    is_own = name in _OWN_DURATIONS or (alone and name != "matroska,webm")
    if is_own and stream.duration is not None and stream.time_base is not None:
        return _plausible(float(stream.duration * stream.time_base))
    if first is None and stream.start_time is not None and stream.time_base is not None:
        first = stream.start_time * stream.time_base
    start = max(0.0, float(first or 0))
    tags = {key.upper(): value for key, value in stream.metadata.items()}
    # With a language (DURATION-eng) as written by mkvmerge; FFmpeg copies that even when it cuts, beside its own.
    tag = tags.get("DURATION", next((value for key, value in tags.items() if key.startswith("DURATION-")), None))
    if tag is not None and (seconds := _clock(tag)) is not None:
        return _plausible(seconds - start)  # Matroska's tag is the time at which the track ends
    if alone and container.duration is not None:
        return _plausible(container.duration / av.time_base - start)
    return None


def has_discontinuities(container: av.container.InputContainer) -> bool:
    """Whether the clock of this kind of container may jump at any time (FFmpeg's ``AVFMT_TS_DISCONT``)."""
    return bool(container.format.flags & _TS_DISCONT)


def start_on_player(container: av.container.InputContainer, stream: VideoStream, first: Fraction) -> float:
    """Return when the first frame of a video comes on show on the clock of a player, seconds, at least 0.

    Players show the start of the earliest stream of pictures or sound as 0: ``ffmpeg -ss`` and mpv count from FFmpeg's
    ``start_time`` of a container. Subtitles and cover art do not count.

    Args:
        container: An open container.
        stream: Its video stream.
        first: When its first frame comes on show, seconds on the container's clock.
    """
    cover = av.stream.Disposition.attached_pic
    starts = {
        other.index: other.start_time * other.time_base
        for other in container.streams
        if other.type in {"audio", "video"} and not other.disposition & cover
        if other.start_time is not None and other.time_base
    }
    if container.format.name == "avi":  # it stores no times of presentation; B-frames only seem to begin late
        first = starts.get(stream.index, first)
    # What comes before 0 is sound that encoders put there and decoders leave out.
    start = float(first - min([first, *(max(Fraction(0), other) for other in starts.values())]))
    return round(start, 6) if START_TOLERANCE_S < start <= MAX_TIME else 0.0


_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]+):")  # two characters or more: "C:" is a drive


def _check_scheme(source: str, item: str) -> None:
    match = _SCHEME.match(source)
    if match and not os.path.lexists(source):
        raise InvalidVideoInput(
            item,
            f"no file has this name, and the scheme {match[1]!r} is not read; "
            "give a path, or an http(s) address with allow_url=True",
        )


def _check_file_object(handle: BinaryIO, item: str) -> None:
    try:
        seekable = handle.seekable()
        if seekable:
            handle.seek(0)
            head: object = handle.read(1)
            handle.seek(0)
    except (OSError, AttributeError, ValueError) as error:
        raise InvalidVideoInput(item, f"not a readable file object ({error}); open it with mode 'rb'") from error
    if not seekable:
        raise InvalidVideoInput(item, "the file object cannot seek; read it into bytes first")
    if not isinstance(head, bytes):
        raise InvalidVideoInput(item, "the file object gives text; open it with mode 'rb'")
    if not head:
        raise EmptyFile(item, "empty (0 bytes)")


@contextmanager
def open_source(
    source: object,
    item: str,
    *,
    allow_url: UrlAccess = False,
    timeout_s: float | None = None,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
) -> Iterator[BinaryIO]:
    """Open the bytes of a path, URL, ``bytes`` or file object, and close what was opened here.

    Args:
        source: What to open. A file object is read from its beginning and left open.
        item: Its name, for messages.
        allow_url: Whether http and https addresses may be fetched: ``True`` from public addresses, or names of hosts
            (see :data:`vidembed.video.fetch.UrlAccess`).
        timeout_s: Limit on a download, in seconds.
        max_bytes: Limit on the size of a download.

    Yields:
        A seekable binary handle at its beginning.

    Raises:
        VideoError: Of the kind that fits, before any decoder sees the bytes.
    """
    with ExitStack() as stack:
        if isinstance(source, bytes):
            handle: BinaryIO = io.BytesIO(source)
        elif isinstance(source, str) and is_url(source):
            if not allow_url:
                raise InvalidVideoInput(item, "a web address; pass allow_url=True to have it fetched")
            fetched = fetch(source, item, timeout_s=timeout_s, max_bytes=max_bytes, allow=allow_url)
            handle = cast("BinaryIO", stack.enter_context(fetched))
        elif isinstance(source, (str, os.PathLike)):
            handle = stack.enter_context(_open_path(source, item))
        elif hasattr(source, "read"):
            handle = cast("BinaryIO", source)
        else:
            found = type(source).__name__
            raise InvalidVideoInput(
                item, f"a {found}; expected a path, bytes, binary file, VideoSegment or VideoFrames"
            )
        _check_file_object(handle, item)
        try:
            yield handle
        except OSError as error:  # of the handle: FFmpeg's own are turned into errors where they occur
            raise VideoError(item, f"reading failed ({error}); check the disk or connection it comes from") from error


def _open_path(source: str | os.PathLike[str], item: str) -> BinaryIO:
    path = os.fsdecode(os.fspath(source))
    if not path:
        raise InvalidVideoInput(item, "the path is empty")
    if isinstance(source, str):
        _check_scheme(source, item)
    check_regular(path, item)
    try:
        return Path(path).open("rb")
    except PermissionError as error:
        raise VideoPermission(item, "permission denied to read it; check its access rights") from error
    except OSError as error:
        raise VideoNotFound(item, f"cannot be opened ({error.strerror})") from error
