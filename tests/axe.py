"""Pages that are files, checked in a browser: by their size, their colours, and axe-core.

axe-core finds what keeps people from using a page: https://github.com/dequelabs/axe-core.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tools.browser import Browser, find_browser


def axe() -> Path | None:
    """The file of axe-core: at the environment variable AXE_CORE, or where `npm install axe-core` puts it."""
    places = (Path(os.environ.get("AXE_CORE") or "node_modules/axe-core"), Path("node_modules/axe-core"))
    return next((place / "axe.min.js" for place in places if (place / "axe.min.js").is_file()), None)


def violations(tab: Browser, source: str) -> list[str]:
    tab.evaluate(source)
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = tab.evaluate(
        f"axe.run({{ runOnly: {json.dumps(tags)} }}).then(result => result.violations.map(each =>"
        " `${each.impact}: ${each.id}: ${each.nodes.map(node => node.target.join(' ')).join(', ')}`))"
    )
    assert isinstance(found, list)
    return found


@contextmanager
def page_checked(page: Path, *, size: tuple[int, int], scheme: str) -> Iterator[Browser]:
    """A page in a browser of a size and a colour scheme, its details open, in which no fault was found."""
    browser = Browser(find_browser() or "")
    try:
        browser.resize(*size)
        browser.prefer(color_scheme=scheme)
        browser.open(page.as_uri())
        browser.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        dark = browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 22)"
        assert dark == (scheme == "dark")
        assert browser.console == []
        if (source := axe()) is not None:
            assert violations(browser, source.read_text(encoding="utf-8")) == []
        yield browser
    finally:
        browser.close()


def in_browser(test: object) -> object:
    """Mark a test of a page: for two sizes and two colour schemes, where there is a browser."""
    test = pytest.mark.parametrize("scheme", ["light", "dark"])(test)
    test = pytest.mark.parametrize("size", [(1280, 860), (390, 844)], ids=["wide", "phone"])(test)
    missing = "no Chromium here; install one, such as chromium-headless-shell"
    return pytest.mark.skipif(find_browser() is None, reason=missing)(test)
