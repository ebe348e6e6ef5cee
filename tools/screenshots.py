"""Pictures of the pages of `serve`, `demo` and `search --html`, with the bundled models: `python -m tools.screenshots`.

Needs Chromium. Writes to docs/images: PNG files of the pages as they are shown on a wide screen and on a phone, and an
animated picture of a search (`tools.animation`).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import chdir
from pathlib import Path

from tools.animation import NAME as ANIMATION
from tools.animation import record, wait_for_pictures
from tools.browser import Browser, find_browser
from tools.server import serving, vidembed
from vidembed.shapes import write_clips

IMAGES = Path(__file__).parents[1] / "docs" / "images"
SIZES = {"wide": (1280, 860), "phone": (390, 844)}  # CSS pixels
CLIPS = 24
SEED = 4
QUERY = "a blue ring moves up"


def main() -> None:
    """Draw clips, index them, serve the index and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=IMAGES, metavar="FOLDER", help="where to (default: docs/images)")
    folder = parser.parse_args().to
    if (binary := find_browser()) is None:
        sys.exit("screenshots: no Chromium here; install one, such as Debian's chromium-headless-shell")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_clips(work / "clips", CLIPS, "test", SEED)
        _animate(binary, work, folder / ANIMATION)
        of_index: list[str | Path] = ["--model", "vidembed/shapes", "--segment", "2", "--device", "cpu"]
        captions = work / "captions.jsonl"
        vidembed("caption", work / "clips", "--segment", "2", "--out", captions, "--device", "cpu")
        vidembed("index", work / "clips", "--to", work / "index", *of_index, "--captions", captions)
        with serving(["--in", work / "index", "--rerank", "--device", "cpu"], work / "log") as address:
            browser = Browser(binary)
            try:
                for size in SIZES:
                    _take(browser, address, size, folder)
            finally:
                browser.close()
        _take_files(binary, work, folder)


def _take_files(binary: str, work: Path, folder: Path) -> None:
    """Take the pictures of pages that are files: of the demo, and of the hits of a search in the index in `work`."""
    with chdir(work):  # so that the commands on the page have a short path
        vidembed("demo", "--out", "demo-out", "--device", "cpu")
    sheet = work / "sheet.html"
    found: list[str | Path] = ["--in", work / "index", "--rerank", "12", "-k", "12", "--html", sheet, "--device", "cpu"]
    vidembed("search", QUERY, *found)
    demo = work / "demo-out" / "index.html"
    charts = ".section:has(.chart)"
    browser = Browser(binary)
    try:
        for name, page, place, size, scheme in (
            ("demo-wide", demo, "body", "wide", "light"),
            ("demo-phone", demo, ".query", "phone", "light"),
            ("demo-charts-wide", demo, charts, "wide", "light"),
            ("demo-charts-dark", demo, charts, "wide", "dark"),
            ("sheet-wide", sheet, "body", "wide", "light"),
            ("sheet-phone", sheet, "body", "phone", "light"),
            ("sheet-dark-phone", sheet, "body", "phone", "dark"),
        ):
            width, height = SIZES[size]
            browser.resize(width, 3 * height // 2 if name == "demo-wide" else height)
            browser.prefer(color_scheme=scheme)
            browser.open(page.as_uri())
            browser.evaluate(f"document.querySelector('{place}').scrollIntoView()")
            _settle(browser, folder / f"{name}.png")
    finally:
        browser.close()


def _animate(binary: str, work: Path, path: Path) -> None:
    """Record a search of whole clips, without captions, so that cards are low."""
    vidembed("index", work / "clips", "--to", work / "whole", "--model", "vidembed/shapes", "--device", "cpu")
    with serving(["--in", work / "whole", "--rerank", "--device", "cpu"], work / "log-whole") as address:
        browser = Browser(binary)
        try:
            record(browser, address, path)
        finally:
            browser.close()


def _take(browser: Browser, address: str, size: str, folder: Path) -> None:
    """Take the pictures of one size: before a search, its hits, by day and by night, and the player."""
    browser.resize(*SIZES[size])
    browser.prefer(color_scheme="light")
    browser.open(f"{address}/")
    browser.wait("document.querySelectorAll('#samples .hit').length > 0")
    _settle(browser, folder / f"page-start-{size}.png")
    browser.open(f"{address}/?q={QUERY.replace(' ', '+')}")
    browser.wait("document.querySelectorAll('#hits .hit').length > 0", seconds=120)
    _settle(browser, folder / f"page-hits-{size}.png")
    browser.prefer(color_scheme="dark")
    _settle(browser, folder / f"page-dark-{size}.png")
    browser.prefer(color_scheme="light")
    browser.click("#hits .hit")
    browser.wait(
        "document.getElementById('video').currentTime > 0.5 && document.getElementById('video').readyState > 2"
    )
    browser.evaluate("document.getElementById('video').pause()")
    _settle(browser, folder / f"page-player-{size}.png")


def _settle(browser: Browser, path: Path) -> None:
    wait_for_pictures(browser)
    browser.screenshot(path)


if __name__ == "__main__":
    main()
