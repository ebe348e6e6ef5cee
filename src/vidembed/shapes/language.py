"""Sentences about a scene: captions, summaries, tags, questions and statements."""

from __future__ import annotations

from typing import Final

import numpy as np

from vidembed.shapes.world import EVENTS, Scene, vary

ADVERBS: Final = {"slow": "slowly", "fast": "quickly"}
WARDS: Final = {"left": "leftward", "right": "rightward", "up": "upward", "down": "downward"}
EVENT_TAGS: Final = {event: event if event == "straight" else f"{event}s" for event in EVENTS}
EVENT_CLAUSES: Final = {
    "straight": ("and keeps going straight", "and goes on straight"),
    "turn": ("and then turns", "before it turns"),
    "bounce": ("and then bounces back", "before it bounces back"),
    "stop": ("and then stops", "before it stops"),
    "disappear": ("and then disappears", "before it disappears"),
    "change": ("and then changes colour", "before it changes colour"),
}
SUMMARY_ATTRIBUTES: Final = ("shape", "colour", "direction", "event")  # that a summary names


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """One of several wordings, each as likely."""
    return options[int(rng.integers(len(options)))]


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A dense caption: every attribute, in one of several wordings."""
    mover = f"{scene.size} {scene.colour} {scene.shape}"
    verb = pick(rng, ("moves", "goes", "travels"))
    direction, adverb = scene.direction, ADVERBS[scene.speed]
    way = f"{direction} {adverb}" if rng.random() < 0.5 else f"{adverb} {direction}"
    event = pick(rng, EVENT_CLAUSES[scene.event])
    place = f"a {scene.background} background"
    forms = f"A {mover} {verb} {way} on {place} {event}.", f"On {place}, a {mover} {verb} {way} {event}."
    first = pick(rng, (*forms, f"A {mover} {verb} {way} {event}, on {place}."))
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
    return f"A {scene.colour} {scene.shape} {verb} {scene.direction} {pick(rng, EVENT_CLAUSES[scene.event])}."


def tag_groups(scene: Scene) -> list[str]:
    """The tags in groups, one for each attribute or object."""
    corner = "empty corners"
    if scene.corner is not None:
        corner = f"corner {scene.corner.colour} {scene.corner.shape} {scene.corner.corner}"
    what, way, event = f"{scene.colour} {scene.shape}", WARDS[scene.direction], EVENT_TAGS[scene.event]
    return [what, scene.size, way, scene.speed, event, f"{scene.background} background", corner]


def tags(scene: Scene) -> str:
    """All attributes as words in a fixed order."""
    return " ".join(tag_groups(scene))


def question(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A question about one attribute and its answer, a full sentence."""
    pairs = [
        ("What is the colour of the moving shape?", f"The moving shape is {scene.colour}."),
        ("What is the moving shape?", f"The moving shape is a {scene.shape}."),
        ("Where does the shape go first?", f"The shape goes {scene.direction} first."),
        ("Is the moving shape small or large?", f"The moving shape is {scene.size}."),
        ("Is the moving shape slow or fast?", f"The moving shape is {scene.speed}."),
        ("What is the colour of the background?", f"The background is {scene.background}."),
        ("What happens to the moving shape?", f"It {EVENT_CLAUSES[scene.event][0].removeprefix('and ')}."),
    ]
    if scene.corner is None:
        pairs.append(("What is in the corner?", "The corners are empty."))
    else:
        still = f"{scene.corner.colour} {scene.corner.shape}"
        pairs.append(("What is in the corner?", f"A still {still}."))
        pairs.append((f"Where is the still {still}?", f"In the {scene.corner.corner} corner."))
    return pairs[int(rng.integers(len(pairs)))]


def statement(scene: Scene, rng: np.random.Generator, *, true: bool) -> str:
    """A caption or a summary, of the scene if `true`, otherwise of one that differs in one attribute."""
    dense = rng.random(2)[0] < 0.5  # the second number keeps the clips of a seed what they were
    other = scene if true else vary(scene, rng, None if dense else SUMMARY_ATTRIBUTES)
    return caption(other, rng) if dense else summary(other, rng)
