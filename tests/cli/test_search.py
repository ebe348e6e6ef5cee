from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import tree, vidembed

Loaded = list[dict[str, Any]]


@pytest.fixture
def index(clips: Path, tmp_path: Path, loaded: Loaded) -> Path:
    assert vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake", "--segment", "1").exit_code == 0
    return tmp_path / "ix"


def test_table(index: Path) -> None:
    result = vidembed("search", "green", "--in", index, "-k", "1")
    assert result.exit_code == 0
    assert "green.mp4" in result.stdout
    assert "0:00.0-0:01.0" in result.stdout
    assert "red.mp4" not in result.stdout


def test_json_is_one_list_of_hits_and_nothing_else(index: Path, clips: Path) -> None:
    result = vidembed("search", "red", "--in", index, "-k", "2", "--json")
    hits = json.loads(result.stdout)
    assert [{**hit, "score": None} for hit in hits] == [
        {"uri": (clips / "red.mp4").as_uri(), "start_s": 0.0, "end_s": 1.0, "score": None},
        {"uri": (clips / "long.mp4").as_uri(), "start_s": 2.0, "end_s": 3.0, "score": None},
    ]
    assert [list(hit) for hit in hits] == [["uri", "start_s", "end_s", "score"]] * 2
    assert 1 >= hits[0]["score"] >= hits[1]["score"] > 0.9
    assert vidembed("search", "red", "--in", index, "-k", "2", "--json").stdout == result.stdout


def test_more_hits_than_rows(index: Path) -> None:
    assert len(json.loads(vidembed("search", "red", "--in", index, "-k", "99", "--json").stdout)) == 6


def test_words_that_look_like_a_path_are_words(index: Path, clips: Path) -> None:
    assert vidembed("search", str(clips / "red.mp4"), "--in", index).exit_code == 0


def test_the_model_is_that_of_the_index(index: Path, loaded: Loaded) -> None:
    vidembed("search", "red", "--in", index)
    assert (loaded[-1]["name"], loaded[-1]["sampling"]["fps"]) == ("fake", 2.0)


def test_html(index: Path, tmp_path: Path) -> None:
    result = vidembed("search", "red", "--in", index, "--html", tmp_path / "hits.html", "--json")
    assert len(json.loads(result.stdout)) == 6
    assert "hits.html" in result.stderr
    assert (tmp_path / "hits.html").read_text(encoding="utf-8").count("<img") == 6


@pytest.mark.parametrize("name", ["[red]bold[bold].mp4", "esc\x1b[31m.mp4", "new\nline.mp4", "\udcff.mp4"])
def test_hostile_names_are_shown_as_they_are(clips: Path, tmp_path: Path, loaded: Loaded, name: str) -> None:
    (clips / "red.mp4").rename(clips / name)
    vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake")
    result = vidembed("search", "red", "--in", tmp_path / "ix", "-k", "1")
    assert result.exit_code == 0
    assert "\x1b[31m" not in result.stdout
    assert name.encode("unicode_escape", "surrogatepass").decode() in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["red"], "--in"),
        (["", "--in", "{ix}"], "query: got ''"),
        ([" ", "--in", "{ix}"], "query: got ' '"),
        (["x" * 10_001, "--in", "{ix}"], "10001 characters"),
        (["red", "--in", "{ix}", "-k", "0"], "k: got 0"),
        (["red", "--in", "{ix}", "-k", "-3"], "k: got -3"),
        (["red", "--in", "{ix}", "-k", "many"], "as an integer"),
        (["red", "--in", "{nowhere}"], "no vidembed index in"),
        (["red", "--in", "{clips}"], "no vidembed index in"),
        (["red", "--in", "{ix}", "--model", "other"], "made by 'fake'"),
        (["red", "--in", "{ix}", "--html", "{clips}"], "is a folder"),
        (["red", "--in", "{ix}", "--html", "{nowhere}/a.html"], "does not exist"),
    ],
)
def test_misuse(index: Path, clips: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    places = {"ix": index, "clips": clips, "nowhere": tmp_path / "nowhere"}
    before = tree(tmp_path)
    result = vidembed("search", *(argument.format(**places) for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert tree(tmp_path) == before


def test_a_damaged_index(index: Path) -> None:
    for manifest in (index / "segments.lance" / "_versions").iterdir():
        manifest.write_bytes(b"")
    result = vidembed("search", "red", "--in", index)
    assert result.exit_code == 1
    assert "index again" in result.stderr


def test_debug_shows_the_traceback(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Traceback" not in vidembed("search", "", "--in", index).stderr
    monkeypatch.setenv("VIDEMBED_DEBUG", "1")
    assert "Traceback" in vidembed("search", "", "--in", index).stderr
