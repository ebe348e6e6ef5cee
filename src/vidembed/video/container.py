"""Opening the bytes of a video safely, and what its container declares: about its video stream, and in its boxes."""

from __future__ import annotations

import io
import os
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, cast

import av
from av import VideoCodecContext, VideoStream
from av.container import InputContainer
from av.stream import Disposition, Stream

from vidembed import errors
from vidembed.video.clip import ANY_TIME, DecodeLimits, check_regular, is_url
from vidembed.video.fetch import UrlAccess, fetch
from vidembed.video.picture import MAX_AREA, check_size
from vidembed.video.refusal import PICTURE, PICTURE_BRANDS, refusal

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,asf,gif,apng,ogg,mxf,nut,rm,dv,ivf,wtv,"
    "yuv4mpegpipe"
)
"""Containers that FFmpeg may recognize. Left out: playlists and concatenation lists, which open other files;
single pictures; audio; and raw streams, which have no times."""
VIDEO_SUFFIXES = frozenset(
    [
        *(".3g2", ".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
        *(".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
    ]
)
"""Lower-case file name suffixes by which a folder's videos are found. Reading goes by content, not by name."""
SEEKABLE_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # elsewhere seeking was seen to overshoot
MAX_TIME = 1e6  # seconds (11 days). A later time is taken for a broken clock
DEFAULT_THREADS = 4  # decoding threads of one reader: more add memory and delay
BUFFER_BYTES = 2**18  # bytes that FFmpeg reads at once
# Encoders put up to a packet of sound before the first frame (AAC 21 to 23 ms, Opus 6.5 ms).
START_TOLERANCE_S = 0.025  # seconds. A video that begins no later than this after the earliest stream begins with it

MAX_FRAMES = 2**25
"""Frames (33,554,432) of a video, or samples that an MP4 file declares for all of its tracks: 6 days at 60 a second
(our choice). FFmpeg needs 1.2 GB for the index of so many."""
MAX_HEADER_BYTES = 2**26  # bytes (64 MiB) of a compressed QuickTime header when inflated (our choice)
MAX_ENTRIES = 2**16  # items or metadata keys that a file declares (our choice)
MAX_STREAMS = 256  # streams of a file of any format. FFmpeg looks into each of them (our choice; its own limit is 1000)

_DEFAULT_BONUS = 5_000_000  # pixels, as in ffmpeg (fftools/ffmpeg_mux_init.c, map_auto_video)
_LOOK_BYTES = 5_000_000  # of packets: FFmpeg's own `probesize`
_NO_CLOCK = ("mpegts", "mpeg")  # durations there are differences of clocks, which restart in joined files
_TS_DISCONT = cast("int", av.format.Flags.ts_discont.value)
# Containers that declare a duration for each stream. In others FFmpeg can give a stream that of the whole container.
_OWN_DURATIONS = ("mov,mp4,m4a,3gp,3g2,mj2", "avi", "ogg", "mxf", "rm", "dv")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]+):")  # two characters or more: "C:" is a drive


@contextmanager
def open_source(
    source: object, item: str, *, allow_url: UrlAccess = False, limits: DecodeLimits = ANY_TIME
) -> Iterator[BinaryIO]:
    """Open the bytes of a path, URL, ``bytes`` or file object, at their beginning, and close what was opened here."""
    with ExitStack() as stack:
        if isinstance(source, bytes):
            handle: BinaryIO = io.BytesIO(source)
        elif is_url(source):
            if not allow_url:
                raise errors.InvalidVideoInput(item, "a web address; pass allow_url=True to fetch it")
            handle = cast("BinaryIO", stack.enter_context(fetch(source, item, limits, allow=allow_url)))
        elif isinstance(source, (str, os.PathLike)):
            handle = stack.enter_context(_open_path(source, item))
        elif hasattr(source, "read"):
            handle = cast("BinaryIO", source)
        else:
            expected = "a path, bytes, binary file, VideoSegment or VideoFrames"
            raise errors.InvalidVideoInput(item, f"a {type(source).__name__}; expected {expected}")
        _check_file_object(handle, item)
        try:
            yield handle
        except OSError as error:  # of the handle: FFmpeg's own are turned into errors where they occur
            reason = f"reading failed ({error}); check the disk or connection it comes from"
            raise errors.VideoError(item, reason) from error


