"""Videos at http addresses: only when asked for, from hosts that may be reached, within limits, and no other scheme."""

from __future__ import annotations

import gzip
import socket
import ssl
import subprocess
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.zoo import Zoo, open_files
from vidembed.video import (
    DecodeLimits,
    DecodeTimeout,
    EmptyFile,
    InvalidVideoInput,
    NotAVideo,
    Scenes,
    VideoError,
    VideoNotFound,
    VideoPermission,
    VideoTooLarge,
    Windows,
    load_video,
    probe,
)
from vidembed.video import (
    fetch as download,
)
from vidembed.video.segments import lay_out

pytestmark = pytest.mark.timeout(60)

HERE = ["127.0.0.1"]
PUBLIC = "93.184.216.34"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "getproxies", dict)


class Fake:
    """A network: names with addresses, at every one of which the same answer is given. It connects nowhere."""

    def __init__(self) -> None:
        self.names: dict[str, list[str]] = {}
        self.then: dict[str, list[str]] = {}  # addresses of the second lookup and later
        self.answer: bytes = b""
        self.looked_up: list[str] = []
        self.connected: list[tuple[str, int]] = []
        self.requests: list[str] = []
        self.threads: list[threading.Thread] = []

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        self.looked_up.append(host)
        if host not in self.names:
            raise socket.gaierror(-2, "Name or service not known")
        addresses = self.names[host]
        self.names[host] = self.then.get(host, addresses)
        return [(socket.AF_INET6 if ":" in a else socket.AF_INET, 1, 6, "", (a, port)) for a in addresses]

    def connect(self, addresses: Any, deadline: Any) -> socket.socket:
        """Stands for `download.connect`, which connects to one of the addresses that it is given."""
        self.connected.append(addresses[0][-1])
        mine, theirs = socket.socketpair()
        self.threads.append(threading.Thread(target=self.serve, args=(theirs,), daemon=True))
        self.threads[-1].start()
        return mine

    def serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                self.requests.append(sock.recv(65536).decode("ascii"))
                sock.sendall(self.answer)
            except OSError:  # the client has had enough
                return


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    network = Fake()
    monkeypatch.setattr(socket, "getaddrinfo", network.getaddrinfo)
    monkeypatch.setattr(download, "connect", network.connect)
    yield network
    for thread in network.threads:
        thread.join(10)


class Handler(BaseHTTPRequestHandler):
    """Answers with bodies and redirections of its server."""

    def do_GET(self) -> None:
        server: Any = self.server
        path = self.path.partition("?")[0]
        server.asked.append((path, dict(self.headers)))
        if path in server.targets:
            self.send_response(server.codes.get(path, 302))
            self.send_header("Location", server.targets[path])
            self.end_headers()
        elif path in server.bodies:
            self.send_response(200)
            if path in {"/video", "/short"}:
                self.send_header("Content-Length", str(len(server.bodies["/video"])))
            if path == "/gzip":
                self.send_header("Content-Encoding", "gzip")
            self.end_headers()
            self.wfile.write(server.bodies[path])
        else:
            self.send_error({"/secret": 403, "/login": 401}.get(path, 404))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        return


