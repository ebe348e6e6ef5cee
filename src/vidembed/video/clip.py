"""The frames of one video as handed to a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypedDict

import numpy as np

from vidembed.errors import warn_truncated
from vidembed.video.picture import MAX_AREA, MAX_SIDE

if TYPE_CHECKING:
    from io import BufferedIOBase

    from numpy.typing import NDArray

    from vidembed.video.sampling import Sampling

TRUNCATED_S = 1.0
"""Seconds. A stream that ends this much before its declared duration is truncated."""
METADATA_TOLERANCE_S = 0.01
"""Seconds that a whole frame index may be off: a tenth of the last digit of the times that models are given."""

MAX_NUMBER = 1e15
"""Of any number of a clip; above all that this package lets a video have."""

_FIELDS: Final = {
    "fps": float,
    "duration": float,
    "start_s": float,
    "total_num_frames": int,
    "damaged": bool,
    "truncated": bool,
    "item": str,
    "video_backend": str,
}


class ClipMetadata(TypedDict):
    """See `Clip.metadata`."""

    fps: float
    duration: float
    total_num_frames: int
    frames_indices: list[float]
    width: int
    height: int
    video_backend: str


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a video, or of a timed segment of one, each the one on show at its moment.

    All times are in seconds. Of a whole video they count from its first frame; of a segment, **from the
    start of the segment**, so that the same content gives the same vector wherever it lies in a file;
    ``start_s`` says where that is on the clock of a player.

    Attributes:
        frames: ``(T, H, W, 3)`` uint8 RGB: T >= 1 frames of one size, upright, with square pixels.
        timestamps: ``(T,)`` float64: when each frame came on show. Never falls. A still that lasts over
            several looks is there several times, with one timestamp. The frame already on show when a
            segment begins has time 0.
        fps: Average frame rate of the stream, in frames per second (not of the sampled frames).
        duration: Length of what was looked at: to the end of the last frame, or of the segment.
        frames_indices: ``(T,)`` int64: the ordinal of each frame in the stream, from 0. Where frames were
            not counted (a segment, or a long file that was seeked in): ``round(timestamps * fps)``.
        total_num_frames: Number of frames in the video or segment, above every ``frames_indices``; counted
            where frames were counted, else ``round(duration * fps)``.
        damaged: True if any part could not be decoded; what is left is in place by time.
        truncated: True if the stream ends over one second before the duration it declares.
        item: How the source is named in messages.
        start_s: Where the clip begins in the file, seconds on the clock of a player: the segment's start, or that of
            the first frame if that comes later.
        video_backend: What decoded it: ``"pyav"``, ``"decord"`` or ``"frames"`` (given as an array).
        sampling: How the frames were chosen, or ``None`` if that is not known. What embeds a clip checks that it
            would have chosen them so itself.
    """

    frames: NDArray[np.uint8]
    timestamps: NDArray[np.float64]
    fps: float
    duration: float
    frames_indices: NDArray[np.int64]
    total_num_frames: int
    damaged: bool
    truncated: bool
    item: str
    start_s: float = 0.0
    video_backend: str = "pyav"
    sampling: Sampling | None = None

    def metadata(self) -> ClipMetadata:
        """Return what ``transformers.video_utils.VideoMetadata`` takes, as plain Python values.

        Processors compute a frame's time as ``frames_indices / fps``, which an ordinal meets only where
        the frame rate is constant. So the indices here are ``timestamps * fps``: whole numbers, equal to
        ``Clip.frames_indices``, at a constant rate, and fractions where only those are right in time.

        Returns:
            ``fps``, ``duration`` (s), ``total_num_frames``, ``frames_indices`` (list of T numbers), ``width``
            and ``height`` (pixels, of the frames in this clip), ``video_backend``.
        """
        exact = self.timestamps * self.fps  # (T,)
        whole = np.rint(exact)  # (T,)
        is_regular = bool(np.all(np.abs(whole - exact) <= METADATA_TOLERANCE_S * self.fps))
        return {
            "fps": self.fps,
            "duration": self.duration,
            "total_num_frames": max(self.total_num_frames, int(whole[-1]) + 1),
            "frames_indices": (whole.astype(np.int64) if is_regular else exact).tolist(),
            "width": int(self.frames.shape[2]),
            "height": int(self.frames.shape[1]),
            "video_backend": self.video_backend,
        }


