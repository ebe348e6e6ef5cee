from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from tests.cli.conftest import vidembed
from vidembed.video import DecodeLimits, DecodePool

Loaded = list[dict[str, Any]]


@pytest.fixture
def index(clips: Path, tmp_path: Path, loaded: Loaded) -> Path:
    assert vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake", "--segment", "1").exit_code == 0
    return tmp_path / "ix"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SimpleNamespace]]:
    """What would have been served, instead of serving it."""
    runs: list[SimpleNamespace] = []

    def run(self: uvicorn.Server, sockets: list[socket.socket]) -> None:
        runs.append(SimpleNamespace(config=self.config, app=self.config.app, address=sockets[0].getsockname()))

    monkeypatch.setattr(uvicorn.Server, "run", run)
    monkeypatch.delenv("VIDEMBED_API_KEY", raising=False)
    yield runs
    for each in runs:
        with TestClient(each.app):  # leaving it ends the model's thread
            pass


def test_by_default_it_listens_on_loopback_and_answers_to_no_other_name(
    index: Path, started: list[SimpleNamespace], loaded: Loaded
) -> None:
    result = vidembed("serve", "--in", index, "--port", 0)
    assert result.exit_code == 0, result.stderr
    (run,) = started
    assert run.address[0] == "127.0.0.1"
    assert f"Serving fake on http://127.0.0.1:{run.address[1]}/" in result.stderr
    assert "Anyone" not in result.stderr
    assert loaded[-1]["sampling"]["fps"] == 2.0  # as the index was made
    client = TestClient(run.app, base_url="http://127.0.0.1:8000")
    health = client.get("/health").json()
    assert (health["model"], health["reranker"], health["index"]) == ("fake", None, True)
    assert TestClient(run.app, base_url="http://evil.example").get("/health").status_code == 421
    assert (run.config.server_header, run.config.proxy_headers, run.config.workers) == (False, False, 1)


def test_warns_on_an_address_that_others_reach(index: Path, started: list[SimpleNamespace]) -> None:
    message = vidembed("serve", "--in", index, "--port", 0, "--host", "0.0.0.0").stderr
    assert "Anyone who can reach this address" in message
    assert TestClient(started[0].app, base_url="http://any.example").get("/health").status_code == 200
    message = vidembed("serve", "--in", index, "--port", 0, "--host", "0.0.0.0", "--api-key", "k").stderr
    assert "Anyone" not in message