def _open_path(source: str | os.PathLike[str], item: str) -> BinaryIO:
    path = os.fsdecode(source)
    if not path:
        raise errors.InvalidVideoInput(item, "the path is empty")
    if isinstance(source, str) and (match := _SCHEME.match(source)) and not os.path.lexists(source):
        found = f"no file has this name, and the scheme {match[1]!r} is not read"
        raise errors.InvalidVideoInput(item, f"{found}; give a path, or an http(s) address with allow_url=True")
    check_regular(path, item)
    try:
        return Path(path).open("rb")
    except PermissionError as error:
        raise errors.VideoPermission(item, "permission denied; check the access rights of the file") from error
    except OSError as error:
        raise errors.VideoNotFound(item, f"cannot be opened ({error.strerror})") from error


def _check_file_object(handle: BinaryIO, item: str) -> None:
    try:
        seekable = handle.seekable()
        if seekable:
            handle.seek(0)
            head: object = handle.read(1)
            handle.seek(0)
    except (OSError, AttributeError, ValueError) as error:
        raise errors.InvalidVideoInput(item, f"not a readable file object ({error}); open it with mode 'rb'") from error
    if not seekable:
        raise errors.InvalidVideoInput(item, "the file object cannot seek; read it into bytes first")
    if not isinstance(head, bytes):
        raise errors.InvalidVideoInput(item, "the file object returns text; open it with mode 'rb'")
    if not head:
        raise errors.EmptyFile(item, "empty (0 bytes)")


@contextmanager
def open_container(handle: BinaryIO, item: str) -> Iterator[InputContainer]:
    """Open a handle (a path could be taken for a protocol) with the allowed containers only."""
    handle.seek(0)
    head = handle.read(64)
    check_boxes(handle, item)
    try:
        container = _open(handle, max_pixels=str(MAX_AREA))  # FFmpeg decodes first frames while it opens a file
    except av.error.MemoryError as error:
        reason = "opening it needs more memory than FFmpeg or this process allows"
        raise errors.VideoTooLarge(item, reason) from error
    except av.error.FFmpegError as error:
        raise refusal(head, item, error) from error
    with container:
        check_streams(len(container.streams), item)
        if head[4:8] == b"ftyp" and head[8:12] in PICTURE_BRANDS and max(s.frames for s in container.streams) <= 1:
            raise errors.NotAVideo(item, PICTURE)
        videos = [stream for stream in container.streams if stream.type == "video"]
        if videos and all("enc_key_id" in map(str.lower, stream.metadata) for stream in videos):  # of Matroska, WebM
            raise errors.EncryptedVideo(item, ENCRYPTED)
        yield container


def _open(handle: BinaryIO, **options: str) -> InputContainer:
    handle.seek(0)
    limits = {"format_whitelist": FORMATS, "max_streams": str(MAX_STREAMS + 1), **options}
    return av.open(handle, mode="r", options=limits, metadata_errors="replace", buffer_size=BUFFER_BYTES)


@contextmanager
def _open_again(handle: BinaryIO, **options: str) -> Iterator[InputContainer]:
    """Open what is open already, and leave the handle where it was."""
    place = handle.tell()
    with _open(handle, **options) as container:
        yield container
    handle.seek(place)


def video_stream(
    container: InputContainer, handle: BinaryIO, item: str, threads: int = DEFAULT_THREADS, index: int | None = None
) -> VideoStream:
    """Return the video stream of an index, or the one to read, ready to decode. Its pictures are within the limits."""
    streams = {stream.index: stream for stream in container.streams if stream.type == "video"}
    if index is not None and index not in streams:
        raise errors.InvalidVideoInput(item, f"stream={index!r}: its video streams are {sorted(streams)}")
    stream = _best(container, handle, item) if index is None else streams[index]
    if stream.codec_context is None:
        raise errors.UnsupportedCodec(
            item, "no decoder is installed for the codec of its video stream; convert it to H.264 first"
        )
    if not isinstance(stream, VideoStream):
        raise errors.UnsupportedCodec(item, "its video stream cannot be decoded; convert it to H.264 first")
    context = stream.codec_context
    check_size(context.width, context.height, item)
    if not (context.width and context.height):
        # Nothing of it was decoded when the file was opened. Its header may declare a size; no decoder is opened here.
        with _open_again(handle, codec_whitelist="none") as again:
            declared = again.streams[stream.index].codec_context if stream.index < len(again.streams) else None
            if isinstance(declared, VideoCodecContext):
                check_size(declared.width, declared.height, item)
    context.options = {"max_pixels": str(MAX_AREA)}
    context.thread_type = "AUTO"
    context.thread_count = threads
    return stream