def assemble(
    frames: Sequence[NDArray[np.uint8]],
    times: NDArray[np.float64],
    *,
    ordinals: NDArray[np.int64] | None,
    count: int,
    declared_fps: float | None,
    start: float,
    end: float | None,
    video_end: float,
    declared_duration: float | None,
    start_s: float,
    damaged: bool,
    item: str,
    backend: str,
) -> Clip:
    """Make the clip of a decoded window, and warn if its end is missing. Times are seconds from the first frame.

    Args:
        frames: T pictures ``(H, W, 3)`` of one size.
        times: ``(T,)`` when each comes on show.
        ordinals: ``(T,)`` places in the stream, or ``None`` if they were not counted.
        count: Frames counted in the window (if ``ordinals``, in the whole video).
        declared_fps: The stream's average rate as declared, or ``None``.
        start: Start of the window.
        end: Its end, or ``None`` for the end of the video.
        video_end: Where the video was found to end; above ``end`` if it was not read so far.
        declared_duration: What the video stream declares, or ``None``.
        start_s: As `Clip.start_s`, as are those below.
        damaged: See there.
        item: See there.
        backend: `Clip.video_backend`.
    """
    stop = video_end if end is None else min(end, video_end)
    due = [bound for bound in (end, declared_duration) if bound is not None]
    truncated = declared_duration is not None and min(due) - stop > TRUNCATED_S
    if truncated:
        found = f"it ends at {video_end:.2f} s, before the {declared_duration:.2f} s it declares"
        warn_truncated(f"{item}: {found}; only what is there is used")
    duration = stop - start
    shown = np.maximum(times - start, 0.0)  # (T,)
    counted = count / duration if duration > 0 else 1.0  # a still of no length: any rate puts it at time 0
    fps = counted if declared_fps is None else declared_fps
    if ordinals is not None and start == 0 and end is None:
        if duration > 0 and abs(fps * duration - count) > max(1.0, 0.01 * count):  # counting contradicts it by over 1 %
            fps = counted
        indices, total = ordinals, count
    else:
        indices, total = np.rint(shown * fps).astype(np.int64), round(duration * fps)
    stacked = np.empty((len(frames), *frames[0].shape), dtype=np.uint8)  # (T, H, W, 3)
    for i, frame in enumerate(frames):
        stacked[i] = frame
    total = max(total, int(indices[-1]) + 1)
    known = stacked, shown, fps, duration, indices, total
    return Clip(*known, damaged=damaged, truncated=truncated, item=item, start_s=start_s, video_backend=backend)


# -- a clip as JSON values and bytes, for another process --------------------------------------------------------------


def clip_message(clip: Clip) -> tuple[dict[str, Any], list[memoryview]]:
    """Return a clip as JSON values, without its sampling, and as the bytes that `read_clip` needs besides."""
    fields = {name: kind(getattr(clip, name)) for name, kind in _FIELDS.items()}
    arrays = [np.ascontiguousarray(array) for array in (clip.timestamps, clip.frames_indices, clip.frames)]
    return {"clip": fields, "shape": list(clip.frames.shape)}, [array.data.cast("B") for array in arrays]


def read_clip(
    message: dict[str, Any], stream: BufferedIOBase, sampling: Sampling, rename: Callable[[str], str] = str
) -> Clip:
    """Return the clip of a message.

    Args:
        message: What `clip_message` returned first.
        stream: Gives the bytes that it returned second.
        sampling: How the clip was sampled. It bounds the shape.
        rename: Changes its item.

    Raises:
        EOFError: The bytes break off.
        ValueError: It is malformed, or not of a clip that was sampled so.
        MemoryError: There is no room for it.
    """
    fields, shape = message.get("clip"), message.get("shape")
    if not isinstance(fields, dict) or {name: type(value) for name, value in fields.items()} != _FIELDS:
        raise ValueError("a malformed clip")
    numbers = [value for value in fields.values() if isinstance(value, (int, float))]
    if not all(0 <= number <= MAX_NUMBER for number in numbers) or 0 in (fields["fps"], fields["total_num_frames"]):
        raise ValueError("a malformed clip, with numbers that no video has")
    if not isinstance(shape, list) or [type(length) for length in shape] != 4 * [int] or shape[3] != 3:
        raise ValueError("a malformed clip, without a shape")
    count, height, width, _ = shape
    largest = MAX_AREA if sampling.max_pixels is None else sampling.max_pixels
    fits = 1 <= count <= sampling.max_frames and min(height, width) >= 1 and height * width <= largest
    if not fits or max(height, width) > MAX_SIDE:
        raise ValueError(f"a malformed clip of shape {shape}, for {sampling}")
    times = np.empty(count, dtype=np.float64)  # (T,)
    indices = np.empty(count, dtype=np.int64)  # (T,)
    frames = np.empty(shape, dtype=np.uint8)  # (T, H, W, 3)
    for array in (times, indices, frames):
        rest = array.data.cast("B")
        while rest:  # a pipe gives it in pieces
            if not (length := stream.readinto(rest)):
                raise EOFError
            rest = rest[length:]
    if not (np.isfinite(times).all() and (np.diff(times) >= 0).all() and times[0] >= 0 and indices.min() >= 0):
        raise ValueError("a malformed clip, with times or indices that no frames have")
    fields = {**fields, "item": rename(fields["item"])}
    return Clip(frames=frames, timestamps=times, frames_indices=indices, sampling=sampling, **fields)
