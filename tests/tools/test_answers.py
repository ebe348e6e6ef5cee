from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.shapes.answers import read

from vidembed.shapes import language
from vidembed.shapes.world import sample_scene


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=300)
def test_what_the_world_writes_is_read_back(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "train")
    assert read(language.caption(scene, rng), "caption") == scene.attributes
    assert read(language.tags(scene), "tags") == scene.attributes
    short = read(language.summary(scene, rng), "summary")
    assert short == {name: scene.attributes[name] for name in language.SUMMARY_ATTRIBUTES}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "A red ring moves up.",
        "A red ring moves up and then stops",
        "A red ring moves up and then stops. A red ring moves up and then stops.",
        "A large red ring moves up slowly on a black background and then stops. The corners are empty.",
        "red ring large upward slow stops black background empty corners",
    ],
)
def test_an_answer_of_another_form_is_no_summary(answer):
    assert read(answer, "summary") is None
