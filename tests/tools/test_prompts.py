from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.shapes import prompts
from tools.shapes.answers import read

from vidembed.shapes import language
from vidembed.shapes.world import HELD_OUT, sample_scene

seeds = st.integers(0, 2**32 - 1)


@given(seeds)
@settings(max_examples=50)
def test_tags_and_keywords_hold_the_same_words(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "train")
    assert sorted(language.tags(scene).split()) == sorted(prompts.keywords(scene, rng).split())


@given(seeds, st.sampled_from(prompts.FORMS), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=200)
def test_statements_of_a_pair_are_worded_alike_and_one_is_right(seed, form, hard):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "train")
    right, wrong = prompts.statement_pair(scene, rng, form, hard=hard)
    assert (right.true, right.verdict) == (True, "Yes.")
    assert not wrong.true
    if form == "claim":
        assert right.text == prompts.claim(scene, right.about) != wrong.text
        known = {right.about}
    else:
        told, other = read(right.text, form), read(wrong.text, form)
        assert told is not None
        assert other is not None
        assert told == {name: scene.attributes[name] for name in told}
        known = {name for name in told if told[name] != other[name]}
        if "event" not in known:  # whose clauses are of different lengths
            words = zip(right.text.split(), wrong.text.split(), strict=True)
            assert sum(one != two for one, two in words) <= 2 * len(known)
    assert right.about == wrong.about
    assert wrong.about in known
    assert len(known) == 1 if hard == 1 or form == "claim" else len(known) <= 2
    assert wrong.verdict == f"No. {prompts.claim(scene, wrong.about)}"


@given(seeds, st.sampled_from(["caption", "summary"]))
@settings(max_examples=200)
def test_no_statement_tells_of_a_scene_held_out_of_training(seed, form):
    rng = np.random.default_rng(seed)
    for _ in range(10):
        for statement in prompts.statement_pair(sample_scene(rng, "train"), rng, form, hard=0.5):
            told = read(statement.text, form)
            assert told is not None
            assert (told["shape"], told["colour"], told["direction"]) not in HELD_OUT
