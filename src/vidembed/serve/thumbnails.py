"""Pictures of hits: one frame of a video as JPEG, made when it is first asked for and kept while there is room."""

from __future__ import annotations

import asyncio
import hashlib
import io
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vidembed.errors import VideoError
from vidembed.serve.decoding import Decoder
from vidembed.serve.security import Limits, busy, unusable
from vidembed.video import Sampling, VideoSegment
from vidembed.video.clip import FileState

MAX_WIDTH = 320  # pixels; what a card of the page shows
_QUALITY = 80  # of JPEG, as in contact sheets
_STRETCH_S = 0.01  # what is looked at, so that decoding ends with the frame that is wanted
# Frames are never scaled up. The area keeps what the decoder hands over small; the width is bounded afterwards.
_SAMPLING = Sampling(max_frames=1, max_pixels=MAX_WIDTH * 240)


@dataclass(frozen=True, slots=True)
class Moment:
    """A time of a file, to the millisecond, and the file's state: what a thumbnail is of."""

    path: Path
    state: FileState
    milliseconds: int

    @classmethod
    def of(cls, path: Path, seconds: float) -> Moment:
        """Return the moment of a file as it is now. Raises OSError if it cannot be reached."""
        return cls(path, FileState.of(path), round(seconds * 1000))

    @property
    def etag(self) -> str:
        """The HTTP entity tag of its thumbnail, without the name of the file."""
        text = f"{self.path}\0{self.state.size}\0{self.state.mtime_ns}\0{self.milliseconds}"
        return f'"{hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]}"'


class Thumbnails:
    """Makes thumbnails in the decoding processes, each once however many ask for it, and keeps the last used ones.

    Used on one event loop.
    """

    def __init__(self, decoder: Decoder, limits: Limits) -> None:
        self._decoder = decoder
        self._limits = limits
        self._kept: OrderedDict[Moment, bytes] = OrderedDict()
        self._bytes = 0
        self._making: dict[Moment, asyncio.Task[bytes]] = {}
        # No more of them than processes wait for the decoder, so that other requests do not queue behind a whole page.
        self._turns = asyncio.Semaphore(limits.decode_workers)

    async def get(self, moment: Moment) -> bytes:
        """Return the frame on show at a moment as JPEG, at most `MAX_WIDTH` pixels wide.

        Raises ApiError: 400 there is no such frame; 503 too many are being made.
        """
        if (found := self._kept.get(moment)) is not None:
            self._kept.move_to_end(moment)
            return found
        if (task := self._making.get(moment)) is None:
            if len(self._making) >= self._limits.max_thumbnails:
                raise busy(f"{len(self._making)} thumbnails are being made, the most at once; try again")
            task = self._making[moment] = asyncio.create_task(self._make(moment))
            task.add_done_callback(lambda done: self._keep(moment, done))
        # A request that is given up leaves the thumbnail to the others that wait for it.
        return await asyncio.shield(task)

    async def _make(self, moment: Moment) -> bytes:
        start = moment.milliseconds / 1000
        async with self._turns:
            video = VideoSegment(moment.path, start, start + _STRETCH_S)
            async with self._decoder.clips([video], _SAMPLING) as (clip,):
                if isinstance(clip, VideoError):
                    raise unusable("t", clip)
                return await asyncio.to_thread(_jpeg, clip.frames[0])

    def _keep(self, moment: Moment, done: asyncio.Task[bytes]) -> None:
        del self._making[moment]
        if done.cancelled() or done.exception() is not None:
            return  # the next request tries again
        self._kept[moment] = done.result()
        self._bytes += len(done.result())
        while self._bytes > self._limits.thumbnail_bytes:
            self._bytes -= len(self._kept.popitem(last=False)[1])


def _jpeg(frame: NDArray[np.uint8]) -> bytes:  # (H, W, 3)
    picture, out = Image.fromarray(frame), io.BytesIO()
    picture.thumbnail((MAX_WIDTH, picture.height))
    picture.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
