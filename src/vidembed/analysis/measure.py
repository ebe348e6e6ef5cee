"""Figures of every layer from its states, and the choice between layers. Numpy only."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vidembed.analysis.relation import BoolArray, Half
from vidembed.analysis.result import DirectionFigures, LayerRow, Margin, PromptAnalysis
from vidembed.evaluation.metrics import Interval, bootstrap_interval, median_rank, paired_bootstrap, ranks, recall_at
from vidembed.scoring import dual_softmax, fit_temperature

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made.

    Attributes:
        seed: Of the resampling.
        resamples: How often queries are drawn.
    """

    seed: int
    resamples: int


@dataclass(frozen=True, eq=False)
class Hits:
    """Which queries of the reporting half find a right answer first, by cosine.

    Attributes:
        t2v: ``(T',)`` of texts.
        v2t: ``(V',)`` of videos.
        groups: ``(T',)`` the video of each text, the first where it has several.
    """

    t2v: BoolArray
    v2t: BoolArray
    groups: NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Readout:
    """One layer, measured.

    Attributes:
        row: Its figures.
        hits: On the reporting half.
        merit: By which layers are compared, on the choosing half: mean Recall@1 of both directions, then mean
            reciprocal rank.
    """

    row: LayerRow
    hits: Hits
    merit: tuple[float, float]


def cosines(texts: NDArray[np.floating], videos: NDArray[np.floating]) -> FloatArray:
    """Cosine of each text ``(T, D)`` with each video ``(V, D)``: ``(T, V)`` float64. A zero vector has cosine 0."""
    unit = [_unit(np.asarray(states, dtype=np.float64)) for states in (texts, videos)]
    return np.asarray(unit[0] @ unit[1].T, dtype=np.float64)


def _unit(states: FloatArray) -> FloatArray:
    length = np.linalg.norm(states, axis=1, keepdims=True)  # (N, 1)
    return states / np.where(length == 0, 1.0, length)


def measure_layer(
    layer: int,
    texts: NDArray[np.floating],
    videos: NDArray[np.floating],
    halves: tuple[Half, Half],
    bootstrap: Bootstrap,
    *,
    dual: bool,
) -> Readout:
    """Measure one layer.

    Args:
        layer: Its number.
        texts: ``(T, D)`` states.
        videos: ``(V, D)`` states.
        halves: To choose on, and to report on.
        bootstrap: How intervals are made.
        dual: Whether to measure dual-softmax too.
    """
    choosing, reporting = (cosines(texts[half.texts], videos[half.videos]) for half in halves)  # (T', V') each
    chosen_on, reported_on = (half.positives for half in halves)
    groups = np.argmax(reported_on, axis=1)
    figures: dict[str, tuple[DirectionFigures, DirectionFigures | None]] = {}
    hits: dict[str, BoolArray] = {}
    choice: dict[str, IntArray] = {}
    for name, flip in (("t2v", False), ("v2t", True)):
        fit_on, fit_mask = (choosing.T, chosen_on.T) if flip else (choosing, chosen_on)
        score, mask = (reporting.T, reported_on.T) if flip else (reporting, reported_on)
        members = None if flip else groups
        places = ranks(score, mask)
        raw = _direction(places, bootstrap, members)
        temperature = _temperature(fit_on, fit_mask) if dual else None
        after = None
        if temperature is not None:
            ranking = dual_softmax(score, temperature=temperature)
            after = _direction(ranks(ranking, mask), bootstrap, members, temperature)
        figures[name] = raw, after
        hits[name] = places == 1
        choice[name] = ranks(fit_on, fit_mask)
    recalls = {name: recall_at(found, 1) for name, found in choice.items()}
    row = LayerRow(
        layer=layer,
        t2v=figures["t2v"][0],
        v2t=figures["v2t"][0],
        t2v_dual=figures["t2v"][1],
        v2t_dual=figures["v2t"][1],
        choosing_t2v=recalls["t2v"],
        choosing_v2t=recalls["v2t"],
    )
    reciprocal = [float((1.0 / found).mean()) for found in choice.values()]
    # rounded: equal whatever the order of the sum
    merit = round(sum(recalls.values()) / 2, 12), round(sum(reciprocal) / 2, 12)
    return Readout(row, Hits(hits["t2v"], hits["v2t"], groups), merit)


