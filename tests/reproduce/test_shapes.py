"""The paper's table on the bundled model: what its rows are, what is fitted on what, on a few clips and by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidembed.evaluation.metrics import ranks
from vidembed.reproduce import rerank, shapes
from vidembed.scoring import dual_softmax, fit_temperature
from vidembed.shapes import CHECKPOINT
from vidembed.yes_no import Answers

DOCS = Path(__file__).parents[2] / "docs"
COLUMNS = ("t2v", "t2v_dual", "v2t", "v2t_dual")


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, Any], dict[str, Any]]:
    return shapes.measure(clips=10, layer_clips=12, fit_clips=8, seed=3)


def test_every_row_and_column(measured: tuple[dict[str, Any], dict[str, Any]]) -> None:
    result, curves = measured
    assert set(result["queries"]) == set(curves) == {"captions", "summaries"}
    assert result["layer"] == curves["captions"].chosen_layer
    for found in result["queries"].values():
        assert [row["name"] for row in found["table"]] == [row.name for row in shapes.ROWS]
        for row in found["table"]:
            for column in COLUMNS:
                r1, r5, r10 = (row[column][f"R@{k}"] for k in (1, 5, 10))
                low, high = row[column]["interval"]
                assert 0 <= low <= r1 <= high <= 100
                assert r1 <= r5 <= r10 == 100  # of ten clips
        for column in COLUMNS:
            last = found["table"][-1][column]["R@1"]
            for row in found["table"][:-1]:
                gain, low, high = found["gains"][column][row["name"]]
                assert gain == pytest.approx(last - row[column]["R@1"], abs=0.11)
                assert low <= gain <= high


def test_text_and_files(measured: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    result, curves = measured
    files = shapes.write(result, curves, tmp_path / "out")
    assert {file.name for file in files} == {"shapes.json", "shapes.md", "layers-captions.png", "layers-summaries.png"}
    assert json.loads((tmp_path / "out" / "shapes.json").read_text()) == result
    text = (tmp_path / "out" / "shapes.md").read_text()
    assert text.count("| O, final layer + fusion | 10 |") == 2
    assert "| O, final layer | 48.4 | 52.5 | 54.9 |" in text  # the paper's


def test_the_adapter_changes_the_embedding_and_nothing_of_the_head(tmp_path: Path) -> None:
    reranker = rerank.VideoReranker(CHECKPOINT, device="cpu")
    before = reranker.encoder(layer=-1, prefix=None)
    after = shapes.aligned_encoder(shapes.ALIGNED, tmp_path, "cpu")
    text = {"text": "a red square moves down"}
    assert float(before.encode(text) @ after.encode(text)) < 0.99
    assert before.checkpoint_config.layer == after.checkpoint_config.layer == -1
    weights = dict(after[0].model.named_parameters())
    tower = {name: value for name, value in before[0].model.named_parameters() if "visual" in name}
    assert tower
    assert all(np.array_equal(value.detach(), weights[name].detach()) for name, value in tower.items())


def scores(first: np.ndarray, odds: np.ndarray) -> rerank.Scores:
    flat = odds.ravel()
    priors = np.random.default_rng(1).normal(size=(2, flat.size))
    return rerank.Scores(first, Answers(flat, flat, *priors), np.eye(len(first)) > 0)


@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_rows_by_hand(direction: str) -> None:
    rng = np.random.default_rng(0)
    right = np.eye(30)

    def world() -> rerank.Scores:
        return scores(0.5 + 0.1 * right + 0.1 * rng.normal(size=(30, 30)), 4 * right + rng.normal(size=(30, 30)))

    one, other = world(), world()
    fit = rerank.fit_on({"captions": other})
    plain = shapes.rank(shapes.Row("", "final"), direction, one, other, fit)
    first = one.first if direction == "t2v" else one.first.T
    known = other.first if direction == "t2v" else other.first.T
    assert plain.raw.tolist() == ranks(first, np.eye(30) > 0).tolist()
    # the temperature comes from the other clips alone
    temperature = fit_temperature(known, np.eye(30) > 0).temperature
    assert plain.dual.tolist() == ranks(dual_softmax(first, temperature=temperature), np.eye(30) > 0).tolist()
    again = shapes.rank(shapes.Row("", "final"), direction, replace(one, positives=one.positives), other, fit)
    assert again.dual.tolist() == plain.dual.tolist()
    # the head knows better, among K candidates and no more
    deep = shapes.rank(shapes.Row("", "final", "yes", 30), direction, one, other, fit)
    shallow = shapes.rank(shapes.Row("", "final", "yes", 3), direction, one, other, fit)
    assert (deep.raw == 1).mean() > (plain.raw == 1).mean() + 0.2
    assert (shallow.raw <= 3).tolist() == (plain.raw <= 3).tolist()
    assert sorted(set(plain.groups.tolist())) == list(range(30))


def test_too_few_clips() -> None:
    with pytest.raises(ValueError, match="fit_clips=9: expected from 4 to layer_clips=8"):
        shapes.measure(clips=4, layer_clips=8, fit_clips=9)


def test_the_kept_figures_are_in_the_docs() -> None:
    kept = json.loads((DOCS / "method" / "shapes.json").read_text())
    page = (DOCS / "method.md").read_text().replace("**", "")
    for line in shapes.as_text(kept).splitlines():
        if line.startswith("| ") and "---" not in line:
            assert line in page
    for found in kept["layers"].values():
        for value in found["margin"].values():
            assert f"{value[0]:+.1f} ({value[1]:.1f} to {value[2]:.1f})" in page
    seeds = json.loads((shapes.ALIGNED / "figures.json").read_text())
    for one in seeds["recall_at_1"].values():
        assert " / ".join(f"{value:.1f}" for value in one["after"]) in page
