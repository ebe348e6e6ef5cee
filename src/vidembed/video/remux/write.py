"""Writing packets to a file, and which containers can hold what."""

from __future__ import annotations

import io
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import av
import av.error
from av.bitstream import BitStreamFilterContext
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from vidembed.atomic import replacing
from vidembed.video import container as box
from vidembed.video.errors import CorruptVideo
from vidembed.video.remux.plan import INTERLEAVE_S, base_of, can_be_copied, read_packets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream

    from vidembed.video.reader import Deadline
    from vidembed.video.remux.plan import Plan

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


class TargetError(Exception):
    """Carries an OSError of the target past the place that takes every OSError for one of the source.

    Attributes:
        error: As it was.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


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
