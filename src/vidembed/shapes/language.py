"""What is said about a scene: captions, summaries, tags, questions and statements, and the instructions for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vidembed.shapes.world import (
    BACKGROUNDS,
    COLOURS,
    CORNERS,
    DIRECTIONS,
    EVENTS,
    SHAPES,
    SIZES,
    SPEEDS,
    Scene,
    vary,
)

MATCH_QUESTION: Final = "Does the video match the sentence? Answer with a single word - Yes or No."
"""The question of VidVec's reranker (arXiv 2602.08099, section 3.3)."""

EXPLAIN_QUESTION: Final = "Is the sentence right? Answer in detail."
"""The same question with room for a correction, which tells training what a wrong sentence got wrong."""

TAG_INSTRUCTIONS: Final = (
    "Summarize above {kind} in a few words:",
    "Summarize above {kind} in ten words:",
    "Summarize above {kind} in one line:",
    "Summarize above {kind} in short:",
    "Write the tags of above {kind} in one list:",
)
KEYWORD_INSTRUCTIONS: Final = ("Summarize above {kind} in key words:", "Summarize above {kind} in any word order:")
DENSE_INSTRUCTIONS: Final = ("Summarize above {kind} in full:", "Describe above {kind} in detail:")
SHORT_INSTRUCTIONS: Final = ("Summarize above {kind} in one sentence:", "Describe above {kind} in brief:")

_ADVERB: Final = {"slow": "slowly", "fast": "quickly"}
_WARD: Final = {"left": "leftward", "right": "rightward", "up": "upward", "down": "downward"}
_EVENT_TAG: Final = {
    "straight": "straight",
    "turn": "turns",
    "bounce": "bounces",
    "stop": "stops",
    "disappear": "disappears",
    "change": "changes",
}
_EVENT_CLAUSE: Final = {
    "straight": ("and keeps going straight", "and goes on straight"),
    "turn": ("and then turns", "before it turns"),
    "bounce": ("and then bounces back", "before it bounces back"),
    "stop": ("and then stops", "before it stops"),
    "disappear": ("and then disappears", "before it disappears"),
    "change": ("and then changes colour", "before it changes colour"),
}
SUMMARY_ATTRIBUTES: Final = ("shape", "colour", "direction", "event")
"""The attributes that a summary tells."""


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """One of several wordings, each as likely."""
    return options[int(rng.integers(len(options)))]


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A dense caption: every attribute, in one of several wordings."""
    mover = f"{scene.size} {scene.colour} {scene.shape}"
    verb = pick(rng, ("moves", "goes", "travels"))
    way = (
        f"{scene.direction} {_ADVERB[scene.speed]}"
        if rng.random() < 0.5
        else f"{_ADVERB[scene.speed]} {scene.direction}"
    )
    event = pick(rng, _EVENT_CLAUSE[scene.event])
    place = f"a {scene.background} background"
    form = int(rng.integers(3))
    if form == 0:
        first = f"A {mover} {verb} {way} on {place} {event}."
    elif form == 1:
        first = f"On {place}, a {mover} {verb} {way} {event}."
    else:
        first = f"A {mover} {verb} {way} {event}, on {place}."
    if scene.corner is None:
        second = pick(rng, ("The corners are empty.", "No shape is in a corner."))
    else:
        still = f"{scene.corner.colour} {scene.corner.shape}"
        where = f"the {scene.corner.corner} corner"
        second = pick(rng, (f"A still {still} is in {where}.", f"In {where} is a still {still}."))
    return f"{first} {second}" if rng.random() < 0.75 else f"{second} {first}"


def summary(scene: Scene, rng: np.random.Generator) -> str:
    """A short sentence: colour, shape, direction and event."""
    verb = pick(rng, ("moves", "goes"))
    return f"A {scene.colour} {scene.shape} {verb} {scene.direction} {pick(rng, _EVENT_CLAUSE[scene.event])}."


def _tag_groups(scene: Scene) -> list[str]:
    corner = "empty corners"
    if scene.corner is not None:
        corner = f"corner {scene.corner.colour} {scene.corner.shape} {scene.corner.corner}"
    return [
        f"{scene.colour} {scene.shape}",
        scene.size,
        _WARD[scene.direction],
        scene.speed,
        _EVENT_TAG[scene.event],
        f"{scene.background} background",
        corner,
    ]


def tags(scene: Scene) -> str:
    """All attributes as words in a fixed order."""
    return " ".join(_tag_groups(scene))


def keywords(scene: Scene, rng: np.random.Generator) -> str:
    """The tags with their groups in a random order."""
    groups = _tag_groups(scene)
    return " ".join(groups[i] for i in rng.permutation(len(groups)))


def claim(scene: Scene, attribute: str) -> str:
    """A sentence about one attribute, named as in ``Scene.attributes``."""
    value = scene.attributes[attribute]
    if attribute.startswith("corner") and scene.corner is None:
        return "The corners are empty."
    if attribute == "event":
        return f"It {_EVENT_CLAUSE[value][0].removeprefix('and ')}."
    return {
        "shape": f"The moving shape is a {value}.",
        "colour": f"The moving shape is {value}.",
        "direction": f"The shape goes {value} first.",
        "size": f"The moving shape is {value}.",
        "speed": f"The moving shape is {value}.",
        "background": f"The background is {value}.",
        "corner_shape": f"The still shape is a {value}.",
        "corner_colour": f"The still shape is {value}.",
        "corner": f"The still shape is in the {value} corner.",
    }[attribute]


def question(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A question about one attribute and its answer, a full sentence."""
    pairs = [
        ("What is the colour of the moving shape?", f"The moving shape is {scene.colour}."),
        ("What is the moving shape?", f"The moving shape is a {scene.shape}."),
        ("Where does the shape go first?", f"The shape goes {scene.direction} first."),
        ("Is the moving shape small or large?", f"The moving shape is {scene.size}."),
        ("Is the moving shape slow or fast?", f"The moving shape is {scene.speed}."),
        ("What is the colour of the background?", f"The background is {scene.background}."),
        ("What happens to the moving shape?", f"It {_EVENT_CLAUSE[scene.event][0].removeprefix('and ')}."),
    ]
    if scene.corner is None:
        pairs.append(("What is in the corner?", "The corners are empty."))
    else:
        still = f"{scene.corner.colour} {scene.corner.shape}"
        pairs += [
            ("What is in the corner?", f"A still {still}."),
            (f"Where is the still {still}?", f"In the {scene.corner.corner} corner."),
        ]
    return pairs[int(rng.integers(len(pairs)))]


