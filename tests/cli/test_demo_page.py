from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from tests.axe import in_browser, page_checked
from tests.index.fakes import FakeEncoder, write_video
from vidembed.checkpoint import CheckpointConfig
from vidembed.cli.demo_page import QUERIES, Asked, Demo, as_html, recalls, reliability_chart, ways_of
from vidembed.index import Hit, VideoIndex, index_videos
from vidembed.pages.charts import Chart, Line
from vidembed.shapes import ClipRecord, sample_clips

MARKUP = "<b>&\"'"


@pytest.fixture
def made(tmp_path: Path) -> tuple[Demo, VideoIndex]:
    """A demo of eight plain videos: the vectors put a wrong clip first, head and fusion the right one."""
    folder = tmp_path / MARKUP
    folder.mkdir()
    records: dict[str, ClipRecord] = {}
    for number, record in enumerate(sample_clips(8)):
        path = write_video(folder / f"{record.name}{MARKUP}.mp4", [(30 * number, 90, 200)])
        records[path.as_uri()] = record
    index_videos([folder], tmp_path / "ix", FakeEncoder(), model="fake")
    uris = [*records]

    def asked(query: str, uri: str, first: int, probability: float | None = None) -> Asked:
        others = [other for other in uris if other != uri]
        found = [*others[:first], uri, *others[first:]]
        hits = [Hit(each, 0.0, 1.0, 0.9 - place / 10, probability) for place, each in enumerate(found)]
        return Asked(query, {uri}, hits)

    def results(first: int, probability: float | None = None) -> list[Asked]:
        texts = [record.caption for record in records.values()] + [f"{r.summary} {MARKUP}" for r in records.values()]
        return [asked(text, uri, first, probability) for text, uri in zip(texts, uris * 2, strict=True)]

    vectors, head, fused = results(1), results(0, 0.75), results(0, 0.5)
    layers = Chart(
        "what it shows", "x", "y", ((1.0, "1"), (2.0, "2")), ((0.0, "0"), (1.0, "100")),
        (Line("long", ((1.0, 0.5), (2.0, 1.0))), Line("short", ((1.0, 0.0), (2.0, 0.5)))), (),
        ("layer", "long", "short"), (("1", "50%", "0%"), ("2", "100%", "50%")),
    )  # fmt: skip
    ways = ways_of(vectors, head, fused)
    config = CheckpointConfig(6, 10, "qwen2_5_vl", "a model", None, {})
    return Demo("a/model", config, records, ways, layers, reliability_chart(head, fused)), VideoIndex.open(
        tmp_path / "ix"
    )


def rows_of(page: str) -> list[list[tuple[str, str, str]]]:
    """Of each query, name, mark and score of each hit that is shown, way by way."""
    parts = page.split('<section class="query">')[1:]
    row = re.compile(
        r'<li class="card row">.*?class="name"[^>]*>(.*?)</a>.*?class="mark (\w+)".*?class="score-value">(.*?)<',
        re.DOTALL,
    )
    return [[(html.unescape(name), mark, score) for name, mark, score in row.findall(part)] for part in parts]


def test_recall_counts_any_right_clip_beside_chance() -> None:
    hits = [Hit(f"file:///{name}", 0, 1, 0.5) for name in "abcde"]
    asked = [Asked("1", {"file:///a"}, hits), Asked("2", {"file:///c", "file:///z"}, hits), Asked("3", set(), hits)]
    # By chance at 1 of 10 clips: (1 + 2 + 0) / 10 / 3; at 5: (1/2 + (1 - C(8,5)/C(10,5)) + 0) / 3.
    assert [round(value, 3) for value in recalls(asked, 10)] == [0.333, 0.667, 0.1, 0.426]


def test_shows_short_captions_of_the_first_clips_whatever_they_found(made: tuple[Demo, VideoIndex]) -> None:
    demo, index = made
    page = as_html(demo, index, [])
    shown = [html.unescape(query) for query in re.findall(r'<section class="query">\s*<h3>(.*?)</h3>', page)]
    different = dict.fromkeys(f"{record.summary} {MARKUP}" for record in demo.records.values())
    assert shown == [*different][:QUERIES]


