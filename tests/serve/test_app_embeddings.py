from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.serve.conftest import ServedEncoder


def post(client: TestClient, given: Any, **more: Any) -> Any:
    return client.post("/v1/embeddings", json={"model": "fake", "input": given, **more})


def vectors(answer: Any) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array([each["embedding"] for each in answer.json()["data"]])


def test_the_answer_is_that_of_openai(client: TestClient) -> None:
    body = post(client, ["red", "two words"]).json()
    assert set(body) == {"object", "data", "model", "usage"}
    assert (body["object"], body["model"]) == ("list", "fake")
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    assert [(each["object"], each["index"], len(each["embedding"])) for each in body["data"]] == [
        ("embedding", 0, 8),
        ("embedding", 1, 8),
    ]


def test_vectors_are_the_model_s(client: TestClient) -> None:
    wanted = ServedEncoder().encode_query([{"text": "red"}, {"text": "blue"}])
    np.testing.assert_allclose(vectors(post(client, ["red", "blue"])), wanted, rtol=1e-6)
    np.testing.assert_allclose(vectors(post(client, "red")), wanted[:1], rtol=1e-6)


def test_base64_is_little_endian_float32(client: TestClient) -> None:
    coded = post(client, ["red"], encoding_format="base64").json()["data"][0]["embedding"]
    np.testing.assert_array_equal(
        np.frombuffer(base64.b64decode(coded), "<f4"), vectors(post(client, ["red"]))[0].astype(np.float32)
    )


def test_dimensions_cut_and_scale_to_length_one(client: TestClient) -> None:
    whole, cut = vectors(post(client, "red"))[0], vectors(post(client, "red", dimensions=3))[0]
    np.testing.assert_allclose(cut, whole[:3] / np.linalg.norm(whole[:3]), rtol=1e-6)
    assert vectors(post(client, "red", dimensions=8)).shape == (1, 8)


def test_videos_among_words(client: TestClient, uri: Callable[..., str]) -> None:
    got = vectors(post(client, ["red", {"video": uri("blue")}, "blue", {"video": uri("long <b>", 2)}]))
    assert got.shape == (4, 8)
    np.testing.assert_allclose(got[1], got[2], atol=0.02)  # a blue video is nearest to blue
    assert got[0] @ got[3] > got[0] @ got[1]
    np.testing.assert_array_equal(vectors(post(client, {"video": uri("blue")}))[0], got[1])


def test_a_string_is_words_whatever_it_looks_like(client: TestClient, videos: Path, uri: Callable[..., str]) -> None:
    gray = vectors(post(client, "anything"))
    for words in (str(videos / "red.mp4"), (videos / "red.mp4").as_uri(), uri("red"), "http://127.0.0.1/a.mp4"):
        np.testing.assert_array_equal(vectors(post(client, words)), gray)


def test_aliases(client: TestClient) -> None:
    assert post(client, "red", model="alias").json()["model"] == "fake"


def test_another_model_is_not_found(client: TestClient) -> None:
    answer = post(client, "red", model="text-embedding-3-small")
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "invalid_request_error")
    assert error["message"] == "model: 'text-embedding-3-small' is not available; this server has 'fake', 'alias'"


