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
    assert any(line.startswith("| fitted weights, fused | ") for line in lines)
    assert "| weight of the caption | 0% | 10% | 20% | 30% | 50% |" in lines


def test_reranked_first_stages(measured: dict[str, Any]) -> None:
    assert measured["reranked"]["k"] == 10
    for kind in ("captions", "summaries"):
        found = measured["reranked"]["queries"][kind]
        rows = {row["name"]: row["t2v"] for row in found["table"]}
        assert list(rows) == [row.name for row in captions.RERANKINGS]
        for row in rows.values():
            low, high = row["interval"]
            assert 0 <= low <= row["R@1"] <= high <= 100
            assert row["R@1"] <= row["R@5"] <= row["R@10"]
        last = rows["fitted weights, fused"]["R@1"]
        before = {one["name"]: one["t2v"]["R@1"] for one in measured["noise"][0]["queries"][kind]}
        others = {name: row["R@1"] for name, row in rows.items()} | {"fitted weights": before["fitted weights"]}
        for name, (gain, low, high) in found["gains"].items():
            assert gain == pytest.approx(last - others[name], abs=0.11)
            assert low <= gain <= high


def test_mixed_vectors_at_both_ends_are_those_of_videos_and_of_captions(measured: dict[str, Any]) -> None:
    for one in measured["noise"]:
        for kind in ("captions", "summaries"):
            stages = {row["name"]: row["t2v"]["R@1"] for row in one["queries"][kind]}
            mixed = one["mixed"][kind]
            assert list(mixed) == ["0", "0.25", "0.5", "0.75", "1"]
            assert (mixed["0"], mixed["1"]) == (stages["video"], stages["caption"])


def test_fusions_are_fitted_on_the_first_candidates_only() -> None:
    rng = np.random.default_rng(0)
    right = np.eye(30) > 0
    odds, scores = 2 * right + rng.normal(size=(30, 30)), 2 * right + rng.normal(size=(30, 30))
    fusion = captions.fit_fusion([(odds, scores, right)])
    outside = np.argsort(np.argsort(-scores, axis=1), axis=1) >= 10
    assert captions.fit_fusion([(np.where(outside, np.nan, odds), scores, right)]) == fusion
