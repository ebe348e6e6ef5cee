"""A stretch of a video as a file of its own, by stream copy: packets are moved, nothing is encoded again."""

from __future__ import annotations

import io
import os
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import av
import av.error
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from vidembed.errors import CorruptVideo, TargetError, VideoTruncated, warn
from vidembed.text import replacing
from vidembed.video import container as box
from vidembed.video.clip import TRUNCATED_S
from vidembed.video.container import open_source
from vidembed.video.fetch import MAX_DOWNLOAD_BYTES, UrlAccess
from vidembed.video.load import DEFAULT_TIMEOUT_S
from vidembed.video.picture import display_matrix, orientation
from vidembed.video.reader import Deadline, FrameReader
from vidembed.video.source import SingleSource, VideoSegment, item_name
from vidembed.video.trim_plan import INTERLEAVE_S, base_of, can_be_copied, make_plan, read_packets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream

    from vidembed.video.reader import Deadline
    from vidembed.video.trim_plan import Plan

__all__ = ["MUXERS", "Excerpt", "cut_clip"]


MUXERS = {
    ".mp4": "mp4",
    ".m4v": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".ts": "mpegts",
    ".m2ts": "mpegts",
    ".mts": "mpegts",
    ".avi": "avi",
    ".3gp": "3gp",
    ".3g2": "3g2",
    ".flv": "flv",
    ".wmv": "asf",
    ".asf": "asf",
}
"""File name suffixes that a cut can have, and FFmpeg's name of the container that is written."""

_SUGGESTED = (".mp4", ".mov", ".mkv", ".webm", ".ts", ".m2ts", ".3gp", ".flv", ".wmv")
# FFmpeg's muxer of transport streams refuses nothing and writes what it does not know as private data; these it knows.
_TRANSPORT = {"h264", "hevc", "mpeg2video", "mpeg1video", "mpeg4"} | {
    *("aac", "aac_latm", "mp2", "mp3", "ac3", "eac3", "dts", "truehd", "s302m", "opus")
}
_ALPHA = "alpha_mode"  # Matroska's name for pictures with a layer of transparency beside them
_UNSPECIFIED = frozenset([0, 2])  # in H.273, whose numbers these are: reserved (as a matrix: none), and unspecified
_BLURAY = frozenset([".m2ts", ".mts"])  # the transport streams of discs, which alone name their kind of PCM
_REFUSED = {  # listed by a muxer, and refused by it
    "mov": frozenset(["vp8", "vp9", "av1", "opus", "flac", "truehd"]),
    "flv": frozenset(["h263", "mpeg4"]),
}
# Filters that put the headers of a codec before every key frame, for a container that has no other place for them.
_HEADERS = {"h264": "h264_mp4toannexb,dump_extra", "hevc": "hevc_mp4toannexb,dump_extra", "mpeg4": "dump_extra"}


def write(handle: BinaryIO, target: Path, plan: Plan, item: str, deadline: Deadline) -> tuple[str, ...]:
    """Write what is planned beside `target` under another name, and move it there when it is complete.

    Args:
        handle: The source.
        target: The file; its suffix is one of `MUXERS`.
        plan: What to copy.
        item: Name of the source, for messages.
        deadline: Limit on time.

    Returns:
        The streams that were left out, in words.

    Raises:
        ValueError: The container cannot hold a stream of pictures or sound, or loses what belongs to its pictures.
        VideoError: The source cannot be copied.
        TargetError: The target cannot be written.
    """
    suffix = target.suffix.lower()
    options = {"mpegts_m2ts_mode": "1"} if suffix in _BLURAY else {}
    with box.open_container(handle, item) as container:
        main = box.video_stream(container, handle, item, 1)
        streams, left_out = _chosen(container, plan, suffix)
        packets = read_packets(container, main, streams, plan.seek, item, deadline)
        with _draft(target) as file:
            try:
                with av.open(file, "w", format=MUXERS[suffix], options=options, metadata_errors="replace") as output:
                    _copy(packets, plan, {stream.index: _Out(output, stream, suffix) for stream in streams}, item)
            except av.error.FFmpegError as error:
                raise CorruptVideo(
                    item,
                    f"its packets cannot be written to a {suffix} file ({error.strerror}); try .mkv, or convert it",
                ) from error
            _check_kept([stream for stream in streams if isinstance(stream, VideoStream)], file, suffix, item)
    return left_out


@contextmanager
def _draft(target: Path) -> Iterator[BinaryIO]:
    """Give a file to write to, and move it to `target` when it is complete; or leave `target` as it was."""
    try:
        with replacing(target) as draft, draft.open("wb+") as file:
            yield file
    except OSError as error:  # what fails in reading is a VideoError by now
        raise TargetError(error) from error


