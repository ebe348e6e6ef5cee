from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests.evaluation.made_up import changed, made_up
from vidembed.evaluation.report import Section, as_html, as_markdown, sections, title_of, write_reports
from vidembed.evaluation.result import EvaluationResult, Failure
from vidembed.text import printable

EVIL = "<script>alert(1)</script> | **bold** [x](http://a) `c` \n# head & \x1b[31m"


def both(result: EvaluationResult) -> tuple[str, str]:
    parts = list(sections(result))
    return as_markdown(title_of(result), parts), as_html(title_of(result), parts)


def test_figures_are_those_of_the_result() -> None:
    result = made_up()
    markdown, html = both(result)
    figures = result.column("dual_softmax").v2t
    assert figures is not None
    one = figures.recall_1
    cell = f"{one.estimate:.1f} ({one.low:.1f} to {one.high:.1f})"
    assert f"| dual-softmax | {cell} |" in markdown
    assert f'<th scope="row">dual-softmax</th><td>{cell}</td>' in html
    assert markdown.count("not run") >= 4
    assert "default, not fitted" in markdown
    assert "1.50" in markdown  # 3 in 2 seconds
    assert "25 %" in markdown


@pytest.mark.parametrize("name", ["msrvtt", "msvd", "vatex", "didemo", "activitynet"])
def test_the_papers_rows_stand_beside_ours(name: str) -> None:
    for text in both(made_up(name=EVIL, videos=4)), both(_named(name)):
        assert ("2602.08099" in text[0]) == ("2602.08099" in text[1])
    markdown, html = both(_named(name))
    assert "Beside the paper, T2V" in markdown
    assert "Beside the paper, V2T" in html
    assert "dual-softmax everywhere" in html
    assert "this result, raw" in html
    assert "this result, + both (not run)" in html


def test_other_benchmarks_have_no_rows_of_the_paper() -> None:
    markdown, html = both(made_up())
    assert "paper" not in markdown
    assert "paper" not in html


def _named(name: str) -> EvaluationResult:
    import dataclasses

    result = made_up(videos=4)
    return changed(result, benchmark=dataclasses.replace(result.benchmark, name=name))


def test_what_comes_from_outside_is_no_markup() -> None:
    result = made_up(name=EVIL, videos=4, title=EVIL, notes=(EVIL,), missing=(EVIL,), source=EVIL)
    result = changed(result, failures=(Failure(EVIL, EVIL, EVIL),), unanswered=(Failure("x", "y", EVIL),))
    markdown, html = both(result)

    seen: set[str] = set()

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            seen.add(tag)

    parser = Tags()
    parser.feed(html)
    known = {
        "html", "head", "meta", "title", "style", "body", "header", "span", "svg", "circle", "path", "main", "section",
        "h1", "h2", "div", "table", "tr", "th", "td", "p",
    }  # fmt: skip
    assert seen == known
    assert "\x1b" not in html + markdown
    assert not re.search(r"(?<!\\)[<`\[]", markdown)
    assert not re.search(r"(?<!\\)\*\*bold", markdown)
    widths = {line.count(" | ") for line in markdown.splitlines() if line.startswith("| 0") or EVIL[:8] in line}
    assert widths <= {0, 1, 2}
    assert "default-src 'none'" in html


def test_long_lists_are_cut_and_say_so() -> None:
    many = tuple(Failure(f"id{at}", "f", "why") for at in range(60))
    markdown, _ = both(changed(made_up(videos=4, missing=tuple(f"m{at}" for at in range(60))), failures=many))
    assert "Counted against the model: 60 videos" in markdown
    assert "id49" in markdown
    assert "id50" not in markdown
    assert "10 more are in the JSON" in markdown
    assert "and 10 more" in markdown


def test_tables_are_tables() -> None:
    text = as_markdown("t", [Section("h", ("a", "b"), (("1", "2"),), ("end",))])
    assert text == "# t\n\n## h\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n\nend\n"


def test_files(tmp_path: Path) -> None:
    write_reports(made_up(videos=4), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.md"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "default-src 'none'" in page
    assert not re.search(r"<(script|link|img|iframe|object)|@import|url\(", page)  # it is whole, and fetches nothing


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt; &#60;b&#62;",
    "\"' onload='x",
    "- an item",
    "+ an item",
    "* an item",
    "1. an item",
    "1) an item",
    "---",
    "===",
    "    code",
    "\tcode",
    "# a heading",
    "> a quotation",
    "```\ncode",
    "~~~",
    "a|b|c",
    "[x](javascript:alert(1)) ![y](http://evil.example/p.png) [z]: http://evil.example",
    "<http://evil.example> http://evil.example www.evil.example me@evil.example",
    "*em* **strong** _em_ `code` ~~gone~~ \\ \\* $x$",
    "a\nb\r\nc\u2028d",
    "\x1b[31mred\x07\x9b0m",
    "\u202egpj.exe\u2066",
    "caf\udce9 \x00",
    "x" * 255,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_is_only_what_is_written_here(text: str) -> None:
    """As a reader of Markdown takes it: headings, a table and paragraphs, and no markup in them."""
    markdown = as_markdown(text, [Section(text, (text, "b"), ((text, text), ("1", text)), (text, f"after {text}"))])
    reader = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = reader.parse(markdown)
    kinds = [token.type.removesuffix("_open") for token in tokens if not token.type.endswith("_close")]
    cells = ["tr", "th", "inline", "th", "inline", "tbody", "tr", *["td", "inline"] * 2, "tr", *["td", "inline"] * 2]
    cells.remove("tbody")
    found = [kind for kind in kinds if kind not in {"thead", "tbody"}]
    assert found == ["heading", "inline", "heading", "inline", "table", *cells, *["paragraph", "inline"] * 2]
    for token in tokens:
        assert {child.type for child in token.children or ()} <= {"text", "text_special"}
    shown = printable(text).strip()
    title = "".join(child.content for child in tokens[1].children or ())
    assert title == shown
    assert not re.search(r"(?<!\\)://|www\.", markdown)  # GitHub makes links of bare addresses
    markdown.encode("utf-8")
    assert all(line.isprintable() for line in markdown.split("\n"))


@pytest.mark.parametrize("text", HOSTILE)
def test_html_is_only_what_is_written_here(text: str) -> None:
    page = as_html(text, [Section(text, (text, "b"), ((text, text),), (text,))])
    found: list[tuple[str, object]] = []
    words: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            found.append((tag, attrs))

        def handle_data(self, data: str) -> None:
            words.append(data)

        def handle_comment(self, data: str) -> None:
            raise AssertionError(data)

    reader = Reader()
    reader.feed(page)
    reader.close()
    assert [tag for tag, _ in found] == [
        "html", "head", *["meta"] * 6, "title", "style", "body", "header", "p", "span", "svg", "circle", "path", "path",
        "main", "h1", "section", "h2", "div", "table", "tr", "th", "th", "tr", "th", "td", "p",
    ]  # fmt: skip
    assert words.count(printable(text)) == 7
    assert all(line.isprintable() for line in page.split("\n"))
    page.encode("utf-8")


@given(st.text(max_size=60))
def test_any_text_comes_back_out_of_markdown(text: str) -> None:
    tokens = (
        MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .parse(as_markdown("t", [Section("h", lines=(text,))]))
    )
    rest = [token for token in tokens[6:] if token.type == "inline"]
    assert "".join(child.content for token in rest for child in token.children or ()) == printable(text).strip()
    assert {token.type for token in tokens[6:]} <= {"paragraph_open", "inline", "paragraph_close"}
