"""The table of reranking figures: what is fitted, what is counted, on a few clips."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tools.shapes import rerank

from vidembed.shapes import CHECKPOINT
from vidembed.yes_no import Answers


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return rerank.measure(clips=10, other_clips=12, seed=3)


def test_every_row_of_the_table(result: dict[str, Any]) -> None:
    for kind in ("captions", "summaries"):
        rows = result["queries"][kind]["table"]
        assert [(row["scores"], row["k"]) for row in rows] == [
            ("first stage", 0),
            *((name, k) for name in ("yes", "yes_no", "prior_corrected", "whole prior", "fused") for k in (10, 100)),
        ]
        for row in rows:
            for column in ("t2v", "t2v_dual", "v2t", "v2t_dual"):
                r1, r5, r10 = row[column].values()
                assert 0 <= r1 <= r5 <= r10 <= 100
        # ten clips: K of 10 and 100 ask about the same pairs
        assert [row["t2v"] for row in rows[1::2]] == [row["t2v"] for row in rows[2::2]]


def test_as_text_and_json(result: dict[str, Any]) -> None:
    text = rerank.as_text(json.loads(json.dumps(result)))
    assert text.count("| first stage |") == 2
    assert "Calibration error" in text
    assert "of the passes saved" in text


def scores(first: np.ndarray, odds: np.ndarray, positives: np.ndarray) -> rerank.Scores:
    flat = odds.ravel()
    return rerank.Scores(
        first, Answers(flat, flat, np.sin(np.arange(flat.size)), np.cos(np.arange(flat.size))), positives
    )


def test_fusion_leans_on_the_better_judge() -> None:
    rng = np.random.default_rng(0)
    right = np.eye(80, dtype=bool)

    def world() -> rerank.Scores:
        return scores(0.5 + 0.2 * right + 0.03 * rng.normal(size=right.shape), rng.normal(size=right.shape), right)

    known, measured = world(), world()
    fit = rerank.fit_on({"captions": known})
    for direction in rerank.DIRECTIONS:
        one, fused, _ = measured.oriented(direction, "fused", fit)
        assert (fused.argmax(1) == one.argmax(1)).mean() > 0.95


def test_the_kept_figures_are_of_the_bundled_model() -> None:
    kept = json.loads((CHECKPOINT.parent / "reranker" / "figures.json").read_text())
    figures = json.loads((CHECKPOINT / "figures.json").read_text())
    first = kept["queries"]["captions"]["table"][0]
    assert kept["layer"] == figures["best_layer"]
    assert first["t2v"]["R@1"] == figures["layers"][kept["layer"] - 1]["t2v"]["R@1"]
    docs = (Path(__file__).parents[2] / "docs" / "when-to-rerank.md").read_text()
    for kind in ("captions", "summaries"):
        for row in kept["queries"][kind]["table"]:
            for column in ("t2v", "t2v_dual", "v2t", "v2t_dual"):
                cell = " / ".join(f"{value:.1f}" for value in row[column].values())
                assert cell in docs.replace("**", "")