def _best(container: InputContainer, handle: BinaryIO, item: str) -> Stream:
    still = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
    videos = [stream for stream in container.streams if stream.type == "video"]
    moving = [stream for stream in videos if not stream.disposition & still]
    if not moving:
        types = ", ".join(sorted({stream.type for stream in container.streams if stream.type})) or "none"
        found = "cover art but no moving pictures" if videos else f"streams of kind: {types}"
        raise errors.NoVideoStream(item, f"no video stream ({found})")
    if len(moving) == 1:
        return moving[0]
    packets = _packets(handle, {stream.index: stream.frames for stream in moving})

    def worth(stream: Stream) -> tuple[bool, int, int]:  # what ffmpeg would choose of those that hold moving pictures
        context = stream.codec_context
        area = context.width * context.height if isinstance(context, VideoCodecContext) else 0
        default = _DEFAULT_BONUS if stream.disposition & Disposition.default else 0
        is_decodable = isinstance(stream, VideoStream) and context is not None
        return is_decodable, min(packets[stream.index], 2), area + default

    return max(moving, key=worth)  # the first of equals


def _packets(handle: BinaryIO, declared: dict[int, int]) -> dict[int, int]:
    """Return the number of packets of streams, as declared, or where some declare none, of those that come first."""
    found, left = dict(declared), _LOOK_BYTES
    if all(found.values()):
        return found
    # what cannot be read counts for nothing, nor what follows the first packet of a stream that PyAV does not know
    with _open_again(handle) as container, suppress(av.error.FFmpegError, IndexError):
        for packet in container.demux([container.streams[index] for index in declared]):
            found[packet.stream.index] += packet.size > 0
            left -= packet.size
            if left < 0 or min(found.values()) > 1:
                break
    return found


