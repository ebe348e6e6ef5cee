"""Hosts, keys, sizes, headers, figures, and what hostile requests get."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from starlette.testclient import TestClient

from vidembed.uri import video_uri

Serve = Callable[..., SimpleNamespace]


# -- keys and hosts ----------------------------------------------------------------------------------------------------


def test_the_key(serve: Serve) -> None:
    client = serve(api_key="s3cret key").client
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic s3cret key"},
        {"Authorization": "s3cret key"},
        {"Authorization": "Bearer "},
        {"Authorization": b"Bearer \xff"},
    ):
        for method, path in (("POST", "/v1/embeddings"), ("GET", "/search?q=a"), ("GET", "/metrics"), ("GET", "/x")):
            answer = client.request(method, path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert answer.headers["WWW-Authenticate"] == "Bearer"
    right = {"Authorization": "Bearer s3cret key"}
    hit = client.get("/search?q=red", headers=right).json()["hits"][0]
    assert client.get(hit["media"]).status_code == 200  # a <video> sends no key; the id was given to one who has it
    for path in (
        "/",
        "/page.js",
        "/page.css",
        "/icon.svg",
        "/favicon.ico",
        "/health",
        "/health/live",
        "/health/ready",
        "/openapi.json",
    ):
        assert client.get(path).status_code == 200
    for path in ("/media/../search?q=a", "/page.js/../search?q=a", "/health/../metrics"):
        assert client.get(path).status_code in {401, 404}
    assert "key" in client.get("/openapi.json").json()["components"]["securitySchemes"]


@pytest.mark.parametrize("key", ["", " ", "a\nb", "k\u00e9y"])
def test_a_key_that_no_header_can_hold(serve: Serve, key: str) -> None:
    with pytest.raises(ValueError, match="api_key"):
        serve(api_key=key)


def test_the_key_is_asked_for_before_a_body_is_read(serve: Serve) -> None:
    app = serve(api_key="k").client.app
    scope = {"type": "http", "method": "POST", "path": "/v1/embeddings/video", "headers": [], "query_string": b""}
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("the body was read")

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 401


def test_names_of_the_host(serve: Serve) -> None:
    client = serve(hosts=["127.0.0.1", "[::1]", "Box.local"]).client
    for host in ("127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "box.local", "BOX.LOCAL:1"):
        assert client.get("/health", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "", "127.0.0.1:80:80", "box.local@evil"):
        answer = client.get("/health", headers={"Host": host})
        assert (answer.status_code, answer.json()["error"]["code"]) == (421, "wrong_host")


# -- other sites -------------------------------------------------------------------------------------------------------


def preflight(client: TestClient, origin: str, headers: str = "authorization,content-type,x-stainless-os") -> Any:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": headers}
    return client.options("/v1/embeddings", headers=asked)


def test_another_site_may_not_use_the_server_unless_it_is_named(serve: Serve) -> None:
    body = {"input": "red"}
    client = serve().client
    assert preflight(client, "https://a.example").status_code == 405
    answer = client.post("/v1/embeddings", json=body, headers={"Origin": "https://a.example"})
    assert "Access-Control-Allow-Origin" not in answer.headers
    client = serve(cors_origins=["https://a.example", "http://localhost:5173"]).client
    for origin in ("https://a.example", "http://localhost:5173"):
        answer = preflight(client, origin)
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, origin)
        assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        assert "x-stainless-os" in answer.headers["Access-Control-Allow-Headers"]  # OpenAI's client in a browser
        assert "Access-Control-Allow-Credentials" not in answer.headers
        answer = client.post("/v1/embeddings", json=body, headers={"Origin": origin})
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, origin)
    for origin in ("https://b.example", "http://a.example", "https://a.example:444", "https://a.example.evil", "null"):
        answer = preflight(client, origin)
        assert answer.status_code == 400
        assert "Access-Control-Allow-Origin" not in answer.headers
        answer = client.post("/v1/embeddings", json=body, headers={"Origin": origin})
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_any_site_only_if_it_is_said(serve: Serve) -> None:
    answer = preflight(serve(cors_origins=["*"]).client, "https://any.example")
    assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")


def test_another_site_needs_the_key_and_reads_errors(serve: Serve) -> None:
    client = serve(api_key="k", hosts=["testserver"], cors_origins=["https://a.example"]).client
    assert preflight(client, "https://a.example").status_code == 200  # a browser asks it without the key
    origin = {"Origin": "https://a.example"}
    for headers, status in (
        (origin, 401),
        ({**origin, "Authorization": "Bearer k", "Host": "evil.example"}, 421),
        ({**origin, "Authorization": "Bearer k"}, 200),
    ):
        answer = client.post("/v1/embeddings", json={"input": "red"}, headers=headers)
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (status, "https://a.example")


@pytest.mark.parametrize(
    "origin",
    ["", "a.example", "https://", "https://a.example/", "https://A.example", "https://a.example/x", "null", "**"],
)
def test_what_is_no_origin(serve: Serve, origin: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"cors-origin: got {origin!r}; an origin is ")):
        serve(cors_origins=[origin])


# -- sizes -------------------------------------------------------------------------------------------------------------


def test_a_body_that_is_too_large(serve: Serve) -> None:
    client = serve(limits={"max_body_bytes": 1000}).client
    for content in (b"x" * 1001, (b"x" * 100 for _ in range(11))):  # with its length, and without
        answer = client.post("/search", content=content, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")
    assert client.post("/search", json={"q": "a" * 900}).status_code == 200
    answer = client.post("/search", content=b"x", headers={"Content-Length": "9" * 30})
    assert answer.status_code == 413


def answer_to(app: Any, receive: Callable[[], Any]) -> list[Any]:
    """What is sent to a search whose body is received so."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/search",
        "headers": [(b"content-type", b"application/json")],
        "query_string": b"",
    }
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    return sent


