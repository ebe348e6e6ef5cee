from __future__ import annotations

import json

import torch
from tools.shapes.card import write_card
from tools.shapes.evaluate import by_layer, choose_layer, recalls
from tools.shapes.train import Run


def test_recall_is_measured_by_layer_and_direction():
    torch.manual_seed(0)
    good = torch.randn(8, 16)
    poor = torch.randn(8, 16)
    layers = by_layer(torch.stack([poor, good * 3]), torch.stack([good, good + 0.01]))
    assert [entry["layer"] for entry in layers] == [1, 2]
    assert layers[1]["t2v"]["R@1"] == layers[1]["v2t"]["R@1"] == 100.0  # cosine: the scale does not matter
    assert layers[0]["t2v"]["R@1"] < 60


def test_directions_are_not_mixed_up():
    # every text prefers clip 0; each clip prefers its own text
    video = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])
    text = torch.tensor([[[1.0, 0.1], [0.9, 1.0]]])
    found = by_layer(video, text)[0]
    assert found["t2v"]["R@1"] == 50.0
    assert found["v2t"]["R@1"] == 50.0
    assert by_layer(text, video)[0]["t2v"] == found["v2t"]


def test_the_first_of_equal_layers_is_chosen():
    def entry(layer, t2v, v2t):
        return {"layer": layer, "t2v": {"R@1": t2v}, "v2t": {"R@1": v2t}}

    assert choose_layer([entry(1, 10, 90), entry(2, 80, 20), entry(3, 60, 60), entry(4, 60, 60)]) == 3


def test_the_card_tells_the_figures():
    recall = {"R@1": 61.5, "R@5": 90.0, "R@10": 97.5}
    layers = [{"layer": n, "t2v": recall | {"R@1": 10.0 * n}, "v2t": recall} for n in (1, 2, 3)]
    figures = {
        "clips": 40,
        "layer_clips": 20,
        "chance_r1": 2.5,
        "best_layer": 2,
        "final_layer": 3,
        "layers": layers,
        "summary_layers": layers,
        "tags": {"colour": 0.97},
        "match": {"accuracy": 0.625, "right_above_wrong": 0.7},
    }
    run = json.loads(json.dumps({"seed": 4, "steps": Run().steps, "hidden": 128}))
    card = write_card(figures, run, parameters=2_900_000, seconds=3600)
    assert "| **2** | **20.0** | **90.0** | **97.5** | **61.5** |" in card
    assert "| 3 | 30.0 |" in card
    assert "layer 2 of 3" in card
    assert "60 minutes" in card
    assert "{" not in card.replace("${", "")


def test_recalls_count_ties_against_the_query():
    assert recalls(torch.eye(12))["R@1"] == 100.0
    assert recalls(torch.ones(12, 12)) == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0}
    shifted = torch.eye(12).roll(1, 0) * 2 + torch.eye(12)  # one item above the right one
    assert recalls(shifted) == {"R@1": 0.0, "R@5": 100.0, "R@10": 100.0}
