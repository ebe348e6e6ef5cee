from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.axe import in_browser, page_checked
from tests.index.fakes import FakeEncoder, write_video
from vidembed.index import Hit, VideoIndex, Windows, contact_sheet, index_videos, search
from vidembed.index.gallery import durations_of, thumbnail
from vidembed.index.hits import time_range
from vidembed.text import printable
from vidembed.video.segments import lay_out

HOSTILE = [
    "<script>alert(1)</script>.mp4".replace("/", "\u2215"),
    "\"onerror='x' quote.mp4",
    "line\nbreak\x1b[31m.mp4",
    "&lt;b&gt;.mp4",
    "]]><img src=x>.mp4",
]


class Tags(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    return tags


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_only_text(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, [(200, 30, 30)])
    page = contact_sheet([(name, [Hit(path.as_uri(), 0.0, 1.0, 0.5, caption=f"says {name}")])], title=name)
    tags = parsed(page)
    assert {tag for tag, _ in tags.tags} <= {
        "html", "head", "meta", "title", "style", "body", "header", "main", "section", "h1", "h2", "p", "div", "span",
        "ol", "li", "a", "img", "details", "summary", "dl", "dt", "dd", "svg", "circle", "path",
    }  # fmt: skip
    assert [tag for tag, _ in tags.tags].count("img") == 1
    assert all(not key.startswith("on") for _, attributes in tags.tags for key in attributes)
    assert tags.text.count(printable(name)) == 5  # title, heading, query, name of the file and caption
    assert tags.text.count(f"says {printable(name)}") == 1
    assert [attributes["href"] for tag, attributes in tags.tags if tag == "a"] == [path.as_uri() + "#t=0,1"]


def test_the_page_needs_nothing_and_runs_nothing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [(200, 30, 30)])
    page = contact_sheet([("red", [Hit(path.as_uri(), 0.0, 1.0, 0.5)])])
    policy = next(attributes["content"] for tag, attributes in parsed(page).tags if "http-equiv" in attributes)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script" not in policy
    sources = [attributes["src"] or "" for _, attributes in parsed(page).tags if "src" in attributes]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/jpeg;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2])))
    assert np.asarray(picture.convert("RGB")).mean(axis=(0, 1)) == pytest.approx([200, 30, 30], abs=20)


def test_pictures_are_taken_at_the_time_of_the_hit(tmp_path: Path) -> None:
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    path = write_video(tmp_path / "a.mp4", colours)
    for second, colour in enumerate(colours):
        picture = np.asarray(Image.open(io.BytesIO(thumbnail(path, second + 0.5))))
        assert picture.mean(axis=(0, 1)) == pytest.approx(colour, abs=20)


def test_a_video_that_is_gone_has_the_reason_in_its_place(tmp_path: Path) -> None:
    page = contact_sheet([("red", [Hit((tmp_path / "gone.mp4").as_uri(), 0.0, 1.0, 0.5)])])
    assert "VideoNotFound" in page
    assert "<img" not in page


def test_what_is_around_a_hit_is_shown_and_linked(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [(200, 30, 30)] * 3)
    hit = Hit(path.as_uri(), 1.0, 2.0, 0.5, segments=4, context_start_s=0.5, context_end_s=3.0)
    tags = parsed(contact_sheet([("red", [hit])]))
    assert "0:01.0-0:02.0" in tags.text
    assert "in 0:00.5-0:03.0, segments: 4" in tags.text
    assert [attributes["href"] for tag, attributes in tags.tags if tag == "a"] == [path.as_uri() + "#t=0.5,3"]
    plain = parsed(contact_sheet([("red", [Hit(path.as_uri(), 1.0, 2.0, 0.5)])]))
    assert "in 0:" not in plain.text
    assert "segments:" not in plain.text


def test_a_video_that_is_elsewhere_has_no_picture() -> None:
    tags = parsed(contact_sheet([("red", [Hit("s3://bucket/a%20dog.mp4", 0.0, 1.0, 0.5)])]))
    assert "not a file of this machine" in tags.text
    assert "a dog.mp4" in tags.text
    assert all(tag != "img" for tag, _ in tags.tags)