def serving(zoo: Zoo) -> ThreadingHTTPServer:
    httpd: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    data = zoo.path("h264.mp4").read_bytes()
    httpd.asked = []
    httpd.bodies = {
        "/video": data,
        "/unsized": data,
        "/short": data[: len(data) // 2],
        "/page": b"<html>not a video</html>",
        "/gzip": gzip.compress(bytes(10**6)),
        "/empty": b"",
        "/caf%C3%A9%20x": data,
    }
    httpd.targets = {"/moved": "/video", "/escape": "file:///etc/passwd", "/loop": "/loop", "/nowhere": ""}
    httpd.targets |= {f"/hop{n}": f"/hop{n - 1}" for n in range(1, 8)} | {"/hop0": "/video"}
    httpd.codes = {f"/hop{n}": code for n, code in enumerate((301, 302, 303, 307, 308))}
    return httpd


@pytest.fixture(scope="module")
def httpd(zoo: Zoo) -> Iterator[Any]:
    httpd = serving(zoo)
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(scope="module")
def server(httpd: Any) -> str:
    return f"http://127.0.0.1:{httpd.server_port}"


def test_fetched_only_on_request(server: str, zoo: Zoo) -> None:
    for not_asked in (False, [], ()):
        with pytest.raises(InvalidVideoInput, match="allow_url=True"):
            load_video(f"{server}/video", allow_url=not_asked)
    expected = load_video(zoo.path("h264.mp4"))
    for name in ("video", "moved", "unsized", "video?token=secret", "hop4", "café x", "caf%C3%A9%20x#t=1"):
        clip = load_video(f"{server}/{name}", allow_url=HERE)
        assert np.array_equal(clip.frames, expected.frames)
        assert "secret" not in clip.item
    assert probe(f"{server}/video", allow_url=HERE).codec == "h264"
    for cut in (None, Windows(1.0), Scenes()):
        assert lay_out(f"{server}/video", cut, allow_url=HERE).segments


def test_what_is_asked(server: str, httpd: Any) -> None:
    httpd.asked.clear()
    load_video(f"{server}/video?a=b", allow_url=HERE)
    ((_, headers),) = httpd.asked
    assert headers == {
        "Host": server.removeprefix("http://"),
        "User-Agent": "vidembed",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("missing", VideoNotFound, "404 Not Found"),
        ("secret", VideoPermission, "403"),
        ("login", VideoPermission, "401"),
        ("escape", InvalidVideoInput, "it redirects to an address that is neither http nor https"),
        ("loop", VideoNotFound, "more than 5 times"),
        ("hop5", VideoNotFound, "more than 5 times"),
        ("nowhere", VideoNotFound, "without a new address"),
        ("short", VideoNotFound, "closed after"),
        ("page", NotAVideo, ""),
        ("gzip", NotAVideo, ""),
        ("empty", EmptyFile, ""),
    ],
)
def test_refusals(server: str, name: str, kind: type[Exception], reason: str) -> None:
    with pytest.raises(kind, match=f"/{name}.*{reason}") as info:
        load_video(f"{server}/{name}", allow_url=HERE)
    assert type(info.value) is kind


def test_sizes(server: str) -> None:
    for name in ("video", "unsized"):
        with pytest.raises(VideoTooLarge, match="max_bytes=1000"):
            load_video(f"{server}/{name}", allow_url=HERE, limits=DecodeLimits(max_bytes=1000))
    with pytest.raises(NotAVideo):  # a million bytes, if they were inflated
        load_video(f"{server}/gzip", allow_url=HERE, limits=DecodeLimits(max_bytes=2000))


def test_unreachable() -> None:
    with pytest.raises(VideoNotFound, match="cannot be fetched"):
        load_video("http://127.0.0.1:9/x.mp4", allow_url=HERE, limits=DecodeLimits(timeout_s=5))


@pytest.mark.parametrize(
    "url", ["ftp://host/x.mp4", "file:///etc/passwd", "data:video/mp4;base64,AAAA", "s3://b/k.mp4"]
)
def test_other_schemes_stay_refused(url: str) -> None:
    for allowed in (True, ["host"]):
        with pytest.raises(InvalidVideoInput):
            load_video(url, allow_url=allowed)


# -- hosts -------------------------------------------------------------------------------------------------------------


