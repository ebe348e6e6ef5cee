"""The paper's table on the bundled model: what its rows are, what is fitted on what, on a few clips and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vidembed import VideoReranker
from vidembed.analysis import LayerAnalysis
from vidembed.evaluation.metrics import bootstrap_interval, ranks
from vidembed.reproduce import as_text, write
from vidembed.reproduce import method as reproduce
from vidembed.reproduce.method import Row, Scores
from vidembed.scoring import dual_softmax, fit_temperature
from vidembed.shapes import CHECKPOINT

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def measured() -> tuple[dict[str, Any], LayerAnalysis]:
    return reproduce.measure(clips=10, layer_clips=24, fit_clips=8, seed=3)


def test_every_row_and_column(measured: tuple[dict[str, Any], LayerAnalysis]) -> None:
    result, analysis = measured
    assert set(result["queries"]) == set(analysis.curves) == set(result["layers"]) == {"captions", "summaries"}
    assert result["layer"] == analysis.chosen_layer
    own = result["without_labels"]
    assert own["described"] == 24
    assert 12 <= own["used"] <= 24
    assert own["layer"] in {-1, *range(1, 11)}
    for found in result["queries"].values():
        assert [row["name"] for row in found["table"]] == [row.name for row in reproduce.ROWS]
        for row in found["table"]:
            for column in reproduce.COLUMNS:
                r1, r5, r10 = (row[column][f"R@{k}"] for k in (1, 5, 10))
                low, high = row[column]["interval"]
                assert 0 <= low <= r1 <= high <= 100
                assert r1 <= r5 <= r10 == 100  # of ten clips
        for column in reproduce.COLUMNS:
            last = found["table"][-1][column]["R@1"]
            for row in found["table"][:-1]:
                gain, low, high = found["gains"][column][row["name"]]
                assert gain == pytest.approx(last - row[column]["R@1"], abs=0.11)
                assert low <= gain <= high


def test_text_and_files(measured: tuple[dict[str, Any], LayerAnalysis], tmp_path: Path) -> None:
    result, analysis = measured
    files = write(result, analysis, tmp_path / "out")
    assert {file.name for file in files} == {"shapes.json", "shapes.md", "layers.png"}
    assert json.loads((tmp_path / "out" / "shapes.json").read_text()) == result
    text = (tmp_path / "out" / "shapes.md").read_text()
    assert text.count("| O, final layer + fusion | 10 |") == 2
    assert "| O, final layer | 48.4 | 52.5 | 54.9 |" in text  # the paper's


def test_the_adapter_changes_the_embedding_and_nothing_of_the_head(tmp_path: Path) -> None:
    reranker = VideoReranker(CHECKPOINT, device="cpu")
    before = reranker.encoder(layer=-1, prefix=None)
    after = reproduce.aligned_encoder(reproduce.ALIGNED, tmp_path, "cpu")
    text = {"text": "a red square moves down"}
    assert float(before.encode(text) @ after.encode(text)) < 0.99
    assert before.checkpoint_config.layer == after.checkpoint_config.layer == -1
    weights = dict(after[0].model.named_parameters())
    tower = {name: value for name, value in before[0].model.named_parameters() if "visual" in name}
    assert tower
    assert all(np.array_equal(value.detach(), weights[name].detach()) for name, value in tower.items())


@pytest.mark.parametrize("direction", ["t2v", "v2t"])
def test_rows_by_hand(direction: str) -> None:
    rng = np.random.default_rng(0)
    right = np.eye(30)

    def world() -> Scores:
        first, odds = 0.5 + 0.1 * right + 0.1 * rng.normal(size=(30, 30)), 4 * right + rng.normal(size=(30, 30))
        return Scores(first, odds, odds, right > 0)

    one, other = world(), world()
    fusion = reproduce.fit_fusion([other])
    plain, deep, shallow = (
        {name: rank[direction + name] for name in ("", "_dual")}
        for rank in (
            reproduce.rank(Row("", "final", mode, k), one, other, fusion)
            for mode, k in ((None, 0), ("yes", 30), ("yes", 3))
        )
    )
    first = one.first if direction == "t2v" else one.first.T
    known = other.first if direction == "t2v" else other.first.T
    assert plain[""].tolist() == ranks(first, right > 0).tolist()
    # the temperature comes from the other clips alone
    temperature = fit_temperature(known, right > 0).temperature
    assert plain["_dual"].tolist() == ranks(dual_softmax(first, temperature=temperature), right > 0).tolist()
    # the head knows better, among K candidates and no more
    assert (deep[""] == 1).mean() > (plain[""] == 1).mean() + 0.2
    assert (shallow[""] <= 3).tolist() == (plain[""] <= 3).tolist()


def test_queries_that_are_true_of_the_same_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    pairs = np.repeat(np.arange(15), 2)
    right = pairs[:, None] == pairs  # (30, 30), two clips a text

    def world() -> Scores:
        first, odds = right + rng.normal(size=(30, 30)), 4 * right + rng.normal(size=(30, 30))
        return Scores(first, odds, odds, right)

    one, other = world(), world()
    stages = dict.fromkeys(("final", "own", "chosen", "aligned"))
    fusions = dict.fromkeys(stages, reproduce.fit_fusion([other]))
    found = reproduce.table(dict.fromkeys(stages, one), dict.fromkeys(stages, other), fusions)
    assert found["distinct"] == 15
    expected = bootstrap_interval(ranks(one.first, right) == 1, seed=0, groups=pairs)
    assert found["table"][0]["t2v"]["interval"] == [round(100 * one, 1) for one in (expected.low, expected.high)]


def test_too_few_clips() -> None:
    with pytest.raises(ValueError, match="fit_clips=9: expected from 4 to layer_clips=8"):
        reproduce.measure(clips=4, layer_clips=8, fit_clips=9)


def test_the_kept_figures_are_in_the_docs() -> None:
    kept = json.loads((DOCS / "method" / "shapes.json").read_text())
    page = (DOCS / "method.md").read_text().replace("**", "")
    for line in as_text(kept).splitlines():
        if line.startswith("| ") and "---" not in line:
            assert line in page
    for found in kept["layers"].values():
        for value in found["margin"].values():
            assert f"{value[0]:+.1f} ({value[1]:.1f} to {value[2]:.1f})" in page
    seeds = json.loads((reproduce.ALIGNED / "figures.json").read_text())
    for one in seeds["recall_at_1"].values():
        assert " / ".join(f"{value:.1f}" for value in one["after"]) in page
