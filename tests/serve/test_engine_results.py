from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vidembed.serve.contents import ContentsReader
from vidembed.serve.engine import Embedded, vector_of
from vidembed.serve.media import MediaLibrary
from vidembed.serve.security import ApiError, unusable
from vidembed.video import (
    BackendUnavailable,
    CorruptVideo,
    DecoderCrashed,
    DecodeTimeout,
    VideoPermission,
    VideoTooLarge,
)


@pytest.mark.parametrize(
    ("error", "status", "code", "part"),
    [
        (CorruptVideo("/secret/a.mp4", "its frames are damaged"), 400, "invalid_video", "CorruptVideo: its frames"),
        (VideoTooLarge("/secret/a.mp4", "more memory"), 400, "invalid_video", "VideoTooLarge: more memory"),
        (VideoPermission("a", "no ([Errno 13] x: '/secret/a.mp4')"), 400, "invalid_video", "VideoPermission: no"),
        (DecoderCrashed("/secret/a.mp4", "ended with signal 11"), 400, "decoder_crashed", "signal 11"),
        (DecodeTimeout("/secret/a.mp4", "timeout_s=30"), 504, "decode_timeout", "send a shorter or smaller video"),
        (ValueError("a marker at /secret/place"), 400, "invalid_value", "contains a token that is reserved"),
    ],
)
def test_answer_to_an_input_that_failed(error: Exception, status: int, code: str, part: str) -> None:
    answer = unusable("input[3]", error)
    assert isinstance(answer, ApiError)
    assert (answer.status_code, answer.code, answer.param) == (status, code, "input[3]")
    assert part in str(answer.detail)
    assert str(answer.detail).startswith("input[3]: ")
    assert "secret" not in str(answer.detail)


@pytest.mark.parametrize("error", [BackendUnavailable("a.mp4", "it did not start"), RuntimeError("x"), KeyError("x")])
def test_what_is_the_fault_of_the_server_is_no_answer(error: Exception) -> None:
    assert isinstance(unusable("input", error), RuntimeError)


@pytest.mark.parametrize("vector", [None, np.zeros(3, np.float32), np.full(3, np.nan, np.float32)])
def test_no_usable_vector_is_no_answer(vector: np.ndarray | None) -> None:
    with pytest.raises(RuntimeError, match="input"):
        vector_of(Embedded(vector), "input")


def test_a_shorter_vector_has_length_one() -> None:
    np.testing.assert_allclose(vector_of(Embedded(np.array([3, 4, 12], np.float32)), "input", 2), [0.6, 0.8])


def test_requests_that_wait_for_the_index_leave_a_thread_to_others(
    serve: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, may_go = serve().engine, threading.Event()

    def wait(*_: object) -> None:
        may_go.wait(60)

    monkeypatch.setattr(ContentsReader, "read", wait)
    monkeypatch.setattr(MediaLibrary, "find", wait)

    async def ask() -> list[Any]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(3))
        waiting = [asyncio.create_task(each) for _ in range(4) for each in (engine.contents(), engine.find_media("id"))]
        await asyncio.sleep(0.05)
        try:
            await asyncio.wait_for(asyncio.to_thread(int), 10)
        finally:
            may_go.set()
        return await asyncio.gather(*waiting)

    assert asyncio.run(ask()) == [None] * 8
