"""Figures of every layer from its states, and the choice between layers. Numpy only."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from vidembed.analysis.result import DirectionFigures, LayerRow, Margin, PromptAnalysis
from vidembed.captions import CaptionedVideo
from vidembed.evaluation.metrics import Interval, bootstrap_interval, median_rank, paired_bootstrap, ranks, recall_at
from vidembed.scoring import dual_softmax, fit_temperature

BoolArray = NDArray[np.bool_]
IndexArray = NDArray[np.intp]

_LEAST = 2  # videos and texts of a half: with one there is nothing to rank


@dataclass(frozen=True, eq=False)
class Relation:
    """Videos and texts, each once, and which belong together.

    Attributes:
        videos: The files, in order of first appearance.
        texts: The texts, in order of first appearance.
        positives: ``(T, V)``; every row and every column holds at least one True.
    """

    videos: tuple[Path, ...]
    texts: tuple[str, ...]
    positives: BoolArray

    def without(self, videos: Iterable[int], texts: Iterable[int]) -> tuple[Relation, IndexArray, IndexArray]:
        """Leave out videos and texts, and what is then without a partner.

        Args:
            videos: Positions of videos to leave out.
            texts: Positions of texts to leave out.

        Returns:
            The relation of the others, and the positions of its videos ``(V',)`` and texts ``(T',)`` in this one.
        """
        rest = self.positives.copy()
        rest[list(texts)] = False
        rest[:, list(videos)] = False
        kept_videos, kept_texts = np.flatnonzero(rest.any(axis=0)), np.flatnonzero(rest.any(axis=1))
        relation = Relation(
            tuple(self.videos[index] for index in kept_videos),
            tuple(self.texts[index] for index in kept_texts),
            rest[np.ix_(kept_texts, kept_videos)],
        )
        return relation, kept_videos, kept_texts


def relation_of(pairs: Iterable[CaptionedVideo]) -> Relation:
    """Merge equal videos (by resolved path) and equal texts. Pairs with a label of False are left out.

    Raises:
        ValueError: There are no pairs, or all have a label of False.
    """
    videos: dict[str, Path] = {}
    places: dict[str, int] = {}
    texts: dict[str, int] = {}
    true: set[tuple[int, int]] = set()
    for pair in pairs:
        if pair.label is False:
            continue
        key = os.path.realpath(pair.video)
        videos.setdefault(key, pair.video)
        true.add((texts.setdefault(pair.text, len(texts)), places.setdefault(key, len(places))))
    if not true:
        raise ValueError("pairs: there is no text that is true of a video; give pairs without a label or with label 1")
    positives = np.zeros((len(texts), len(videos)), dtype=np.bool_)
    positives[tuple(np.array(sorted(true)).T)] = True
    return Relation(tuple(videos.values()), tuple(texts), positives)


@dataclass(frozen=True, eq=False)
class Half:
    """Part of a relation.

    Attributes:
        videos: ``(V',)`` positions of its videos, ascending.
        texts: ``(T',)`` positions of its texts, ascending.
        positives: ``(T', V')``; every row and every column holds at least one True.
    """

    videos: IndexArray
    texts: IndexArray
    positives: BoolArray


def split_halves(positives: BoolArray, *, seed: int) -> tuple[Half, Half]:
    """Split at random into a half to choose on and a half to report on, which share no video and no text.

    Texts go with their videos. Videos that share a text go to the same half as far as the halves allow: groups of
    videos connected by texts are shuffled, then the videos within each, and the row is cut in the middle. A text with
    videos on both sides of the cut goes where it has more of them (of equals to the reporting half), and a video
    left without a text is left out.

    Args:
        positives: ``(T, V)``, every row and column with at least one True.
        seed: Of the shuffle, at least 0.

    Returns:
        The choosing half (``V // 2`` videos, less those left out) and the reporting half.

    Raises:
        ValueError: A half has fewer than two videos or texts.
    """
    rng = np.random.default_rng(seed)
    groups = _connected(positives)  # (V,)
    place = rng.permutation(int(groups.max()) + 1)[groups]  # (V,) of its group in the shuffled row
    order = np.lexsort((rng.permutation(groups.size), place))
    chooses = np.zeros(groups.size, dtype=np.bool_)  # (V,)
    chooses[order[: groups.size // 2]] = True
    text_chooses = positives[:, chooses].sum(axis=1) > positives[:, ~chooses].sum(axis=1)  # (T,)
    first, second = (_half(positives, text_chooses == side, chooses == side) for side in (True, False))
    for half in (first, second):
        if min(half.videos.size, half.texts.size) < _LEAST:
            raise ValueError(
                f"pairs: {positives.shape[1]} videos with {positives.shape[0]} texts are too few: a layer is chosen on "
                f"one half of the videos and reported on the other, and a half has {half.videos.size} videos with "
                f"{half.texts.size} texts of their own. Give at least {2 * _LEAST} videos with a text each; intervals "
                "worth reading take a few hundred."
            )
    return first, second


def _half(positives: BoolArray, text_in: BoolArray, video_in: BoolArray) -> Half:
    texts = np.flatnonzero(text_in)
    inside = positives[texts] & video_in
    videos = np.flatnonzero(inside.any(axis=0))
    return Half(videos, texts, inside[:, videos])


def _connected(positives: BoolArray) -> IndexArray:
    """Number of the group of each video (V,): videos that share a text are in one group, and so on through others."""
    parent = list(range(positives.shape[1]))

    def root(video: int) -> int:
        while parent[video] != video:
            parent[video] = parent[parent[video]]
            video = parent[video]
        return video

    for row in positives:
        first, *others = np.flatnonzero(row).tolist()
        for other in others:
            parent[root(other)] = root(first)
    return np.unique([root(video) for video in range(len(parent))], return_inverse=True)[1]


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
