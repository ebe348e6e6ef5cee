"""Reads answers of the small MLLM back into attributes: the inverse of ``vidembed.shapes.language``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from vidembed.shapes import language, world

_NO_CORNER: Final = {"corner_shape": "none", "corner_colour": "none", "corner": "none"}
_BACK: Final = {
    "direction": {word: name for name, word in language.WARDS.items()},
    "speed": {word: name for name, word in language.ADVERBS.items()},
    "event": {text: name for name, texts in language.EVENT_CLAUSES.items() for text in texts}
    | {word: name for name, word in language.EVENT_TAGS.items()},
}
"""What the world calls the words of sentences and tags, where it has another name for them."""


def _any(name: str, words: Iterable[str]) -> str:
    return f"(?P<{name}>{'|'.join(map(re.escape, words))})"


_COLOUR, _SHAPE = _any("colour", world.COLOURS), _any("shape", world.SHAPES)
_CLAUSE = _any("event", [text for texts in language.EVENT_CLAUSES.values() for text in texts])
_DIRECTION, _SIZE = _any("direction", world.DIRECTIONS), _any("size", world.SIZES)
_PLACE = f"a {_any('background', world.BACKGROUNDS)} background"
_ADVERB = _any("speed", language.ADVERBS.values())
_STILL = f"still {_any('corner_colour', world.COLOURS)} {_any('corner_shape', world.SHAPES)}"
_WHERE = f"the {_any('corner', world.CORNERS)} corner"
_MOVES = [
    f"{_SIZE} {_COLOUR} {_SHAPE} (?:moves|goes|travels) {way}"
    for way in (f"{_DIRECTION} {_ADVERB}", f"{_ADVERB} {_DIRECTION}")
]
_FIRST = [
    form
    for moves in _MOVES
    for form in (
        rf"A {moves} on {_PLACE} {_CLAUSE}\.",
        rf"On {_PLACE}, a {moves} {_CLAUSE}\.",
        rf"A {moves} {_CLAUSE}, on {_PLACE}\.",
    )
]
_SECOND = [
    rf"A {_STILL} is in {_WHERE}\.",
    rf"In {_WHERE} is a {_STILL}\.",
    r"(?:The corners are empty|No shape is in a corner)\.",
]
_CAPTIONS = [re.compile(form) for a in _FIRST for b in _SECOND for form in (f"{a} {b}", f"{b} {a}")]
_SUMMARIES = [re.compile(rf"A {_COLOUR} {_SHAPE} (?:moves|goes) {_DIRECTION} {_CLAUSE}\.")]
_TAGS = [
    re.compile(
        f"{_COLOUR} {_SHAPE} {_SIZE} {_any('direction', language.WARDS.values())} {_any('speed', world.SPEEDS)} "
        f"{_any('event', language.EVENT_TAGS.values())} {_any('background', world.BACKGROUNDS)} background {corner}"
    )
    for corner in (rf"corner {_STILL.removeprefix('still ')} {_any('corner', world.CORNERS)}", "empty corners")
]
_FORMS: Final = {"caption": _CAPTIONS, "summary": _SUMMARIES, "tags": _TAGS}


def read(answer: str, kind: str) -> Mapping[str, str] | None:
    """The attributes that an answer names, by the names of ``Scene.attributes``.

    Args:
        answer: Of the model.
        kind: "caption", "summary" or "tags".

    Returns:
        The attributes, or None where the answer is no well-formed one of its kind.
    """
    for form in _FORMS[kind]:
        if found := form.fullmatch(answer):
            named = {name: _BACK.get(name, {}).get(word, word) for name, word in found.groupdict().items()}
            return named if kind == "summary" else _NO_CORNER | named
    return None
