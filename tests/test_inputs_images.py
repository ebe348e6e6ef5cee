"""Images as inputs: opened within limits, fetched only from where they may be, none left to open by name."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.video.bombs import gif, png
from vidembed.inputs import check_part
from vidembed.video import InvalidVideoInput, VideoError, VideoTooLarge
from vidembed.video import fetch as download
from vidembed.video.still import checked_image

SHADES = np.kron(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20, np.ones((8, 8), dtype=np.uint8))
PICTURE = np.stack([SHADES, 255 - SHADES, SHADES // 2], axis=-1)  # (24, 32, 3)


def encoded(kind: str, picture: Any = PICTURE, **options: Any) -> bytes:
    out = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(out, kind, **options)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "JPEG", "GIF"])
def test_what_has_a_name_is_opened_by_its_content(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(kind, **({"lossless": True} if kind == "WEBP" else {})))
    for image in (path, str(path), f"data:image/x;base64,{base64.b64encode(path.read_bytes()).decode()}"):
        opened = checked_image(image, allow_url=False)
        assert (opened.mode, opened.size) == ("RGB", (32, 24))
        assert np.abs(np.asarray(opened).astype(int) - PICTURE).max() <= (40 if kind in {"JPEG", "GIF"} else 0)
    path.unlink()
    opened.load()  # it needs the file no more


def test_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    data = encoded("PNG", exif=exif)
    opened = checked_image(f"data:image/png;base64,{base64.b64encode(data).decode()}", allow_url=False)
    assert np.array_equal(np.asarray(opened), np.rot90(PICTURE, -1))


def test_what_is_open_already_stays_as_it_is() -> None:
    image = Image.fromarray(PICTURE)
    assert checked_image(image, allow_url=False) is image
    assert checked_image(PICTURE, allow_url=False) is PICTURE
    assert checked_image([image, PICTURE], allow_url=False) == [image, PICTURE]


@pytest.mark.parametrize("size", [(12000, 12000), (20000, 20000), (20000, 1)])
def test_too_large(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(gif(*size) if size[0] > 12000 else png(*size))
    with pytest.raises(VideoTooLarge, match="16384"):
        checked_image(path, allow_url=False)
    with pytest.raises(VideoTooLarge, match="20000x1 "):
        checked_image(Image.new("1", (20000, 1)), allow_url=False)
    with pytest.raises(VideoTooLarge, match="16384"):
        checked_image([path], allow_url=False)


MEASURE = """
import sys
from vidembed.video.still import checked_image

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

before = peak()
try:
    checked_image(sys.argv[1], allow_url=False)
except Exception as error:
    print(type(error).__name__, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks of memory are read from /proc")
def test_a_large_image_takes_no_memory(tmp_path: Path) -> None:
    """Decoded, it would take 140 MiB, and three times that as RGB."""
    (tmp_path / "large.png").write_bytes(png(12000, 12000))
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large.png")]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    kind, grown = done.stdout.split()
    assert kind == "VideoTooLarge"
    assert float(grown) < 60  # MiB


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "supported format: JPEG"),
        (b"text", "supported format: JPEG"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n",
            "supported format: JPEG",
        ),  # Pillow: runs gs
        (encoded("PNG")[:60], "image"),
        (encoded("JPEG")[:-100], "cannot be decoded"),
        (encoded("TIFF")[:30], "image"),
    ],
)
def test_what_is_no_image(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "a\x1b[31m.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=match) as info:
        checked_image(path, allow_url=False)
    assert str(info.value).isprintable()


def test_missing_and_malformed(tmp_path: Path) -> None:
    for name in ("missing.png", "x" * 300 + ".png", "nul\0.png"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            checked_image(name, allow_url=False)
    for uri in (
        "data:image/png;base64,%%%%",
        "data:image/png;base64,A",
        "data:image/png",
        "data:image/png;base64,\u00e9",
    ):
        with pytest.raises(ValueError, match="data:image/png"):
            checked_image(uri, allow_url=False)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(FileNotFoundError):
        checked_image(tmp_path / "pipe.png", allow_url=False)


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"II*\0", b"BM"])
)
def test_any_bytes_are_an_image_or_an_error(data: bytes, head: bytes) -> None:
    uri = f"data:image/png;base64,{base64.b64encode(head + data).decode()}"
    try:
        assert checked_image(uri, allow_url=False).mode == "RGB"
    except (ValueError, VideoError) as error:
        assert str(error).isprintable()  # noqa: PT017 - either end is right


# -- fetched -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def internet(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Names and their addresses; what answers at each is a picture."""
    names: dict[str, str] = {}

    others: list[socket.socket] = []

    def connect(addresses: Any, end: float) -> socket.socket:
        mine, theirs = socket.socketpair()
        theirs.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + encoded("PNG"))
        theirs.shutdown(socket.SHUT_WR)
        others.append(theirs)
        return mine

    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, **_: [(2, 1, 6, "", (names[host], port))])
    monkeypatch.setattr(download, "connect", connect)
    yield names
    for sock in others:
        sock.close()


def test_urls(internet: dict[str, str]) -> None:
    internet |= {"public.example": "93.184.216.34", "internal.example": "10.0.0.1"}
    url = "http://public.example/a.png?key=secret"
    for allowed in (True, ["public.example"]):
        assert np.array_equal(np.asarray(checked_image(url, allow_url=allowed)), PICTURE)
    assert np.array_equal(
        np.asarray(checked_image("http://internal.example/a", allow_url=["internal.example"])), PICTURE
    )
    for name in (url, url.replace("http", "HTTP")):
        with pytest.raises(ValueError, match="allow_url=True"):
            checked_image(name, allow_url=False)
    with pytest.raises(InvalidVideoInput, match="private"):
        checked_image("http://internal.example/a.png", allow_url=True)
    for name in ("http://internal.example/a.png", [url]):
        with pytest.raises(InvalidVideoInput, match="is not in allow_url") as info:
            checked_image(name, allow_url=["other.example"])
        assert "secret" not in str(info.value)


# -- parts of messages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "words"},
        {"type": "image", "image": "a.png"},
        {"type": "video", "video": "a.mp4", "max_pixels": 1000},
    ],
)
def test_parts(part: Mapping[str, Any]) -> None:
    check_part(part)


@pytest.mark.parametrize(
    "part",
    [
        {},
        {"type": "image"},
        {"type": "image", "url": "http://a/b.png"},
        {"type": "image", "path": "a.png"},
        {"type": "image", "image": "a.png", "url": "http://a/b.png"},
        {"type": "video", "video": "a.mp4", "path": "b.mp4"},
        {"type": "text", "text": "words", "base64": "AAAA"},
        {"type": "image_url", "image_url": {"url": "http://a/b.png"}},
        {"type": "audio", "audio": "http://a/b.wav"},
        {"type": "video", "image": "a.png"},
        {"type": ["image"], "image": "a.png"},
    ],
)
def test_parts_from_which_the_host_would_fetch(part: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match="message part"):
        check_part(part)