def test_marks_right_and_wrong_hits_in_words_with_a_sign(made: tuple[Demo, VideoIndex]) -> None:
    demo, index = made
    page = as_html(demo, index, [])
    names = {record.name: record for record in demo.records.values()}
    for query, rows in zip(list(names.values()), rows_of(page), strict=False):
        assert [mark for _, mark, _ in rows] == [*("wrong", "right", "wrong"), *("right", "wrong", "wrong") * 2]
        assert all((name == f"{query.name}{MARKUP}.mp4") == (mark == "right") for name, mark, _ in rows)
        assert [score for _, _, score in rows] == ["0.90", "0.80", "0.70", *["75%"] * 3, *["50%"] * 3]
    signs = re.findall(r'class="mark (\w+)"><svg [^>]*aria-hidden="true"><path d="(.*?)"/></svg>(\w+)</span>', page)
    assert len(signs) == 9 * QUERIES
    assert {(style, word) for style, _, word in signs} == {("right", "right"), ("wrong", "wrong")}
    assert len({path for _, path, _ in signs}) == 2


def test_says_how_often_a_right_clip_came_first(made: tuple[Demo, VideoIndex]) -> None:
    demo, index = made
    text = as_html(demo, index, [])
    for kind in ("Long", "Short"):
        panel = text[text.index(f"<h3>{kind} captions</h3>") :]
        found = re.findall(r'score-name">(.*?)<.*?score-value">(.*?)<', panel, re.DOTALL)[:4]
        assert found == [("Video vectors", "0.0%"), ("Head", "100.0%"), ("Fused", "100.0%"), ("Chance", "12.5%")]


def test_escapes_names_captions_and_commands_and_runs_nothing(made: tuple[Demo, VideoIndex]) -> None:
    demo, index = made
    page = as_html(demo, index, [f"vidembed search '{MARKUP}'"])
    assert "<b>" not in page
    assert "<script" not in page
    assert not re.search(r"""\son\w+=|src="(?!data:)|href="(?!file:)""", page)
    assert "default-src 'none'" in page
    assert f"<code>vidembed search '{MARKUP}'</code>" in html.unescape(page)


def test_charts_are_drawn_with_a_table_of_their_figures(made: tuple[Demo, VideoIndex]) -> None:
    demo, index = made
    page = as_html(demo, index, [])
    assert page.count('<figure class="chart">') == 2
    assert 'points="44.0,112.0 378.0,10.0"' in page  # from half to the top, over the whole width
    assert '<tr><th scope="row">2</th><td>100%</td><td>50%</td></tr>' in page
    assert demo.reliability is not None
    # 128 pairs of each: one in eight is right
    assert ("70 to 80 %", "128", "12%", "0", "-") in demo.reliability.rows
    assert ("40 to 50 %", "0", "-", "128", "12%") in demo.reliability.rows
    assert "head alone 62.5, fused 37.5" in demo.reliability.label


def test_another_model_has_neither_charts_nor_head(made: tuple[Demo, VideoIndex]) -> None:
    demo, index = made
    page = as_html(Demo("a/model", None, demo.records, demo.ways[:1]), index, [])
    assert "<figure" not in page
    assert "Head" not in page
    assert all(len(rows) == 3 for rows in rows_of(page))
    assert "No short caption put a right clip first in this run." in page


@in_browser
def test_fits_the_screen_and_axe_core_finds_nothing(
    made: tuple[Demo, VideoIndex], tmp_path: Path, size: tuple[int, int], scheme: str
) -> None:
    file = tmp_path / "index.html"
    file.write_text(as_html(*made, ["vidembed search WORDS"]), encoding="utf-8")
    with page_checked(file, size=size, scheme=scheme) as browser:
        assert browser.evaluate("[...document.images].every(each => each.naturalWidth > 0)")
