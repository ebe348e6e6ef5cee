"""`vidembed search` with `--merge` and `--around`, on segments that overlap."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import tree, vidembed
from tests.cli.test_clip import made_index
from tests.index.fakes import COLOURS, write_video
from vidembed.index import Hit

Loaded = list[dict[str, Any]]


@pytest.fixture
def index(clips: Path, tmp_path: Path, loaded: Loaded) -> Path:
    """Segments of a second every half second; `film.mp4` is red, then grey, then red."""
    colours = [(200, 30, 30), (140, 60, 60), (90, 90, 90), (140, 65, 60), (190, 40, 30)]
    write_video(clips / "film.mp4", colours[::2])
    videos = {(clips / "film.mp4").as_uri(): [(at / 2, at / 2 + 1, colour) for at, colour in enumerate(colours)]}
    for name, colour in COLOURS.items():
        videos[(clips / f"{name}.mp4").as_uri()] = [(0.0, 1.0, (colour[0], colour[1] + 5, colour[2]))]
    return made_index(tmp_path / "ix", videos)


def found(*arguments: object) -> list[dict[str, Any]]:
    result = vidembed("search", *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def places(hits: list[dict[str, Any]], name: str = "film") -> list[float]:
    return [hit["start_s"] for hit in hits if f"/{name}.mp4" in hit["uri"]]


def test_moments_are_the_default(index: Path) -> None:
    every = found("red", "--in", index, "-k", "100", "--merge", "none")
    assert sorted(places(every)) == [0, 0.5, 1, 1.5, 2]
    hits = found("red", "--in", index, "-k", "100")
    assert hits == found("red", "--in", index, "-k", "100", "--merge", "moments")
    assert places(hits)[:2] == [0, 2]
    assert all(abs(one - other) >= 1 for one in places(hits) for other in places(hits) if one != other)
    assert all(hit in every for hit in hits)
    assert found("red", "--in", index, "-k", "3") == hits[:3]


def test_videos(index: Path) -> None:
    hits = found("red", "--in", index, "--merge", "videos")
    assert len({hit["uri"] for hit in hits}) == len(hits) == 4
    assert places(hits) == [0]
    assert all(hit["segments"] >= 1 for hit in hits)
    table = vidembed("search", "red", "--in", index, "--merge", "videos").stdout
    assert "segments" in table
    assert "segments" not in vidembed("search", "red", "--in", index).stdout


def test_lines_of_queries_hold_the_merging(index: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("red\ngreen\n")
    result = vidembed("search", "--queries", tmp_path / "words.txt", "--in", index, "--merge", "videos", "-k", "2")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["search"]["merge"] for line in lines] == ["videos", "videos"]
    assert lines[1]["hits"] == found("green", "--in", index, "--merge", "videos", "-k", "2")


def test_around(index: Path, tmp_path: Path) -> None:
    plain = found("red", "--in", index)
    hits = found("red", "--in", index, "--around", "0.25")
    assert [{key: hit[key] for key in plain[0]} for hit in hits] == plain
    film = [hit for hit in hits if "film" in hit["uri"]]
    assert [(hit["context_start_s"], hit["context_end_s"]) for hit in film[:2]] == [(0, 1.25), (1.75, 3)]
    shown = vidembed("search", "red", "--in", index, "--around", "0.25", "--html", tmp_path / "a.html")
    assert " around " in shown.stdout
    assert "0:01.8-0:03.0" in shown.stdout
    assert "in 0:01.8-0:03.0" in (tmp_path / "a.html").read_text(encoding="utf-8")
    assert " around " not in vidembed("search", "red", "--in", index).stdout


def test_reranking_is_of_merged_hits(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Reranker:
        fusion = first_stage = None

        def rank(self, query: Any, documents: list[Any], **_: Any) -> list[dict[str, Any]]:
            asked[:] = documents
            return [{"corpus_id": place, "score": 1 / (1 + place)} for place in range(len(documents))]

    monkeypatch.setattr(sys.modules["vidembed.index.reranking"], "load_reranker", lambda *_, **__: Reranker())
    options = ("red", "--in", index, "-k", "2", "--rerank", "4")
    hits = found(*options)
    assert len(hits) == 2
    times = [(document.start, document.end) for document in asked if document.path.name == "film.mp4"]
    assert times == [(0, 1), (2, 3), (1, 2)]  # and not what lies between
    found(*options, "--around", "0.25")
    assert [(document.start, document.end) for document in asked if document.path.name == "film.mp4"] == times
    found(*options, "--around", "0.25", "--rerank-around")
    wider = [(document.start, document.end) for document in asked if document.path.name == "film.mp4"]
    assert wider == [(max(0, start - 0.25), min(3, end + 0.25)) for start, end in times]


def test_reports_an_exact_search_in_place_of_the_compact_one(capsys: pytest.CaptureFixture[str]) -> None:
    from vidembed.cli.search import explain
    from vidembed.index.hits import Hits, Method

    hit = Hit("file:///a.mp4", 0, 1, 0.5)
    explain(Hits([hit], Method("exact", 5, merge="videos")), compact="int8")
    assert "Every vector was compared, because the int8 index gave too few hits" in capsys.readouterr().err
    explain(Hits([hit], Method("ann", 5, 1.0, 10, 5)), compact="int8")
    assert "Every vector" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--merge", "scenes"], "'scenes' is not one of"),
        (["--around", "-1"], "around: got -1"),
        (["--around", "nan"], "around: got nan"),
        (["--rerank-around", "--rerank", "2"], "rerank-around: it needs --around SECONDS"),
        (["--rerank-around", "--around", "1"], "rerank-around: it needs --rerank K"),
    ],
)
def test_misuse(index: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    before = tree(tmp_path)
    result = vidembed("search", "red", "--in", index, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert tree(tmp_path) == before