def test_the_key_comes_from_the_environment(
    index: Path, started: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDEMBED_API_KEY", "from-there")
    result = vidembed("serve", "--in", index, "--port", 0, "--allow-host", "box.local")
    assert "from-there" not in result.output
    client = TestClient(started[0].app, base_url="http://box.local")
    assert client.get("/v1/models").status_code == 401
    assert client.get("/v1/models", headers={"Authorization": "Bearer from-there"}).status_code == 200


def test_limits_and_names_are_passed_on(index: Path, started: list[SimpleNamespace], clips: Path) -> None:
    options = ["--alias", "one", "--alias", "two", "--max-items", 3, "--max-upload-mb", 1, "--timeout", 9]
    assert vidembed("serve", "--in", index, "--port", 0, "--root", clips, *options).exit_code == 0
    client = TestClient(started[0].app, base_url="http://localhost")
    assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["fake", "one", "two"]
    answer = client.post("/v1/embeddings", json={"model": "one", "input": ["a"] * 4})
    assert "at most 3" in answer.json()["error"]["message"]


def test_the_reranker_has_other_names_too(
    index: Path, started: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["vidembed.index.reranking"], "load_reranker", lambda *_, **__: SimpleNamespace())
    options = ["--rerank", "--alias", "one", "--reranker-alias", "two", "--reranker-alias", "one"]
    assert vidembed("serve", "--in", index, "--port", 0, *options).exit_code == 0
    client = TestClient(started[0].app, base_url="http://localhost")
    names = [each["id"] for each in client.get("/v1/models").json()["data"]]
    assert names == ["fake", "one", "fake-rerank", "two"]


def test_other_sites_are_passed_on_and_any_site_is_warned_of(index: Path, started: list[SimpleNamespace]) -> None:
    origin = {"Origin": "https://a.example"}
    for options, allowed in (
        ([], None),
        (["--cors-origin", "https://b.example", "--cors-origin", "https://a.example"], "https://a.example"),
        (["--cors-origin", "*"], "*"),
        (["--cors-origin", "*", "--api-key", "k"], "*"),
    ):
        message = vidembed("serve", "--in", index, "--port", 0, *options).stderr
        client = TestClient(started[-1].app, base_url="http://localhost")
        assert client.get("/health", headers=origin).headers.get("Access-Control-Allow-Origin") == allowed
        assert ("Any web page" in message) == (options == ["--cors-origin", "*"])


def test_what_decoders_may_take_is_passed_on(
    index: Path, started: list[SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    make = DecodePool.__init__
    monkeypatch.setattr(DecodePool, "__init__", lambda self, **how: (given.append(how), make(self, **how))[1])
    options = ["--decode-workers", 3, "--decode-timeout", 7, "--max-memory", 0.75]
    assert vidembed("serve", "--in", index, "--port", 0, *options).exit_code == 0
    limits = DecodeLimits(timeout_s=7, max_memory_bytes=768 * 2**20)
    assert given == [{"workers": 3, "limits": limits, "backend": "pyav"}]
    result = vidembed("serve", "--in", index, "--port", 0, "--decode-timeout", 0)
    assert result.exit_code != 0
    assert "decode_timeout_s: got 0" in result.stderr


def test_a_model_without_an_index(started: list[SimpleNamespace], loaded: Loaded, tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    assert vidembed("serve", "--model", tmp_path / "my-model", "--port", 0).exit_code == 0
    health = TestClient(started[0].app, base_url="http://localhost").get("/health").json()
    assert (health["model"], health["index"]) == ("my-model", False)  # the folder is not the client's to know


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --model NAME, or an index"),
        (["--model", "fake", "--root", "/nowhere"], "root: '/nowhere' is not a folder"),
        (["--model", "fake", "--max-items", "0"], "max_items: got 0"),
        (["--model", "fake", "--visual-cache", "x"], "give --rerank or --reranker"),
        (["--model", "fake", "--reranker-alias", "x"], "give --rerank or --reranker"),
        (["--model", "fake", "--cors-origin", "a.example"], "cors-origin: got 'a.example'"),
        (["--in", "/nowhere"], "no vidembed index in '/nowhere'"),
        (["--model", "fake", "--host", "256.1.1.1"], "cannot listen on '256.1.1.1'"),
        (["--model", "fake", "--api-key", "a\nb"], "api_key"),
        (["--model", "fake", "--api-key", ""], "api_key"),  # such as of a variable that is not set
    ],
)
def test_misuse(started: list[SimpleNamespace], loaded: Loaded, arguments: list[str], says: str) -> None:
    result = vidembed("serve", "--port", 0, *arguments)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.split())
    assert (started, loaded) == ([], [])  # found before the model is loaded


def test_an_interrupt_ends_it_in_order(
    started: list[SimpleNamespace], loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: uvicorn.Server, sockets: list[socket.socket]) -> None:
        started.append(SimpleNamespace(app=self.config.app))
        raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn.Server, "run", interrupted)
    result = vidembed("serve", "--model", "fake", "--port", 0)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (0, "Stopped.")


def test_a_port_that_is_taken(started: list[SimpleNamespace], loaded: Loaded) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = vidembed("serve", "--model", "fake", "--port", taken.getsockname()[1])
    assert (result.exit_code, loaded) == (2, [])  # found before the model is loaded
    assert "cannot listen" in result.stderr


def test_without_the_extra_the_error_names_it() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None; from vidembed.cli import main; "
        "sys.argv = ['vidembed', 'serve', '--model', 'x']; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert 'pip install "vidembed[serve]"' in result.stderr
    assert "Traceback" not in result.stderr