@dataclass(frozen=True, slots=True)
class Statement:
    """A sentence that may be right or wrong about a clip.

    Attributes:
        text: The sentence.
        true: Whether it is right.
        verdict: The answer with its reason: ``"Yes."``, or ``"No."`` and what is right instead.
    """

    text: str
    true: bool
    verdict: str


def statement(
    scene: Scene, rng: np.random.Generator, *, true: bool, hard: float = 1.0, claims: float = 0.0
) -> Statement:
    """A sentence about a scene, right or wrong as asked.

    Args:
        scene: The scene spoken about.
        rng: Source of randomness.
        true: Whether the sentence is right.
        hard: Share of wrong sentences that differ in one attribute; the others differ in two.
        claims: Share of sentences that are about one attribute only; the others are captions and summaries.

    Returns:
        The statement.
    """
    form, easy = rng.random(), rng.random() >= hard
    one = form < claims
    dense = not one and form < (1 + claims) / 2
    among = None if one or dense else SUMMARY_ATTRIBUTES
    told = scene if true else vary(scene, rng, among)
    changed = [name for name, value in told.attributes.items() if value != scene.attributes[name]]
    if one:
        known = tuple(name for name in scene.attributes if scene.corner is not None or not name.startswith("corner"))
        return _judged(claim(told, changed[0] if changed else pick(rng, known)), scene, changed)
    if easy and not true:
        rest = tuple(n for n in scene.attributes if n not in changed and (among is None or n in among))
        told = vary(told, rng, rest)
    return _judged(caption(told, rng) if dense else summary(told, rng), scene, changed)


def _judged(text: str, scene: Scene, changed: list[str]) -> Statement:
    if not changed:
        return Statement(text, true=True, verdict="Yes.")
    return Statement(text, true=False, verdict=f"No. {claim(scene, changed[0])}")


def lexicon() -> list[str]:
    """Every content word, so that the tokenizer can keep each as a single token."""
    words = {*SHAPES, *COLOURS, *DIRECTIONS, *SIZES, *SPEEDS, *BACKGROUNDS, *_EVENT_TAG.values(), *_WARD.values()}
    words |= {word for corner in CORNERS for word in corner.split()} | {*_ADVERB.values(), *EVENTS}
    words |= {"yes", "no", "video", "image", "sentence", "word", "words", "one", "summarize", "describe"}
    return sorted(words)