def _codec(stream: Stream) -> str:
    return "unknown codec" if stream.codec_context is None else str(stream.codec_context.codec.canonical_name)


def _traits(stream: VideoStream) -> dict[str, object]:
    """Return what belongs to the pictures of a stream and stands in its container or in its packets."""
    context = stream.codec_context
    colours = {
        "colour primaries": int(context.color_primaries),
        "colour transfer": int(context.color_trc),
        "colour matrix": int(context.colorspace),
    }
    traits: dict[str, object] = {name: value for name, value in colours.items() if value not in _UNSPECIFIED}
    if int(context.color_range) == ColorRange.JPEG:  # the other is what players take where nothing is said
        traits["colour range"] = True
    if any(key.lower() == _ALPHA and value == "1" for key, value in stream.metadata.items()):
        traits["transparency (alpha_mode)"] = True
    if (shape := stream.sample_aspect_ratio) not in {None, 0, 1}:
        traits["pixel shape"] = shape
    return {"codec": _codec(stream), **traits}


def _check_kept(sources: Sequence[VideoStream], file: BinaryIO, suffix: str, item: str) -> None:
    """Read the file that was written, and refuse it if a video stream has lost what belongs to its pictures.

    Raises:
        ValueError: One has.
    """
    with box.open_container(file, item) as written:
        copies = [stream for stream in written.streams if stream.type == "video"]
        for source, copy in zip(sources, copies, strict=False):
            kept = _traits(copy) if isinstance(copy, VideoStream) and copy.codec_context is not None else {}
            if lost := [name for name, value in _traits(source).items() if kept.get(name) != value]:
                raise ValueError(
                    f"target: a {suffix} file does not keep the {', '.join(lost)} of this video; use .mkv, or "
                    "convert it"
                )


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


def _chosen(container: InputContainer, plan: Plan, suffix: str) -> tuple[list[Stream], tuple[str, ...]]:
    """Return the streams to copy, and the others in words.

    Raises:
        ValueError: The container cannot hold one with pictures or sound.
    """
    chosen: list[Stream] = []
    left_out = []
    for stream in container.streams:
        empty = stream.type == "video" and stream.index not in plan.videos
        if empty or not can_be_copied(stream) or (stream.type == "subtitle" and not _holds(suffix, stream)):
            left_out.append(f"{stream.type} stream {stream.index} ({_codec(stream)})")
        else:
            chosen.append(stream)
    needed = [stream for stream in chosen if stream.type != "subtitle"]
    if missing := sorted({_codec(stream) for stream in needed if not _holds(suffix, stream)}):
        others = [other for other in _SUGGESTED if all(_holds(other, stream) for stream in needed)]
        raise ValueError(
            f"target: {', '.join(missing)} cannot be written to a {suffix} file here; "
            + (
                f"use {' or '.join(others[:4])}"
                if others
                else "nor to another: cut it with ffmpeg -c copy, or convert it"
            )
        )
    return chosen, tuple(left_out)


class _Out:
    """A stream of the output.

    Args:
        output: The output.
        stream: The stream of the source that goes to it.
        suffix: Suffix of the file.
    """

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

    def put(self, packet: Packet[Any], pts: int, dts: int) -> None:
        """Write a packet at these times, in ticks of its stream."""
        base = packet.time_base
        packet.pts, packet.dts = pts, dts
        for each in [packet] if self._filter is None else self._filter.filter(packet):
            each.time_base = base
            each.stream = self._stream
            self._output.mux_one(each)


