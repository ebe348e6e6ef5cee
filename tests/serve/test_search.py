from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from tests.serve.conftest import ServedEncoder
from vidembed.index import IndexMismatchError, VideoIndex, Windows, index_videos, search


def test_hits_are_those_of_a_search(client: TestClient, index_folder: Path, videos: Path) -> None:
    body = client.get("/search", params={"q": "red", "k": 3}).json()
    wanted = search(VideoIndex.open(index_folder), ServedEncoder(), "red", k=3)
    assert [(hit["uri"], hit["start_s"], hit["end_s"], hit["score"]) for hit in body["hits"]] == [
        (hit.uri, hit.start_s, hit.end_s, hit.score) for hit in wanted
    ]
    assert (body["query"], body["approximate"], body["method"]["name"]) == ("red", False, "exact")
    assert [hit["name"] for hit in body["hits"][:2]] == ["red.mp4", "long <b>.mp4"]
    assert all("probability" not in hit for hit in body["hits"])
    assert client.post("/search", json={"q": "red", "k": 3}).json() == body


def test_reranking_orders_the_first_hits(client: TestClient) -> None:
    plain = client.get("/search", params={"q": "blue", "k": 6}).json()["hits"]
    hits = client.get("/search", params={"q": "blue", "k": 6, "rerank": 3}).json()["hits"]
    probabilities = [hit["probability"] for hit in hits[:3]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert hits[0]["uri"] != plain[0]["uri"]  # the blue one is the least red
    assert hits[3:] == plain[3:]
    assert client.get("/search", params={"q": "blue", "k": 2, "rerank": 3}).json()["hits"] == hits[:2]


def test_words_that_look_like_a_path_are_words(client: TestClient, videos: Path) -> None:
    for words in (str(videos / "red.mp4"), "file:///etc/passwd", "' OR 1=1 --", "<script>"):
        assert len(client.get("/search", params={"q": words}).json()["hits"]) == 6


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({}, "q"),
        ({"q": ""}, "q"),
        ({"q": "  "}, "q"),
        ({"q": "x" * 21}, "q"),
        ({"q": "a", "k": 0}, "k"),
        ({"q": "a", "k": 6}, "k"),
        ({"q": "a", "k": "x"}, "k"),
        ({"q": "a", "rerank": -1}, "rerank"),
        ({"q": "a", "rerank": 4}, "rerank"),
        ({"q": "marker"}, "q"),
    ],
)
def test_bad_searches_name_what_is_wrong(
    serve: Callable[..., SimpleNamespace], query: dict[str, object], param: str
) -> None:
    client = serve(limits={"max_chars": 20, "max_k": 5, "max_rerank": 3}).client
    for answer in (client.get("/search", params=query), client.post("/search", json=query)):
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_the_usual_number_of_hits_is_within_the_limit(serve: Callable[..., SimpleNamespace]) -> None:
    client = serve(limits={"max_k": 4}).client
    for answer in (client.get("/search?q=a"), client.post("/search", json={"q": "a"})):
        assert len(answer.json()["hits"]) == 4


def test_without_a_reranker_or_an_index(serve: Callable[..., SimpleNamespace]) -> None:
    answer = serve(reranker=None).client.get("/search", params={"q": "a", "rerank": 2})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_reranker")
    client = serve(index=None).client
    answer = client.get("/search", params={"q": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_index")
    assert client.get("/media/" + "0" * 32).status_code == 404
    assert client.get("/health").json()["index"] is False


def test_the_index_of_another_model_is_refused(serve: Callable[..., SimpleNamespace]) -> None:
    with pytest.raises(IndexMismatchError, match="the index was made by 'fake'"):
        serve(encoder=ServedEncoder("other"))


def test_searches_at_once_share_a_batch(serve: Callable[..., SimpleNamespace]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    encoder, free, busy = ServedEncoder(), threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        assert free.wait(20)

    encoder.hold = hold
    server = serve(encoder=encoder)
    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(server.client.get, "/search?q=blue&k=1")]
        assert busy.wait(20)
        answers += [pool.submit(server.client.get, f"/search?q={word}&k=1") for word in ("red", "green", "blue")]
        while server.engine.batcher.waiting < 3:
            pass
        free.set()
        names = [answer.result().json()["hits"][0]["name"] for answer in answers]
    assert names == ["blue.mp4", "red.mp4", "green.mp4", "blue.mp4"]
    assert encoder.batches == [1, 3]


# -- media -------------------------------------------------------------------------------------------------------------


def test_media_is_the_file_in_whole_or_in_part(client: TestClient, videos: Path) -> None:
    hit = client.get("/search?q=red&k=1").json()["hits"][0]
    content = (videos / "red.mp4").read_bytes()
    whole = client.get(hit["media"])
    assert (whole.status_code, whole.content) == (200, content)
    assert whole.headers["Content-Type"] == "video/mp4"
    assert whole.headers["Accept-Ranges"] == "bytes"
    assert "red.mp4" not in str(whole.headers)
    assert client.head(hit["media"]).headers["Content-Length"] == str(len(content))
    part = client.get(hit["media"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, content[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(content)}"
    assert client.get(hit["media"], headers={"Range": "bytes=-5"}).content == content[-5:]
    for ignored in ("bytes=0-1,5-6", "bytes=x", "bytes=9-1"):
        assert client.get(hit["media"], headers={"Range": ignored}).content == content
    outside = client.get(hit["media"], headers={"Range": f"bytes={len(content)}-"})
    assert (outside.status_code, outside.headers["Content-Range"]) == (416, f"bytes */{len(content)}")
    assert outside.json()["error"]["code"] == "range_not_satisfiable"


def test_a_file_that_was_changed_is_not_served(
    serve: Callable[..., SimpleNamespace], videos: Path, tmp_path: Path
) -> None:
    clip = tmp_path / "clips" / "a.mp4"
    clip.parent.mkdir()
    clip.write_bytes((videos / "red.mp4").read_bytes())
    index_videos([clip], tmp_path / "index", ServedEncoder(), model="fake", windows=Windows(1.0), progress=False)
    client = serve(index=VideoIndex.open(tmp_path / "index")).client
    media = client.get("/search?q=red").json()["hits"][0]["media"]
    assert client.get(media).status_code == 200
    clip.write_bytes(b"a secret")
    answer = client.get(media)
    assert (answer.status_code, "secret" in answer.text) == (404, False)
    assert str(tmp_path) not in answer.text


def test_an_index_that_grew_is_searched_and_served(
    serve: Callable[..., SimpleNamespace], videos: Path, tmp_path: Path
) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "a.mp4").write_bytes((videos / "blue.mp4").read_bytes())
    index_videos([clips], tmp_path / "index", ServedEncoder(), model="fake", progress=False)
    server = serve(index=VideoIndex.open(tmp_path / "index"))
    assert len(server.client.get("/search?q=red").json()["hits"]) == 1
    (clips / "b.mp4").write_bytes((videos / "red.mp4").read_bytes())
    index_videos([clips], tmp_path / "index", ServedEncoder(), model="fake", progress=False)
    hits = server.client.get("/search?q=red").json()["hits"]
    assert [hit["name"] for hit in hits] == ["b.mp4", "a.mp4"]
    assert server.client.get(hits[0]["media"]).status_code == 200
