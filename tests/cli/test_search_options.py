"""Options of `search` that choose rows, the way of searching and many queries; and what `info` says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import tree, vidembed
from tests.index.fakes import FakeEncoder
from vidembed.index import Derived, Windows, index_videos

Loaded = list[dict[str, Any]]
DERIVED = Derived(exact_up_to=2, compact=["int8"], query_bank=["red", "grey", "green"])


@pytest.fixture(autouse=True)
def small_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidembed.index.ann.SAMPLE", 3)


@pytest.fixture
def index(clips: Path, tmp_path: Path, loaded: Loaded) -> Path:
    """Six segments, searched exactly."""
    index_videos([clips], tmp_path / "ix", FakeEncoder(), model="fake", cut=Windows(1), progress=False)
    return tmp_path / "ix"


@pytest.fixture
def large(clips: Path, tmp_path: Path, loaded: Loaded) -> Path:
    """The same with an ANN index of int8 and a query bank."""
    index_videos(
        [clips], tmp_path / "large", FakeEncoder(), model="fake", cut=Windows(1), progress=False, derived=DERIVED
    )
    return tmp_path / "large"


def found(*arguments: object) -> list[dict[str, Any]]:
    result = vidembed("search", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def names(hits: list[dict[str, Any]]) -> list[str]:
    return [hit["uri"].rsplit("/", 1)[1] for hit in hits]


def test_filters(index: Path) -> None:
    assert set(names(found("red", "--in", index, "--path", "[rg]*.mp4"))) == {"red.mp4", "green.mp4"}
    assert [hit["start_s"] for hit in found("red", "--in", index, "--after", "1.5")] == [2, 1]
    assert [hit["start_s"] for hit in found("red", "--in", index, "--path", "long*", "--before", "1")] == [0]
    assert set(names(found("red", "--in", index, "--where", "duration<2", "--where", "start_s=0"))) == {
        "red.mp4",
        "green.mp4",
        "blue.mp4",
    }
    assert found("red", "--in", index, "--path", "' OR 1=1 --") == []


def test_reports_an_approximate_search(large: Path) -> None:
    result = vidembed("search", "red", "--in", large, "-k", "2")
    assert "recall@10" in result.stderr
    assert "--exact compares every vector" in result.stderr
    assert all(hit["approximate"] is True and 0.95 <= hit["recall"] <= 1 for hit in found("red", "--in", large))
    exact = vidembed("search", "red", "--in", large, "-k", "2", "--exact")
    assert "recall" not in exact.stderr
    assert exact.stdout == result.stdout
    assert {tuple(hit) for hit in found("red", "--in", large, "--exact")} == {("uri", "start_s", "end_s", "score")}


def test_quantized(large: Path) -> None:
    result = vidembed("search", "red", "--in", large, "-k", "2", "--compact", "int8")
    assert "Approximate (ann, 6 segments): recall@10 1.000" in result.stderr
    assert vidembed("search", "red", "--in", large, "-k", "2", "--quantized", "int8").stdout == result.stdout
    assert names(found("red", "--in", large, "-k", "2", "--compact", "int8")) == names(
        found("red", "--in", large, "-k", "2", "--exact")
    )


def test_bank(large: Path) -> None:
    # red is the best of the bank's "red": a hub, which the bank makes count less
    assert "query bank" in vidembed("search", "red", "--in", large, "--bank").stderr
    hits = found("red", "--in", large, "--bank")
    assert [hit["normalized"] for hit in hits] == sorted((hit["normalized"] for hit in hits), reverse=True)
    assert "QB-norm" in vidembed("search", "red", "--in", large, "--bank").stdout


def test_queries(index: Path, large: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_bytes("\ufeffred\r\ngreen \U0001f600\nred\n".encode())
    for folder, method in ((index, "exact"), (large, "ann")):
        result = vidembed("search", "--queries", tmp_path / "words.txt", "--in", folder, "-k", "2")
        assert result.exit_code == 0, result.stderr
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert [line["query"] for line in lines] == ["red", "green \U0001f600", "red"]
        assert {line["search"]["name"] for line in lines} == {method}
        assert [line["search"]["approximate"] for line in lines] == [method == "ann"] * 3
        assert lines[0]["hits"] == lines[2]["hits"] == found("red", "--in", folder, "-k", "2")
        assert len(lines[1]["hits"]) == 2


def test_queries_and_a_page(index: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("red\ngreen\n")
    vidembed("search", "--queries", tmp_path / "words.txt", "--in", index, "-k", "1", "--html", tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8").count("<img") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["red"], "in: give the folder of an index with --in DIR, or a running server"),
        ([], "in: give the folder of an index with --in DIR, or a running server"),
        (["red", "--queries", "{words}", "--in", "{ix}"], "give one of them"),
        (["--queries", "{nowhere}", "--in", "{ix}"], "is not a file"),
        (["--queries", "{blank}", "--in", "{ix}"], "queries: line 2"),
        (["--queries", "{empty}", "--in", "{ix}"], "queries: line 1"),
        (["--queries", "{latin}", "--in", "{ix}"], "not UTF-8"),
        (["red", "--in", "{ix}", "--after", "-1"], "after: got -1"),
        (["red", "--in", "{ix}", "--after", "3", "--before", "2"], "before: got 2"),
        (["red", "--in", "{ix}", "--where", "genre=x"], "no column 'genre'"),
        (["red", "--in", "{ix}", "--where", "nonsense"], "where: got 'nonsense'"),
        (["red", "--in", "{ix}", "--compact", "int8"], "has no int8 quantization"),
        (["red", "--in", "{ix}", "--compact", "tiny"], "compact: got 'tiny'"),
        (["red", "--in", "{ix}", "--bank"], "no query bank"),
        (["red", "--in", "{large}", "--compact", "int8", "--exact"], "leave one of them out"),
        (["red", "--in", "{large}", "--compact", "int8", "--path", "*"], "leave one of them out"),
        (["red", "--in", "{large}", "--compact", "int8", "-k", "101"], "k: got 101"),
        (["red", "--in", "{large}", "--model", "other"], "made by 'fake'"),
        (["red", "--in", "{large}", "--model", "other", "--bank"], "made by 'fake'"),
    ],
)
def test_misuse(index: Path, large: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    files = {"words": b"red\n", "blank": b"red\n \n", "empty": b"", "latin": b"\xff\xfe"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    places = {"ix": index, "large": large, "nowhere": tmp_path / "nowhere"} | {name: tmp_path / name for name in files}
    before = tree(tmp_path)
    result = vidembed("search", *(argument.format(**places) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert tree(tmp_path) == before


def test_info(index: Path, large: Path) -> None:
    said = json.loads(vidembed("info", index, "--json").stdout)["search"]
    assert said == {"exact_up_to": 100_000, "quantize": None, "ann": None, "query_bank": None, "mirror": None}
    said = json.loads(vidembed("info", large, "--json").stdout)["search"]
    assert said["exact_up_to"] == 2
    assert (said["ann"]["used"], said["ann"]["rows"], said["ann"]["rows_not_in_it"]) == (True, 6, 0)
    assert set(said["ann"]["recall"]) == {"10", "100"}
    assert (said["quantize"], said["ann"]["kind"], set(said["ann"]["full_recall"])) == ("int8", "IvfSq", {"10", "100"})
    assert (said["query_bank"]["queries"], said["query_bank"]["fresh"]) == (3, True)
    table = vidembed("info", large, "--verbose").stdout
    for words in ("ANN index: recall", "ANN index: full_recall", "query bank: queries", "exact_up_to"):
        assert words in table


def test_no_mirror(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MIRROR_ABOVE", "SETTLED_S"):
        monkeypatch.setattr(f"vidembed.index.mirror.{name}", 0)
    before = tree(index)
    without = found("red", "--in", index, "--no-mirror")
    assert tree(index) == before
    assert found("red", "--in", index) == without
    [mirror] = (index / "derived").glob("mirror-*.f32")
    described = json.loads(vidembed("info", index, "--json").stdout)
    assert described["search"]["mirror"]["bytes"] == mirror.stat().st_size
    assert "mirror: bytes" in vidembed("info", index, "--verbose").stdout


def test_no_mirror_is_for_an_index_here() -> None:
    result = vidembed("search", "red", "--server", "http://127.0.0.1:1", "--no-mirror")
    assert (result.exit_code, "no-mirror" in result.stderr) == (2, True)
