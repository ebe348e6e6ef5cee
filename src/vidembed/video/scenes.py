"""A video becomes scenes: cut where its content changes, found by PySceneDetect (extra ``scenes``)."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vidembed.video.clip import TRUNCATED_S
from vidembed.video.container import DEFAULT_THREADS
from vidembed.video.errors import BackendUnavailable, CorruptVideo, VideoTruncated, caller_level
from vidembed.video.opening import open_source
from vidembed.video.pyav import video_end
from vidembed.video.reader import Deadline, FrameReader, TimedFrame
from vidembed.video.windows import MAX_WINDOWS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

LOOK_PIXELS: Final = 256 * 144
"""Pixels of a frame that is looked at for cuts. PySceneDetect scales pictures down to a width of 256 or more by
itself (``scenedetect.scene_manager.DEFAULT_MIN_WIDTH``)."""
MIN_CONTENT: Final = 15.0
"""Least change of a cut, in steps of 255 of hue, saturation and brightness: ``AdaptiveDetector(min_content_val)``'s
default."""
NEIGHBOURS: Final = 2
"""Frames before and after one whose change it is compared with: ``AdaptiveDetector(window_width)``'s default."""
STILL_S: Final = 2.0
"""Seconds. A frame that stays on show as long is a still, such as a slide (ours: `Scenes.min_length_s`'s default)."""


@dataclass(frozen=True, slots=True)
class Scenes:
    """How a video is cut into scenes. They cover all of it, without gap or overlap.

    A cut is a frame that differs from the one before it by much more than its neighbours do (``AdaptiveDetector`` of
    PySceneDetect). Cuts less than `min_length_s` after the last are left out, which joins a short scene to the next
    one, and at the end to the one before. What is longer than `max_length_s` is split into equal parts.

    Attributes:
        threshold: How many times the mean change of its two neighbours on either side a change must be, over 1.
            Default 3 (``AdaptiveDetector(adaptive_threshold)``'s default). Lower finds more cuts.
        min_length_s: No scene is shorter, seconds, at least 0.001; but a video that is shorter is one scene.
            Default 2 (ours: four frames at 2 frames a second).
        max_length_s: No scene is longer, seconds, at least twice `min_length_s`. Default 90 (ours: the longest that
            is looked at twice a second with 180 frames).

    Raises:
        ValueError: A field is out of range.
    """

    threshold: float = 3.0
    min_length_s: float = 2.0
    max_length_s: float = 90.0

    def __post_init__(self) -> None:
        """Check the fields."""
        for name, least in (("threshold", 1.0), ("min_length_s", 0.001), ("max_length_s", 0.002)):
            value: Any = getattr(self, name)
            number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and value >= least):
                raise ValueError(f"Scenes({name}={value!r}): expected a finite number of at least {least:g}")
            object.__setattr__(self, name, float(value))
        if self.max_length_s < 2 * self.min_length_s:
            raise ValueError(
                f"Scenes(max_length_s={self.max_length_s:g}): expected at least twice min_length_s="
                f"{self.min_length_s:g}, or parts of a long scene would be too short"
            )

    def split(self, cuts: Iterable[float], duration: float) -> list[tuple[float, float]]:
        """Return the `(start, end)` of each scene, seconds, rounded to microseconds, in order.

        Args:
            cuts: Where the content changes, seconds, ascending. Those outside the video do not count.
            duration: Length of the video, seconds, over 0.

        Raises:
            ValueError: `duration` is not a positive number, or there would be over `MAX_WINDOWS` scenes.
        """
        if not (math.isfinite(duration) and duration > 0):
            raise ValueError(f"duration: got {duration}; a positive number of seconds is needed to cut scenes")
        bounds = [0.0]
        for cut in cuts:
            if self.min_length_s <= cut - bounds[-1] and self.min_length_s <= duration - cut:
                bounds.append(cut)
        bounds.append(duration)
        counts = [max(1, math.ceil((end - start) / self.max_length_s - 1e-9)) for start, end in pairwise(bounds)]
        if sum(counts) > MAX_WINDOWS:
            raise ValueError(f"duration: {duration} s would be {sum(counts)} scenes; {MAX_WINDOWS} of a file are cut")
        edges = [
            start + (end - start) * part / count
            for (start, end), count in zip(pairwise(bounds), counts, strict=True)
            for part in range(count)
        ]
        return list(pairwise(round(edge, 6) for edge in [*edges, duration]))


def require_scenedetect(item: str) -> None:
    """Raise :class:`BackendUnavailable` unless PySceneDetect is installed."""
    if importlib.util.find_spec("scenedetect") is None:
        raise BackendUnavailable(
            item,
            'cutting by scenes needs PySceneDetect, which is not installed; run: pip install "vidembed[scenes]", or '
            "cut windows of equal length",
        )


