from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidembed.shapes import world
from vidembed.shapes.world import HELD_OUT, Scene, render, sample_scene, sample_times, split_of, vary

seeds = st.integers(0, 2**32 - 1)
splits = st.sampled_from(["train", "test"])
BASE = Scene("square", "red", "right", "large", "fast", "black", "straight", None, seed=3)


def centroid(frame: np.ndarray) -> tuple[float, float]:
    mask = frame.astype(int).max(-1) > 60
    y, x = np.nonzero(mask)
    return float(x.mean()), float(y.mean())


@given(seeds, splits)
@settings(max_examples=50)
def test_same_seed_gives_the_same_scene_and_pixels(seed, split):
    one, two = (sample_scene(np.random.default_rng(seed), split) for _ in range(2))
    assert one == two
    assert np.array_equal(render(one, sample_times()[:2], 28), render(two, sample_times()[:2], 28))


def test_scene_seed_changes_the_pixels_but_not_the_attributes():
    other = replace(BASE, seed=4)
    assert other.attributes == BASE.attributes
    assert not np.array_equal(render(BASE, sample_times()), render(other, sample_times()))


@given(seeds, splits)
@settings(max_examples=200)
def test_scenes_stay_in_their_split(seed, split):
    assert split_of(sample_scene(np.random.default_rng(seed), split)) == split


def test_an_eighth_is_held_out_and_every_value_is_met_on_both_sides():
    values = (world.SHAPES, world.COLOURS, world.DIRECTIONS)
    every = set(itertools.product(*values))
    assert every > HELD_OUT
    assert len(HELD_OUT) * 8 == len(every)
    for side in (HELD_OUT, every - HELD_OUT):
        for position, known in enumerate(values):
            assert {triple[position] for triple in side} == set(known)


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'train' or 'test'"):
        sample_scene(np.random.default_rng(0), "validation")


@given(seeds)
@settings(max_examples=200)
def test_vary_changes_exactly_one_attribute(seed):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "train")
    told = vary(scene, rng)
    changed = [name for name, value in told.attributes.items() if value != scene.attributes[name]]
    assert len(changed) == 1
    assert told.seed == scene.seed


@given(seeds, st.sampled_from(["shape", "colour", "event"]))
@settings(max_examples=50)
def test_vary_keeps_to_the_attributes_asked_for(seed, name):
    rng = np.random.default_rng(seed)
    scene = sample_scene(rng, "train")
    told = vary(scene, rng, (name,))
    assert told.attributes[name] != scene.attributes[name]
    assert told.attributes | {name: None} == scene.attributes | {name: None}


@pytest.mark.parametrize(
    ("direction", "axis", "sign"), [("left", 0, -1), ("right", 0, 1), ("up", 1, -1), ("down", 1, 1)]
)
def test_shapes_move_as_described(direction, axis, sign):
    frames = render(replace(BASE, direction=direction), sample_times())
    assert frames.shape == (8, 84, 84, 3)
    assert frames.dtype == np.uint8
    first, second = centroid(frames[0]), centroid(frames[2])
    moved = (second[0] - first[0], second[1] - first[1])
    assert sign * moved[axis] > 8
    assert abs(moved[1 - axis]) < 0.5


def test_events_look_as_described():
    def path(event: str) -> list[tuple[float, float]]:
        return [centroid(f) for f in render(replace(BASE, event=event), sample_times())[[2, 5, 7]]]

    before, middle, end = path("straight")
    assert end[0] > middle[0] > before[0]
    _, middle, end = path("stop")
    assert end == pytest.approx(middle, abs=0.5)
    _, middle, end = path("bounce")
    assert end[0] < middle[0] - 5
    _, middle, end = path("turn")
    assert abs(end[1] - middle[1]) > 5
    assert end[0] == pytest.approx(middle[0], abs=0.5)
    gone = render(replace(BASE, event="disappear"), sample_times())
    assert gone[0].max() > 150
    assert gone[-1].max() < 30
    changed = render(replace(BASE, event="change"), sample_times())
    brightest = changed.reshape(8, -1, 3)[:, :, :].max(1).astype(int)
    assert np.abs(brightest[0] - brightest[-1]).max() > 60


def test_sizes_and_speeds_differ_and_nothing_leaves_the_frame():
    def area(scene: Scene) -> int:
        return int((render(scene, sample_times()[:1]).astype(int).max(-1) > 60).sum())

    assert area(BASE) > 2 * area(replace(BASE, size="small"))
    slow = render(replace(BASE, speed="slow"), sample_times())
    fast = render(BASE, sample_times())
    assert centroid(fast[2])[0] - centroid(fast[0])[0] > 2 * (centroid(slow[2])[0] - centroid(slow[0])[0])
    for frame in fast:  # the larger part of the shape is seen at all times
        assert (frame.astype(int).max(-1) > 60).sum() > 0.6 * area(BASE)