def sample_aspect(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Return width over height of the pixels that are decoded now, or ``None``."""
    # A container's own word holds for all of a stream, as in FFmpeg. Some have none: there the codec's may change.
    changing = stream.codec_context.sample_aspect_ratio if container.format.name in _NO_CLOCK else None
    return changing or stream.sample_aspect_ratio


def gif_delay(ticks: int) -> int:
    """Return how long browsers show a picture of a GIF, in 1/100 s: those of 0 and 1 for 10."""
    return ticks if ticks > 1 else 10


def gif_times(handle: BinaryIO) -> tuple[float, Fraction] | None:
    """Return the duration in seconds and the mean frame rate of a GIF that has delays to lengthen, else ``None``."""
    delays: list[int] = []
    with _open_again(handle) as container, suppress(av.error.FFmpegError):  # damage is seen when it is decoded
        delays = [packet.duration or 0 for packet in container.demux(video=0) if packet.size]
    hundredths = sum(map(gif_delay, delays))
    return (hundredths / 100, Fraction(100 * len(delays), hundredths)) if hundredths > sum(delays) else None


def declared_rate(stream: VideoStream) -> Fraction | None:
    """Return the stream's average frame rate as declared or measured by FFmpeg, or ``None``."""
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate is not None and 0 < rate <= 10_000:
            return rate
    return None


def _plausible(seconds: float) -> float | None:
    return seconds if 0 < seconds <= MAX_TIME else None


def declared_duration(container: InputContainer, stream: VideoStream, first: Fraction | None = None) -> float | None:
    """Return the duration of the *video stream* as declared, in seconds, or ``None``; it can be wrong.

    `first` is when its first frame comes on show, seconds on the container's clock (default: the stream's start time).
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
    if tag is not None and (clock := re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)\s*", tag.rstrip("\x00"))) is not None:
        seconds = int(clock[1]) * 3600 + int(clock[2]) * 60 + float(clock[3])
        return _plausible(seconds - start)  # Matroska's tag is the time at which the track ends
    if alone and container.duration is not None:
        return _plausible(container.duration / av.time_base - start)
    return None


def has_discontinuities(container: InputContainer) -> bool:
    """Whether the clock of this kind of container may jump at any time (FFmpeg's ``AVFMT_TS_DISCONT``)."""
    return bool(container.format.flags & _TS_DISCONT)


def start_on_player(container: InputContainer, stream: VideoStream, first: Fraction) -> float:
    """Return when the frame that comes first on the container's clock does so on that of a player, in seconds."""
    # Players show the start of the earliest stream as 0: `ffmpeg -ss` and mpv count from a container's `start_time`.
    starts = {
        other.index: other.start_time * other.time_base
        for other in container.streams
        if other.type in {"audio", "video"} and not other.disposition & Disposition.attached_pic
        if other.start_time is not None and other.time_base
    }
    if container.format.name == "avi":  # it stores no times of presentation; B-frames only seem to begin late
        first = starts.get(stream.index, first)
    # What comes before 0 is sound that encoders put there and decoders leave out.
    start = float(first - min([first, *(max(Fraction(0), other) for other in starts.values())]))
    return round(start, 6) if START_TOLERANCE_S < start <= MAX_TIME else 0.0


# What an MP4 or QuickTime file declares in its boxes is added up before FFmpeg allocates for it.

ENCRYPTED = "encrypted (DRM): it cannot be decoded without a key, and keys are not supported; use a copy without DRM"
_ENCRYPTED = frozenset([b"encv", b"drmi"])  # sample entries of ISO/IEC 23001-7 (Common Encryption), and of FairPlay
_MAX_DEPTH = 10  # FFmpeg's
_CONTAINERS = frozenset(
    b"moov trak mdia minf stbl edts dinf udta mvex moof traf wave tref ilst sinf schi iprp ipco free hoov".split()
)
_COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4, b"keys": 4, b"iinf": 4, b"iloc": 6}  # where each holds its count


def check_boxes(handle: BinaryIO, item: str) -> None:
    """Raise VideoTooLarge or EncryptedVideo for what the boxes of a file declare; rewind it."""
    # 20 bytes can declare a hundred million samples, for each of which FFmpeg makes an entry of 37 bytes (as measured).
    # So the boxes are walked first, as FFmpeg's demuxer does: whatever their parents are.
    size = handle.seek(0, os.SEEK_END)
    declared = _Declared(item, size)
    declared.walk(handle, 0, size, 0)
    declared.end_track()
    handle.seek(0)
    if declared.encrypted and not declared.clear:
        raise errors.EncryptedVideo(item, ENCRYPTED)


def check_streams(count: int, item: str) -> None:
    """Raise `VideoTooLarge` for a file of more than `MAX_STREAMS` streams."""
    if count > MAX_STREAMS:
        raise errors.VideoTooLarge(item, f"it has over {MAX_STREAMS} streams; remove streams that are not video")


class _Declared:
    """Adds up what boxes declare. `encrypted` and `clear` count the video tracks of either kind."""

    def __init__(self, item: str, size: int) -> None:
        self._item, self._size = item, size  # of the file, in bytes
        self._samples = self._sound = self._tracks = self.encrypted = self.clear = 0
        self._begin_track()

    def _begin_track(self) -> None:
        self._in_track = 0  # samples
        self._handlers: set[bytes] = set()
        self._entries: set[bytes] = set()  # kinds of samples
        self._steady = True  # every sample lasts one tick: of sound, FFmpeg then makes an entry a chunk

    def end_track(self) -> None:
        """Add the samples of the track."""
        if b"vide" in self._handlers:
            is_encrypted = bool(self._entries) and self._entries <= _ENCRYPTED
            self.encrypted += is_encrypted
            self.clear += not is_encrypted
        if self._handlers == {b"soun"} and self._steady:
            self._sound += self._in_track  # PCM: tens of thousands a second, of one byte or more in the file
        else:
            self._samples += self._in_track
        self._begin_track()
        if self._samples > MAX_FRAMES or self._sound > max(self._size, MAX_FRAMES):
            found = f"it declares {self._samples + self._sound} frames or samples; at most {MAX_FRAMES} are read. "
            raise errors.VideoTooLarge(
                self._item, f"{found}Cut it into shorter files, or remux it if the number is wrong"
            )

    def walk(self, handle: BinaryIO, at: int, end: int, depth: int) -> None:
        """Look at the boxes between two places of a file, and at those inside them."""
        while at + 8 <= end:
            handle.seek(at)
            head = handle.read(16)
            length, kind, begin = int.from_bytes(head[:4], "big"), head[4:8], at + 8
            if length == 0:
                length = end - at
            elif length == 1:
                length, begin = int.from_bytes(head[8:16], "big"), at + 16
            if len(head) < 8 or length < begin - at:
                return
            at = min(at + length, end)
            self._look(handle, kind, begin, at, depth)

    def _look(self, handle: BinaryIO, kind: bytes, begin: int, end: int, depth: int) -> None:
        if kind == b"trak":
            self.end_track()
            self._tracks += 1
            check_streams(self._tracks, self._item)
        handle.seek(begin)
        if depth < _MAX_DEPTH and kind in _CONTAINERS:
            self.walk(handle, begin, end, depth + 1)
        elif depth < _MAX_DEPTH and kind == b"meta":
            found = handle.read(min(end - begin, MAX_ENTRIES)).find(b"hdlr")  # it may have a version before its boxes
            if found >= 4:
                self.walk(handle, begin + found - 4, end, depth + 1)
        elif depth < _MAX_DEPTH and kind == b"cmov":
            self._inflate(handle.read(min(end - begin, MAX_HEADER_BYTES)), depth)
        elif kind == b"stsd":
            self._note_entries(handle, begin + 8, end)
        elif kind in {*_COUNTS, b"hdlr", b"stts"}:
            self._count(kind, handle.read(min(end - begin, 16)))

    def _count(self, kind: bytes, head: bytes) -> None:
        """Take in a box by its first bytes."""
        if kind == b"hdlr":
            self._handlers.add(head[8:12])
        elif kind == b"stts":  # one run, of samples that last one tick each
            self._steady = self._steady and head[4:8] == b"\0\0\0\1" and head[12:16] == b"\0\0\0\1"
        else:
            place = _COUNTS[kind]
            width = 2 if kind in {b"iinf", b"iloc"} and head[:1] < (b"\1" if kind == b"iinf" else b"\2") else 4
            count = int.from_bytes(head[place : place + width], "big")
            if kind in {b"stsz", b"stz2"}:
                self._in_track += count
            elif kind == b"trun":
                self._samples += count
            elif count > MAX_ENTRIES:
                found = f"it declares {count} entries in a box {kind.decode('ascii')!r}"
                raise errors.VideoTooLarge(self._item, f"{found}; at most {MAX_ENTRIES} are read")

    def _note_entries(self, handle: BinaryIO, at: int, end: int) -> None:
        """Note which kinds of samples a track has, by the first of them."""
        for _ in range(_MAX_DEPTH):
            handle.seek(at)
            head = handle.read(8)
            if len(head) < 8 or at + 8 > end:
                return
            self._entries.add(head[4:])
            at += max(8, int.from_bytes(head[:4], "big"))

    def _inflate(self, box: bytes, depth: int) -> None:
        """Walk a compressed header."""
        body = box.partition(b"cmvd")[2]
        declared = int.from_bytes(body[:4], "big")  # FFmpeg inflates so much and no more
        if declared > MAX_HEADER_BYTES:
            found = f"its compressed header has {declared} bytes when inflated"
            raise errors.VideoTooLarge(self._item, f"{found}; at most {MAX_HEADER_BYTES} are read")
        try:
            plain = zlib.decompressobj().decompress(body[4:], declared) if declared else b""
        except zlib.error:  # FFmpeg cannot either
            return
        self.walk(io.BytesIO(plain), 0, len(plain), depth + 1)