def test_a_body_that_does_not_come(serve: Serve) -> None:
    sent = answer_to(serve(limits={"read_timeout_s": 0.05}).client.app, lambda: asyncio.sleep(60))
    assert sent[0]["status"] == 408
    assert b"body_timeout" in sent[1]["body"]
    assert b"nothing was received of the body for 0.05 s" in sent[1]["body"]


def test_a_body_that_comes_a_byte_at_a_time(serve: Serve) -> None:
    async def receive() -> Any:
        await asyncio.sleep(0.1)
        return {"type": "http.request", "body": b" ", "more_body": True}

    sent = answer_to(serve(limits={"read_timeout_s": 0.5}).client.app, receive)
    assert sent[0]["status"] == 408
    assert b"body_timeout" in sent[1]["body"]
    assert b"the body comes at less than 16384 bytes a second" in sent[1]["body"]


# -- errors ------------------------------------------------------------------------------------------------------------


def test_a_crash_tells_the_client_a_number_and_the_log_the_rest(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = serve().client
    with caplog.at_level(logging.ERROR):
        answer = client.post("/v1/embeddings", json={"model": "fake", "input": "crash"})
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["code"]) == (500, "server_error", "server_error")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    number = re.search(r"at ([0-9a-f]{12})$", error["message"])
    assert number
    assert number[1] in caplog.text
    assert "a crash at /secret/place" in caplog.text
    assert client.get("/search?q=red").status_code == 200