class CutFinder:
    """Finds cuts in frames that come one by one. Holds one picture and the last few times.

    A frame that stays on show for `STILL_S` is looked at again, as often as a frame has neighbours on a side:
    otherwise, in a row of slides of one frame each, every change would have changes for its neighbours.

    Args:
        scenes: What a cut is.
    """

    def __init__(self, scenes: Scenes) -> None:
        """Make the detector."""
        from scenedetect.detectors import AdaptiveDetector  # noqa: PLC0415 - an extra, and it loads OpenCV

        self._detector = AdaptiveDetector(
            adaptive_threshold=scenes.threshold, min_scene_len=0, window_width=NEIGHBOURS, min_content_val=MIN_CONTENT
        )
        self._number = 0
        self._times: deque[tuple[int, float]] = deque(maxlen=2 * NEIGHBOURS + 2)
        self._last: tuple[float, NDArray[np.uint8]] | None = None

    def feed(self, time: float, picture: NDArray[np.uint8]) -> list[float]:
        """Look at the next frame; return the times of the cuts found, which lie a few frames back.

        Args:
            time: When it comes on show, seconds.
            picture: ``(H, W, 3)`` uint8 RGB, all of one size.
        """
        found: list[float] = []
        if self._last is None:
            found += self._look_again(time, picture)  # what comes first has a still for its neighbours
        elif time - self._last[0] >= STILL_S:
            found += self._look_again(*self._last)
        self._last = time, picture
        return found + self._look(time, picture)

    def finish(self) -> list[float]:
        """Return the times of the cuts among the last frames."""
        return [] if self._last is None else self._look_again(*self._last)

    def _look_again(self, time: float, picture: NDArray[np.uint8]) -> list[float]:
        return [cut for _ in range(NEIGHBOURS) for cut in self._look(time, picture)]

    def _look(self, time: float, picture: NDArray[np.uint8]) -> list[float]:
        from scenedetect import FrameTimecode  # noqa: PLC0415

        self._times.append((self._number, time))
        # Frames are only numbered for it: the rate of 1 stands in no time of ours.
        code = FrameTimecode(self._number, fps=1.0)
        self._number += 1
        cuts = self._detector.process_frame(code, np.ascontiguousarray(picture[:, :, ::-1]))  # (H, W, 3) BGR
        times = dict(self._times)
        return [times[cut.frame_num] for cut in cuts]


def find_cuts(
    source: object, scenes: Scenes, *, item: str, timeout_s: float | None, threads: int = DEFAULT_THREADS
) -> tuple[float, list[float]]:
    """Decode a video once and find where its content changes.

    Args:
        source: A path, bytes or binary file object.
        scenes: How to cut; cuts that it would leave out anyway are not returned.
        item: Name for messages.
        timeout_s: Limit in seconds, or ``None``.
        threads: Decoding threads.

    Returns:
        How long the video was found to be, in seconds, and the times of its cuts, ascending.

    Raises:
        BackendUnavailable: PySceneDetect is not installed.
        VideoError: The video cannot be read.

    Warns:
        VideoTruncated: It ends over one second before the duration it declares.
    """
    require_scenedetect(item)
    finder = CutFinder(scenes)
    cuts: list[float] = []
    last: TimedFrame | None = None
    with (
        open_source(source, item) as handle,
        FrameReader(handle, item, Deadline(timeout_s, item), threads=threads) as r,
    ):
        geometry = None
        for timed in r:
            geometry = geometry or r.geometry(timed.frame, LOOK_PIXELS)
            _join(cuts, finder.feed(timed.time, timed.array(geometry, item)), scenes.min_length_s)
            last = timed
        if last is None:
            raise CorruptVideo(item, f"no frame could be decoded ({r.errors} errors)")
        end, declared = video_end(last, r), r.duration
    _join(cuts, finder.finish(), scenes.min_length_s)
    if declared is not None and declared - end > TRUNCATED_S:
        warnings.warn(
            VideoTruncated(
                f"{item}: it ends at {end:.2f} s, before the {declared:.2f} s it declares; only what is there is cut"
            ),
            stacklevel=caller_level(),
        )
    return end, cuts


def _join(cuts: list[float], found: list[float], min_length_s: float) -> None:
    """Add cuts that are not too close to the last, so that no more are held than there can be scenes."""
    for cut in found:
        if cut - (cuts[-1] if cuts else 0.0) >= min_length_s:
            cuts.append(cut)
