"""Alignment of the bundled model: its pairs of texts, and how retrieval is measured before and after."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tools.shapes.align import Vectors, measure, mistaken, text_pairs

from vidembed.shapes import sample_clips


def test_pairs_of_summaries_and_of_other_wordings():
    pairs, control = text_pairs(6, 3), text_pairs(6, 3, "caption")
    assert text_pairs(6, 3, "caption") == control
    assert [pair.dense for pair in pairs] == [pair.dense for pair in control]
    assert all(len(pair.summary) < len(pair.dense) for pair in pairs)
    assert any(pair.summary != pair.dense for pair in control)
    assert {sum(word in pair.summary for word in ("background", "corner")) for pair in control} == {2}


def test_measures():
    records = sample_clips(4)
    eye = np.eye(4)
    vectors = Vectors([(Path("x"), record) for record in records], eye, eye, eye[[1, 0, 2, 3]])
    figures = measure(vectors)
    assert figures["captions"]["t2v"]["R@1"] == 100.0
    assert figures["summaries"]["t2v"]["R@1"] == 50.0
    assert set(mistaken(vectors).values()) == {0.0}
    swapped = Vectors(vectors.written, eye, eye[[1, 0, 2, 3]], eye)
    first, second = records[0].attributes, records[1].attributes
    expected = {name: 50.0 if first[name] != second[name] else 0.0 for name in first}
    assert mistaken(swapped) == expected
