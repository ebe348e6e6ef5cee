"""Videos of requests are decoded in processes; here these hang and crash, and the server goes on."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.serve import fated
from vidembed.serve import Limits
from vidembed.serve.batching import QueueFullError
from vidembed.serve.decoding import AT_ONCE, Decoder
from vidembed.video import Clip, Sampling, VideoNotFound, VideoSegment, load_video, pool

SAMPLING = Sampling(fps=2.0, max_frames=8)

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


class Fates:
    """What happens to the processes that next begin a video, one each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, number: signal.Signals) -> None:
        """Have one process send itself a signal."""
        (self._folder / f"next-{number.name}-{len(list(self._folder.iterdir()))}").touch()

    def wait(self) -> None:
        """Until all are met."""
        while list(self._folder.glob("next-*")):
            time.sleep(0.01)


@pytest.fixture
def fates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fates:
    folder = tmp_path / "fates"
    folder.mkdir()
    monkeypatch.setenv(fated.FOLDER, str(folder))
    monkeypatch.setattr(pool, "COMMAND", fated.COMMAND)
    return Fates(folder)


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    decoder = Decoder(Limits(decode_workers=1, decode_timeout_s=3600.0))
    yield decoder
    decoder.close()


def upload(client: Any, file: Path) -> Any:
    return client.post("/v1/embeddings/video", data={"model": "fake"}, files={"file": file.read_bytes()})


@on_posix
def test_an_upload_that_hangs_its_decoder_holds_up_no_other(
    serve: Callable[..., SimpleNamespace], videos: Path, fates: Fates
) -> None:
    client = serve(limits={"decode_timeout_s": 5.0}).client
    red = videos / "red.mp4"
    wanted = upload(client, red).json()
    fates.add(signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        hung = pool.submit(upload, client, red)
        fates.wait()
        body = {"model": "fake", "input": "red"}
        assert client.post("/v1/embeddings", json=body).status_code == 200
        assert upload(client, red).json() == wanted  # by the other process
        assert client.get("/health").json()["status"] == "ok"
        answer = hung.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "decode_timeout")
    assert answer.json()["error"]["param"] == "file"
    assert answer.headers["x-should-retry"] == "false"
    assert upload(client, red).json() == wanted
    assert client.get("/health").status_code == 200


@on_posix
def test_a_decoder_that_crashes_fails_one_request(
    serve: Callable[..., SimpleNamespace], videos: Path, uri: Callable[..., str], fates: Fates
) -> None:
    client = serve(limits={"decode_workers": 1}).client
    wanted = upload(client, videos / "red.mp4").json()
    embed = {"model": "fake", "input": ["red", {"video": uri("red")}]}
    rerank = {"model": "fake-rerank", "query": "red", "documents": [uri("red"), uri("red", 0, 0.5)]}
    for ask, param in (
        (lambda: upload(client, videos / "red.mp4"), "file"),
        (lambda: client.post("/v1/embeddings", json=embed), "input[1]"),
        (lambda: client.post("/v2/rerank", json=rerank), "documents[0]"),
    ):
        fates.add(signal.SIGKILL)
        error = ask().json()["error"]
        assert (error["code"], error["param"]) == ("decoder_crashed", param)
        assert str(videos) not in error["message"]
        assert ask().status_code == 200
    assert upload(client, videos / "red.mp4").json() == wanted
    assert client.get("/health").status_code == 200


@on_posix
def test_a_request_that_is_given_up_frees_its_decoder(decoder: Decoder, videos: Path, fates: Fates) -> None:
    fates.add(signal.SIGSTOP)

    async def read(name: str) -> Any:
        async with decoder.clips([VideoSegment(videos / f"{name}.mp4")], SAMPLING) as (clip,):
            return clip

    async def main() -> None:
        hung = asyncio.create_task(read("red"))
        await asyncio.to_thread(fates.wait)
        hung.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hung
        assert isinstance(await read("blue"), Clip)  # by the one process that there is, or its successor

    asyncio.run(main())


def test_clips_are_those_of_load_video_and_errors_are_in_their_place(decoder: Decoder, videos: Path) -> None:
    long = videos / "long <b>.mp4"
    asked = [
        VideoSegment(long),
        VideoSegment(videos / "missing.mp4"),
        VideoSegment(long, 0.5, 2.5),
        VideoSegment(long, 1.0),
        VideoSegment(long, 0.5, 2.5),
    ]

    async def main() -> list[Any]:
        async with decoder.clips(asked, SAMPLING) as found:
            return found

    found = asyncio.run(main())
    assert isinstance(found[1], VideoNotFound)
    for place in (0, 2, 3):
        wanted = load_video(asked[place] if place else long, SAMPLING)
        np.testing.assert_array_equal(found[place].frames, wanted.frames)
        np.testing.assert_array_equal(found[place].timestamps, wanted.timestamps)
        assert found[place].sampling == SAMPLING
    assert found[4] is found[2]  # so that the reranker sees it once


def test_no_more_is_held_in_memory_than_a_few_groups(videos: Path) -> None:
    decoder = Decoder(Limits(decode_workers=2))
    free, inside = asyncio.Event(), []

    async def hold(number: int) -> None:
        async with decoder.clips([VideoSegment(videos / "red.mp4")], SAMPLING):
            inside.append(number)
            await free.wait()

    async def main() -> None:
        tasks = [asyncio.create_task(hold(number)) for number in range(5)]
        while len(inside) < 3:
            await asyncio.sleep(0.01)
        for _ in range(50):  # a fourth would come in while these hold their places
            await asyncio.sleep(0.01)
            assert len(inside) == 3
        free.set()
        await asyncio.gather(*tasks)
        assert sorted(inside) == [0, 1, 2, 3, 4]

    try:
        asyncio.run(main())
    finally:
        decoder.close()


def test_a_closed_decoder_says_that_the_server_stops(decoder: Decoder, videos: Path) -> None:
    decoder.close()

    async def main() -> None:
        async with decoder.clips([VideoSegment(videos / "red.mp4")], SAMPLING):
            pass

    with pytest.raises(QueueFullError, match="stopping"):
        asyncio.run(main())


def test_many_videos_keep_their_order(serve: Callable[..., SimpleNamespace], uri: Callable[..., str]) -> None:
    client = serve().client
    count = 2 * AT_ONCE + 3
    names = [("red", "green", "blue")[number % 3] for number in range(count)]
    one = {
        name: client.post("/v1/embeddings", json={"model": "fake", "input": {"video": uri(name)}}).json()["data"][0]
        for name in ("red", "green", "blue")
    }
    mixed: list[Any] = [{"video": uri(name)} for name in names]
    mixed.insert(AT_ONCE, "red")
    data = client.post("/v1/embeddings", json={"model": "fake", "input": mixed}).json()["data"]
    del data[AT_ONCE]
    assert [each["embedding"] for each in data] == [one[name]["embedding"] for name in names]
    body = {"model": "fake-rerank", "query": "red", "documents": [uri(name) for name in names]}
    results = client.post("/v2/rerank", json=body).json()["results"]
    assert sorted(each["index"] for each in results) == list(range(count))
    assert {names[each["index"]] for each in results[: names.count("red")]} == {"red"}
    body["documents"] = [*body["documents"], uri("missing")]
    error = client.post("/v2/rerank", json=body).json()["error"]
    assert error["param"] == f"documents[{count}]"
