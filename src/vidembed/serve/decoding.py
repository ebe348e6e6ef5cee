"""Videos of requests are decoded in processes of their own: one that hangs or crashes its decoder harms no other."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from vidembed.serve.batching import QueueFullError
from vidembed.video import VideoError, VideoSegment
from vidembed.video.pool import DecodePool

if TYPE_CHECKING:
    from vidembed.serve.limits import Limits
    from vidembed.video import Clip, Sampling
    from vidembed.video.pool import Reading

AT_ONCE = 8
"""Videos of a request that are decoded and held in memory together (our choice); the next ones follow."""


class Decoder:
    """Reads videos for requests, some at a time.

    Args:
        limits: `decode_workers`, and what each video may take.
        backend: As in `vidembed.video.load_video`.
    """

    def __init__(self, limits: Limits, *, backend: str = "pyav") -> None:
        self._pool = DecodePool(
            workers=limits.decode_workers,
            timeout_s=limits.decode_timeout_s,
            max_memory_bytes=limits.decode_memory_bytes,
            backend=backend,
        )
        self._threads = ThreadPoolExecutor(limits.decode_workers, thread_name_prefix="vidembed-decode")
        # One group more than there are processes is under way, so that these have work while the model has some.
        self._turns = asyncio.Semaphore(limits.decode_workers + 1)
        self._closed = False

    @asynccontextmanager
    async def clips(self, videos: Sequence[VideoSegment], sampling: Sampling) -> AsyncIterator[list[Clip | VideoError]]:
        """Read up to `AT_ONCE` videos. The same one is read once, and is one object.

        Others wait until the caller leaves, which should be when the model has seen the clips: so the memory that
        clips take is bounded.

        Args:
            videos: Files or timed parts of them.
            sampling: How to choose frames.

        Yields:
            The clip of each, or why it cannot be read.
        """
        async with self._turns:
            if self._closed:
                raise QueueFullError("the server is stopping")
            readings: dict[VideoSegment, Reading] = {}
            try:
                for video in dict.fromkeys(videos):
                    readings[video] = self._begin(video, sampling)
                loop = asyncio.get_running_loop()
                taken = [loop.run_in_executor(self._threads, _take, reading) for reading in readings.values()]
                found = dict(zip(readings, await asyncio.gather(*taken), strict=True))
                yield [found[video] for video in videos]
            finally:
                for reading in readings.values():
                    reading.cancel()  # of one that was read to its end, this does nothing

    def close(self) -> None:
        """End all processes and threads. What waits fails."""
        self._closed = True
        self._pool.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, video: VideoSegment, sampling: Sampling) -> Reading:
        if not isinstance(video.path, (str, os.PathLike)):
            raise TypeError(f"video: got a segment of {type(video.path).__name__}; one of a file is needed")
        is_whole = video.start == 0 and video.end is None
        return self._pool.submit(video.path, sampling, cut=None if is_whole else [(video.start, video.end)])


def _take(reading: Reading) -> Clip | VideoError:
    """Wait for the one clip of a reading."""
    try:
        (clip,) = reading
    except VideoError as error:
        return error
    except CancelledError as error:  # the request was given up, and hears nothing; or
        raise QueueFullError("the server is stopping") from error
    return clip
