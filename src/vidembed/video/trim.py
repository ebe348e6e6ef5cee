"""A stretch of a video as a file of its own, by stream copy, found by the times of packets: nothing is decoded."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import BinaryIO

import av
from av import BitStreamFilterContext, Packet, VideoStream
from av.container import InputContainer, OutputContainer
from av.stream import Disposition, Stream
from av.video.reformatter import ColorRange

from vidembed.errors import CorruptVideo, InvalidVideoInput, UnsupportedCodec, VideoTruncated, warn
from vidembed.text import replacing
from vidembed.video import clip
from vidembed.video.clip import Deadline, DecodeLimits, SingleSource, VideoSegment
from vidembed.video.container import SEEKABLE_FORMATS, has_discontinuities, open_container, open_source, video_stream
from vidembed.video.fetch import UrlAccess
from vidembed.video.picture import display_matrix, orientation
from vidembed.video.reader import CLOCK_JUMP_S, CLOCK_RESET_S, FrameReader, demux
from vidembed.video.stretch import Stamp, Stretch, decoding_times

MUXERS = {
    **dict.fromkeys([".mp4", ".m4v"], "mp4"),
    **dict.fromkeys([".mkv"], "matroska"),
    **dict.fromkeys([".ts", ".m2ts", ".mts"], "mpegts"),
    **dict.fromkeys([".wmv", ".asf"], "asf"),
    **{suffix: suffix[1:] for suffix in (".mov", ".webm", ".avi", ".3gp", ".3g2", ".flv")},
}
"""File name suffixes that a cut can have, and FFmpeg's name of the container that is written."""
# Seconds that a stream may lie behind another: `max_interleave_delta`, https://ffmpeg.org/ffmpeg-formats.html
INTERLEAVE_S = Fraction(10)

_EPSILON = Fraction(clip.TIME_EPSILON)
_SUGGESTED = (".mp4", ".mov", ".mkv", ".webm", ".ts", ".m2ts", ".3gp", ".flv", ".wmv")
# FFmpeg's muxer of transport streams refuses nothing and writes what it does not know as private data; these it knows.
_TRANSPORT = frozenset(["h264", "hevc", "mpeg2video", "mpeg1video", "mpeg4"])
_TRANSPORT |= frozenset(["aac", "aac_latm", "mp2", "mp3", "ac3", "eac3", "dts", "truehd", "s302m", "opus"])
_ALPHA = "alpha_mode"  # Matroska's name for pictures with a layer of transparency beside them
_UNSPECIFIED = frozenset([0, 2])  # in H.273, whose numbers these are: reserved (as a matrix: none), and unspecified
_BLURAY = frozenset([".m2ts", ".mts"])  # the transport streams of discs, which alone name their kind of PCM
# Listed by a muxer, and refused by it.
_REFUSED = {"mov": ["vp8", "vp9", "av1", "opus", "flac", "truehd"], "flv": ["h263", "mpeg4"]}
# Filters that put the headers of a codec before every key frame, for a container that has no other place for them.
_HEADERS = {"h264": "h264_mp4toannexb,dump_extra", "hevc": "hevc_mp4toannexb,dump_extra", "mpeg4": "dump_extra"}


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A file that was cut from a video. Times are seconds on the clock of a player.

    `start_s` is that of a key frame: usually before what was asked for; after it only where the stream has none before;
    even below 0 where the video hides frames before that (an edit list), which the file then shows.
    """

    path: Path
    start_s: float
    end_s: float  # where its last frame ends
    left_out: tuple[str, ...] = ()  # the streams that were not copied, such as `subtitle stream 2 (mov_text)`


def cut_clip(
    source: SingleSource,
    target: str | os.PathLike[str],
    start: float = 0.0,
    end: float | None = None,
    *,
    overwrite: bool = False,
    allow_url: UrlAccess = False,
    limits: DecodeLimits = clip.DEFAULT_LIMITS,
) -> Excerpt:
    """Copy a part of a video to a file, without decoding or encoding it.

    All video, audio and subtitle streams go along. Cover pictures, attachments, data streams and subtitles of a kind
    that the container cannot hold do not (`Excerpt.left_out`), nor do chapters and tags. Rotation, mirroring, pixel
    shape and the times of frames are kept. Sound starts with its first packet at or after the first frame. The file is
    written beside the target under another name, and moved there when it is complete.

    Args:
        source: A path, the bytes of a file, a binary file object or, with `allow_url`, an http(s) address.
        target: The file to write. Its suffix names the container, one of `MUXERS`; without a suffix, that of the source
            is added.
        start: Seconds on the clock of a player. The file begins at the key frame at or before.
        end: Seconds likewise (exclusive), or None for the end of the video. Frames after it are kept where
            frames before it cannot be decoded without them.
        overwrite: Replace `target` if it exists.
        allow_url: Whether http and https addresses may be fetched (see `vidembed.video.fetch.UrlAccess`).
        limits: On time, a download included, and on its bytes. Default: 600 s and 2 GiB.

    Raises:
        VideoError: The source cannot be read, has no such stretch, or cannot be copied packet by packet.
        ValueError: The target's suffix is none of `MUXERS`, its container cannot hold a stream of pictures or sound, or
            loses colours, transparency or pixel shape of pictures; its folder does not exist, or it is the source.
        FileExistsError: `target` exists, and `overwrite` is False.
        OSError: It cannot be written.

    Warns:
        VideoTruncated: What can be read ends over one second before `end` and the duration that the video declares.
    """
    item = clip.item_name(source)
    VideoSegment(source, start, end)  # checks the times
    path = check_target(target, overwrite=overwrite)
    deadline = Deadline(limits.timeout_s, item)
    try:
        with open_source(source, item, allow_url=allow_url, limits=limits) as handle:
            return _Cutter(handle, item, deadline).cut(source, path, start, end, overwrite=overwrite)
    except _TargetError as error:
        raise error.args[0] from None


class _TargetError(Exception):
    """Carries an OSError of the target past the place that takes every OSError for one of the source."""


def check_target(target: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return the path of a file to write, or refuse it, as `cut_clip` does before it looks at the source."""
    path = Path(target)
    if path.suffix and path.suffix.lower() not in MUXERS:
        raise ValueError(f"target: {str(path)!r} ends in {path.suffix!r}; it must end in one of {', '.join(MUXERS)}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(
            f"target: {str(path)!r} is a folder, or its folder does not exist; give a file in a folder that exists"
        )
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"target: {str(path)!r} exists; choose another name, or pass overwrite=True")
    return path


