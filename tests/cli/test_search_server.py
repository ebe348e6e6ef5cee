"""`vidembed search --server`: asks a running server, and meets others that are none."""

from __future__ import annotations

import json
import os
import pty
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from tests.cli.conftest import tree, vidembed
from tests.index.fakes import COLOURS, FakeEncoder, write_video
from tests.serve.conftest import FakeReranker, ServedEncoder
from vidembed.captions import CaptionRecord
from vidembed.cli import client
from vidembed.cli.client import Server
from vidembed.index import VideoIndex, Windows, add_captions, index_videos
from vidembed.serve import Engine, Limits, create_app
from vidembed.video.clip import content_fingerprint

KEY = "s3cret-key"
COMMAND = [sys.executable, "-c", "from vidembed.cli import main; main()", "search", "--server"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of videos, and of an index of five segments."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "videos").mkdir()
    for name, colour in COLOURS.items():
        write_video(folder / "videos" / f"{name}.mp4", [colour])
    write_video(folder / "videos" / "long.mp4", [(90, 90, 90), (150, 60, 40)])
    index_videos([folder / "videos"], folder / "ix", FakeEncoder(), model="fake", cut=Windows(1), progress=False)
    return folder


def running(**how: Any) -> Iterator[str]:
    """The address of a server of quick models, on a thread, with a key."""
    engine = Engine(ServedEncoder(), model="fake", limits=Limits(batch_wait_ms=1.0), **how)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(engine, api_key=KEY), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[str]:
    yield from running(index=VideoIndex.open(folder / "ix"), reranker=FakeReranker())


@pytest.fixture(scope="module")
def bare(folder: Path) -> Iterator[str]:
    """A server without an index."""
    yield from running()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEMBED_API_KEY", KEY)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-k", 2),
        ("--path", "[rg]*.mp4", "--before", 1, "--where", "duration<2", "--where", "uri != x"),
        ("--merge", "videos", "--around", 0.25),
        ("--merge", "none", "--after", 0.5),
    ],
)
def test_hits_are_those_of_a_search_here(
    folder: Path, served: str, loaded: list[Any], tmp_path: Path, options: tuple[object, ...]
) -> None:
    (tmp_path / "words.txt").write_text("red\ngreen \U0001f600\n", encoding="utf-8")
    lines = ("--queries", tmp_path / "words.txt")
    forms: list[tuple[object, ...]] = [("red",), ("red", "--json"), lines]
    wanted = [vidembed("search", *form, "--in", folder / "ix", *options) for form in forms]
    loaded.clear()
    for form, there in zip(forms, wanted, strict=True):
        result = vidembed("search", *form, "--server", served, *options)
        assert (result.exit_code, result.stderr) == (0, ""), result.stderr
        assert result.stdout == there.stdout
    typed = vidembed("search", "--server", f"{served}/", "--json", *options, typed="red\n\ngreen \U0001f600\n")
    assert typed.stdout == wanted[2].stdout
    assert loaded == []


@pytest.mark.parametrize("by", ["caption", "text", "hybrid"])
def test_hits_by_captions_are_those_of_a_search_here(
    folder: Path, tmp_path: Path, loaded: list[Any], served: str, by: str
) -> None:
    refused = vidembed("search", "red", "--server", served, "--by", by)  # an index without captions
    assert (refused.exit_code, "has no captions" in refused.stderr) == (2, True)
    encoder = FakeEncoder()
    index_videos([folder / "videos"], tmp_path / "ix", encoder, model="fake", progress=False)
    content = content_fingerprint(folder / "videos" / "red.mp4")
    add_captions(tmp_path / "ix", encoder, [CaptionRecord("a", content, {"dense": "red \x1b[1m"})], progress=False)
    server = running(index=VideoIndex.open(tmp_path / "ix"))
    url = next(server)
    try:
        for form in ((), ("--json",)):
            there = vidembed("search", "red", "--server", url, "--by", by, *form)
            here = vidembed("search", "red", "--in", tmp_path / "ix", "--by", by, *form)
            assert (there.exit_code, there.stdout, there.stderr) == (0, here.stdout, here.stderr), there.stderr
            assert "\\x1b[1m" in there.stdout or form
    finally:
        next(server, None)


def test_the_server_reranks_and_a_video_that_is_gone_is_named(folder: Path, served: str) -> None:
    hits = json.loads(vidembed("search", "blue", "--server", served, "--rerank", 3, "--json").stdout)
    assert ["probability" in hit for hit in hits] == [True, True, True, False, False]
    assert [hit["probability"] for hit in hits[:3]] == sorted((hit["probability"] for hit in hits[:3]), reverse=True)
    assert "%" in vidembed("search", "blue", "--server", served, "--rerank", 3).stdout
    (folder / "videos" / "blue.mp4").rename(folder / "away.mp4")
    try:
        result = vidembed("search", "blue", "--server", served, "--rerank", 3, "-k", 3)
    finally:
        (folder / "away.mp4").rename(folder / "videos" / "blue.mp4")
    assert f"Not reranked, because the video is missing or cannot be read: {folder / 'videos' / 'blue.mp4'}." in (
        result.stderr
    )


