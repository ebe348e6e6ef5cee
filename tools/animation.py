"""The animated picture of a search on the page of `vidembed serve`; `tools.screenshots` makes it.

A query is typed, hits come in the order of their similarity, the first plays under the pointer, the reranker orders
them anew, and the first plays again. All of it is the page as a user has it, but for its clock: videos are set to each
of their frames and pictured there, so that they play evenly however slow the machine is. The pointer is drawn
afterwards.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw

from tools.browser import Browser

NAME: Final = "search.webp"
SIZE: Final = (976, 660)  # CSS pixels: about as wide as a README is shown
QUERY: Final = (
    "a green cross goes down before it bounces back"  # whole clips tell where it goes; the first hit is wrong
)
HITS: Final = 6  # two rows of three cards
FPS: Final = 8  # of the clips
KEY_MS: Final = 50  # between two letters
_POINTER: Final = ((0, 0), (0, 17), (4, 13), (7, 20), (10, 19), (7, 12), (12, 12))
_SEEK: Final = """new Promise(done => {{
    const video = document.querySelector({video})
    video.pause()
    video.addEventListener('seeked', () => requestAnimationFrame(() => setTimeout(done, 30)), {{ once: true }})
    video.currentTime = {time}
}})"""


@dataclass
class Recording:
    """Frames as they come, each with the milliseconds that it is on show."""

    browser: Browser
    pointer: tuple[float, float] | None = None  # CSS pixels
    frames: list[Image.Image] = field(default_factory=list)
    durations: list[int] = field(default_factory=list)

    def take(self, milliseconds: int) -> None:
        """Picture what is in view."""
        taken = base64.b64decode(self.browser.command("Page.captureScreenshot", format="png")["data"])
        frame = Image.open(io.BytesIO(taken)).convert("RGB")
        if self.pointer is not None:
            outline = [(self.pointer[0] + x, self.pointer[1] + y) for x, y in _POINTER]
            ImageDraw.Draw(frame).polygon(outline, fill="white", outline="black")
        self.frames.append(frame)
        self.durations.append(milliseconds)

    def move(self, selector: str, *, steps: int = 6) -> None:
        """Move the pointer to the middle of an element, evenly and in view."""
        box = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        x, y = self.browser.evaluate(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})")
        from_x, from_y = self.pointer or (SIZE[0] * 0.6, SIZE[1] * 0.9)
        for step in range(1, steps + 1):
            self.pointer = (from_x + (x - from_x) * step / steps, from_y + (y - from_y) * step / steps)
            self.take(40)

    def play(self, video: str, seconds: float) -> None:
        """Play the video of an element from its start."""
        for frame in range(round(seconds * FPS)):
            time = (frame + 0.5) / FPS  # the middle of a frame, which no rounding takes to its neighbour
            self.browser.evaluate(_SEEK.format(video=json.dumps(video), time=time))
            self.take(1000 // FPS)

    def save(self, path: Path) -> None:
        """Write an animated WebP that is shown over and over."""
        first, *others = self.frames
        first.save(
            path,
            save_all=True,
            append_images=others,
            duration=self.durations,
            loop=0,
            quality=80,
            method=4,
            minimize_size=True,
        )


def record(browser: Browser, address: str, path: Path) -> None:
    """Search the served index, whose model has a reranker, and write the picture of it."""
    browser.resize(*SIZE)
    browser.prefer(color_scheme="light")
    browser.open(f"{address}/?k={HITS}&rerank=0")
    browser.wait("document.querySelectorAll('#samples .hit').length > 0")
    browser.wait("!document.getElementById('rerank-option').hidden")
    wait_for_pictures(browser)
    shown = Recording(browser)
    shown.take(900)
    browser.evaluate("document.getElementById('query').focus()")
    for letter in QUERY:
        browser.type(letter)
        shown.take(KEY_MS)
    shown.take(300)
    browser.press("Enter")
    _wait_for_hits(browser)
    shown.take(1400)
    _preview(shown, 2.0)
    shown.move("#rerank")
    browser.click("#rerank")
    _wait_for_hits(browser, more="document.querySelectorAll('#hits .match').length > 0")
    shown.take(2200)
    _preview(shown, 3.9)
    shown.take(1500)
    shown.save(path)


def _preview(shown: Recording, seconds: float) -> None:
    """Play the first hit under the pointer, from its start."""
    shown.move("#hits .hit .label")  # part of the same button as the picture, which the pointer would cover
    shown.browser.hover("#hits .hit .label")
    shown.browser.wait("document.querySelector('#hits .preview.ready') !== null")
    shown.play("#hits .preview", seconds)


def _wait_for_hits(browser: Browser, more: str = "true") -> None:
    browser.wait(
        "document.querySelectorAll('#hits .hit').length > 0 && !document.querySelector('[aria-busy]')"
        f" && document.body.dataset.state === 'hits' && {more}",
        seconds=120,
    )
    wait_for_pictures(browser)


def wait_for_pictures(browser: Browser) -> None:
    """Wait until all thumbnails in view are there, and at rest."""
    browser.wait(
        "[...document.querySelectorAll('.picture')].every(each => each.complete && each.naturalWidth"
        " || each.getBoundingClientRect().top > innerHeight || !each.getClientRects().length)",
        seconds=60,
    )
    browser.evaluate("new Promise(done => setTimeout(done, 400))")  # transitions
