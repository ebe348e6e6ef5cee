"""The page in a headless Chromium, with its keyboard and mouse: find a clip, and watch the part that was found."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from tools.browser import Browser, find_browser

from tests.serve.conftest import Served

pytestmark = pytest.mark.skipif(
    find_browser() is None,
    reason="no Chromium here; install one with its codecs, such as Debian's chromium or chromium-headless-shell",
)


def show(browser: Browser, *hits: dict[str, object]) -> None:
    """Show hits that no search found."""
    browser.evaluate(
        f"""import('/hits.js').then(async module => {{
            const player = await import('/player.js')
            document.body.dataset.state = 'hits'
            module.show({json.dumps(hits)}, {{ play: player.play }})
        }})"""
    )


@pytest.fixture
def open_browser() -> Iterator[Callable[..., Browser]]:
    opened: list[Browser] = []

    def start(**how: object) -> Browser:
        opened.append(Browser(find_browser() or "", **how))  # type: ignore[arg-type]
        return opened[-1]

    yield start
    for browser in opened:
        browser.close()


def test_a_clip_is_found_and_its_part_is_played(process: Served, open_browser: Callable[..., Browser]) -> None:
    browser = open_browser()
    browser.open(f"{process.address}/")
    assert browser.evaluate("document.activeElement.id") == "query"  # one can type at once
    browser.type(process.clips[1][1].caption)
    browser.press("Enter")
    browser.wait("document.querySelectorAll('#hits .hit').length === 8")
    assert browser.evaluate("document.getElementById('status').textContent") == "8 hits, best match first"
    assert browser.evaluate("document.querySelector('#hits .name').textContent") == process.clips[1][0].name
    # A hit of the second half, so that a start at 0 would be seen.
    browser.evaluate(
        "[...document.querySelectorAll('#hits .hit')].find(each => each.textContent.includes('0:02.0 to'))"
        ".setAttribute('id', 'late')"
    )
    browser.evaluate("document.getElementById('late').focus()")
    browser.press("Enter")  # a button takes the key as a click
    browser.wait("video.currentTime > 2.1")
    assert browser.evaluate("video.videoWidth") > 0  # frames were decoded
    assert browser.evaluate("video.getVideoPlaybackQuality().totalVideoFrames") > 0
    assert browser.evaluate("document.getElementById('late').getAttribute('aria-current')") == "true"
    browser.wait("video.paused")
    assert browser.evaluate("video.currentTime") > 3.5
    # The first half of the first hit ends at 2 seconds, and is left there.
    browser.evaluate(
        "[...document.querySelectorAll('#hits .hit')].find(each => each.textContent.includes('0:00.0 to'))"
        ".setAttribute('id', 'early')"
    )
    browser.press("Escape")
    browser.wait("!document.getElementById('player').open && video.paused")
    browser.click("#early")
    browser.wait("!video.paused && video.currentTime > 0.2 && video.currentTime < 2")
    browser.wait("video.paused")
    assert 1.8 < browser.evaluate("video.currentTime") < 3.8  # paused before the end of the video
    assert browser.console == []  # nothing was refused by the content security policy, and no script failed


def test_markup_in_words_stays_words(process: Served, open_browser: Callable[..., Browser]) -> None:
    browser = open_browser()
    browser.open(f"{process.address}/?q=%3Cimg%20src%3Dx%20onerror%3Ddocument.title%3D1%3E")
    browser.wait("document.querySelectorAll('#hits .hit').length > 0")
    assert browser.evaluate("document.getElementById('query').value").startswith("<img")
    pictures = browser.evaluate("document.querySelectorAll('header img').length")
    markup = "<img src=x onerror=document.title=1>"
    show(browser, {"name": markup, "caption": markup, "start_s": 0, "end_s": 1, "score": 1, "media": ""})
    assert browser.evaluate("document.querySelector('#hits .name').textContent") == markup
    assert browser.evaluate("document.querySelector('#hits .caption').textContent") == markup
    assert browser.evaluate("document.querySelectorAll('img').length") == pictures
    browser.click("#hits .hit")
    browser.wait(f"document.getElementById('player-caption').textContent === {json.dumps(markup)}")
    assert browser.evaluate("document.title") == "vidembed"


def test_filters_narrow_a_search_and_stay_in_the_address(process: Served, open_browser: Callable[..., Browser]) -> None:
    browser = open_browser()
    browser.open(f"{process.address}/")
    assert browser.evaluate("document.getElementById('filters').open") is False
    browser.type("red")
    browser.click("#filters summary")
    browser.click("#path")
    name = process.clips[2][0].name
    browser.type(name)
    browser.press("Enter")
    browser.wait("document.querySelectorAll('#hits .hit').length === 2")
    names = browser.evaluate("[...document.querySelectorAll('#hits .name')].map(each => each.textContent)")
    assert names == [name, name]
    browser.click("#after")
    browser.type("2.5")
    browser.press("Enter")
    browser.wait("document.querySelectorAll('#hits .hit').length === 1")
    assert browser.evaluate("document.querySelector('#hits .time').textContent").startswith("0:02.0 to ")
    address = browser.evaluate("location.href")
    browser.open("about:blank")
    browser.open(address)
    browser.wait("document.querySelectorAll('#hits .hit').length === 1")
    assert browser.evaluate("document.getElementById('filters').open") is True
    assert browser.evaluate("document.getElementById('path').value") == name
    browser.evaluate("document.getElementById('path').value = ''")
    browser.evaluate("document.getElementById('before').value = '2'")
    browser.evaluate("document.getElementById('form').requestSubmit()")
    browser.wait("document.getElementById('status').textContent.startsWith('Not searched: before: got 2')")
    assert all("400" in line for line in browser.console)  # the refused search alone


def test_what_is_shown_later_moves_nothing(process: Served, open_browser: Callable[..., Browser]) -> None:
    browser = open_browser()
    browser.open(f"{process.address}/")
    browser.wait("document.querySelectorAll('#samples *').length > 0")  # the last that arrives by itself
    fields = "#form input:not(#rerank), #form summary, #status, #start"
    places = f"""(shown => {{
        document.getElementById('rerank-option').hidden = !shown
        return [...document.querySelectorAll('{fields}')].map(each => JSON.stringify(each.getBoundingClientRect()))
    }})"""
    assert browser.evaluate(f"{places}(false)") == browser.evaluate(f"{places}(true)")


def test_a_video_that_is_elsewhere_is_said_to_be(process: Served, open_browser: Callable[..., Browser]) -> None:
    browser = open_browser()
    browser.open(f"{process.address}/")
    browser.wait("document.querySelectorAll('#samples .hit').length > 0")
    show(browser, {"name": "a.mp4", "start_s": 0, "end_s": 1, "score": 1})
    assert browser.evaluate("document.querySelector('#hits .frame').textContent") == "Not on this server"
    browser.click("#hits .hit")
    browser.wait("document.getElementById('player-status').textContent.includes('not on the server')")
    assert browser.evaluate("document.getElementById('video').hidden") is True


def test_a_failed_search_is_told(process: Served, open_browser: Callable[..., Browser]) -> None:
    browser = open_browser()
    browser.open(f"{process.address}/")
    browser.evaluate("document.getElementById('k').max = 1000, document.getElementById('k').value = 1000")
    browser.type("red")
    browser.press("Enter")
    browser.wait("document.getElementById('status').textContent.includes('at most 100')")


def test_reranked_hits_on_a_phone(process: Served, open_browser: Callable[..., Browser]) -> None:
    browser = open_browser(size=(390, 844))
    browser.open(f"{process.address}/")
    browser.wait("document.getElementById('rerank').checked")  # on where there is a reranker
    browser.evaluate("document.getElementById('query').focus()")
    browser.type(process.clips[1][1].caption)
    browser.press("Enter")
    browser.wait("document.querySelector('#hits .score')?.textContent.startsWith('P(match)')")
    names = browser.evaluate(
        "[...document.querySelectorAll('#hits li:first-child .score-name')].map(e => e.textContent)"
    )
    assert names == ["P(match)", "cosine"]
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    browser.click("#rerank")  # searches again, and the link says so
    browser.wait("document.querySelector('#hits .score')?.textContent.startsWith('cosine')")
    assert "rerank=0" in browser.evaluate("location.search")


@contextmanager
def listening_to(app: Any) -> Iterator[str]:
    """The address of an application that runs in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def keyed(serve: Callable[..., SimpleNamespace]) -> Iterator[str]:
    """The address of a server of the quick models that asks for a key; its videos are in a codec of no browser."""
    with listening_to(serve(api_key="the key").client.app) as address:
        yield address