def test_it_loads_no_model_and_streams_its_answers(served: str) -> None:
    code = "import sys; sys.argv[0] = 'vidembed'\nfrom vidembed.cli import main\ntry: main()\n"
    code += "finally: print([n for n in ('torch', 'transformers', 'lancedb', 'fastapi') if n in sys.modules])"
    command = [sys.executable, "-c", code, "search", "--server", served, "--json"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        for query in ("red", "green"):  # the second is asked when the first is answered
            running.stdin.write(f"{query}\n")
            running.stdin.flush()
            assert json.loads(running.stdout.readline())["query"] == query
        running.stdin.close()
        assert running.stdout.read() == "[]\n"
    assert running.returncode == 0


@pytest.mark.parametrize("to_file", [False, True])
def test_a_terminal_has_a_prompt(served: str, tmp_path: Path, to_file: bool) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    with (tmp_path / "out").open("wb") as out:
        stdout = out if to_file else theirs
        running = subprocess.Popen(
            [*COMMAND, served, "-k", "1"], stdin=theirs, stdout=stdout, stderr=theirs, env=environment
        )
    os.close(theirs)

    def read_to(pattern: bytes) -> bytes:
        seen = b""
        while not re.search(pattern, seen, re.DOTALL):
            seen += os.read(ours, 2**16)
        return seen

    assert b"Type one query per line" in read_to(b"> ")
    # Twice to the left: lines are edited where the terminal shows them. An echo of the line holds the prompt again.
    os.write(ours, b"green\n" if to_file else b"gren\x1b[D\x1b[De\n")
    shown = read_to(b"green.*> " if to_file else "┘.*> ".encode())
    os.write(ours, b"\x04")
    assert running.wait(60) == 0
    os.close(ours)
    table = (tmp_path / "out").read_bytes() if to_file else shown
    assert b"green.mp4" in table
    assert b"> " not in (tmp_path / "out").read_bytes()


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--in", "ix"], "in"),
        (["--model", "m"], "model"),
        (["--device", "cpu"], "device"),
        (["--exact"], "exact"),
        (["--bank"], "bank"),
        (["--quantized", "int8"], "quantized"),
        (["--compact", "int8"], "quantized"),
        (["--html", "a.html"], "html"),
        (["--rerank", "2", "--reranker", "m"], "reranker"),
        (["--rerank", "2", "--score", "yes"], "score"),
        (["--rerank", "2", "--calibration", "c.json"], "calibration"),
        (["--rerank", "2", "--visual-cache", "v"], "visual-cache"),
        (["--rerank", "2", "--around", "1", "--rerank-around"], "rerank-around"),
    ],
)
def test_options_of_a_search_here_are_refused(tmp_path: Path, options: list[str], name: str) -> None:
    result = vidembed("search", "red", "--server", "http://127.0.0.1:9", *options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"Error: {name}: it cannot be used with --server" in result.stderr
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-k", "101"], "answered 400: k: got 101; at most 100"),
        (["--rerank", "51"], "answered 400: rerank: got 51; at most 50"),
        (["--where", "genre = x"], "answered 400: where: the index has no column 'genre'"),
        (["--around", "4000"], "answered 400: around: "),
        (["--after", "-1"], "after: got -1"),
        (["--timeout", "0"], "timeout: got 0"),
        (["--timeout", "nan"], "timeout: got nan"),
    ],
)
def test_what_the_server_refuses_is_said_once(served: str, options: list[str], message: str) -> None:
    for words, typed in ((["red"], None), ([], "red\ngreen\n")):
        result = vidembed("search", *words, "--server", served, *options, typed=typed)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.count("Error:") == 1
        assert message in result.stderr


def test_a_query_that_the_server_refuses_is_said_and_the_next_is_asked(served: str) -> None:
    result = vidembed("search", "--server", served, "--json", typed="marker\nred\n")
    assert result.exit_code == 0
    assert "query: it is too long for the model" in result.stderr
    assert [json.loads(line)["query"] for line in result.stdout.splitlines()] == ["red"]