@dataclass(frozen=True, slots=True)
class _Cutter:
    """Cuts from one open source."""

    handle: BinaryIO
    item: str
    deadline: Deadline

    def cut(self, source: object, target: Path, start: float, end: float | None, *, overwrite: bool) -> Excerpt:
        with FrameReader(self.handle, self.item, self.deadline, threads=1) as reader:
            first = next(reader, None)
            if first is None or first.frame.pts is None or first.frame.time_base is None:
                raise reader.no_frame()
            zero = first.frame.pts * first.frame.time_base - Fraction(reader.start)
            declared = None if reader.duration is None else reader.start + reader.duration
            family = reader.container.format.name
            turns, mirrored = orientation(display_matrix(first.frame), self.item)
        if not target.suffix:
            target = target.with_name(target.name + _suffix_of(source, family))
            try:
                check_target(target, overwrite=overwrite)
            except FileExistsError as error:
                raise _TargetError(error) from error
        if _is_same(self.handle, target):
            raise ValueError(f"target: {str(target)!r} is the source itself; choose another name")
        muxer = MUXERS[target.suffix.lower()]
        if muxer == "avi" != family:
            raise ValueError(
                "target: AVI does not store times of frames, so only AVI files can be cut to AVI; use .mkv"
            )
        if muxer == "mpegts" != family and (turns or mirrored):
            found = "a transport stream cannot store the rotation or mirroring of this video"
            raise ValueError(f"target: {found}; use .mkv")
        plan = self._plan(zero + Fraction(start), None if end is None else zero + Fraction(end))
        left_out, main = self._write(target, plan), plan.videos[plan.main]
        excerpt = Excerpt(target, round(float(main.begins_s - zero), 6), round(float(main.ends_s - zero), 6), left_out)
        due = min(bound for bound in (end, declared, excerpt.end_s + 1e9) if bound is not None)
        if declared is not None and not main.done and due - excerpt.end_s > clip.TRUNCATED_S:
            found = f"what can be read ends at {excerpt.end_s:.2f} s, before {due:.2f} s"
            warn(VideoTruncated(f"{self.item}: {found}"))
        return excerpt

    def _plan(self, start: Fraction, end: Fraction | None) -> _Plan:
        """Find the packets from `start` to `end` (exclusive), seconds on the clock of the source."""
        found = self._find(start, end, seek=True)
        main = found.videos[found.main]
        if found.seek is not None and (not main.kept or main.begins_s > start + _EPSILON):
            found = self._find(start, end, seek=False)  # seeking did not lead where it should
            main = found.videos[found.main]
        if not main.kept:
            reason = "no key frame before the end of the part, so it cannot be cut"
            raise InvalidVideoInput(self.item, reason)
        for index, stretch in list(found.videos.items()):
            if not stretch.kept:
                del found.videos[index]
                continue
            try:
                found.dts[index] = decoding_times([stamp.pts for stamp in stretch.kept])
            except ValueError as error:
                reason = f"{error}, so they cannot be copied in order; convert it first"
                raise CorruptVideo(self.item, reason) from error
        if not main.done and main.ends_s <= start + _EPSILON:
            late = float(start - main.ends_s)
            raise InvalidVideoInput(self.item, f"the part starts {late:.3f} s after the end of the video")
        return found

    def _find(self, start: Fraction, end: Fraction | None, *, seek: bool) -> _Plan:
        """Return the stretch of each video stream, empty where there is none, without times to decode at."""
        with open_container(self.handle, self.item) as container:
            main = video_stream(container, self.handle, self.item, 1)
            may_jump = has_discontinuities(container)
            streams = [stream for stream in container.streams if stream.type == "video" and _can_be_copied(stream)]
            videos: dict[int, Stretch] = {}
            for stream in streams:  # times within `TIME_EPSILON` are equal
                base = self._base(stream)
                stop = None if end is None else int(-((_EPSILON - end) // base))
                videos[stream.index] = Stretch(int((start + _EPSILON) // base), stop, base)
            can_seek = seek and container.format.name in SEEKABLE_FORMATS
            plan = _Plan(videos, main.index, videos[main.index].start if can_seek else None)
            last: dict[int, int] = {}
            for packet in read_packets(container, main, streams, plan.seek, self.item, self.deadline):
                index, pts = packet.stream.index, packet.pts
                stretch = videos[index]
                if pts is None:
                    found = "a packet of its video has no time (such as the second field of a picture)"
                    raise UnsupportedCodec(self.item, f"{found}; convert it first")
                now = pts if packet.dts is None else packet.dts
                change = (now - last.get(index, now)) * stretch.base
                if change < -CLOCK_RESET_S or (may_jump and change > CLOCK_JUMP_S):
                    found = "its clock starts again or jumps before the end of the part (joined recordings)"
                    reason = f"{found}, so packets cannot be copied in order; cut each recording separately"
                    raise CorruptVideo(self.item, reason)
                last[index] = now
                stretch.add(Stamp(pts, packet.dts, max(packet.duration or 0, 0), packet.is_keyframe))
                late = end is not None and now * stretch.base > end + INTERLEAVE_S
                if videos[plan.main].done and (late or all(each.done for each in videos.values())):
                    break
        return plan

    def _base(self, stream: Stream) -> Fraction:
        """Return the seconds of a tick of a stream."""
        if not stream.time_base:
            raise CorruptVideo(self.item, f"stream {stream.index} has no unit of time")
        return stream.time_base

    def _write(self, target: Path, plan: _Plan) -> tuple[str, ...]:
        """Write what is planned to `target`, and return the streams that were left out, in words."""
        suffix = target.suffix.lower()
        with open_container(self.handle, self.item) as container:
            main = video_stream(container, self.handle, self.item, 1)
            streams, left_out = _chosen(container, plan, suffix)
            packets = read_packets(container, main, streams, plan.seek, self.item, self.deadline)
            try:
                with replacing(target) as draft, draft.open("wb+") as file:
                    self._mux(packets, plan, streams, file, suffix)
                    self._check_kept([stream for stream in streams if isinstance(stream, VideoStream)], file, suffix)
            except OSError as error:  # what fails in reading is a VideoError by now
                raise _TargetError(error) from error
        return left_out

    def _mux(
        self, packets: Iterator[Packet[Stream]], plan: _Plan, streams: list[Stream], file: BinaryIO, suffix: str
    ) -> None:
        options = {"mpegts_m2ts_mode": "1"} if suffix in _BLURAY else {}
        try:
            with av.open(file, "w", format=MUXERS[suffix], options=options, metadata_errors="replace") as output:
                self._copy(packets, plan, {stream.index: _Out(output, stream, suffix) for stream in streams})
        except av.error.FFmpegError as error:
            found = f"its packets cannot be written to a {suffix} file ({error.strerror})"
            raise CorruptVideo(self.item, f"{found}; try .mkv, or convert it") from error

    def _copy(self, packets: Iterator[Packet[Stream]], plan: _Plan, outs: dict[int, _Out]) -> None:
        """Move the packets of the plan to the output, with times that begin at 0."""
        zero, stop = min(stretch.begins_s for stretch in plan.videos.values()), plan.videos[plan.main].ends_s
        done = dict.fromkeys(plan.videos, 0)
        waiting = {index for index, out in outs.items() if out.kind != "subtitle"}  # subtitles can be far between
        for packet in packets:
            index, base = packet.stream.index, self._base(packet.stream)
            time, shift = packet.dts if packet.pts is None else packet.pts, round(zero / base)
            if time is None:
                raise CorruptVideo(self.item, f"a packet of stream {index} has no time")
            if index in plan.videos:
                kept, number = plan.videos[index].kept, done[index]
                if number < len(kept) and time == kept[number].pts:
                    outs[index].put(packet, time - shift, plan.dts[index][number] - shift)
                    done[index] += 1
                if done[index] == len(kept):
                    waiting.discard(index)
            elif time * base >= stop:
                waiting.discard(index)
            elif time * base >= zero:
                outs[index].put(packet, time - shift, time - shift)
            if not waiting or (plan.main not in waiting and time * base > stop + INTERLEAVE_S):
                break
        if any(done[index] < len(stretch.kept) for index, stretch in plan.videos.items()):
            raise CorruptVideo(self.item, "it changed while it was read; try again")

    def _check_kept(self, sources: Sequence[VideoStream], file: BinaryIO, suffix: str) -> None:
        """Read the file that was written, and refuse it if a video stream has lost what belongs to its pictures."""
        with open_container(file, self.item) as written:
            copies = [stream for stream in written.streams if stream.type == "video"]
            for source, copy in zip(sources, copies, strict=False):
                kept = _traits(copy) if isinstance(copy, VideoStream) and copy.codec_context is not None else {}
                if lost := [name for name, value in _traits(source).items() if kept.get(name) != value]:
                    found = f"a {suffix} file cannot store the {', '.join(lost)} of this video"
                    raise ValueError(f"target: {found}; use .mkv, or convert it")


def _suffix_of(source: object, family: str) -> str:
    """Return the suffix of the source, or where no such file can be written, that of its container."""
    own = Path(os.fsdecode(source)).suffix if isinstance(source, (str, os.PathLike)) else ""
    if own.lower() in MUXERS:
        return own
    by_family = {"mov,mp4": ".mp4", "matroska": ".mkv", "mpegts": ".ts", "avi": ".avi", "flv": ".flv", "asf": ".wmv"}
    return next((suffix for name, suffix in by_family.items() if family.startswith(name)), ".mkv")


def _is_same(handle: BinaryIO, target: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), target.stat())
    except (OSError, AttributeError):  # there is no target yet; or the source is bytes, which are no file
        return False


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is copied: the stretch of each video stream that has one, by the stream's index."""

    videos: dict[int, Stretch]
    main: int  # index of the stream that the times are of: the one that is embedded
    seek: int | None  # ticks of it to seek to, or None to read from the beginning
    dts: dict[int, list[int]] = field(default_factory=dict)  # when the packets of each are decoded, in ticks


def read_packets(
    container: InputContainer, main: Stream, streams: list[Stream], seek: int | None, item: str, deadline: Deadline
) -> Iterator[Packet[Stream]]:
    """Yield packets of these streams, from ticks of the main one on; a file that cannot be read on ends there."""
    if seek is not None:
        try:
            container.seek(seek, stream=main, backward=True)
        except av.error.FFmpegError:
            return  # as where it lands too late
    try:
        yield from (packet for packet in demux(lambda: container.demux(streams), deadline) if packet.size)
    except OSError as error:
        raise CorruptVideo(item, f"reading failed ({error}); check the disk or connection it comes from") from error


def _can_be_copied(stream: Stream) -> bool:
    """Whether a stream is of moving pictures, sound or subtitles."""
    moving = stream.type == "video" and not stream.disposition & Disposition.attached_pic
    return stream.codec_context is not None and (moving or stream.type in {"audio", "subtitle"})


def _codec(stream: Stream) -> str:
    return "unknown codec" if stream.codec_context is None else str(stream.codec_context.codec.canonical_name)


def _traits(stream: VideoStream) -> dict[str, object]:
    """Return what belongs to the pictures of a stream and stands in its container or in its packets."""
    context = stream.codec_context
    tags = {"primaries": context.color_primaries, "transfer": context.color_trc, "matrix": context.colorspace}
    traits: dict[str, object] = {f"colour {name}": int(tag) for name, tag in tags.items() if tag not in _UNSPECIFIED}
    if int(context.color_range) == ColorRange.JPEG:  # the other is what players take where none is declared
        traits["colour range"] = True
    if any(key.lower() == _ALPHA and value == "1" for key, value in stream.metadata.items()):
        traits["transparency (alpha_mode)"] = True
    if (shape := stream.sample_aspect_ratio) not in {None, 0, 1}:
        traits["pixel shape"] = shape
    return {"codec": _codec(stream), **traits}


@cache
def _supported(muxer: str) -> frozenset[str]:
    with av.open(io.BytesIO(), "w", format=muxer) as output:
        return frozenset(output.supported_codecs)


def _holds(suffix: str, stream: Stream) -> bool:
    """Whether the container of a suffix can hold the codec of a stream."""
    muxer, codec = MUXERS[suffix], _codec(stream)
    if muxer == "mpegts":
        return codec in _TRANSPORT or (codec == "pcm_bluray" and suffix in _BLURAY)
    if codec in _REFUSED.get(muxer, ()):
        return False
    return stream.codec_context is not None and stream.codec_context.codec.name in _supported(muxer)


def _chosen(container: InputContainer, plan: _Plan, suffix: str) -> tuple[list[Stream], tuple[str, ...]]:
    """Return the streams to copy, and the others in words; refuse a container that cannot hold pictures or sound."""
    chosen: list[Stream] = []
    left_out: list[str] = []
    for stream in container.streams:
        empty = stream.type == "video" and stream.index not in plan.videos
        if empty or not _can_be_copied(stream) or (stream.type == "subtitle" and not _holds(suffix, stream)):
            left_out.append(f"{stream.type} stream {stream.index} ({_codec(stream)})")
        else:
            chosen.append(stream)
    needed = [stream for stream in chosen if stream.type != "subtitle"]
    if missing := sorted({_codec(stream) for stream in needed if not _holds(suffix, stream)}):
        others = [other for other in _SUGGESTED if all(_holds(other, stream) for stream in needed)]
        nowhere = "nor to any other format; cut it with ffmpeg -c copy, or convert it"
        remedy = f"use {' or '.join(others[:4])}" if others else nowhere
        raise ValueError(f"target: {', '.join(missing)} cannot be written to a {suffix} file here; {remedy}")
    return chosen, tuple(left_out)


class _Out:
    """A stream of the output."""

    def __init__(self, output: OutputContainer, stream: Stream, suffix: str) -> None:
        self.kind = stream.type
        self._output = output
        self._stream = output.add_stream_from_template(stream, opaque=True)
        self._stream.disposition = stream.disposition
        for key, value in stream.metadata.items():
            if key.lower() in {"language", "title", _ALPHA}:
                self._stream.metadata[key] = value
        codec, muxer = _codec(stream), MUXERS[suffix]
        if codec == "hevc" and muxer in {"mp4", "mov"}:
            self._stream.codec_context.codec_tag = "hvc1"  # of its two tags the one that Apple's players take
        in_band = muxer == "mpegts" and codec in _HEADERS
        self._filter = BitStreamFilterContext(_HEADERS[codec], stream) if in_band else None

    def put(self, packet: Packet[Stream], pts: int, dts: int) -> None:
        """Write a packet at these times, in ticks of its stream."""
        base = packet.time_base
        packet.pts, packet.dts = pts, dts
        for each in [packet] if self._filter is None else self._filter.filter(packet):
            each.time_base = base
            each.stream = self._stream
            self._output.mux_one(each)
