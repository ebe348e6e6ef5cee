from __future__ import annotations

import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vidembed.shapes import language, sample_clips
from vidembed.shapes.world import sample_scene, vary

seeds = st.integers(0, 2**32 - 1)
EVENT_WORD = {
    "straight": "straight",
    "turn": "turns",
    "bounce": "bounces",
    "stop": "stops",
    "disappear": "disappears",
    "change": "changes",
}
SPEED_WORD = {"slow": "slowly", "fast": "quickly"}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


@given(seeds)
@settings(max_examples=100)
def test_captions_tell_every_attribute(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "train")
    told = words(language.caption(scene, rng))
    for name in ("shape", "colour", "size", "direction", "background"):
        assert getattr(scene, name) in told
    assert SPEED_WORD[scene.speed] in told
    assert EVENT_WORD[scene.event] in told
    if scene.corner is None:
        assert "still" not in told
    else:
        still = f"still {scene.corner.colour} {scene.corner.shape}"
        assert still in " ".join(told)
        assert f"{scene.corner.corner} corner" in " ".join(told)


@given(seeds)
@settings(max_examples=50)
def test_summaries_tell_what_they_promise_and_no_more(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "train")
    told = words(language.summary(scene, rng))
    assert {scene.shape, scene.colour, scene.direction, EVENT_WORD[scene.event]} <= set(told)
    assert not {scene.size, scene.background, SPEED_WORD[scene.speed]} & set(told)


@given(seeds)
@settings(max_examples=100)
def test_different_attributes_give_different_tags(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "train")
    assert language.tags(vary(scene, rng)) != language.tags(scene)


def test_wrong_sentences_of_records_differ_in_one_attribute():
    for record in sample_clips(60, "test", seed=11):
        said = set(words(record.wrong))
        known = {"shape": record.scene.shape, "colour": record.scene.colour, "direction": record.scene.direction}
        missing = [name for name, value in known.items() if value not in said]
        missing += [] if EVENT_WORD[record.scene.event] in said else ["event"]
        assert len(missing) <= 1
        assert set(words(record.right)) >= {*known.values(), EVENT_WORD[record.scene.event]}


@given(seeds)
@settings(max_examples=50)
def test_answers_name_the_attribute(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "train")
    asked, answer = language.question(scene, rng)
    assert asked.endswith("?")
    values = {*scene.attributes.values(), EVENT_WORD[scene.event], "empty"}
    assert set(words(answer)) & {word for value in values for word in value.split()}
