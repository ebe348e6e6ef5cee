"""Cutting: what is asked for and what comes of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from vidembed.video.clip import TRUNCATED_S
from vidembed.video.download import MAX_DOWNLOAD_BYTES, UrlAccess
from vidembed.video.errors import CorruptVideo, VideoTruncated, warn
from vidembed.video.geometry import display_matrix, orientation
from vidembed.video.load import DEFAULT_TIMEOUT_S
from vidembed.video.opening import open_source
from vidembed.video.reader import Deadline, FrameReader
from vidembed.video.remux.plan import make_plan
from vidembed.video.remux.write import MUXERS, TargetError, write
from vidembed.video.source import SingleSource, VideoSegment, item_name


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
        allow_url: Whether http and https addresses may be fetched (see `vidembed.video.download.UrlAccess`). Default
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
