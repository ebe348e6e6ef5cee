"""Thumbnails: which frame, how large, made once, kept within bounds, and never for others than the index's videos."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.clips import write_video
from tests.serve.conftest import ServedEncoder
from vidembed.index import VideoIndex, index_videos
from vidembed.serve import ApiError, Limits
from vidembed.serve.thumbnails import Moment, Thumbnails
from vidembed.video import CorruptVideo, VideoSegment


def picture(content: bytes) -> Image.Image:
    opened = Image.open(io.BytesIO(content))
    assert opened.format == "JPEG"
    return opened


def test_a_hit_has_the_picture_in_its_middle(client: TestClient) -> None:
    hits = client.get("/search", params={"q": "red", "path": "long*"}).json()["hits"]
    assert len(hits) == 3
    for hit in hits:
        assert hit["thumbnail"] == f"{hit['media']}/thumbnail?t={hit['start_s'] + 0.5:.3f}"
        assert hit["duration"] == 3
        answer = client.get(hit["thumbnail"])
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "image/jpeg")
        red, green, blue = np.asarray(picture(answer.content)).mean(axis=(0, 1))
        assert (red > 1.5 * max(green, blue)) == (hit["start_s"] == 2)  # the last second alone is red


def test_the_frame_is_the_one_on_show(client: TestClient) -> None:
    media = client.get("/search", params={"q": "red", "path": "long*", "k": 1}).json()["hits"][0]["media"]

    def redness(seconds: float) -> float:
        colours = np.asarray(picture(client.get(f"{media}/thumbnail?t={seconds}").content)).mean(axis=(0, 1))
        return float(colours[0] - colours[1])

    assert redness(1.99) < 30 < redness(2.0)
    assert client.get(f"{media}/thumbnail").content == client.get(f"{media}/thumbnail?t=0").content


def test_a_wide_picture_is_made_smaller_and_a_small_one_stays(
    serve: Callable[..., SimpleNamespace], videos: Path, tmp_path: Path
) -> None:
    write_video(tmp_path / "wide.mp4", np.full((4, 120, 960, 3), 90, np.uint8))
    index_videos([tmp_path, videos / "red.mp4"], tmp_path / "index", ServedEncoder(), model="fake", progress=False)
    client = serve(index=VideoIndex.open(tmp_path / "index")).client
    sizes = {
        hit["name"]: picture(client.get(hit["thumbnail"]).content).size
        for hit in client.get("/search?q=red").json()["hits"]
    }
    assert sizes == {"wide.mp4": (320, 40), "red.mp4": (32, 32)}


def test_a_browser_keeps_it_for_itself(client: TestClient) -> None:
    thumbnail = client.get("/search?q=red&k=1").json()["hits"][0]["thumbnail"]
    answer = client.get(thumbnail)
    assert answer.headers["Cache-Control"] == "private, max-age=300"
    again = client.get(thumbnail, headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == answer.headers["ETag"]
    other = client.get(thumbnail, headers={"If-None-Match": '"another"'})
    assert (other.status_code, other.content) == (200, answer.content)
    elsewhere = client.get(thumbnail.partition("?")[0] + "?t=0.25")
    assert elsewhere.headers["ETag"] != answer.headers["ETag"]


@pytest.mark.parametrize(
    ("time", "part"),
    [
        ("1", "the video ends at 1.000 s"),
        ("-1", "greater than or equal to 0"),
        ("nan", "finite"),
        ("1e12", "less than or equal to"),
        ("x", "valid number"),
    ],
)
def test_a_time_that_is_not_in_the_video(client: TestClient, videos: Path, time: str, part: str) -> None:
    media = client.get("/search", params={"q": "red", "path": "red.mp4"}).json()["hits"][0]["media"]
    answer = client.get(f"{media}/thumbnail?t={time}")
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "t"), answer.text
    assert part in error["message"]
    assert str(videos) not in answer.text
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_video_that_is_not_of_the_index_or_was_changed(
    serve: Callable[..., SimpleNamespace], videos: Path, tmp_path: Path
) -> None:
    clip = tmp_path / "clips" / "a.mp4"
    clip.parent.mkdir()
    clip.write_bytes((videos / "red.mp4").read_bytes())
    index_videos([clip], tmp_path / "index", ServedEncoder(), model="fake", progress=False)
    client = serve(index=VideoIndex.open(tmp_path / "index"), api_key="the key").client
    key = {"Authorization": "Bearer the key"}
    thumbnail = client.get("/search?q=red", headers=key).json()["hits"][0]["thumbnail"]
    assert client.get(thumbnail).status_code == 200  # an <img> cannot send a key
    assert client.get("/media/" + "0" * 32 + "/thumbnail").status_code == 404
    assert client.get("/media/x/thumbnail").status_code == 400
    assert client.get("/media/x/thumbnail/y").status_code == 401
    clip.write_bytes((videos / "blue.mp4").read_bytes())
    assert client.get(thumbnail).status_code == 404
    assert serve(index=None).client.get(thumbnail).status_code == 404


class Recorder:
    """A decoder of grey frames that notes what it was asked for; it fails where the time is that of `fails_at`."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.most = self.now = 0
        self.fails_at = -1.0

    @asynccontextmanager
    async def clips(self, videos: Sequence[VideoSegment], _: object) -> AsyncIterator[list[object]]:
        (video,) = videos
        self.asked.append(video.start)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01)
        if video.start == self.fails_at:
            yield [CorruptVideo("a.mp4", "it is damaged")]
        else:
            yield [SimpleNamespace(frames=np.full((1, 90, 160, 3), 99, np.uint8))]
        self.now -= 1


