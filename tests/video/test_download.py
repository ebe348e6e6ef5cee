"""Videos at http addresses: only when asked for, within limits, and no other scheme."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from tests.zoo import Zoo
from vidembed.video import (
    DecodeTimeout,
    EmptyFile,
    InvalidVideoInput,
    NotAVideo,
    VideoNotFound,
    VideoPermission,
    VideoTooLarge,
    load_video,
    probe,
)

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(scope="module")
def server(zoo: Zoo) -> Iterator[str]:
    data = zoo.path("h264.mp4").read_bytes()

    bodies = {
        "/video": [data],
        "/unsized": [data],
        "/short": [data[: len(data) // 2]],
        "/slow": [b"x"] * 100,
        "/page": [b"<html>not a video</html>"],
        "/empty": [],
    }
    targets = {"/moved": "/video", "/escape": "file:///etc/passwd", "/loop": "/loop"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path in targets:
                self.send_response(302)
                self.send_header("Location", targets[path])
                self.end_headers()
            elif path in bodies:
                self.send_response(200)
                if path in {"/video", "/short"}:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.send(bodies[path], pause=0.05 if path == "/slow" else 0.0)
            else:
                self.send_error({"/secret": 403, "/login": 401}.get(path, 404))

        def send(self, chunks: list[bytes], pause: float) -> None:
            try:
                for chunk in chunks:
                    self.wfile.write(chunk)
                    time.sleep(pause)
            except OSError:  # the client has had enough
                return

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            return

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_fetched_only_on_request(server: str, zoo: Zoo) -> None:
    with pytest.raises(InvalidVideoInput, match="allow_url=True"):
        load_video(f"{server}/video")
    expected = load_video(zoo.path("h264.mp4"))
    for name in ("video", "moved", "unsized", "video?token=secret"):
        clip = load_video(f"{server}/{name}", allow_url=True)
        assert np.array_equal(clip.frames, expected.frames)
        assert "secret" not in clip.item
    assert probe(f"{server}/video", allow_url=True).codec == "h264"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("missing", VideoNotFound),
        ("secret", VideoPermission),
        ("login", VideoPermission),
        ("escape", VideoNotFound),
        ("loop", VideoNotFound),
        ("short", VideoNotFound),
        ("page", NotAVideo),
        ("empty", EmptyFile),
    ],
)
def test_refusals(server: str, name: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"/{name}") as info:
        load_video(f"{server}/{name}", allow_url=True)
    assert type(info.value) is kind


def test_limits(server: str) -> None:
    for name in ("video", "unsized"):
        with pytest.raises(VideoTooLarge, match="max_bytes=1000"):
            load_video(f"{server}/{name}", allow_url=True, max_bytes=1000)
    with pytest.raises(DecodeTimeout, match=r"timeout_s=0\.3"):
        load_video(f"{server}/slow", allow_url=True, timeout_s=0.3)


def test_unreachable() -> None:
    with pytest.raises(VideoNotFound, match="cannot be fetched"):
        load_video("http://127.0.0.1:9/x.mp4", allow_url=True, timeout_s=5)


@pytest.mark.parametrize(
    "url", ["ftp://host/x.mp4", "file:///etc/passwd", "data:video/mp4;base64,AAAA", "s3://b/k.mp4"]
)
def test_other_schemes_stay_refused(url: str) -> None:
    with pytest.raises(InvalidVideoInput):
        load_video(url, allow_url=True)
