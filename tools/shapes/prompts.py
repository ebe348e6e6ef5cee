"""Texts of the training: instructions, keywords and statements with a verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from vidembed.shapes import world
from vidembed.shapes.language import (
    ADVERBS,
    EVENT_CLAUSES,
    EVENT_TAGS,
    SUMMARY_ATTRIBUTES,
    WARDS,
    caption,
    summary,
    tag_groups,
)
from vidembed.shapes.world import Scene, split_of, vary

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
        about: The attribute in which it differs from the other one of its pair.
    """

    text: str
    true: bool
    verdict: str
    about: str


Form = Literal["claim", "caption", "summary"]
FORMS: Final[tuple[Form, ...]] = ("claim", "caption", "summary")


def statement_pair(
    scene: Scene, rng: np.random.Generator, form: Form, *, hard: float = 1.0
) -> tuple[Statement, Statement]:
    """A right and a wrong sentence about a scene, worded alike.

    About a scene of the training split neither names a (shape, colour, direction) that is held out of training: such a
    sentence would be wrong whenever training meets it.

    Args:
        scene: The scene.
        rng: Source of randomness.
        form: A claim about one attribute, a caption or a summary.
        hard: Share of wrong captions and summaries that differ in one attribute; the others differ in two.
    """
    among = SUMMARY_ATTRIBUTES if form == "summary" else tuple(scene.attributes)
    easy, wording = rng.random() >= hard, int(rng.integers(2**32))
    other = _vary_within(scene, rng, among)
    about = next(name for name, value in other.attributes.items() if value != scene.attributes[name])
    if easy and form != "claim":
        other = _vary_within(other, rng, tuple(name for name in among if name != about))

    def say(told: Scene) -> str:
        if form == "claim":
            return claim(told, about)
        return (caption if form == "caption" else summary)(told, np.random.default_rng(wording))

    right = Statement(say(scene), true=True, verdict="Yes.", about=about)
    return right, Statement(say(other), true=False, verdict=f"No. {claim(scene, about)}", about=about)


def _vary_within(scene: Scene, rng: np.random.Generator, among: tuple[str, ...]) -> Scene:
    while split_of(other := vary(scene, rng, among)) == "test" and split_of(scene) == "train":
        pass
    return other


def lexicon() -> list[str]:
    """Every content word, so that the tokenizer can keep each as a single token."""
    words = {*world.SHAPES, *world.COLOURS, *world.DIRECTIONS, *world.SIZES, *world.SPEEDS, *world.BACKGROUNDS}
    words |= {*EVENT_TAGS.values(), *WARDS.values(), *ADVERBS.values(), *world.EVENTS}
    words |= {word for corner in world.CORNERS for word in corner.split()}
    words |= {"yes", "no", "video", "image", "sentence", "word", "words", "one", "summarize", "describe"}
    return sorted(words)