def test_errors_have_one_form(client: TestClient) -> None:
    for method, path, status in (
        ("GET", "/nothing", 404),
        ("GET", "/v1/embeddings", 405),
        ("DELETE", "/search", 405),
        ("BREW", "/search", 405),
        ("GET", "/docs", 404),
        ("GET", "/search/", 404),
        ("GET", "/search", 400),
        ("GET", "/media/x", 400),
        ("GET", "/media/" + "0" * 32, 404),
    ):
        answer = client.request(method, path)
        assert answer.status_code == status, path
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert ("Allow" in answer.headers) == (status == 405)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"q": ' + b"1" * 10_000 + b"}",
        b'{"q": "\xff"}',
        b'{"q": NaN}',
        b"null",
        b'{"q": "\\ud800"}',
        b'{"q": "a", "q": 3}',
    ],
)
def test_bodies_that_are_no_json(client: TestClient, content: bytes) -> None:
    answer = client.post("/search", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_a_form_of_another_site_is_no_json(client: TestClient) -> None:
    # A page of another site can send this without asking; it must not be taken.
    answer = client.post("/search", content=b'{"q": "a"}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 400


# -- files and addresses -----------------------------------------------------------------------------------------------


def hostile(videos: Path, tmp_path: Path) -> list[str]:
    outside = tmp_path / "outside.mp4"
    outside.write_bytes((videos / "red.mp4").read_bytes())
    link = videos / "link.mp4"
    if not link.is_symlink():
        link.symlink_to(outside)
    inside = video_uri(videos)
    return [
        video_uri(outside),
        video_uri(link),
        "video+file:///etc/passwd",
        f"{inside}/../../../../../../../etc/passwd",
        f"{inside}/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        f"{inside}/..%2f..%2f..%2f..%2f..%2f..%2fetc/passwd",
        f"{inside}/red.mp4%00.mp4",
        f"{inside}/red.mp4#t=2,1",
        "video+file://evil.example/share/a.mp4",
        "video+http://169.254.169.254/latest/meta-data/a.mp4",
        "video+http://127.0.0.1:22/a.mp4",
        "video+https://[::1]/a.mp4",
        "video+ftp://evil.example/a.mp4",
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        "/etc/passwd",
        "concat:/etc/passwd|/etc/hosts",
        "video+" + "a" * 20_000,
    ]


def test_no_file_outside_of_the_root_is_read_and_no_address_fetched(
    client: TestClient, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket
    import urllib.request

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an address was fetched")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    for uri in hostile(videos, tmp_path):
        for answer, param in (
            (client.post("/v1/embeddings", json={"model": "fake", "input": ["a", {"video": uri}]}), "input[1]"),
            (
                client.post("/v2/rerank", json={"model": "fake-rerank", "query": "a", "documents": [uri]}),
                "documents[0]",
            ),
        ):
            assert answer.status_code == 400, uri
            error = answer.json()["error"]
            assert error["param"] == param
            assert error["code"] in {"video_uri_not_allowed", "not_a_video_uri"}, uri
            assert str(videos) not in answer.text  # where the root is, is not the client's to know


def test_without_a_root_no_file_is_read(serve: Serve, uri: Callable[..., str]) -> None:
    client = serve(root=None).client
    answer = client.post("/v1/embeddings", json={"model": "fake", "input": {"video": uri("red")}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "files_not_allowed")


@pytest.mark.parametrize(
    "path",
    [
        "/media/../../etc/passwd",
        "/media/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/media/..%5c..%5cetc",
        "/media//etc/passwd",
        "/media/%00",
        "/page.js/../../app.py",
        "/%2e%2e/app.py",
        "/media/file:%2f%2f%2fetc%2fpasswd",
    ],
)
def test_paths_reach_nothing(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code in {400, 404}
    assert "root:" not in answer.text


# -- headers and figures -----------------------------------------------------------------------------------------------


def test_headers_of_answers(client: TestClient) -> None:
    for path in ("/", "/page.js", "/search?q=red", "/nothing", "/search", "/metrics"):
        headers = client.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert "Access-Control-Allow-Origin" not in headers


def test_the_page_takes_nothing_from_elsewhere_and_writes_text_only(client: TestClient) -> None:
    page, script, style = (client.get(path).text for path in ("/", "/page.js", "/page.css"))
    assert not re.findall(r"https?:|//[a-z]|\son\w+=|style=|<script>|<style>", page)
    assert "http" not in script.replace("https://", "http")
    assert "url(" not in style
    assert "@import" not in style
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
        assert name not in script
    assert client.get("/page.js").headers["Content-Type"].startswith("text/javascript")


def test_the_page_has_the_looks_of_pages_that_are_files(client: TestClient) -> None:
    looks = resources.files("vidembed.pages").joinpath("looks.css").read_text(encoding="utf-8")
    style = client.get("/page.css").text
    assert style.startswith(looks)
    assert "#query" in style  # and those of its own


def test_the_icon_is_a_picture_that_the_page_names(client: TestClient) -> None:
    named = re.search(r'<link rel="icon" href="([^"]+)" type="([^"]+)">', client.get("/").text)
    assert named
    for path in (f"/{named[1]}", "/favicon.ico"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, named[2])
        assert ET.fromstring(answer.text).tag == "{http://www.w3.org/2000/svg}svg"


def test_health(serve: Serve) -> None:
    server = serve()
    assert server.client.get("/health/live").json() == {"status": "ok"}
    wanted = {"status": "ok", "model": "fake", "reranker": "fake-rerank", "index": True, "captions": False}
    assert server.client.get("/health/ready").json() == server.client.get("/health").json() == wanted
    server.engine.close()
    answer = server.client.get("/health/ready")
    assert (answer.status_code, answer.json()["status"]) == (503, "stopping")
    assert server.client.get("/health/live").status_code == 200
    assert server.client.get("/search?q=a").status_code == 503


def test_figures(client: TestClient) -> None:
    client.get("/search?q=red")
    client.get("/search?q=")
    client.post("/v1/embeddings", json={"model": "fake", "input": ["a", "b"]})
    for number in range(3):
        client.request(f"BREW{number}", f"/nothing/{number}")
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    figures = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert figures['vidembed_requests_total{method="GET",route="/search",status="200"}'] == "1.0"
    assert figures['vidembed_requests_total{method="GET",route="/search",status="400"}'] == "1.0"
    assert figures['vidembed_requests_total{method="other",route="other",status="404"}'] == "3.0"
    assert figures["vidembed_batch_items_count"] == "2.0"
    assert figures["vidembed_batch_items_sum"] == "3.0"
    assert figures["vidembed_queue_items"] == "0.0"
    assert figures['vidembed_request_seconds_count{route="/v1/embeddings"}'] == "1.0"