def test_loopback_and_its_other_spellings_are_refused(server: str, httpd: Any) -> None:
    port = httpd.server_port
    hosts = ["127.0.0.1", "localhost", "localhost.", "LOCALHOST", "2130706433", "0x7f000001", "0177.0.0.1", "127.1"]
    hosts += ["0", "[::ffff:127.0.0.1]", "[::1]", "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021"]
    httpd.asked.clear()
    for host in hosts:
        for url in (f"http://{host}:{port}/video", f"http://{host}:{port}/moved"):
            with pytest.raises(VideoError) as info:
                load_video(url, allow_url=True, limits=DecodeLimits(timeout_s=10))
            assert type(info.value) in {InvalidVideoInput, VideoNotFound}  # some resolvers do not know some of them
    assert httpd.asked == []
    with pytest.raises(InvalidVideoInput, match=r"private, local or reserved.*allow_url=\['127\.0\.0\.1'\]"):
        probe(f"{server}/video", allow_url=True)


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "169.254.169.254", "192.168.1.1", "100.100.100.200", "0.0.0.0", "224.0.0.1", "fd00:ec2::254"],
)
def test_a_name_at_a_private_address(fake: Fake, address: str) -> None:
    fake.names["evil.example"] = [PUBLIC, address]  # one of several is enough
    with pytest.raises(InvalidVideoInput, match=r"'evil\.example' is at a private") as info:
        load_video("http://evil.example/x.mp4", allow_url=True)
    assert address not in str(info.value)
    assert fake.connected == []


def test_a_name_is_looked_up_once_and_what_was_checked_is_connected_to(fake: Fake) -> None:
    """An answer that changes from a public to a private address comes too late."""
    fake.names["rebinding.example"] = [PUBLIC]
    fake.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntext"
    fake.then["rebinding.example"] = ["127.0.0.1"]
    with pytest.raises(NotAVideo):
        load_video("http://rebinding.example/x.mp4", allow_url=True)
    assert fake.looked_up == ["rebinding.example"]
    assert fake.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    "place", ["http://internal.example/x", "//internal.example/x", "http://169.254.169.254/latest", "http://[::1]/"]
)
def test_a_redirection_to_a_private_address(fake: Fake, place: str) -> None:
    fake.names |= {"public.example": [PUBLIC], "internal.example": ["10.1.2.3"]}
    fake.names |= {host: [host] for host in ("169.254.169.254", "::1")}
    fake.answer = f"HTTP/1.1 302 Found\r\nLocation: {place}\r\n\r\n".encode()
    with pytest.raises(InvalidVideoInput, match="private, local or reserved"):
        load_video("http://public.example/x.mp4", allow_url=True)
    assert fake.connected == [(PUBLIC, 80)]


def test_named_hosts_alone_are_reached(fake: Fake) -> None:
    fake.names |= {"videos.internal": ["10.1.2.3"], "other.internal": ["10.1.2.4"], "public.example": [PUBLIC]}
    fake.answer = b"HTTP/1.1 302 Found\r\nLocation: http://other.internal/x\r\n\r\n"
    allowed = ["VIDEOS.internal.", "[::1]"]
    with pytest.raises(InvalidVideoInput, match=r"'other\.internal' is not in allow_url"):
        load_video("http://videos.internal:8000/x.mp4", allow_url=allowed)
    assert fake.connected == [("10.1.2.3", 8000)]
    with pytest.raises(InvalidVideoInput, match=r"'public\.example' is not in allow_url"):
        load_video("https://public.example/x.mp4", allow_url=allowed)
    assert len(fake.connected) == 1
    with pytest.raises(ValueError, match="expected True, False or a list"):
        load_video("http://videos.internal/x.mp4", allow_url="videos.internal")


def test_the_next_address_is_tried(httpd: Any) -> None:
    family = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    addresses = [(*family, ("127.0.0.1", port)) for port in (9, httpd.server_port)]
    deadline = download.Deadline(10, "item")
    with download.connect(addresses, deadline) as sock:
        assert sock.getpeername() == ("127.0.0.1", httpd.server_port)
    with pytest.raises(ConnectionRefusedError):
        download.connect(addresses[:1], deadline)
    with pytest.raises(DecodeTimeout):
        download.connect(addresses, download.Deadline(1e-9, "item"))


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@public.example/x.mp4",
        "http://public.example@127.0.0.1/x.mp4",
        "http://127.0.0.1\\@public.example/x.mp4",
        "http:///x.mp4",
        "http://a..b/x.mp4",
        f"http://{'x' * 64}.example/x.mp4",
        "http://exa mple/x.mp4",
        "http://exa\x00mple/x.mp4",
        "http://public.example:99999/x.mp4",
        "http://public.example:x/x.mp4",
        "http://[fe80::1%25eth0]/x.mp4",
        "http://public.example/\udce9.mp4",
    ],
)
def test_malformed_addresses(fake: Fake, url: str) -> None:
    fake.names |= {"public.example": [PUBLIC]}
    for allowed in (True, ["public.example"]):
        with pytest.raises(InvalidVideoInput) as info:
            load_video(url, allow_url=allowed)
        assert "secret" not in str(info.value)
        assert str(info.value).isprintable()
    assert fake.connected == []


