"""What the page does beside finding and playing, in one tab of a headless Chromium."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tools.browser import Browser, find_browser

from tests.axe import axe, violations
from tests.serve.conftest import Served

pytestmark = pytest.mark.skipif(
    find_browser() is None,
    reason="no Chromium here; install one with its codecs, such as Debian's chromium or chromium-headless-shell",
)

WIDTHS = {"desk": (1280, 860), "phone": (390, 844)}


@pytest.fixture(scope="module")
def opened() -> Iterator[Browser]:
    browser = Browser(find_browser() or "")
    yield browser
    browser.close()


@pytest.fixture
def tab(opened: Browser, process: Served) -> Browser:
    """The tab on a page that nobody has used."""
    opened.open(f"{process.address}/health")
    opened.evaluate("localStorage.clear(), sessionStorage.clear()")
    opened.resize(*WIDTHS["desk"])
    opened.prefer()
    opened.console.clear()
    opened.open(f"{process.address}/")
    opened.wait("document.querySelectorAll('#samples .hit').length > 0")
    return opened


def search(tab: Browser, words: str) -> None:
    tab.evaluate("document.getElementById('query').value = ''")
    tab.evaluate("document.getElementById('query').focus()")
    tab.type(words)
    tab.press("Enter")
    tab.wait("document.querySelectorAll('#hits .hit').length > 0 && !document.querySelector('[aria-busy]')")


def texts(tab: Browser, selector: str) -> list[str]:
    found = tab.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map(each => each.textContent)")
    assert isinstance(found, list)
    return found


def test_it_tells_what_the_index_holds_and_proposes_queries(tab: Browser) -> None:
    assert texts(tab, "#held-title") == ["Search 4 videos by what happens in them"]
    assert texts(tab, "#held") == ["8 segments, 16 seconds, model vidembed/shapes"]
    assert len(texts(tab, "#samples .name")) == 4
    first = texts(tab, "#examples button")[0]
    assert len(texts(tab, "#examples button")) == 3
    tab.click("#examples button")
    tab.wait("document.querySelectorAll('#hits .hit').length === 8")
    assert tab.evaluate("document.getElementById('query').value") == first
    assert tab.evaluate("getComputedStyle(document.getElementById('start')).display") == "none"


def test_hits_have_pictures_places_and_bars(tab: Browser, process: Served) -> None:
    search(tab, process.clips[0][1].caption)
    tab.wait("[...document.querySelectorAll('#hits .picture')].slice(0, 4).every(each => each.naturalWidth === 168)")
    places = tab.evaluate(
        "[...document.querySelectorAll('#hits .card')].map(card => [card.querySelector('.time').firstChild.data,"
        " card.querySelector('.part').style.left, card.querySelector('.part').style.width])"
    )
    assert sorted(map(tuple, places))[0::7] == [
        ("0:00.0 to 0:02.0", "0%", "50%"),
        ("0:02.0 to 0:04.0", "50%", "50%"),
    ]
    meters = tab.evaluate(
        "[...document.querySelectorAll('#hits li:first-child [role=meter]')].map(each => [each.ariaLabel,"
        " each.ariaValueText, each.firstChild.style.width, each.parentElement.title])"
    )
    (match, percent, wide, meaning), (similarity, cosine, narrow, other) = meters
    assert (match, similarity) == ("P(match)", "cosine")
    assert percent.endswith("%")
    assert float(wide.rstrip("%")) == pytest.approx(float(percent.rstrip("%")), abs=0.5)
    assert float(narrow.rstrip("%")) == pytest.approx(100 * float(cosine), abs=0.5)
    assert "probability" in meaning
    assert "Cosine" in other
    assert tab.console == []


def test_a_picture_that_cannot_be_made_is_told(tab: Browser) -> None:
    hit = {"id": "x", "name": "a.mp4", "start_s": 0, "end_s": 1, "duration": 2, "score": 1, "media": "/media/x"}
    hit["thumbnail"] = "/media/00000000000000000000000000000000/thumbnail?t=0.5"
    tab.evaluate(
        "import('/hits.js').then(module => { document.body.dataset.state = 'hits';"
        f" module.show([{json.dumps(hit)}], {{}}) }})"
    )
    tab.wait("document.querySelector('#hits .frame').textContent === 'No picture of this video'")
    assert tab.evaluate("document.querySelectorAll('#hits .part').length") == 1


def test_a_preview_plays_muted_and_alone_under_the_pointer_or_the_focus(tab: Browser) -> None:
    search(tab, "a ring")
    tab.evaluate("scrollTo(0, 0)")
    late = "[...document.querySelectorAll('#hits .hit')].find(each => each.textContent.includes('0:02.0 to'))"
    tab.evaluate(f"{late}.id = 'late'")
    tab.hover("#late .frame")
    preview = "document.querySelector('#late .preview')"
    tab.wait(f"{preview} && {preview}.classList.contains('ready') && {preview}.currentTime > 2.1")
    assert tab.evaluate(f"[{preview}.muted, {preview}.controls, {preview}.preload]") == [True, False, "none"]
    tab.wait(f"{preview}.currentTime > 3.2")
    tab.wait(f"{preview}.currentTime < 2.5")  # and over again
    tab.evaluate("document.querySelector('#hits .hit:not(#late)').focus()")
    tab.wait(f"!{preview} && document.querySelectorAll('.preview').length === 1")
    tab.press("Enter")
    tab.wait("document.getElementById('player').open && document.querySelectorAll('.preview').length === 0")
    tab.press("Escape")
    tab.evaluate("document.activeElement.blur()")
    tab.prefer(reduced_motion="reduce")
    tab.hover("header")
    tab.hover("#late .frame")
    tab.evaluate("new Promise(done => setTimeout(done, 600))")
    assert tab.evaluate("document.querySelectorAll('.preview').length") == 0


def test_all_can_be_done_with_the_keyboard(tab: Browser) -> None:
    def focused() -> int:
        return int(tab.evaluate("[...document.querySelectorAll('#hits .hit')].indexOf(document.activeElement)"))

    search(tab, "a circle")
    tab.press("ArrowDown")
    assert focused() == 0
    for key, place in (("ArrowRight", 1), ("ArrowDown", 5), ("ArrowLeft", 4), ("ArrowUp", 0), ("ArrowLeft", 0)):
        tab.press(key)
        assert focused() == place, key
    tab.press("Enter")
    tab.wait("document.getElementById('player').open && document.getElementById('video').currentTime > 0")
    first = tab.evaluate("location.search")
    assert "hit=" in first
    tab.press("ArrowRight")
    tab.wait(f"location.search !== {json.dumps(first)}")
    current = "[...document.querySelectorAll('#hits .hit')].findIndex(each => each.ariaCurrent === 'true')"
    assert tab.evaluate(current) == 1
    tab.press("ArrowLeft")
    tab.wait(f"location.search === {json.dumps(first)}")
    assert tab.evaluate("document.getElementById('player-before').disabled") is True
    tab.press("Escape")
    tab.wait("!document.getElementById('player').open && document.getElementById('video').paused")
    tab.wait("!location.search.includes('hit=')")
    assert focused() == 0  # where one was before
    tab.press("/")
    assert tab.evaluate("document.activeElement.id") == "query"
    tab.type("a square")  # in place of the last query, which is selected
    assert tab.evaluate("document.getElementById('query').value") == "a square"
    tab.press("/")
    assert tab.evaluate("document.getElementById('query').value") == "a square/"


def test_more_like_a_hit_and_back(tab: Browser) -> None:
    search(tab, "a triangle")
    label = str(tab.evaluate("document.querySelector('#hits .like').ariaLabel"))
    names = texts(tab, "#hits .name")
    source = tab.evaluate("document.querySelector('#hits .hit').dataset.id")
    tab.click("#hits .like")
    name = label.replace("More like this:", "Like")
    tab.wait(f"document.getElementById('like-name').textContent === {json.dumps(name)}")
    tab.wait("document.querySelectorAll('#hits .hit').length === 7")  # all but itself
    assert tab.evaluate(f"document.querySelector('#hits [data-id=\"{source}\"]')") is None
    assert tab.evaluate("document.getElementById('query').value") == ""
    assert texts(tab, "#hits .score-name")[0] == "cosine"
    address = tab.evaluate("location.href")
    assert f"like={source}" in address
    tab.evaluate("history.back()")
    tab.wait("document.querySelectorAll('#hits .hit').length === 8")
    assert texts(tab, "#hits .name") == names
    assert tab.evaluate("document.getElementById('like').hidden") is True
    tab.open("about:blank")
    tab.open(address)  # the link alone is enough
    tab.wait("document.querySelectorAll('#hits .hit').length === 7")
    tab.click("#like-clear")
    tab.wait("document.querySelectorAll('#samples .hit').length > 0 && document.body.dataset.state === 'start'")


def test_a_search_by_a_clip_and_by_a_picture(tab: Browser, process: Served, tmp_path: Path) -> None:
    clip = process.clips[2][0]
    tab.choose("#file", clip)
    tab.wait("document.querySelectorAll('#hits .hit').length === 8")
    assert texts(tab, "#like-name") == [f"Like {clip.name}"]
    assert texts(tab, "#hits .name")[0] == clip.name
    picture = tmp_path / "a <b> picture.png"
    Image.new("RGB", (64, 64), (20, 20, 80)).save(picture)
    tab.choose("#file", picture)
    tab.wait("document.getElementById('like-name').textContent === 'Like a <b> picture.png'")
    tab.wait("document.getElementById('status').textContent === '8 hits, most alike first'")
    tab.evaluate(
        """(async () => {
            const brought = new DataTransfer()
            const blob = await (await fetch(document.querySelector('#hits .picture').src)).blob()
            brought.items.add(new File([blob], 'dropped.jpg'))
            dispatchEvent(new DragEvent('drop', { dataTransfer: brought, cancelable: true }))
        })()"""
    )
    tab.wait("document.getElementById('like-name').textContent === 'Like dropped.jpg'")
    tab.wait("document.querySelectorAll('#hits .hit').length === 8 && !document.querySelector('[aria-busy]')")
    (tmp_path / "words.txt").write_text("no picture")
    tab.choose("#file", tmp_path / "words.txt")
    tab.wait("document.getElementById('status').textContent.startsWith('Not searched: file: NotAVideo')")
    assert tab.evaluate("document.getElementById('status').classList.contains('error')") is True
    search(tab, "a ring")
    assert tab.evaluate("document.getElementById('like').hidden") is True


def test_a_link_keeps_the_whole_state(tab: Browser, process: Served) -> None:
    tab.click("#filters summary")
    tab.evaluate("document.getElementById('path').value = 'test-*'")
    tab.evaluate("document.getElementById('before').value = '2'")
    tab.evaluate("document.getElementById('k').value = '3'")
    tab.click("#merge")
    tab.click("#rerank")
    search(tab, "a white cross")
    tab.click("#hits li:nth-child(2) .hit")
    tab.wait("document.getElementById('player').open && location.search.includes('hit=')")
    names, played = texts(tab, "#hits .name"), texts(tab, "#player-name")
    address = tab.evaluate("location.href")
    tab.open("about:blank")
    tab.open(address)
    tab.wait("document.getElementById('player').open && document.getElementById('video').readyState > 1")
    assert texts(tab, "#hits .name") == names
    assert texts(tab, "#player-name") == played
    state = "['query', 'k', 'path', 'after', 'before'].map(id => document.getElementById(id).value)"
    assert tab.evaluate(state) == ["a white cross", "3", "test-*", "", "2"]
    assert tab.evaluate("[document.getElementById('merge').checked, document.getElementById('rerank').checked]") == [
        True,
        False,
    ]
    assert tab.evaluate("location.href") == address
    assert len(set(names)) == len(names) == 3
    tab.click("#player-like")
    tab.wait("!document.getElementById('player').open && location.search.startsWith('?like=')")


def test_recent_queries_are_kept_bounded_and_can_be_cleared(tab: Browser, process: Served) -> None:
    for number in range(9):
        search(tab, f"ring {number}")
    search(tab, "ring 4")
    tab.open("about:blank")
    tab.open(f"{process.address}/")
    tab.wait("document.querySelectorAll('#recent button').length === 8")
    assert texts(tab, "#recent button")[:3] == ["ring 4", "ring 8", "ring 7"]
    tab.click("#recent li:nth-child(2) button")
    tab.wait("document.getElementById('query').value === 'ring 8' && location.search.startsWith('?q=ring+8')")
    tab.evaluate("history.back()")
    tab.wait("document.body.dataset.state === 'start' && document.querySelectorAll('#recent button').length === 8")
    tab.click("#forget")
    assert texts(tab, "#recent button") == []
    tab.open("about:blank")
    tab.open(f"{process.address}/")
    tab.wait("document.querySelectorAll('#samples .hit').length > 0")
    assert texts(tab, "#recent button") == []
    tab.evaluate("localStorage.setItem('queries', '{')")  # what another program wrote there does no harm
    search(tab, "a ring")


def test_nothing_that_fits_and_a_server_that_is_gone_are_told_in_words(tab: Browser) -> None:
    tab.evaluate("document.getElementById('path').value = 'nothing*'")
    tab.evaluate("document.getElementById('query').value = 'a ring'")
    tab.evaluate("document.getElementById('form').requestSubmit()")
    tab.wait("document.getElementById('status').textContent.startsWith('No segment fits the filters')")
    tab.command("Network.enable")
    tab.command("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    tab.evaluate("document.getElementById('form').requestSubmit()")
    tab.wait("document.getElementById('status').textContent.includes('the server cannot be reached')")
    tab.command(
        "Network.emulateNetworkConditions", offline=False, latency=0, downloadThroughput=-1, uploadThroughput=-1
    )


# -- accessibility -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(axe() is None, reason="no axe-core; set AXE_CORE to its folder, or run: npm install axe-core")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_core_finds_nothing(tab: Browser, width: str, scheme: str) -> None:
    source = (axe() or Path()).read_text(encoding="utf-8")
    tab.resize(*WIDTHS[width])
    tab.prefer(color_scheme=scheme, reduced_motion="reduce")
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 22)"
    assert dark == (scheme == "dark")
    search(tab, "a ring")
    tab.evaluate("document.getElementById('filters').open = document.getElementById('legend').open = true")
    assert violations(tab, source) == []
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    tab.evaluate("document.querySelector('#hits .hit').click()")
    tab.wait("document.getElementById('player').open")
    assert violations(tab, source) == []
    tab.press("Escape")
    tab.evaluate("document.querySelector('h1 a').click()")
    tab.wait("document.body?.dataset.state === 'start' && document.querySelectorAll('#recent button').length === 1")
    tab.wait("document.querySelectorAll('#samples .hit').length > 0")
    assert violations(tab, source) == []
    assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