def test_the_key_must_be_right(served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, says in (
        ("", "the key is missing or wrong"),
        ("wr0ng", "the key is missing or wrong"),
        ("wr0ng\n", "VIDEMBED_API_KEY: it must be printable ASCII"),
        (" ", "VIDEMBED_API_KEY: it must be printable ASCII"),
    ):
        monkeypatch.setenv("VIDEMBED_API_KEY", wrong)
        monkeypatch.setenv("VIDEMBED_DEBUG", "1")
        result = vidembed("search", "red", "--server", served)
        assert (result.exit_code, result.stdout) == (2, "")
        assert says in result.stderr
        assert "VIDEMBED_API_KEY" in result.stderr
        assert "wr0ng" not in result.stderr


def test_a_server_without_an_index_or_a_reranker(bare: str) -> None:
    result = vidembed("search", "red", "--server", bare)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "answered 404: search: this server has no index" in result.stderr


@pytest.mark.parametrize(
    "url",
    [
        *(
            "127.0.0.1:8000",
            "ftp://a.example",
            "http://",
            "http://a.example:port",
            "http://a.example/?q=1",
            "file:///etc",
        ),
        *("http://a b.example", "http://a.example/\u2028", "http://[::1", "http://a.example#x", ""),
    ],
)
def test_an_address_that_is_none(url: str) -> None:
    result = vidembed("search", "red", "--server", url)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: server: got" in result.stderr
    assert "expected an address such as http://127.0.0.1:8000" in result.stderr


def test_a_password_in_the_address_is_refused_and_not_shown() -> None:
    result = vidembed("search", "red", "--server", "http://me:hidden@a.example")
    assert result.exit_code == 2
    assert "has a user name" in result.stderr
    assert "hidden" not in result.output
    assert "hidden" not in repr(Server("http://a.example", "hidden"))


def test_a_key_over_plain_http_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for url, warned in (
        ("http://box.local:8000", True),
        ("https://box.local:8000", False),
        ("http://127.0.0.1:8000", False),
        ("http://localhost:8000", False),
        ("http://[::1]:8000", False),
    ):
        Server.named(url)
        said = capsys.readouterr().err
        assert ("is not encrypted" in said) == warned
        assert KEY not in said
    monkeypatch.delenv("VIDEMBED_API_KEY")
    Server.named("http://box.local:8000")
    assert capsys.readouterr().err == ""


def test_nobody_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    result = vidembed("search", "red", "--server", address)
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"Error: server: '{address}' does not answer: " in result.stderr
    assert "refused" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("noise", "says"), [(b"SSH-2.0-OpenSSH\r\n", "BadStatusLine"), (b"", "RemoteDisconnected")])
