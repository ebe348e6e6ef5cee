from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tools.shapes import prompts
from tools.shapes.answers import read
from tools.shapes.card import write_card
from tools.shapes.evaluate import abilities, by_layer, choose_layer, recalls
from tools.shapes.train import Run

from vidembed.shapes import language, sample_clips, world


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


def test_every_clip_that_a_text_is_true_of_counts():
    states = torch.eye(3)[None]
    swapped = states[:, [1, 0, 2]]  # the first two texts prefer each other's clip
    assert by_layer(states, swapped)[0]["t2v"]["R@1"] == pytest.approx(33.33)
    right = np.eye(3, dtype=bool)
    right[:2, :2] = True
    found = by_layer(states, swapped, right)[0]
    assert found["t2v"]["R@1"] == found["v2t"]["R@1"] == 100.0


def test_abilities_of_a_model_that_answers_from_the_descriptions():
    """A stand-in reader: right captions and tags, summaries of another form, and a judge blind to colours."""
    written = [(Path(record.name), record) for record in sample_clips(30, "train", seed=3)]
    scenes = {path: record.scene for path, record in written}
    known = {(path, "\n" + asked): answer for path, record in written[:15] for asked, answer in record.questions}
    rng = np.random.default_rng(0)

    class Told:
        def answer(self, paths, texts):
            write = language.tags if "few words" in texts[0] else lambda scene: language.caption(scene, rng)
            if "brief" in texts[0]:
                write = lambda scene: language.summary(replace(scene, event="stop"), rng)  # noqa: E731
            asked = list(zip(paths, texts, strict=True))
            return [known.get(one, write(scenes[one[0]])) for one in asked]

        def p_yes(self, paths, sentences):
            pairs = zip((scenes[path] for path in paths), sentences, strict=True)
            blind = [any(_is_true(replace(s, colour=one), sentence) for one in world.COLOURS) for s, sentence in pairs]
            return torch.tensor(blind).float()

    found = abilities(Told(), written)
    assert found["questions"] == 0.5
    answers = found["answers"]
    assert answers["Describe above video in detail:"] == {"well_formed": 1.0, "attributes": 1.0, "all": 1.0}
    assert answers["Summarize above video in a few words:"]["all"] == 1.0
    assert answers["Summarize above video in one sentence:"] == {"well_formed": 0.0, "attributes": 0.0, "all": 0.0}
    brief, stops = answers["Describe above video in brief:"], np.mean([s.event == "stop" for s in scenes.values()])
    assert brief["well_formed"] == 1.0
    assert brief["all"] == pytest.approx(stops, abs=1e-3)
    assert brief["attributes"] == pytest.approx((3 + stops) / 4, abs=1e-3)
    assert {match["true"] for match in found["match"].values()} == {1.0}
    assert found["by_attribute"].pop("colour") == 0.0
    assert set(found["by_attribute"].values()) == {1.0}


def _is_true(scene, sentence):
    told = read(sentence, "caption") or read(sentence, "summary")
    if told is None:
        return sentence in {prompts.claim(scene, name) for name in scene.attributes}
    return all(scene.attributes[name] == value for name, value in told.items())


def test_the_first_of_equal_layers_is_chosen():
    def entry(layer, t2v, v2t):
        return {"layer": layer, "t2v": {"R@1": t2v}, "v2t": {"R@1": v2t}}

    assert choose_layer([entry(1, 10, 90), entry(2, 80, 20), entry(3, 60, 60), entry(4, 60, 60)]) == 3
    captions, summaries = [entry(4, 95, 95), entry(5, 94, 94)], [entry(4, 40, 40), entry(5, 50, 50)]
    assert choose_layer(captions, summaries) == 5


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
        "abilities": {"answers": {"Describe it in brief:": {"well_formed": 0.98, "attributes": 0.9, "all": 0.8}}},
    }
    run = json.loads(json.dumps({"seed": 4, "steps": Run().steps, "hidden": 128}))
    card = write_card(figures, run, parameters=2_900_000, seconds=3600)
    assert "| **2** | **20.0** | **90.0** | **97.5** | **61.5** |" in card
    assert "| 3 | 30.0 |" in card
    assert "layer 2 of 3" in card
    assert "| `Describe it in brief:` | 0.98 | 0.90 | 0.80 |" in card
    assert "60 minutes" in card
    assert "{" not in card.replace("${", "")


def test_recalls_count_ties_against_the_query():
    assert recalls(torch.eye(12))["R@1"] == 100.0
    assert recalls(torch.ones(12, 12)) == {"R@1": 0.0, "R@5": 0.0, "R@10": 0.0}
    shifted = torch.eye(12).roll(1, 0) * 2 + torch.eye(12)  # one item above the right one
    assert recalls(shifted) == {"R@1": 0.0, "R@5": 100.0, "R@10": 100.0}
