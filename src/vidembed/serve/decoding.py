"""Videos of requests are decoded in processes that can be killed, some at a time."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import asynccontextmanager

from vidembed.errors import VideoError
from vidembed.serve.batching import QueueFullError
from vidembed.serve.security import Limits
from vidembed.video import Clip, DecodeLimits, Sampling, VideoSegment
from vidembed.video.pool import DecodePool, Reading

AT_ONCE = 8  # videos of a request that are decoded and held in memory together (our choice); the next ones follow


class Decoder:
    """Reads videos for requests, some at a time."""

    def __init__(self, limits: Limits, *, backend: str = "pyav") -> None:
        decoding = DecodeLimits(timeout_s=limits.decode_timeout_s, max_memory_bytes=limits.decode_memory_bytes)
        self._pool = DecodePool(workers=limits.decode_workers, limits=decoding, backend=backend)
        self._threads = ThreadPoolExecutor(limits.decode_workers, thread_name_prefix="vidembed-decode")
        # One group more than there are processes is under way, so that these have work while the model has some.
        self._turns = asyncio.Semaphore(limits.decode_workers + 1)
        self._closed = False

    @asynccontextmanager
    async def clips(
        self, videos: Sequence[VideoSegment], sampling: Sampling, *, pictures: bool = False
    ) -> AsyncIterator[list[Clip | VideoError]]:
        """Read up to `AT_ONCE` videos, and pictures if they may be, each once; yield the clip of each, or its error.

        Others wait until the caller leaves, when the model has seen the clips: so the memory that they take is bounded.
        """
        async with self._turns:
            if self._closed:
                raise QueueFullError("the server is stopping")
            readings: dict[VideoSegment, Reading] = {}
            try:
                for video in dict.fromkeys(videos):
                    if not isinstance(video.path, (str, os.PathLike)):
                        raise TypeError(f"video: got a segment of {type(video.path).__name__}; one of a file is needed")
                    is_whole = video.start == 0 and video.end is None
                    readings[video] = self._pool.submit(video.path if is_whole else video, sampling, pictures=pictures)
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


def _take(reading: Reading) -> Clip | VideoError:
    """Wait for the one clip of a reading."""
    try:
        (clip,) = reading
    except VideoError as error:
        return error
    except CancelledError as error:  # the request was given up, and nobody waits; or
        raise QueueFullError("the server is stopping") from error
    return clip