def test_a_request_cannot_be_split(fake: Fake) -> None:
    fake.names |= {"public.example": [PUBLIC]}
    fake.answer = b"HTTP/1.1 404 Not Found\r\n\r\n"
    with pytest.raises(VideoNotFound):
        load_video("http://public.example/a b\x0bc?d=\x85 e\r\nX: y", allow_url=True)
    assert fake.requests[0].count("\r\n") == 7
    assert fake.requests[0].startswith("GET /a%20b%0Bc?d=%C2%85%20eX:%20y HTTP/1.1\r\n")


def test_a_proxy_is_refused_and_not_passed_by_in_silence(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with pytest.raises(InvalidVideoInput, match=r"proxy is set for https.*no_proxy"):
        load_video("https://public.example/x.mp4", allow_url=True)
    monkeypatch.setenv("no_proxy", "public.example")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: [(socket.AF_INET, 1, 6, "", ("10.0.0.1", 443))])
    with pytest.raises(InvalidVideoInput, match="private"):
        load_video("https://public.example/x.mp4", allow_url=True)


# -- servers that misbehave --------------------------------------------------------------------------------------------


DRIPS = {
    "header": (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "body": (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "chunk size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
    "trailer": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X: y\r\n"),
    "nothing": (b"", b""),
}


@pytest.mark.parametrize("drip", DRIPS)
def test_a_server_that_drips_is_left_in_time(fake: Fake, drip: str) -> None:
    """Every byte comes soon enough for a limit on the time of one read; the whole never ends."""
    fake.names["slow.example"] = [PUBLIC]
    first, again = DRIPS[drip]
    left = threading.Event()

    def serve(sock: socket.socket) -> None:
        with sock:
            try:
                sock.sendall(first)
                while not left.wait(0.02):
                    sock.sendall(again)
            except OSError:
                return

    fake.serve = serve  # type: ignore[method-assign]
    with pytest.raises(DecodeTimeout, match=r"not fetched within timeout_s=0\.4"):
        load_video("http://slow.example/x.mp4", allow_url=True, limits=DecodeLimits(timeout_s=0.4))
    left.set()


def test_a_server_that_falls_silent_without_a_limit(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "STALL_S", 0.1)
    fake.names["slow.example"] = [PUBLIC]
    left = threading.Event()
    fake.serve = lambda sock: left.wait(30)  # type: ignore[method-assign, assignment]
    with pytest.raises(VideoNotFound, match="stopped answering"):
        load_video("http://slow.example/x.mp4", allow_url=True, limits=DecodeLimits(timeout_s=None))
    left.set()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nx", VideoTooLarge),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx", VideoNotFound),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + b"x" * 10**6, NotAVideo),  # the rest is not read
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + b"x" * 10**6, VideoTooLarge),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n" + b"x" * 10**6, None),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 10**6, VideoTooLarge),
        (b"HTTP/1.1 404 \x1b[31mred\r\n\r\n", VideoNotFound),
        (b"\x1b[31m 200 OK\r\n\r\n", VideoNotFound),
        (b"", VideoNotFound),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10**4 + b"\r\n", VideoNotFound),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10**6 + b"\r\n\r\n", VideoNotFound),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n", InvalidVideoInput),
        (b"HTTP/1.1 302 Found\r\nLocation: http://user@a.example/\r\n\r\n", InvalidVideoInput),
        (b"HTTP/1.1 302 Found\r\nLocation: \xff\x1b\r\n\r\n", VideoNotFound),
    ],
)
def test_answers_that_are_lies(fake: Fake, answer: bytes, kind: type[VideoError] | None) -> None:
    fake.names["liar.example"] = [PUBLIC]
    fake.answer = answer
    with pytest.raises(VideoError) as info:
        load_video("http://liar.example/x.mp4", allow_url=True, limits=DecodeLimits(max_bytes=10**5))
    assert type(info.value) is (kind or VideoTooLarge)
    assert str(info.value).isprintable()


