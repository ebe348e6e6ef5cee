"""Pictures in a terminal, by the protocols of kitty and iTerm2."""

from __future__ import annotations

import base64
import os
import shutil
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import typer

from vidembed.cli import options as cli

if TYPE_CHECKING:
    from vidembed.index import Hit

Protocol: TypeAlias = Literal["kitty", "iterm"]

MAX_IMAGES = 12  # of a query: what a person looks through, and a few hundred KB at most
ROWS = 9  # of the terminal that a picture takes: 180 pixels where a character is 20 pixels high
_CHUNK = 4096  # bytes of base64 in one escape sequence of kitty, by its documentation
_MULTIPLEXERS = ("TMUX", "STY")  # set by tmux and by GNU screen, which do not pass pictures on as they are
# Values of TERM_PROGRAM, which terminals set to their names. https://wezterm.org/imgcat.html and
# https://github.com/mintty/mintty/wiki/CtrlSeqs document iTerm2's protocol, https://ghostty.org/docs kitty's.
_PROGRAMS: Mapping[str, Protocol] = {
    "kitty": "kitty",
    "ghostty": "kitty",
    "iTerm.app": "iterm",
    "WezTerm": "iterm",
    "mintty": "iterm",
}


def find_protocol(environment: Mapping[str, str]) -> Protocol | None:
    """Return the protocol of the terminal that a process with this environment runs in, or None where none is known.

    kitty sets KITTY_WINDOW_ID and TERM=xterm-kitty (https://sw.kovidgoyal.net/kitty/glossary/). iTerm2 sets
    TERM_PROGRAM, and LC_TERMINAL, which ssh passes on where it is set up to pass `LC_*`.
    """
    if any(environment.get(name) for name in _MULTIPLEXERS):
        return None
    if environment.get("TERM") in {"xterm-kitty", "xterm-ghostty"}:
        return "kitty"
    if known := _PROGRAMS.get(environment.get("TERM_PROGRAM", "")):
        return known
    if environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm"
    return "kitty" if environment.get("KITTY_WINDOW_ID") else None


def drawing(protocol: Protocol | None, *, in_json: Mapping[str, object]) -> Callable[[Sequence[Hit]], None]:
    """Return what draws pictures of hits.

    Args:
        protocol: How to draw. None: as the terminal can.
        in_json: Options by name that have hits written as JSON.

    Raises:
        ValueError: The options do not fit, stdout is not a terminal, or the terminal is not known to draw pictures.
    """
    cli.refuse(in_json, "it writes JSON, which has no pictures; leave it out, or leave --images out")
    return partial(draw, protocol=_usable_protocol(protocol))


def _usable_protocol(asked: Protocol | None) -> Protocol:
    if not sys.stdout.isatty():
        raise ValueError("images: standard output is not a terminal; leave --images out, or write a page with --html")
    if asked is not None:
        return asked
    if (found := find_protocol(os.environ)) is not None:
        return found
    inside = next((name for name in _MULTIPLEXERS if os.environ.get(name)), None)
    found_in = f"{inside} is set: tmux and screen do not pass pictures on" if inside else "this terminal is not known"
    raise ValueError(
        f"images: {found_in} (TERM={os.environ.get('TERM', '')!r}, "
        f"TERM_PROGRAM={os.environ.get('TERM_PROGRAM', '')!r}). Use kitty, Ghostty, iTerm2, WezTerm or mintty; or name "
        "the protocol with --image-protocol kitty or iterm; or write a page with --html FILE"
    )


def draw(hits: Sequence[Hit], protocol: Protocol) -> None:
    """Write a picture from the middle of each of the first `MAX_IMAGES` hits to stdout, each under its name."""
    from vidembed.index.gallery import thumbnail
    from vidembed.index.hits import time_range
    from vidembed.index.table import is_local, name_of, path_of
    from vidembed.video import VideoError

    columns = max(1, shutil.get_terminal_size().columns - 1)
    for number, hit in enumerate(hits[:MAX_IMAGES], start=1):
        typer.echo(f"{number}. {cli.plain(name_of(hit.uri))} {time_range(hit.start_s, hit.end_s)}")
        if not is_local(hit.uri):
            typer.echo("   no picture: the file is not on this machine")
            continue
        try:
            png = thumbnail(path_of(hit.uri), (hit.start_s + hit.end_s) / 2, "PNG")
        except VideoError as error:
            typer.echo(f"   no picture: {cli.plain(error.reason)}")
            continue
        sys.stdout.write(sequence(png, protocol, columns=columns) + "\n")  # the cursor is in the picture's last row
        sys.stdout.flush()
    if len(hits) > MAX_IMAGES:
        cli.say(f"Pictures of the first {MAX_IMAGES} of {len(hits)} hits are shown.")


def sequence(png: bytes, protocol: Protocol, *, columns: int, rows: int = ROWS) -> str:
    """Return the escape sequence that draws a PNG at the cursor, within so many columns and rows of characters."""
    # Only the side that fills its bound is given, and the terminal keeps the shape. A character is about twice as high
    # as wide. Width and height are in the header: https://www.w3.org/TR/png/#11IHDR
    width, height = struct.unpack(">II", png[16:24])
    is_wide = width * 2 * rows > height * columns
    payload = base64.b64encode(png).decode("ascii")
    if protocol == "iterm":  # https://iterm2.com/documentation-images.html
        size = f"width={columns};height=auto" if is_wide else f"width=auto;height={rows}"
        return f"\x1b]1337;File=inline=1;size={len(png)};{size};preserveAspectRatio=1:{payload}\x07"
    # https://sw.kovidgoyal.net/kitty/graphics-protocol/: a=T shows what is sent, f=100 is PNG, q=2 asks for no answer,
    # which would be taken for input; m=1 says that more follows.
    chunks = [payload[at : at + _CHUNK] for at in range(0, len(payload), _CHUNK)]
    heads = [f"a=T,f=100,q=2,{f'c={columns}' if is_wide else f'r={rows}'},", *[""] * (len(chunks) - 1)]
    last = len(chunks) - 1
    return "".join(
        f"\x1b_G{head}m={int(at < last)};{chunk}\x1b\\"
        for at, (head, chunk) in enumerate(zip(heads, chunks, strict=True))
    )
