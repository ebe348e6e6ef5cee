"""Search by the model's own captions: what is measured, on a few clips, and how captions are made worse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidembed.reproduce import captions
from vidembed.reproduce.report import as_text
from vidembed.shapes.clips import sample_clips

RECORDS = sample_clips(40, "test", 5)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return captions.measure_captions(layer=5, clips=8, fit_clips=10, seed=3)


def test_every_stage_kind_and_share(measured: dict[str, Any]) -> None:
    assert [one["share"] for one in measured["noise"]] == list(captions.NOISE)
    for one in measured["noise"]:
        for kind in ("captions", "summaries"):
            rows = one["queries"][kind]
            assert [row["name"] for row in rows] == list(captions.STAGES)
            for row in rows:
                for way in ("t2v", "v2t"):
                    r1, r5, r10 = (row[way][f"R@{k}"] for k in (1, 5, 10))
                    low, high = row[way]["interval"]
                    assert 0 <= low <= r1 <= high <= 100
                    assert r1 <= r5 <= r10 == 100  # of eight clips


def test_video_vectors_do_not_depend_on_captions(measured: dict[str, Any]) -> None:
    first = [one["queries"]["captions"][0] for one in measured["noise"]]
    assert first[0]["name"] == "video"
    assert all(row == first[0] for row in first)


@given(record=st.sampled_from(RECORDS), seed=st.integers(0, 1000))
def test_words_are_made_wrong_within_their_kind(record: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert captions.worsened(record.caption, 0.0, rng) == record.caption
    worse = captions.worsened(record.caption, 1.0, rng)
    assert f"{record.scene.size} {record.scene.colour}" not in worse
    assert f"{record.scene.background} background" not in worse
    assert worse.count(".") == record.caption.count(".")


def test_the_share_of_wrong_words_is_the_one_asked_for() -> None:
    rng = np.random.default_rng(0)
    records = sample_clips(300, "test", 1)
    wrong = [f"{one.scene.background} background" not in captions.worsened(one.caption, 0.2, rng) for one in records]
    assert 0.12 < np.mean(wrong) < 0.28


def test_bm25_by_hand() -> None:
    found = captions.bm25(["red ring", "red red", "unknown"], ["a red ring", "a red square", "the blue ring moves up"])
    word = (
        np.log(1 + 1.5 / 2.5) * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 2 / 3))
    )  # in two of three texts, of two words of three
    assert found[0, :2].tolist() == pytest.approx([2 * word, word])
    assert found[1, 0] == pytest.approx(2 * word)  # a word that is asked for twice counts twice
    assert 0 < found[0, 2] < word  # a longer text
    assert not found[2].any()


def test_figures_are_shown(measured: dict[str, Any]) -> None:
    own = {"used": 2, "described": 2, "kind": "short", "layer": 5}
    rest = {"layer_clips": 2, "layer": 5, "without_labels": own, "layers": {}, "queries": {}, "clips": 8}
    lines = as_text({**rest, "captions": measured}).splitlines()
    assert any(line.startswith("| fitted weights |") for line in lines)
    assert "| first stage | 0% | 10% | 20% | 30% | 50% |" in lines
