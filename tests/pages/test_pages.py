from __future__ import annotations

from pathlib import Path

import jinja2
import pytest

import vidembed.pages
from vidembed.pages import render
from vidembed.pages.charts import Chart, Line

LOOKS = Path(vidembed.pages.__file__).with_name("looks.css").read_text(encoding="utf-8")


def test_renders_a_page_that_holds_its_looks_and_nothing_from_outside() -> None:
    page = render("sheet.html", title="a <title>\n", meanings=[], results=[])
    assert LOOKS in page
    assert "url(" not in LOOKS
    assert "@import" not in LOOKS
    assert "<title>a &lt;title&gt;\\n</title>" in page
    assert "default-src 'none'" in page


def test_rejects_a_page_with_a_value_missing() -> None:
    with pytest.raises(jinja2.UndefinedError, match="results"):
        render("sheet.html", title="a title", meanings=[])


def test_places_values_between_the_ends_of_the_axes() -> None:
    ticks = ((1.0, "1"), (3.0, "3"))
    chart = Chart("what", "x", "y", ticks, ((0.0, "0"), (1.0, "1")), (Line("a", ((1.0, 0.0),)),), (), (), ())
    assert [float(chart.x(value)) for value in (1, 2, 3)] == [chart.left, (chart.left + chart.right) / 2, chart.right]
    assert [float(chart.y(value)) for value in (0, 1)] == [chart.bottom, chart.top]  # up the page
    assert chart.path([(1.0, 0.0), (3.0, 1.0)]) == "44.0,214.0 378.0,10.0"