def _direction(
    places: IntArray, bootstrap: Bootstrap, groups: NDArray[np.intp] | None, temperature: float | None = None
) -> DirectionFigures:
    first = bootstrap_interval(places == 1, seed=bootstrap.seed, resamples=bootstrap.resamples, groups=groups)
    return DirectionFigures(first, recall_at(places, 5), recall_at(places, 10), median_rank(places), temperature)


def _temperature(scores: FloatArray, mask: BoolArray) -> float | None:
    """Fitted on the choosing half; None where its scores are all equal, as those of a collapsed layer are."""
    if float(scores.std()) <= 1e-12 * float(np.abs(scores).max()):
        return None
    return fit_temperature(scores, mask).temperature


def measure_prompt(
    prefix: str,
    texts: NDArray[np.floating],
    videos: NDArray[np.floating],
    halves: tuple[Half, Half],
    bootstrap: Bootstrap,
    *,
    dual: bool,
    show_progress_bar: bool = False,
) -> tuple[PromptAnalysis, Readout]:
    """Measure all layers with one prompt and choose one.

    Args:
        prefix: How the prompt is called.
        texts: ``(L + 1, T, D)`` states of blocks 1 to L and of the final norm.
        videos: ``(L + 1, V, D)``.
        halves: To choose on, and to report on.
        bootstrap: How intervals are made.
        dual: Whether to measure dual-softmax too.
        show_progress_bar: Whether to show a bar.

    Returns:
        The analysis, and the chosen layer's `Readout`.
    """
    layers = [*range(1, len(texts)), -1]
    bar = tqdm(layers, desc="Ranking", unit="layer", disable=not show_progress_bar)
    readouts = {
        layer: measure_layer(layer, texts[place], videos[place], halves, bootstrap, dual=dual)
        for place, layer in enumerate(bar)
    }
    chosen = choose(list(readouts.values()))
    margins = tuple(
        margin_over(chosen, readouts[layer], over_prefix=prefix, bootstrap=bootstrap) for layer in (-1, layers[-2])
    )
    rows = tuple(readout.row for readout in readouts.values())
    return PromptAnalysis(prefix, rows, chosen.row.layer, margins), chosen


def choose(readouts: Sequence[Readout]) -> Readout:
    """The best by `Readout.merit`; of the longest run of equals the middle, of the earlier half where there are two.

    Where many layers do equally well, as on few or easy pairs, those at the edge of the run are the likeliest to do
    worse on others.

    Args:
        readouts: In the order of the layers.
    """
    best = max(readout.merit for readout in readouts)
    runs = [list(run) for equal, run in itertools.groupby(readouts, lambda readout: readout.merit == best) if equal]
    longest = max(runs, key=len)
    return longest[(len(longest) - 1) // 2]


def margin_over(chosen: Readout, other: Readout, *, over_prefix: str, bootstrap: Bootstrap) -> Margin:
    """Recall@1 of `chosen` less that of `other`, on the same queries of the reporting half."""

    def difference(a: BoolArray, b: BoolArray, groups: NDArray[np.intp] | None) -> Interval:
        return paired_bootstrap(a, b, seed=bootstrap.seed, resamples=bootstrap.resamples, groups=groups)

    return Margin(
        over_prefix=over_prefix,
        over_layer=other.row.layer,
        t2v=difference(chosen.hits.t2v, other.hits.t2v, chosen.hits.groups),
        v2t=difference(chosen.hits.v2t, other.hits.v2t, None),
    )
