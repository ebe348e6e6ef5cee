from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.evaluation.made_up import changed, made_up
from vidembed.evaluation.first_stage import Failure
from vidembed.evaluation.report import Section, as_html, as_markdown, sections, title_of, write_reports
from vidembed.evaluation.result import EvaluationResult

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
    assert f"<td>dual-softmax</td><td>{cell}</td>" in html
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
    known = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "table", "tr", "th", "td", "p"}
    assert seen == known
    assert "\x1b" not in html + markdown
    assert not re.search(r"(?<!\\)[<`\[]", markdown)
    assert not re.search(r"(?<!\\)\*\*bold", markdown)
    widths = {line.count(" | ") for line in markdown.splitlines() if line.startswith("| 0") or EVIL[:8] in line}
    assert widths <= {0, 1, 2}
    assert "default-src 'none'" in html.replace("&#x27;", "'")


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
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