def thumbnails(**limits: int) -> tuple[Recorder, Thumbnails]:
    recorder = Recorder()
    return recorder, Thumbnails(recorder, Limits(**limits))  # type: ignore[arg-type]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"a video")
    return path


def test_many_requests_for_one_make_it_once(file: Path) -> None:
    async def ask() -> None:
        recorder, made = thumbnails()
        answers = await asyncio.gather(*(made.get(Moment.of(file, 2.0)) for _ in range(9)))
        assert len(set(answers)) == 1
        assert await made.get(Moment.of(file, 2.0)) == answers[0]
        assert recorder.asked == [2.0]
        file.write_bytes(b"another video")
        await made.get(Moment.of(file, 2.0))
        assert recorder.asked == [2.0, 2.0]

    asyncio.run(ask())


def test_a_request_that_is_given_up_leaves_it_to_the_others(file: Path) -> None:
    async def ask() -> None:
        recorder, made = thumbnails()
        first = asyncio.create_task(made.get(Moment.of(file, 2.0)))
        second = asyncio.create_task(made.get(Moment.of(file, 2.0)))
        await asyncio.sleep(0)
        first.cancel()
        assert picture(await second).size == (160, 90)
        assert recorder.asked == [2.0]

    asyncio.run(ask())


def test_one_that_failed_is_tried_again(file: Path) -> None:
    async def ask() -> None:
        recorder, made = thumbnails()
        recorder.fails_at = 2.0
        for _ in range(2):
            with pytest.raises(ApiError, match="it is damaged"):
                await made.get(Moment.of(file, 2.0))
        recorder.fails_at = -1.0
        assert picture(await made.get(Moment.of(file, 2.0))).size == (160, 90)

    asyncio.run(ask())


def test_the_last_used_are_kept_within_the_limit(file: Path) -> None:
    async def ask() -> None:
        size = len(await thumbnails()[1].get(Moment.of(file, 0.0)))
        recorder, made = thumbnails(thumbnail_bytes=2 * size)
        for time in (1.0, 2.0, 1.0, 3.0, 1.0, 3.0):  # 2 was used least when 3 came
            await made.get(Moment.of(file, time))
        assert recorder.asked == [1.0, 2.0, 3.0]
        await made.get(Moment.of(file, 2.0))
        assert recorder.asked == [1.0, 2.0, 3.0, 2.0]

    asyncio.run(ask())


def test_too_many_at_once_are_refused_and_few_are_decoded_at_a_time(file: Path) -> None:
    async def ask() -> None:
        recorder, made = thumbnails(max_thumbnails=5, decode_workers=2)
        asked = [asyncio.create_task(made.get(Moment.of(file, float(time)))) for time in range(6)]
        *answers, last = await asyncio.gather(*asked, return_exceptions=True)
        assert all(isinstance(answer, bytes) for answer in answers)
        assert isinstance(last, ApiError)
        assert (last.status_code, last.code, last.headers) == (503, "overloaded", {"Retry-After": "1"})
        assert recorder.most == 2

    asyncio.run(ask())
