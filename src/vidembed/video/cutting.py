"""The ways of cutting a video into segments, as JSON and as times."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, TypeAlias

import numpy as np

from vidembed.video.clip import TRUNCATED_S
from vidembed.video.container import has_discontinuities
from vidembed.video.download import UrlAccess
from vidembed.video.errors import CorruptVideo, VideoTooLarge, VideoTruncated, warn
from vidembed.video.opening import open_source
from vidembed.video.reader import Deadline, Extent, FrameReader
from vidembed.video.sampling import TIME_EPSILON
from vidembed.video.scenes import Scenes, find_cuts
from vidembed.video.source import VideoSource, item_name
from vidembed.video.windows import Windows

Cut: TypeAlias = Windows | Scenes
"""Windows of equal length, or scenes."""

_KINDS: Final[dict[str, type[Windows] | type[Scenes]]] = {"windows": Windows, "scenes": Scenes}


@dataclass(frozen=True, slots=True)
class Layout:
    """The segments of a video.

    Times are those of a player, which shows the start of the file's earliest stream as 0.

    Attributes:
        duration: Where the video ends, seconds.
        segments: ``(start, end)`` of each, seconds, in order of their starts. The first starts with the first frame.
    """

    duration: float
    segments: list[tuple[float, float]]


def cut_to_dict(cut: Cut) -> dict[str, Any]:
    """Return a cut as JSON values, such as ``{"kind": "windows", "length": 10.0, "overlap": 2.0}``."""
    kind = next(kind for kind, type_ in _KINDS.items() if isinstance(cut, type_))
    return {"kind": kind, **asdict(cut)}


def cut_from_dict(value: Mapping[str, Any]) -> Cut:
    """Return the cut that `cut_to_dict` wrote.

    Raises:
        ValueError: The kind is not known, a field is missing, unknown, or out of range.
    """
    name = value.get("kind") if isinstance(value, Mapping) else None
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise ValueError(f"cut: got {value!r}; a mapping whose 'kind' is one of {', '.join(_KINDS)} is needed")
    rest = {name: field for name, field in value.items() if name != "kind"}
    expected = {field.name for field in fields(kind)}
    if set(rest) != expected:
        raise ValueError(f"cut: got the fields {sorted(rest)} of {name}; {sorted(expected)} are needed")
    for name, field in rest.items():
        if isinstance(field, bool) or not isinstance(field, (int, float)):
            raise ValueError(f"cut: {name} is {field!r}; a number is needed")  # noqa: TRY004 - as for every fault
    return kind(**rest)


def lay_out(
    source: VideoSource,
    cut: Cut | None,
    *,
    allow_url: UrlAccess = False,
    timeout_s: float | None = None,
    threads: int = 1,
) -> Layout:
    """Decide the segments of a video by the frames that are there.

    Windows and whole videos need a pass over its packets, and no decoding, where the clock does not jump; otherwise,
    and for scenes, it is decoded once. A declared duration counts where the last frame ends within a second before it,
    or within a frame of it. Segments in a row in which no new frame comes on show are one.

    Args:
        source: A path, bytes, a binary file object or, with `allow_url`, an http(s) address.
        cut: How; ``None`` for one segment that is all of it.
        allow_url: As in :func:`vidembed.video.load_video`.
        timeout_s: Limit in seconds on each time that it is read, or ``None``.
        threads: Decoding threads.

    Raises:
        VideoError: It cannot be read.
        VideoTooLarge: There would be too many segments.

    Warns:
        VideoTruncated: It ends over one second before the duration it declares.
    """
    item = item_name(source)
    if isinstance(cut, Scenes):
        extent, cuts = find_cuts(source, cut, item=item, timeout_s=timeout_s, threads=threads)
    else:
        extent, cuts = _survey(source, item, allow_url=allow_url, timeout_s=timeout_s, threads=threads), []
    if extent.is_truncated:
        warn(
            VideoTruncated(
                f"{item}: it ends at {extent.end:.2f} s, before the {extent.declared:.2f} s it declares; only what is "
                "there is cut"
            )
        )
    try:
        duration, segments = _cut(cut, cuts, extent)
    except ValueError as error:
        raise VideoTooLarge(item, f"{error}; cut longer segments, or cut the file") from error
    if not extent.start:
        return Layout(duration, segments)
    moved = [(round(start + extent.start, 6), round(end + extent.start, 6)) for start, end in segments]
    return Layout(duration + extent.start, moved)


def _survey(source: VideoSource, item: str, *, allow_url: UrlAccess, timeout_s: float | None, threads: int) -> Extent:
    """Find where the frames of a video lie: by its packets, or by decoding it where these do not tell."""
    deadline = Deadline(timeout_s, item)
    with open_source(source, item, allow_url=allow_url, timeout_s=timeout_s) as handle:
        with FrameReader(handle, item, deadline, threads=threads) as reader:
            if next(reader, None) is None:
                raise CorruptVideo(item, f"no frame could be decoded ({reader.errors} errors)")
            found = None if has_discontinuities(reader.container) else reader.survey()
        if found is not None:
            return found
        times = array("d")
        with FrameReader(handle, item, deadline, threads=threads) as reader:
            last = None
            for last in reader:
                times.append(last.time)
            if last is None:
                raise CorruptVideo(item, f"no frame could be decoded ({reader.errors} errors)")
            return reader.extent(np.frombuffer(times), last.time + last.duration)


def _cut(cut: Cut | None, cuts: list[float], extent: Extent) -> tuple[float, list[tuple[float, float]]]:
    """Return the duration and the segments of a video, in seconds from the first frame."""
    end, declared = extent.end, extent.declared
    if cut is None:
        return end, [(0.0, round(end, 6))]
    if isinstance(cut, Scenes):
        return end, _without_still(cut.split(cuts, end), extent)
    if declared is not None and 0 < declared - end <= TRUNCATED_S:
        segments = cut.split(declared)
        if segments[-1][0] + TIME_EPSILON < end:
            return declared, _without_still(segments, extent)
    return end, _without_still(cut.split(end), extent)


def _without_still(segments: list[tuple[float, float]], extent: Extent) -> list[tuple[float, float]]:
    """Make one of segments in a row in which no new frame comes on show."""
    bounds = np.asarray(segments)  # (S, 2)
    first, behind = np.searchsorted(extent.times, bounds - TIME_EPSILON).T  # the frames that begin in each
    kept: list[tuple[float, float]] = []
    for place, (start, end) in enumerate(segments):
        if place and first[place] == behind[place] and first[place - 1] == behind[place - 1]:
            kept[-1] = kept[-1][0], end
        else:
            kept.append((start, end))
    return kept