def test_no_hits_make_a_page_too() -> None:
    assert re.search(r"<h2>nothing &lt;here&gt;</h2>", contact_sheet([("nothing <here>", [])]))


def test_bars_say_scores_and_where_a_hit_lies_in_its_video(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [(200, 30, 30)] * 4)
    index_videos([tmp_path / "a.mp4"], tmp_path / "ix", FakeEncoder(), model="fake", cut=Windows(1.0))
    index = VideoIndex.open(tmp_path / "ix")
    hits = search(index, FakeEncoder(), "red")
    assert durations_of(index, hits) == {hits[0].uri: 4.0}
    hit = Hit(hits[0].uri, 1.0, 3.0, -0.25, probability=0.876)
    tags = parsed(contact_sheet([("red", [hit])], durations=durations_of(index, hits)))
    meters = [attributes for _, attributes in tags.tags if attributes.get("role") == "meter"]
    assert [(one["aria-label"], one["aria-valuenow"], one["aria-valuetext"]) for one in meters] == [
        ("P(match)", "88", "88%"),
        ("cosine", "0", "-0.25"),  # a bar has no length below 0
    ]
    styles = {attributes["class"]: attributes["style"] for _, attributes in tags.tags if "style" in attributes}
    assert styles["part"] == "left: 25.0%; width: 50.0%"
    assert "0:01.0-0:03.0 of 0:04.0" in " ".join(tags.text.split())
    unknown = contact_sheet([("red", [hit])])
    assert 'class="part"' not in unknown


def test_pictures_of_a_page_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vidembed.index.gallery.MAX_PICTURES", 2)
    path = write_video(tmp_path / "a.mp4", [(200, 30, 30)] * 3)
    hits = [Hit(path.as_uri(), float(start), start + 1.0, 0.5) for start in (0, 0, 1)]
    page = contact_sheet([("red", hits)])
    assert page.count("<img") == 2
    assert page.count("a page has 2 pictures") == 1


@in_browser
def test_fits_the_screen_and_axe_core_finds_nothing(tmp_path: Path, size: tuple[int, int], scheme: str) -> None:
    path = write_video(tmp_path / "a.mp4", [(200, 30, 30)])
    hits = [Hit(path.as_uri(), 0.0, 1.0, 0.5, probability=0.9, caption="a word " * 60, segments=3)]
    hits.append(Hit((tmp_path / ("gone" * 30 + ".mp4")).as_uri(), 0.0, 1.0, 0.5))
    file = tmp_path / "sheet.html"
    file.write_text(contact_sheet([("red", hits), ("no" * 90, [])], durations={path.as_uri(): 1.0}), encoding="utf-8")
    with page_checked(file, size=size, scheme=scheme):
        pass


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [(0, 1.25, "0:00.0-0:01.2"), (59.96, 65, "1:00.0-1:05.0"), (3600, 3725.5, "1:00:00.0-1:02:05.5")],
)
def test_times(start: float, end: float, said: str) -> None:
    assert time_range(start, end) == said


def test_times_of_a_video_that_starts_late_are_those_of_a_player(tmp_path: Path) -> None:
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
    path = write_video(tmp_path / "a.mp4", colours, starts_s=2)
    layout = lay_out(path, Windows(1.0))
    assert layout.segments == [(2.0, 3.0), (3.0, 4.0), (4.0, 5.0)]
    tags = parsed(contact_sheet([("all", [Hit(path.as_uri(), *times, 0.5) for times in layout.segments])])).tags
    assert [attributes["href"] for tag, attributes in tags if tag == "a"] == [
        f"{path.as_uri()}#t={start:g},{end:g}" for start, end in layout.segments
    ]
    for colour, source in zip(
        colours, [attributes["src"] or "" for tag, attributes in tags if tag == "img"], strict=True
    ):
        picture = Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        assert np.asarray(picture.convert("RGB")).mean(axis=(0, 1)) == pytest.approx(colour, abs=20)
