"""`vidembed search` without words: queries are lines of standard input, and the model is loaded once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import tree, vidembed
from tests.index.fakes import FakeEncoder, write_video
from vidembed.index import Derived, Windows, index_videos

Loaded = list[dict[str, Any]]


@pytest.fixture
def index(clips: Path, tmp_path: Path, loaded: Loaded) -> Path:
    """Six segments and a query bank."""
    derived = Derived(query_bank=["red", "grey", "green"])
    index_videos([clips], tmp_path / "ix", FakeEncoder(), model="fake", cut=Windows(1), progress=False, derived=derived)
    return tmp_path / "ix"


def names(line: dict[str, Any]) -> list[str]:
    return [hit["uri"].rsplit("/", 1)[1] for hit in line["hits"]]


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("-k", 2, "--path", "[rg]*.mp4", "--where", "duration<2"),
        ("--merge", "videos", "--around", 0.25),
        ("--bank",),
    ],
)
def test_lines_of_json_are_those_of_queries(
    index: Path, tmp_path: Path, loaded: Loaded, options: tuple[object, ...]
) -> None:
    (tmp_path / "words.txt").write_text("red\ngreen \U0001f600\nblue\n", encoding="utf-8")
    wanted = vidembed("search", "--in", index, "--queries", tmp_path / "words.txt", *options)
    assert wanted.exit_code == 0, wanted.stderr
    loaded.clear()
    typed = "\ufeffred\r\n\n  \ngreen \U0001f600\nblue"  # the last one without an end
    result = vidembed("search", "--in", index, "--json", *options, typed=typed.encode())
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == wanted.stdout
    assert len(loaded) == 1


def test_each_table_has_the_query_as_its_title(index: Path) -> None:
    result = vidembed("search", "--in", index, "-k", 1, typed="red\n\x1b[31mgrey\n")
    assert result.exit_code == 0
    first, second = result.stdout.split("\\x1b[31mgrey")
    assert first.split("\n")[0].strip() == "red"
    assert ("red.mp4" in first, "long.mp4" in second) == (True, True)
    assert "\x1b[31m" not in result.output
    assert "> " not in result.stderr  # no prompt where there is no terminal


def test_nothing_to_search_for_is_no_error(index: Path) -> None:
    result = vidembed("search", "--in", index, typed="")
    assert (result.exit_code, result.output) == (0, "")


def test_a_line_that_cannot_be_searched_is_said_and_the_next_is_searched(index: Path) -> None:
    lines = [b"x" * 10_001, b"\xff", b"y" * 200_000, b"z" * 2**17, b"red"]
    result = vidembed("search", "--in", index, "--json", typed=b"\n".join(lines))
    assert result.exit_code == 0
    (line,) = map(json.loads, result.stdout.splitlines())
    assert line["query"] == "red"
    said = result.stderr.splitlines()
    assert len(said) == 4
    assert "query: got 10001 characters; at most 10000 are allowed" in said[0]
    assert "can't decode byte 0xff" in said[1]
    assert all("at most 10000 are allowed" in each for each in said[2:])


def test_each_search_sees_the_last_commit(index: Path, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def typed() -> Iterator[bytes]:
        yield b"red\n"
        write_video(clips / "also red.mp4", [(200, 30, 30)])
        index_videos([clips], index, FakeEncoder(), model="fake", cut=Windows(1), progress=False)
        yield b"red\n"

    monkeypatch.setattr("vidembed.cli.search.typed_lines", typed)
    result = vidembed("search", "--in", index, "--json", "-k", 2)
    before, after = map(json.loads, result.stdout.splitlines())
    assert names(before) == ["red.mp4", "long.mp4"]
    assert sorted(names(after)) == ["also%20red.mp4", "red.mp4"]
    assert (before["search"]["rows"], after["search"]["rows"]) == (6, 7)


def test_the_reranker_is_loaded_once_and_asked_about_each(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Reranker:
        fusion = first_stage = None

        def rank(self, query: Any, documents: list[Any], **_: Any) -> list[dict[str, Any]]:
            asked.append(query["text"])
            return [{"corpus_id": place, "score": place / 10} for place in reversed(range(1, len(documents)))]

    heads: list[Reranker] = []
    monkeypatch.setattr(
        sys.modules["vidembed.index.reranking"], "load_reranker", lambda *_, **__: heads.append(Reranker()) or heads[-1]
    )
    result = vidembed("search", "--in", index, "--json", "--rerank", 3, "-k", 2, typed="red\ngreen\n")
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert (len(heads), asked) == (1, ["red", "green"])
    assert [[hit["probability"] for hit in line["hits"]] for line in lines] == [[0.2, 0.1]] * 2
    lost = [line for line in result.stderr.splitlines() if line.startswith("Not reranked")]
    assert ["red.mp4" in lost[0], "green.mp4" in lost[1]] == [True, True]


def test_the_page_holds_all_that_was_asked(index: Path, tmp_path: Path) -> None:
    result = vidembed("search", "--in", index, "-k", 1, "--html", tmp_path / "a.html", typed="red\n\ngreen\n")
    assert result.exit_code == 0
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.count("<img") == 2
    assert page.index("red.mp4") < page.index("green.mp4")


def test_an_interrupt_ends_it(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def typed() -> Iterator[bytes]:
        yield b"red\n"
        raise KeyboardInterrupt

    monkeypatch.setattr("vidembed.cli.search.typed_lines", typed)
    result = vidembed("search", "--in", index, "--json")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["query"] == "red"


def test_what_every_query_would_meet_ends_it(index: Path) -> None:
    result = vidembed("search", "--in", index, "--model", "other", typed="red\ngreen\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.count("Error:") == 1
    assert "made by 'fake'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-k", "0"], "k: got 0"),
        (["-k", "0", "--rerank", "2"], "k: got 0"),
        (["--where", "genre=x"], "no column 'genre'"),
        (["--timeout", "3"], "timeout: it needs --server URL"),
    ],
)
def test_misuse_is_found_before_a_line_is_read(
    index: Path, loaded: Loaded, tmp_path: Path, arguments: list[str], message: str
) -> None:
    loaded.clear()
    before = tree(tmp_path)
    result = vidembed("search", "--in", index, *arguments, typed="red\n")
    assert (result.exit_code, result.stdout, loaded) == (2, "", [])
    assert message in result.stderr
    assert tree(tmp_path) == before
