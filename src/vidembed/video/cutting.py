"""The ways of cutting a video into segments, as JSON and as times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeAlias

from vidembed.video.errors import VideoTooLarge
from vidembed.video.load import load_video
from vidembed.video.probe import probe
from vidembed.video.sampling import Sampling
from vidembed.video.scenes import Scenes, find_cuts
from vidembed.video.source import item_name
from vidembed.video.windows import Windows

Cut: TypeAlias = Windows | Scenes
"""Windows of equal length, or scenes."""

_KINDS: Final[dict[str, type[Windows] | type[Scenes]]] = {"windows": Windows, "scenes": Scenes}


@dataclass(frozen=True, slots=True)
class Layout:
    """The segments of a video.

    Attributes:
        duration: Of the video, seconds: as declared, or as measured where it declares none and for `Scenes`.
        segments: ``(start, end)`` of each, seconds from the first frame, in order of their starts.
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


def lay_out(source: str | Path, cut: Cut | None, *, timeout_s: float | None = None, threads: int = 1) -> Layout:
    """Decide the segments of a video.

    Windows need only its header where that declares a duration; otherwise, and for scenes, it is decoded once.

    Args:
        source: A local file.
        cut: How; ``None`` for one segment that is all of it.
        timeout_s: Limit in seconds on each time that it is read, or ``None``.
        threads: Decoding threads.

    Raises:
        VideoError: It cannot be read.
        VideoTooLarge: There would be too many segments.
    """
    item = item_name(source)
    if isinstance(cut, Scenes):
        duration, cuts = find_cuts(source, cut, item=item, timeout_s=timeout_s, threads=threads)
    else:
        duration, cuts = measure(source, timeout_s=timeout_s, threads=threads), []
    if cut is None:
        return Layout(duration, [(0.0, round(duration, 6))])
    try:
        return Layout(duration, cut.split(cuts, duration) if isinstance(cut, Scenes) else cut.split(duration))
    except ValueError as error:
        raise VideoTooLarge(item, f"{error}; cut longer segments, or cut the file") from error


def measure(source: str | Path, *, timeout_s: float | None = None, threads: int = 1) -> float:
    """Return the length of a video in seconds: as declared, or found by decoding it where it declares none.

    Raises:
        VideoError: It cannot be read.
    """
    declared = probe(source, timeout_s=timeout_s).duration
    if declared is not None:
        return declared
    small = Sampling(max_frames=1, max_pixels=64 * 64)
    return load_video(source, small, timeout_s=timeout_s, threads=threads).duration