def test_behind_a_proxy_that_gives_it_a_path(
    serve: Callable[..., SimpleNamespace], open_browser: Callable[..., Browser]
) -> None:
    app = serve().client.app

    async def proxy(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"].removeprefix("/videos/")
        assert path != scope["path"] or path == "/favicon.ico"
        await app({**scope, "path": f"/{path.removeprefix('/')}"}, receive, send)

    browser = open_browser()
    with listening_to(proxy) as address:
        browser.open(f"{address}/videos/?q=red")
        browser.wait("document.querySelector('#hits .picture')?.naturalWidth > 0")
        browser.click("#hits .hit")
        browser.wait("document.getElementById('video').currentSrc.includes('/videos/media/')")


def test_a_key_a_name_of_markup_and_a_video_that_does_not_play(
    keyed: str, open_browser: Callable[..., Browser]
) -> None:
    browser = open_browser()
    browser.open(f"{keyed}/?q=anything")
    browser.wait("document.getElementById('status').textContent.includes('the key is missing or wrong')")
    browser.wait("document.activeElement.id === 'key'")  # the field is shown once it is needed
    browser.type("the key")
    browser.press("Enter")
    browser.wait("document.querySelectorAll('#hits .hit').length === 6")
    names = browser.evaluate("[...document.querySelectorAll('#hits .name')].map(each => each.textContent)")
    assert "long <b>.mp4" in names
    assert browser.evaluate("document.querySelectorAll('#hits b').length") == 0
    browser.click("#hits .hit")
    browser.wait("document.getElementById('player-status').textContent.includes('cannot be played')")
    browser.open(f"{keyed}/?q=blue")  # the tab keeps the key
    browser.wait("document.querySelectorAll('#hits .hit').length === 6")


def test_what_is_typed_before_the_server_answers_stays(process: Served, open_browser: Callable[..., Browser]) -> None:
    browser = open_browser()
    late = (
        "const asked = fetch;"
        "window.fetch = (...all) => new Promise((done) => setTimeout(done, 1500)).then(() => asked(...all))"
    )
    browser.command("Page.addScriptToEvaluateOnNewDocument", source=late)
    browser.open(f"{process.address}/")
    assert browser.evaluate("document.getElementById('held-title').textContent") == ""  # it has not answered yet
    browser.type("red")
    browser.wait("document.getElementById('held-title').textContent !== ''")
    assert browser.evaluate("document.getElementById('query').value") == "red"
    assert browser.evaluate("document.querySelectorAll('#hits .hit').length") == 0  # nothing is searched unasked