def test_a_server_that_speaks_no_http(noise: bytes, says: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def speak() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(2**16)
                connection.sendall(noise)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(2**16):  # what is left unread would make the end a reset
                    pass

        thread = threading.Thread(target=speak)
        thread.start()
        result = vidembed("search", "red", "--server", f"http://127.0.0.1:{listening.getsockname()[1]}")
        thread.join()
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"does not answer: {says}" in result.stderr
    assert "SSH" not in result.stderr


Answers = Callable[..., tuple[str, list[dict[str, str]]]]


@pytest.fixture
def answering() -> Iterator[Answers]:
    """Starts a server that gives one answer, and keeps the headers of requests."""
    servers: list[ThreadingHTTPServer] = []

    def start(
        status: int = 200, content: bytes = b"", headers: dict[str, str] | None = None, *, wait_s: float = 0
    ) -> tuple[str, list[dict[str, str]]]:
        seen: list[dict[str, str]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                seen.append({"path": self.path, **{name.lower(): value for name, value in self.headers.items()}})
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                for byte in range(len(content)) if wait_s else ():
                    time.sleep(wait_s)
                    self.wfile.write(content[byte : byte + 1])
                if not wait_s:
                    self.wfile.write(content)

            def log_message(self, *_: Any) -> None: ...

        def fail(*_: Any) -> None: ...  # at a client that is gone

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.handle_error = fail  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


METHOD = {"name": "exact", "rows": 3, "approximate": False}
HIT = {"uri": "file:///a.mp4", "start_s": 0, "end_s": 1.5, "score": 0.5}


def answer(**changes: Any) -> bytes:
    """An answer of one hit, with other values in it."""
    return json.dumps({"method": METHOD, "hits": [{**HIT, **changes}], "query": "red", "new": 1}).encode()


def error(message: str = "said", **more: Any) -> bytes:
    return json.dumps({"error": {"message": message, "type": "t", "param": None, "code": "c", **more}}).encode()


@pytest.mark.parametrize(
    ("status", "content", "code", "message"),
    [
        (200, b"<html>", 2, "answered without valid hits, so it is not a vidembed server"),
        (200, b"", 2, "without valid hits"),
        (200, b"[" * 100_000, 2, "without valid hits"),
        (200, b"{}", 2, "without valid hits"),
        (200, b"\xff\xfe\xfd", 2, "without valid hits"),
        (200, json.dumps({"method": METHOD, "hits": {"a": 1}}).encode(), 2, "without valid hits"),
        (200, json.dumps({"method": {"name": 1, "rows": 1}, "hits": []}).encode(), 2, "without valid hits"),
        (200, answer(uri=5), 2, "without valid hits"),
        (200, answer(uri=None), 2, "without valid hits"),
        (200, answer(uri="file://[a"), 2, "without valid hits"),
        (200, answer(score="0.5"), 2, "without valid hits"),
        (200, answer(score=True), 2, "without valid hits"),
        (200, answer(end_s=float("inf")), 2, "without valid hits"),
        (200, answer(end_s=10**400), 2, "without valid hits"),
        (200, answer().replace(b"0.5", b"1e999"), 2, "without valid hits"),
        (200, answer(segments=0.5), 2, "without valid hits"),
        (200, answer().replace(b"exact", b"x" * 2**24), 2, "answered with more than 16777216 bytes"),
        (404, b"<html>no such page", 2, "answered 404 in a form of its own, so it is not a vidembed server"),
        (405, b'{"detail": "Method Not Allowed"}', 2, "answered 405 in a form of its own"),
        (422, error("q: no", param="x"), 2, "answered 422: q: no"),
        (413, error("the body is larger"), 2, "answered 413: the body is larger"),
        (421, error("Host: this server answers only"), 2, "answered 421: Host: this"),
        (400, error("q: got \x1b[31m", param="q"), 2, "query: got \\x1b[31m"),
        (408, error("no more came"), 1, "answered 408: no more came"),
        (500, b"oops", 1, "answered 500: no reason given"),
        (503, error("too much to do; try again"), 1, "answered 503: too much to do; try again"),
        (504, error("no answer within 60 s"), 1, "answered 504: no answer within 60 s"),
    ],
)
def test_answers_that_are_none(answering: Answers, status: int, content: bytes, code: int, message: str) -> None:
    address, seen = answering(status, content)
    result = vidembed("search", "red", "--server", address)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stderr) < 1000
    assert [each["path"] for each in seen] == ["/search"]


def test_an_answer_of_another_version_is_taken(answering: Answers) -> None:
    address, seen = answering(200, answer(media="/media/1", name="a.mp4", segments=None, later=1))
    result = vidembed("search", "red", "--server", f"{address}/under/here/", "--json")
    assert json.loads(result.stdout) == [{**HIT, "start_s": 0.0}]
    assert seen[0]["path"] == "/under/here/search"
    assert seen[0]["authorization"] == f"Bearer {KEY}"
    assert seen[0]["content-type"] == "application/json"


def test_an_approximate_search_is_told(answering: Answers) -> None:
    method = {"approximate": True, "name": "ann", "rows": 9, "recall": 0.97, "recall_at": 10, "sample": 200}
    address, _ = answering(200, json.dumps({"method": {**method, "merge": "moments"}, "hits": [HIT]}).encode())
    assert "Approximate (ann, 9 segments): recall@10 0.970" in vidembed("search", "red", "--server", address).stderr
    (hit,) = json.loads(vidembed("search", "red", "--server", address, "--json").stdout)
    assert (hit["approximate"], hit["recall"]) == (True, 0.97)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirections_are_not_followed(answering: Answers, status: int) -> None:
    other, others = answering(200, answer())
    address, _ = answering(status, b"", {"Location": f"{other}/search"})
    result = vidembed("search", "red", "--server", address)
    assert (result.exit_code, result.stdout, others) == (2, "", [])
    assert f"redirects to '{other}/search', which is not followed" in result.stderr


def test_a_loopback_address_is_not_asked_through_a_proxy(answering: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, through = answering(200, answer())
    address, direct = answering(200, answer())
    monkeypatch.setenv("http_proxy", proxy)
    assert vidembed("search", "red", "--server", address).exit_code == 0
    assert (len(direct), len(through)) == (1, 0)
    monkeypatch.delenv("VIDEMBED_API_KEY")
    assert vidembed("search", "red", "--server", "http://box.invalid").exit_code == 0
    assert (len(direct), len(through)) == (1, 1)
    assert "authorization" not in through[0]


def test_a_slow_server_is_given_up(answering: Answers) -> None:
    for wait_s in (0.2, 20.0):  # a byte now and then, and nothing for longer than is waited
        address, _ = answering(200, answer(), wait_s=wait_s)
        began = time.monotonic()
        result = vidembed("search", "red", "--server", address, "--timeout", 0.5)
        assert time.monotonic() - began < 5
        assert (result.exit_code, result.stdout) == (1, "")
        assert "no answer within 0.5 s; use a longer --timeout" in result.stderr


def test_the_default_is_longer_than_the_server_takes() -> None:
    assert Limits().timeout_s < client.TIMEOUT_S