@pytest.mark.parametrize(
    ("change", "param", "part"),
    [
        ({"input": [1, 2]}, "input", "item 0: got 1; token arrays are not supported"),
        ({"input": [[1, 2], [3]]}, "input", "token arrays"),
        ({"input": []}, "input", "empty list"),
        ({"input": ""}, "input", "no words"),
        ({"input": ["a", "  "]}, "input", "item 1: got no words"),
        ({"input": ["a", None]}, "input", "item 1: got None; a string"),
        ({"input": {"video": "a", "text": "b"}}, "input", "got {'text': 'b', 'video': 'a'}; a string, "),
        ({"input": ["a"] * 5}, "input", "got 5; at most 4"),
        ({"input": [{"video": "video+file:///a.mp4"}] * 3}, "input", "got 3 videos; at most 2"),
        ({"input": ["a", "b" * 21]}, "input[1]", "got 21 characters; at most 20"),
        ({"input": "\ud800"}, "input", "surrogate"),
        ({"input": ["a", "marker"]}, "input[1]", "too long for the model"),
        ({"dimensions": 0}, "dimensions", "greater than or equal to 1; got 0"),
        ({"dimensions": 9}, "dimensions", "got 9; this model gives vectors of 8"),
        ({"dimensions": "3"}, "dimensions", "valid integer; got '3'"),
        ({"encoding_format": "hex"}, "encoding_format", "'float' or 'base64'; got 'hex'"),
        ({"surprise": 1}, "surprise", "it is not supported; got 1; allowed are "),
        ({"model": 3}, "model", "valid string; got 3"),
        ({"input": None}, "input", "Field required"),
        ({"late_chunking": True}, "late_chunking", "Input should be False; got True"),
        ({"normalized": False}, "normalized", "Input should be True; got False"),
        ({"task": "text-matching"}, "task", "'retrieval.query' or 'retrieval.passage'; got 'text-matching'"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "Input should be -1; got 5"),
        ({"embed_dtype": "float16"}, "embed_dtype", "'float32'; got 'float16'"),
        ({"messages": []}, "messages", "it is not supported; got []"),
        ({"task": "retrieval.query", "input_type": "passage"}, None, "got a task and another input_type"),
        ({"encoding_format": "float", "embedding_type": "base64"}, None, "got an encoding_format and another"),
    ],
)
def test_bad_requests_name_what_is_wrong(
    serve: Callable[..., SimpleNamespace], change: dict[str, Any], param: str | None, part: str
) -> None:
    client = serve(limits={"max_items": 4, "max_videos": 2, "max_chars": 20}).client
    body = {"model": "fake", "input": "a", **change}
    import json

    answer = client.post("/v1/embeddings", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert part in error["message"]
    assert "secret" not in answer.text


def test_a_video_that_cannot_be_read_is_named(serve: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    from vidembed.uri import video_uri

    (tmp_path / "noise.mp4").write_bytes(b"noise" * 100)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "folder.mp4").mkdir()
    client = serve(root=tmp_path).client
    for name, kind in {
        "noise": "NotAVideo",
        "empty": "EmptyFile",
        "folder": "NotAFile",
        "missing": "VideoNotFound",
    }.items():
        answer = post(client, ["red", {"video": video_uri(tmp_path / f"{name}.mp4")}])
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_video", "input[1]")
        assert error["message"].startswith(f"input[1]: {kind}: ")
        assert str(tmp_path) not in answer.text


def test_requests_share_batches(serve: Callable[..., SimpleNamespace]) -> None:
    encoder, first = ServedEncoder(), threading.Event()
    free = threading.Event()

    def hold() -> None:
        first.set()
        assert free.wait(20)

    encoder.hold = hold
    server = serve(encoder=encoder)
    with ThreadPoolExecutor(9) as pool:
        answers = [pool.submit(post, server.client, "red")]
        assert first.wait(20)
        answers += [pool.submit(post, server.client, "red") for _ in range(8)]
        while server.engine.batcher.waiting < 8:
            pass
        free.set()
        assert all(answer.result().status_code == 200 for answer in answers)
    assert encoder.batches == [1, 8]


def test_a_short_request_waits_for_a_batch_of_a_long_one_and_not_for_all(serve: Callable[..., SimpleNamespace]) -> None:
    encoder, free, busy = ServedEncoder(), threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        assert free.wait(20)

    encoder.hold = hold
    server = serve(encoder=encoder)
    with ThreadPoolExecutor(2) as pool:
        long = pool.submit(post, server.client, ["red"] * 2048)
        assert busy.wait(20)
        short = pool.submit(post, server.client, "blue")
        while server.engine.batcher.waiting < 2048 - 32 + 1:
            pass
        free.set()
        assert (short.result().status_code, long.result().status_code) == (200, 200)
    # The second part of the long one was in the queue before the short one came.
    assert encoder.batches == [32, 32, 1, *[32] * 62]


def test_too_much_at_once_is_refused_with_a_time_to_come_back(serve: Callable[..., SimpleNamespace]) -> None:
    encoder, free, busy = ServedEncoder(), threading.Event(), threading.Event()

    def hold() -> None:
        busy.set()
        assert free.wait(20)

    encoder.hold = hold
    server = serve(encoder=encoder, limits={"max_queue": 2, "max_items": 2, "max_requests": 3})
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(post, server.client, "red")
        assert busy.wait(20)
        second = pool.submit(post, server.client, ["red", "red"])
        while server.engine.batcher.waiting < 2:
            pass
        full = post(server.client, "red")
        assert (full.status_code, full.headers["Retry-After"]) == (503, "1")
        assert full.json()["error"]["code"] == "overloaded"
        assert "2 inputs are waiting" in full.json()["error"]["message"]
        free.set()
        assert (first.result().status_code, second.result().status_code) == (200, 200)
    with server.engine.admitted(), server.engine.admitted(), server.engine.admitted():
        assert "3 requests are running" in post(server.client, "red").json()["error"]["message"]
    assert post(server.client, "red").status_code == 200


def test_a_request_that_takes_too_long_is_given_up(serve: Callable[..., SimpleNamespace]) -> None:
    encoder, free = ServedEncoder(), threading.Event()
    encoder.hold = lambda: None if free.wait(20) else pytest.fail("held for ever")
    client = serve(encoder=encoder, limits={"timeout_s": 0.05}).client
    answer = post(client, "red")
    free.set()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")


# -- uploads -----------------------------------------------------------------------------------------------------------


def upload(client: TestClient, content: bytes, name: str = "a.mp4", **fields: str) -> Any:
    return client.post("/v1/embeddings/video", files={"file": (name, content)}, data={"model": "fake", **fields})


def test_an_upload_is_embedded_like_the_file_and_then_removed(
    client: TestClient, videos: Path, uri: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    content = (videos / "red.mp4").read_bytes()
    np.testing.assert_array_equal(vectors(upload(client, content)), vectors(post(client, {"video": uri("red")})))
    assert vectors(upload(client, content, dimensions="3")).shape == (1, 3)
    assert upload(client, b"noise").status_code == 400
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../../../../etc/passwd", "/etc/passwd", "a\x00b", "<script>alert(1)</script>", "x" * 5000]
)
def test_the_name_of_an_upload_means_nothing(client: TestClient, videos: Path, name: str) -> None:
    answer = upload(client, (videos / "red.mp4").read_bytes(), name)
    assert answer.status_code in {200, 400}  # a parser may refuse a NUL or a long header
    assert "script" not in answer.text


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"", "EmptyFile"), (b"noise" * 99, "NotAVideo"), (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "NotAVideo")],
)
def test_a_bad_upload(client: TestClient, content: bytes, kind: str) -> None:
    error = upload(client, content).json()["error"]
    assert error["message"].startswith(f"file: {kind}: ")
    assert "/tmp" not in error["message"]
    assert "vidembed-upload" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"dimensions": "0"}, 400, "dimensions"),
        ({"dimensions": "x"}, 400, "dimensions"),
        ({"dimensions": "9" * 99}, 400, "dimensions"),
        ({"encoding_format": "hex"}, 400, "encoding_format"),
        ({"surprise": "x"}, 400, None),
        ({"input": "x"}, 400, None),
        ({"user": "x" * 5000}, 400, None),
    ],
)
def test_bad_fields_of_an_upload(
    client: TestClient, videos: Path, fields: dict[str, str], status: int, param: str | None
) -> None:
    answer = upload(client, (videos / "red.mp4").read_bytes(), **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_other_forms(client: TestClient, videos: Path) -> None:
    red = (videos / "red.mp4").read_bytes()
    one = ("file", ("a", red))
    for how in (
        {"files": [one, one], "data": {"model": "fake"}},
        {"files": {"other": ("a", red)}, "data": {"model": "fake"}},
        {"files": {"model": ("a", b"fake"), "x": ("a", red)}},
        {"json": {"model": "fake"}},
        {"content": b"--x\r\nbroken", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {"content": b"x", "headers": {"Content-Type": "multipart/form-data"}},
    ):
        answer = client.post("/v1/embeddings/video", **how)
        assert answer.status_code == 400, how
        assert answer.json()["error"]["message"]


def test_an_upload_that_is_too_large_or_one_too_many(serve: Callable[..., SimpleNamespace], videos: Path) -> None:
    server = serve(limits={"max_upload_bytes": 1000, "max_uploads": 1})
    for size in (100_000, 1001):  # the body is too large, or only the file in it
        assert upload(server.client, b"x" * size).status_code == 413
    assert upload(server.client, b"x" * 1000).json()["error"]["code"] == "invalid_video"
    with server.engine.admitted(upload=True):
        answer = upload(server.client, b"x")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_an_upload_without_a_length_is_cut_off(serve: Callable[..., SimpleNamespace]) -> None:
    sent = [0]

    def pieces() -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(1000):
            sent[0] += 1
            yield b"x" * 10_000

    client = serve(limits={"max_upload_bytes": 1000}).client
    answer = client.post(
        "/v1/embeddings/video", content=pieces(), headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
