"""What reaches a terminal: text, whatever names and words hold."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.errors import MarkupError

from tests.cli.conftest import vidembed
from tests.index.fakes import write_video
from vidembed import errors
from vidembed.cli import app
from vidembed.cli import options as console
from vidembed.index import VideoIndex
from vidembed.video import NotAVideo, VideoError

HOSTILE = {
    "ANSI": "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "C1": "\x9b31m\x85next",
    "markup": "[bold red]x[/bold red] [link=http://evil]y[/link]",
    "broken markup": "[/] [/nothing]",
    "new line": "a\nError: all is well\r\rb",
    "bidi": "\u202egpj.\u2066exe\u2069",
    "separators": "a\u2028b\u2029c",
    "invisible": "a\u200bb\ufeffc\x00d\x7f",
    "surrogates": "caf\udce9",
    "HTML": "<script>alert(1)</script>\"'&",
}


def is_plain(text: str) -> bool:
    """Whether a terminal would act on nothing of it but the ends of lines."""
    return all(line.isprintable() for line in text.split("\n"))


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_line_is_one_line(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    console.say(f"Not reranked: {HOSTILE[kind]}")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert is_plain(err)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_table_is_text_everywhere(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    text = HOSTILE[kind]
    console.print_table([f"column {text}", "b"], [[text, "2"], ["c", text]], title=f"title {text}")
    out, _ = capsys.readouterr()
    assert is_plain(out)
    assert "http://evil" in out or kind != "markup"
    if "[" in text and kind != "ANSI":
        assert out.count(text) == 4  # nothing of it was taken for markup


def test_markup_would_have_been_taken() -> None:
    """What the tables are kept from: a title is markup to rich, and what is none ends the command."""
    from rich.console import Console
    from rich.table import Table

    table = Table("a", title=HOSTILE["broken markup"])
    with pytest.raises(MarkupError), Path(os.devnull).open("w") as nowhere:
        Console(file=nowhere).print(table)


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("debug", [False, True])
def test_errors_and_logs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kind: str, debug: bool
) -> None:
    text = HOSTILE[kind]
    monkeypatch.setenv(console.DEBUG_VARIABLE, "1" if debug else "")
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    try:
        console.setup(debug=debug)
        logging.getLogger("vidembed.x").error("skipped %s", text)
        for error in (NotAVideo(text, text), ValueError(text), OSError(2, text, text)):
            logging.getLogger("vidembed.x").error("failed at %s", text, exc_info=error)
            assert console.failed(error, 2).exit_code == 2
    finally:
        root.handlers[:] = kept
        root.setLevel(level)
    out, err = capsys.readouterr()
    assert out == ""
    assert is_plain(err)
    lines = err.splitlines()
    assert sum(line.startswith("Error: ") for line in lines) == 3
    assert sum(line.startswith("ERROR vidembed.x: ") for line in lines) == 4
    traces = [line for line in lines if line.startswith(type(error).__name__)]
    assert len(traces) == (1 if debug else 0)
    assert all(
        line.startswith(("Error: ", "ERROR vidembed.x: ", "    ", *traces, "vidembed.", "ValueError")) for line in lines
    )


@given(st.text())
def test_any_text_is_shown_as_text(text: str) -> None:
    shown = console.shown(text)
    assert is_plain(shown)
    assert shown.count("\n") == text.rstrip("\n").count("\n")
    if text.isprintable():
        assert shown == text


def test_names_of_files_in_all_output(tmp_path: Path, loaded: list[dict[str, Any]]) -> None:
    """Index and search files of hostile names, and bad ones: tables, messages, JSON and the contact sheet."""
    folder = tmp_path / "clips"
    folder.mkdir()
    names = [text.replace("/", "\u2215").replace("\0", "") for text in HOSTILE.values()]
    for number, name in enumerate(names):
        made = write_video(tmp_path / f"{number}.mp4", [(200, 30, 10 * number)])
        os.replace(made, folder / f"{name}.mp4")  # noqa: PTH105 - names that a muxer cannot open
        (folder / f"bad {name}.mp4").write_bytes(b"text")
    found = vidembed("index", folder, "--to", tmp_path / "ix", "--model", "fake")
    assert found.exit_code == 0
    assert is_plain(found.stdout + without_bars(found.stderr))
    assert found.stdout.count("NotAVideo") == len(names)
    assert len(VideoIndex.open(tmp_path / "ix")) == len(names)

    searched = vidembed("search", "red ".join(names), "--in", tmp_path / "ix", "--html", tmp_path / "hits.html")
    assert searched.exit_code == 0
    assert is_plain(searched.stdout + searched.stderr)
    for command in (("search", "red", "--in"), ("info",)):
        answer = vidembed(*command, tmp_path / "ix", "--json")
        assert answer.stdout.isascii()
        assert json.loads(answer.stdout)
    page = (tmp_path / "hits.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert is_plain(page)
    assert page.count("<img ") == len(names)


def without_bars(text: str) -> str:
    """What is left of stderr when the progress bars are taken out."""
    return re.sub(r"\rIndexing[^\r\n]*", "", text)


def test_a_name_as_long_as_names_get(tmp_path: Path, loaded: list[dict[str, Any]]) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    (folder / ("x" * 251 + ".mp4")).write_bytes(write_video(tmp_path / "a.mp4", [(200, 30, 30)]).read_bytes())
    assert vidembed("index", folder, "--to", tmp_path / "ix", "--model", "fake").exit_code == 0
    shown = vidembed("search", "red", "--in", tmp_path / "ix").stdout
    assert shown.replace("\n", "").count("x") >= 251  # folded, not cut


def test_the_program_is_one(tmp_path: Path) -> None:
    """Errors of every command go through one place."""
    assert app.info.cls is console.ErrorsToExitCodes
    assert vidembed("info", tmp_path / "no\x1b[31m\nindex").exit_code in {1, 2}


def every_error() -> list[type[Exception]]:
    """The errors of `vidembed.errors`, without warnings."""
    found = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return [kind for kind in found if kind.__module__ == errors.__name__ and not issubclass(kind, Warning)]


@pytest.mark.parametrize("kind", [*every_error(), torch.OutOfMemoryError])
def test_every_error_is_a_message_and_an_exit_code(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = kind("a.mp4", "it failed") if issubclass(kind, VideoError) else kind("it failed")

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(VideoIndex, "open", fail)
    (tmp_path / "vidembed.json").touch()
    result = vidembed("search", "red", "--in", tmp_path)
    assert (result.exit_code in {1, 2}, "it failed" in result.stderr, "Traceback" in result.stderr) == (
        True,
        True,
        False,
    )


def test_an_index_that_cannot_be_written_is_no_misuse(
    tmp_path: Path, loaded: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_video(tmp_path / "a.mp4", [(200, 30, 30)])
    monkeypatch.setattr(VideoIndex, "put", full)
    result = vidembed("index", tmp_path / "a.mp4", "--to", tmp_path / "ix", "--model", "fake")
    assert result.exit_code == 1
    assert "Check free space and access rights" in " ".join(result.stderr.split())


def test_garbage_is_looked_for_less_often(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before, asked = gc.get_threshold(), []
    monkeypatch.setattr(gc, "set_threshold", lambda *numbers: asked.append(numbers))
    vidembed("info", "--in", tmp_path)
    assert asked == [(console.GARBAGE_THRESHOLD, *before[1:])]
