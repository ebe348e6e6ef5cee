from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.shapes import prompts

from vidembed.shapes import language
from vidembed.shapes.world import sample_scene

seeds = st.integers(0, 2**32 - 1)


@given(seeds)
@settings(max_examples=50)
def test_tags_and_keywords_hold_the_same_words(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "train")
    assert sorted(language.tags(scene).split()) == sorted(prompts.keywords(scene, rng).split())


@given(seeds, st.booleans(), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 1.0]))
@settings(max_examples=200)
def test_statements_are_right_or_wrong_as_asked(seed, true, hard, claims):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "train")
    statement = prompts.statement(scene, rng, true=true, hard=hard, claims=claims)
    assert statement.true is true
    assert statement.verdict.startswith("Yes." if true else "No. ")
    if claims:  # a claim is one of the sentences about this scene exactly when it is right
        about = {prompts.claim(scene, name) for name in scene.attributes}
        assert (statement.text in about) is true
    if not true:  # the correction is about this scene, and differs from the statement
        correction = statement.verdict.removeprefix("No. ")
        assert correction in {prompts.claim(scene, name) for name in scene.attributes}
        assert correction != statement.text


@given(seeds, st.booleans())
@settings(max_examples=100)
def test_statements_without_claims_are_those_of_the_world(seed, true):
    scene = sample_scene(np.random.default_rng(seed), "train")
    one, two = (np.random.default_rng(seed) for _ in range(2))
    assert prompts.statement(scene, one, true=true).text == language.statement(scene, two, true=true)
    assert one.random() == two.random()