def _copy(packets: Iterator[Packet[Any]], plan: Plan, outs: dict[int, _Out], item: str) -> None:
    """Move the packets of the plan to the output, with times that begin at 0."""
    zero, stop = plan.zero, plan.stop
    done = dict.fromkeys(plan.videos, 0)
    waiting = {index for index, out in outs.items() if out.kind != "subtitle"}  # subtitles can be far between
    for packet in packets:
        index, base = packet.stream.index, base_of(packet.stream, item)
        time, shift = packet.dts if packet.pts is None else packet.pts, round(zero / base)
        if time is None:
            raise CorruptVideo(item, f"a packet of stream {index} has no time")
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
        if not waiting or (plan.main not in waiting and time * base > stop + Fraction(INTERLEAVE_S)):
            break
    if any(done[index] < len(stretch.kept) for index, stretch in plan.videos.items()):
        raise CorruptVideo(item, "it changed while it was read; try again")


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A file that was cut from a video.

    Attributes:
        path: The file.
        start_s: Where it begins, seconds on the clock of a player. That is at a key frame, so usually before what was
            asked for; after it only where the stream has no key frame before; and before the first frame, even below
            0, where the video hides frames before that (an edit list), which the file then shows.
        end_s: Where its last frame ends, seconds likewise.
        left_out: The streams that were not copied, such as `subtitle stream 2 (mov_text)`.
    """

    path: Path
    start_s: float
    end_s: float
    left_out: tuple[str, ...] = ()


def cut_clip(
    source: SingleSource,
    target: str | os.PathLike[str],
    start: float = 0.0,
    end: float | None = None,
    *,
    overwrite: bool = False,
    allow_url: UrlAccess = False,
    timeout_s: float | None = DEFAULT_TIMEOUT_S,
    max_bytes: int = MAX_DOWNLOAD_BYTES,
) -> Excerpt:
    """Copy a stretch of a video to a file, without decoding or encoding it.

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
        allow_url: Whether http and https addresses may be fetched (see `vidembed.video.fetch.UrlAccess`). Default
            False.
        timeout_s: Limit in seconds, None for none. Default 600.
        max_bytes: Limit on the size of a download. Default 2 GiB.

    Returns:
        What the file holds.

    Raises:
        VideoError: The source cannot be read, has no such stretch, or cannot be copied packet by packet; the subclass
            says why.
        ValueError: The target's suffix is none of `MUXERS`, its container cannot hold a stream of pictures or sound, or
            loses colours, transparency or pixel shape of pictures; its folder does not exist, or it is the source.
        FileExistsError: `target` exists, and `overwrite` is False.
        OSError: It cannot be written.

    Warns:
        VideoTruncated: What can be read ends over one second before `end` and before the duration that the video
            declares.
    """
    item = item_name(source)
    VideoSegment(source, start, end)  # checks the times
    path = check_target(target, overwrite=overwrite)
    deadline = Deadline(timeout_s, item)
    try:
        with open_source(source, item, allow_url=allow_url, timeout_s=timeout_s, max_bytes=max_bytes) as handle:
            return _cut(handle, source, path, (start, end), item, deadline, overwrite=overwrite)
    except TargetError as error:
        raise error.error from None


def check_target(target: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """Return the path of a file to write, or refuse it, as `cut_clip` does before it looks at the source.

    Raises:
        ValueError: Its suffix is none of `MUXERS`, it is a folder, or its folder does not exist.
        FileExistsError: It exists, and `overwrite` is False.
    """
    path = Path(target)
    if path.suffix and path.suffix.lower() not in MUXERS:
        raise ValueError(f"target: {str(path)!r} ends in {path.suffix!r}; it must end in one of {', '.join(MUXERS)}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"target: {str(path)!r} is a folder or in a folder that does not exist; name a file")
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"target: {str(path)!r} exists; choose another name, or have it replaced")
    return path


def _cut(
    handle: BinaryIO,
    source: object,
    target: Path,
    times: tuple[float, float | None],
    item: str,
    deadline: Deadline,
    *,
    overwrite: bool,
) -> Excerpt:
    with FrameReader(handle, item, deadline, threads=1) as reader:
        first = next(reader, None)
        if first is None or first.frame.pts is None or first.frame.time_base is None:
            raise CorruptVideo(item, f"no frame could be decoded ({reader.errors} errors)")
        zero = first.frame.pts * first.frame.time_base - Fraction(reader.start)
        declared = None if reader.duration is None else reader.start + reader.duration
        family = reader.container.format.name
        turns, mirrored = orientation(display_matrix(first.frame), item)
    if not target.suffix:
        target = target.with_name(target.name + _suffix_of(source, family))
        try:
            check_target(target, overwrite=overwrite)
        except FileExistsError as error:
            raise TargetError(error) from error
    if _is_same(handle, target):
        raise ValueError(f"target: {str(target)!r} is the source itself; choose another name")
    muxer = MUXERS[target.suffix.lower()]
    if muxer == "avi" != family:
        raise ValueError("target: AVI stores no times of frames, so only an AVI file can be cut to one; use .mkv")
    if muxer == "mpegts" != family and (turns or mirrored):
        raise ValueError(
            "target: a transport stream cannot say that a video is rotated or mirrored, as this one is; use .mkv"
        )
    start, end = times
    plan = make_plan(handle, zero + Fraction(start), None if end is None else zero + Fraction(end), item, deadline)
    left_out = write(handle, target, plan, item, deadline)
    excerpt = Excerpt(target, round(float(plan.start - zero), 6), round(float(plan.stop - zero), 6), left_out)
    due = min(bound for bound in (end, declared, excerpt.end_s + 1e9) if bound is not None)
    if declared is not None and not plan.videos[plan.main].done and due - excerpt.end_s > TRUNCATED_S:
        warn(VideoTruncated(f"{item}: what can be read ends at {excerpt.end_s:.2f} s, before {due:.2f} s"))
    return excerpt


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
