"""`vidembed search --images`: pictures of hits, as escape sequences of kitty and iTerm2."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import vidembed
from vidembed.cli import images

Loaded = list[dict[str, Any]]
KITTY = re.compile(r"\x1b_G([^;]*);([A-Za-z0-9+/=]*)\x1b\\")
ITERM = re.compile(r"\x1b\]1337;File=([^:]*):([A-Za-z0-9+/=]*)\x07")
VARIABLES = ("TERM", "TERM_PROGRAM", "LC_TERMINAL", "KITTY_WINDOW_ID", "TMUX", "STY")


@pytest.fixture
def index(clips: Path, tmp_path: Path, loaded: Loaded) -> Path:
    assert vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake", "--segment", "1").exit_code == 0
    return tmp_path / "ix"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Makes stdout of the commands a terminal that is not known."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("typer.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    return monkeypatch


def read_kitty(text: str) -> list[Image.Image]:
    """Read pictures as the documentation of the protocol has a terminal do it."""
    pictures, payload = [], ""
    for head, chunk in KITTY.findall(text):
        keys = dict(pair.split("=") for pair in head.split(","))
        assert len(chunk) <= 4096
        assert (keys["m"] == "0") or len(chunk) % 4 == 0
        if not payload:
            assert (keys["a"], keys["f"], keys["q"]) == ("T", "100", "2")
            assert {"c", "r"} & set(keys)
        else:
            assert set(keys) == {"m"}
        payload += chunk
        if keys["m"] == "0":
            pictures.append(Image.open(io.BytesIO(base64.b64decode(payload, validate=True)), formats=["PNG"]))
            payload = ""
    assert not payload
    return pictures


def read_iterm(text: str) -> list[Image.Image]:
    pictures = []
    for head, payload in ITERM.findall(text):
        keys = dict(pair.split("=") for pair in head.split(";"))
        content = base64.b64decode(payload, validate=True)
        assert (keys["inline"], keys["preserveAspectRatio"], int(keys["size"])) == ("1", "1", len(content))
        assert {keys["width"], keys["height"]} > {"auto"}
        pictures.append(Image.open(io.BytesIO(content), formats=["PNG"]))
    return pictures


@pytest.mark.parametrize("protocol", ["kitty", "iterm"])
def test_draws_the_middle_of_each_hit_under_its_name(index: Path, terminal: pytest.MonkeyPatch, protocol: str) -> None:
    result = vidembed("search", "red", "--in", index, "-k", 2, "--images", "--image-protocol", protocol)
    assert result.exit_code == 0, result.stderr
    pictures = (read_kitty if protocol == "kitty" else read_iterm)(result.stdout)
    means = [np.asarray(picture).reshape(-1, 3).mean(axis=0) for picture in pictures]
    # the last second of long.mp4 is (150, 60, 40), its first two are grey
    np.testing.assert_allclose(means, [(200, 30, 30), (150, 60, 40)], atol=8)
    text = ITERM.sub("PICTURE", KITTY.sub("PICTURE", result.stdout))
    assert re.search(r"\n1\. \S+red.mp4 0:00.0-0:01.0\nPICTURE\n2\. \S+long.mp4 0:02.0-0:03.0\nPICTURE\n$", text)
    assert "\x1b_" not in text


def test_draws_nothing_unasked(index: Path, terminal: pytest.MonkeyPatch) -> None:
    terminal.setenv("KITTY_WINDOW_ID", "1")
    shown = vidembed("search", "red", "--in", index).stdout
    assert not KITTY.search(shown)
    assert not ITERM.search(shown)


def test_draws_a_bounded_number_of_small_pictures(
    many: Path, tmp_path: Path, loaded: Loaded, terminal: pytest.MonkeyPatch
) -> None:
    terminal.setenv("TERM", "xterm-kitty")
    assert vidembed("index", many, "--to", tmp_path / "ix", "--model", "fake").exit_code == 0
    result = vidembed("search", "red", "--in", tmp_path / "ix", "-k", 20, "--images")
    pictures = read_kitty(result.stdout)
    assert len(pictures) == images.MAX_IMAGES
    assert all(picture.width * picture.height <= 320 * 180 for picture in pictures)
    assert f"first {images.MAX_IMAGES} of 20 hits" in result.stderr


def test_says_why_there_is_no_picture_in_plain_text(
    clips: Path, tmp_path: Path, loaded: Loaded, terminal: pytest.MonkeyPatch
) -> None:
    hostile = clips / "red\x1b[31m\n.mp4"
    (clips / "red.mp4").rename(hostile)
    vidembed("index", clips, "--to", tmp_path / "ix", "--model", "fake")
    hostile.unlink()
    result = vidembed("search", "red", "--in", tmp_path / "ix", "-k", 1, "--images", "--image-protocol", "iterm")
    assert result.exit_code == 0
    assert "no picture: " in result.stdout
    assert "\x1b[31m" not in result.stdout
    assert not read_iterm(result.stdout)


def test_long_pictures_are_sent_in_chunks() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 160, 3), dtype=np.uint8))
    out = io.BytesIO()
    noise.save(out, "PNG")
    sequence = images.sequence(out.getvalue(), "kitty", columns=80)
    assert len(KITTY.findall(sequence)) > 5
    assert KITTY.sub("", sequence) == ""
    (picture,) = read_kitty(sequence)
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(noise))


def test_a_wide_picture_keeps_its_shape_within_the_columns() -> None:
    out = io.BytesIO()
    Image.new("RGB", (600, 20)).save(out, "PNG")
    assert "c=40," in images.sequence(out.getvalue(), "kitty", columns=40)
    assert "width=40;height=auto" in images.sequence(out.getvalue(), "iterm", columns=40)


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({}, None),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "3"}, "kitty"),
        ({"TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM_PROGRAM": "iTerm.app", "KITTY_WINDOW_ID": "3"}, "iterm"),  # started from kitty
        ({"TERM_PROGRAM": "Apple_Terminal"}, None),
        ({"TERM": "tmux-256color", "TMUX": "/tmp/x", "KITTY_WINDOW_ID": "3"}, None),
    ],
)
def test_finds_the_protocol_in_the_environment(environment: dict[str, str], protocol: str | None) -> None:
    assert images.find_protocol(environment) == protocol


def test_a_terminal_that_cannot_draw_is_refused_before_the_model_is_loaded(
    index: Path, loaded: Loaded, terminal: pytest.MonkeyPatch
) -> None:
    loaded.clear()
    terminal.setenv("TERM", "xterm-256color")
    result = vidembed("search", "red", "--in", index, "--images")
    assert (result.exit_code, result.stdout, loaded) == (2, "", [])
    for words in ("TERM='xterm-256color'", "--image-protocol", "--html"):
        assert words in result.stderr
    terminal.setenv("TMUX", "x")
    assert "TMUX is set" in vidembed("search", "red", "--in", index, "--images").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images"], "images: standard output is not a terminal"),
        (["--images", "--image-protocol", "kitty"], "images: standard output is not a terminal"),
        (["--image-protocol", "kitty"], "image-protocol: it needs --images"),
        (["--images", "--json"], "json: it writes JSON"),
        (["--images", "--image-protocol", "sixel"], "sixel"),
    ],
)
def test_misuse(index: Path, arguments: list[str], message: str) -> None:
    result = vidembed("search", "red", "--in", index, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in " ".join(result.stderr.replace("│", " ").split())
