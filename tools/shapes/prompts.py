"""Texts of the training: instructions, keywords and statements with a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vidembed.shapes import world
from vidembed.shapes.language import (
    ADVERBS,
    EVENT_CLAUSES,
    EVENT_TAGS,
    SUMMARY_ATTRIBUTES,
    WARDS,
    caption,
    pick,
    summary,
    tag_groups,
)
from vidembed.shapes.world import Scene, vary

EXPLAIN_QUESTION: Final = "Is the sentence right? Answer in detail."
"""The question of the reranker, answered with a correction where the sentence is wrong."""

ONE_WORD_INSTRUCTION: Final = "Summarize above {kind} in one word:"
"""The prompt that embeddings are read from (VidVec, arXiv 2602.08099, section 3.2); never trained."""
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


def keywords(scene: Scene, rng: np.random.Generator) -> str:
    """The tags with their groups in a random order."""
    groups = tag_groups(scene)
    return " ".join(groups[i] for i in rng.permutation(len(groups)))


def claim(scene: Scene, attribute: str) -> str:
    """A sentence about one attribute, named as in ``Scene.attributes``."""
    value = scene.attributes[attribute]
    if attribute.startswith("corner") and scene.corner is None:
        return "The corners are empty."
    if attribute == "event":
        return f"It {EVENT_CLAUSES[value][0].removeprefix('and ')}."
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
    """A sentence about a scene, right or wrong; at the defaults that of ``vidembed.shapes.language.statement``.

    Args:
        scene: The scene.
        rng: Source of randomness.
        true: Whether the sentence is right.
        hard: Share of wrong sentences that differ in one attribute; the others differ in two.
        claims: Share of sentences that are about one attribute only; the others are captions and summaries.
    """
    form, easy = rng.random(), rng.random() >= hard
    one = form < claims
    dense = not one and form < (1 + claims) / 2
    among = None if one or dense else SUMMARY_ATTRIBUTES
    other = scene if true else vary(scene, rng, among)
    changed = [name for name, value in other.attributes.items() if value != scene.attributes[name]]
    verdict = "Yes." if true else f"No. {claim(scene, changed[0])}"
    if one:
        known = tuple(name for name in scene.attributes if scene.corner is not None or not name.startswith("corner"))
        return Statement(claim(other, pick(rng, known) if true else changed[0]), true, verdict)
    if easy and not true:
        rest = tuple(n for n in scene.attributes if n not in changed and (among is None or n in among))
        other = vary(other, rng, rest)
    return Statement(caption(other, rng) if dense else summary(other, rng), true, verdict)


def lexicon() -> list[str]:
    """Every content word, so that the tokenizer can keep each as a single token."""
    words = {*world.SHAPES, *world.COLOURS, *world.DIRECTIONS, *world.SIZES, *world.SPEEDS, *world.BACKGROUNDS}
    words |= {*EVENT_TAGS.values(), *WARDS.values(), *ADVERBS.values(), *world.EVENTS}
    words |= {word for corner in world.CORNERS for word in corner.split()}
    words |= {"yes", "no", "video", "image", "sentence", "word", "words", "one", "summarize", "describe"}
    return sorted(words)