def test_https_does_not_become_http(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.names["safe.example"] = [PUBLIC]
    fake.answer = b"HTTP/1.1 302 Found\r\nLocation: http://safe.example/x\r\n\r\n"
    names: list[str] = []

    class Plain:
        def wrap_socket(self, sock: socket.socket, *, server_hostname: str) -> socket.socket:
            names.append(server_hostname)
            return sock

    monkeypatch.setattr(ssl, "create_default_context", Plain)
    with pytest.raises(InvalidVideoInput, match="from https to http"):
        load_video("https://safe.example/x", allow_url=True)
    assert names == ["safe.example"]  # by name, though it is connected to by address
    assert fake.connected == [(PUBLIC, 443)]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(
            [b"HTTP/1.1 ", b"200", b"302", b"100", b" OK", b"\r\n", b"\r\n\r\n", b"Location: ", b"/x", b":"]
        )
        | st.sampled_from(
            [b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", b"-5\r\n", b"5\r\n", b"http://a/", b"0"]
        )
        | st.binary(max_size=8),
        max_size=12,
    ).map(b"".join)
)
@example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabcdef")
def test_any_answer_is_bytes_or_one_of_our_errors(fake: Fake, answer: bytes) -> None:
    fake.names["any.example"] = [PUBLIC]
    fake.answer = answer
    try:
        with download.fetch("http://any.example/", "item", DecodeLimits(timeout_s=5, max_bytes=100)) as file:
            assert 1 <= len(file.read()) <= 100
    except VideoError as error:
        assert str(error).isprintable()  # noqa: PT017 - either end is right


def test_a_disk_that_is_full(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: Path("/dev/full").open("r+b", buffering=0))  # noqa: SIM115
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(VideoError, match=r"cannot be stored in .*No space left"):
        load_video(f"{server}/video", allow_url=HERE)


def test_nothing_is_left_behind(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = open_files()
    load_video(f"{server}/video", allow_url=HERE)
    for name, most in (("video", 10), ("unsized", 10), ("short", 2**31), ("empty", 2**31)):
        with pytest.raises(VideoError):
            load_video(f"{server}/{name}", allow_url=HERE, limits=DecodeLimits(max_bytes=most))
    assert list(tmp_path.iterdir()) == []
    assert open_files() == before


# -- TLS ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of its own for `videos.example`, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=test"]
    command += ["-addext", "subjectAltName=DNS:videos.example"]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no openssl command that makes certificates: {error}")
    return folder / "cert.pem", folder / "key.pem"


@pytest.mark.parametrize(
    ("host", "trusted", "kind"),
    [("videos.example", True, None), ("videos.example", False, VideoNotFound), ("other.example", True, VideoNotFound)],
)
def test_certificates_are_checked_for_the_name(
    zoo: Zoo,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    trusted: bool,
    kind: type[VideoError] | None,
) -> None:
    cert, key = certificate
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    httpd = serving(zoo)
    httpd.socket = context.wrap_socket(httpd.socket, server_side=True)
    httpd.handle_error = lambda *_: None  # type: ignore[method-assign] - a client that hangs up
    threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True).start()
    here = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", httpd.server_port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: here)
    try:
        if kind is None:
            assert probe(f"https://{host}./video", allow_url=[host]).codec == "h264"
        else:
            with pytest.raises(kind, match="certificate"):
                probe(f"https://{host}/video", allow_url=[host])
    finally:
        httpd.shutdown()
        httpd.server_close()
