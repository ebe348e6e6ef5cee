"""Which videos and texts belong together, figures of every layer from its states, and the choice between layers."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from vidembed.analysis.result import DirectionFigures, LayerRow, Margin, PromptAnalysis
from vidembed.captions import CaptionedVideo
from vidembed.evaluation.metrics import Interval, median_rank, paired_bootstrap, ranks, recall_at
from vidembed.progress import progress_bar
from vidembed.scoring import dual_softmax, fit_temperature
from vidembed.scoring.checks import FloatArray

BoolArray = NDArray[np.bool_]
IndexArray = NDArray[np.intp]
States = NDArray[np.floating]
Scored = tuple[FloatArray, BoolArray]  # scores and positives (Q, N)
Merit = tuple[float, float]  # mean Recall@1 of both directions, then mean reciprocal rank
_LEAST = 2  # videos and texts of a half: with one there is nothing to rank


@dataclass(frozen=True, eq=False)
class Relation:
    """Videos and texts, each once, in order of first appearance, and which belong together."""

    videos: tuple[Path, ...]
    texts: tuple[str, ...]
    positives: BoolArray  # ``(T, V)``; every row and every column holds at least one True

    def without(self, videos: Iterable[int], texts: Iterable[int]) -> tuple[Relation, IndexArray, IndexArray]:
        """Leave out some, and what then has no partner; also where the kept ``(V',)`` and ``(T',)`` are in this one."""
        rest = self.positives.copy()
        rest[list(texts)] = False
        rest[:, list(videos)] = False
        kept_videos, kept_texts = np.flatnonzero(rest.any(axis=0)), np.flatnonzero(rest.any(axis=1))
        of_videos, of_texts = tuple(self.videos[at] for at in kept_videos), tuple(self.texts[at] for at in kept_texts)
        return Relation(of_videos, of_texts, rest[np.ix_(kept_texts, kept_videos)]), kept_videos, kept_texts


def relation_of(pairs: Iterable[CaptionedVideo]) -> Relation:
    """Merge equal videos (by resolved path) and equal texts. Pairs with a label of False are left out."""
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
        raise ValueError("pairs: no text matches a video; give pairs without a label or with label 1")
    positives = np.zeros((len(texts), len(videos)), dtype=np.bool_)
    positives[tuple(np.array(sorted(true)).T)] = True
    return Relation(tuple(videos.values()), tuple(texts), positives)


def join(relations: Iterable[Relation]) -> Relation:
    """Put relations of the same videos, one a kind of query, into one: texts one kind after the other."""
    parts = tuple(relations)
    places: dict[str, int] = {}
    videos: list[Path] = []
    columns = []  # of each relation (V,), where its videos are in the whole
    for part in parts:
        keys = [os.path.realpath(video) for video in part.videos]
        for key, video in zip(keys, part.videos, strict=True):
            if key not in places:
                places[key] = len(videos)
                videos.append(video)
        columns.append([places[key] for key in keys])
    positives = np.zeros((sum(len(part.texts) for part in parts), len(videos)), dtype=np.bool_)  # (T, V)
    start = 0
    for part, at in zip(parts, columns, strict=True):
        positives[start : start + len(part.texts), at] = part.positives
        start += len(part.texts)
    return Relation(tuple(videos), tuple(itertools.chain(*(part.texts for part in parts))), positives)


@dataclass(frozen=True, eq=False)
class Half:
    """Part of a relation: ascending positions of its videos and texts, and its own positives as of `Relation`."""

    videos: IndexArray  # (V',)
    texts: IndexArray  # (T',)
    positives: BoolArray  # (T', V')

    def of_texts(self, first: int, end: int) -> Half:
        """Keep the texts at positions `first` to `end` of the relation, and the videos that one of them is true of."""
        inside = (first <= self.texts) & (self.texts < end)
        rest = self.positives[inside]
        has_text = rest.any(axis=0)
        return Half(self.videos[has_text], self.texts[inside], rest[:, has_text])


def split_halves(positives: BoolArray, *, seed: int) -> tuple[Half, Half]:
    """Split ``(T, V)`` at random into a half to choose on and a half to report on, which share no video and no text.

    Texts go with their videos. Videos that share a text go to the same half as far as the halves allow: groups of
    videos connected by texts are shuffled, then the videos within each, and the row is cut in the middle. A text with
    videos on both sides of the cut goes where it has more of them (of equals to the reporting half), and a video
    left without a text is left out. The choosing half has ``V // 2`` videos, less those left out.

    Raises:
        ValueError: A half has fewer than two videos or texts.
    """
    rng = np.random.default_rng(seed)
    shared = csr_array(positives.T, dtype=np.intp) @ csr_array(positives, dtype=np.intp)  # (V, V) texts in common
    count, groups = connected_components(shared, directed=False)  # (V,) the group of each video
    place = rng.permutation(count)[groups]  # (V,) of its group in the shuffled row
    order = np.lexsort((rng.permutation(groups.size), place))
    chooses = np.zeros(groups.size, dtype=np.bool_)  # (V,)
    chooses[order[: groups.size // 2]] = True
    text_chooses = positives[:, chooses].sum(axis=1) > positives[:, ~chooses].sum(axis=1)  # (T,)
    halves = []
    for side in (True, False):
        texts = np.flatnonzero(text_chooses == side)
        inside = positives[texts] & (chooses == side)
        videos = np.flatnonzero(inside.any(axis=0))
        if min(videos.size, texts.size) < _LEAST:
            raise ValueError(
                f"pairs: {positives.shape[1]} videos with {positives.shape[0]} texts are too few: a layer is chosen on "
                f"one half of the videos and reported on the other, and a half has {videos.size} videos with "
                f"{texts.size} texts of their own. Give at least {2 * _LEAST} videos with a text each; for narrow "
                f"intervals, give a few hundred."
            )
        halves.append(Half(videos, texts, inside[:, videos]))
    return halves[0], halves[1]


def halves_of_kinds(kinds: Mapping[str, Relation], halves: tuple[Half, Half]) -> dict[str, tuple[Half, Half]]:
    """Halves of a relation that `join` made of these kinds of queries, with the texts of each kind alone.

    Raises:
        ValueError: A half has fewer than two videos or texts of a kind.
    """
    found = {}
    first = 0
    for kind, relation in kinds.items():
        end = first + len(relation.texts)
        choosing, reporting = (half.of_texts(first, end) for half in halves)
        for half in (choosing, reporting):
            if min(half.videos.size, half.texts.size) < _LEAST:
                raise ValueError(
                    f"pairs[{kind!r}]: a half has {half.texts.size} different texts of {half.videos.size} videos: a "
                    "layer is chosen on one half of the videos and reported on the other, and each needs at least "
                    f"{_LEAST} texts of different words. Give more videos."
                )
        found[kind] = choosing, reporting
        first = end
    return found


@dataclass(frozen=True)
class Bootstrap:
    """Settings of the intervals."""

    seed: int
    resamples: int

    def interval(self, values: BoolArray, groups: IndexArray | None, less: BoolArray | None = None) -> Interval:
        """Of the mean of `values` ``(Q,)``, or of what it has over that of `less`; `groups` are drawn together."""
        other = np.zeros_like(values) if less is None else less
        return paired_bootstrap(values, other, seed=self.seed, resamples=self.resamples, groups=groups)


@dataclass(frozen=True, eq=False)
class Readout:
    """One layer, measured."""

    row: LayerRow
    t2v_hits: BoolArray  # ``(T',)`` which texts of the reporting half find a right video first, by cosine
    v2t_hits: BoolArray  # ``(V',)`` which videos find a right text first
    groups: IndexArray  # ``(T',)`` the video of each text, the first where it has several
    merit: Merit  # on the choosing half


def cosines(texts: States, videos: States) -> FloatArray:
    """Cosine of each text ``(T, D)`` with each video ``(V, D)``: ``(T, V)`` float64. A zero vector has cosine 0."""
    units = []
    for states in (texts, videos):
        wide = np.asarray(states, dtype=np.float64)
        length = np.linalg.norm(wide, axis=1, keepdims=True)  # (N, 1)
        units.append(wide / np.where(length == 0, 1.0, length))
    return np.asarray(units[0] @ units[1].T, dtype=np.float64)


def measure_layer(
    layer: int, texts: States, videos: States, halves: tuple[Half, Half], bootstrap: Bootstrap, *, dual: bool
) -> Readout:
    """Measure one layer: its texts ``(T, D)`` and videos ``(V, D)``; see `measure_prompt`."""
    choosing, reporting = ((cosines(texts[half.texts], videos[half.videos]), half.positives) for half in halves)
    recalls, merit = merit_of(*choosing)
    groups = np.argmax(reporting[1], axis=1)  # (T',)
    t2v, t2v_dual, t2v_hits = _direction(choosing, reporting, bootstrap, groups, dual=dual)
    choosing, reporting = ((scores.T, right.T) for scores, right in (choosing, reporting))
    v2t, v2t_dual, v2t_hits = _direction(choosing, reporting, bootstrap, None, dual=dual)
    return Readout(LayerRow(layer, t2v, v2t, t2v_dual, v2t_dual, *recalls), t2v_hits, v2t_hits, groups, merit)


def merit_of(scores: FloatArray, positives: BoolArray) -> tuple[tuple[float, float], Merit]:
    """Recall@1 of both directions of scores and positives ``(T, V)``, and the merit that a layer is chosen by.

    The merit is their mean, then the mean reciprocal rank of both directions.
    """
    found = [ranks(scores, positives), ranks(scores.T, positives.T)]  # (T,) and (V,)
    t2v, v2t = (recall_at(places, 1) for places in found)
    reciprocal = [float((1.0 / places).mean()) for places in found]
    # rounded: equal whatever the order of the sum
    return (t2v, v2t), (round((t2v + v2t) / 2, 12), round(sum(reciprocal) / 2, 12))


def _direction(
    choosing: Scored, reporting: Scored, bootstrap: Bootstrap, groups: IndexArray | None, *, dual: bool
) -> tuple[DirectionFigures, DirectionFigures | None, BoolArray]:
    """Figures by cosine and by dual-softmax, and the hits of the reporting half."""

    def figures(places: NDArray[np.int64], temperature: float | None = None) -> DirectionFigures:
        first = bootstrap.interval(places == 1, groups)
        return DirectionFigures(first, recall_at(places, 5), recall_at(places, 10), median_rank(places), temperature)

    places, after = ranks(*reporting), None  # (Q,)
    # there is none where the scores of the choosing half are all equal, as those of a collapsed layer are
    if dual and float(choosing[0].std()) > 1e-12 * float(np.abs(choosing[0]).max()):
        temperature = fit_temperature(*choosing).temperature
        after = figures(ranks(dual_softmax(reporting[0], temperature=temperature), reporting[1]), temperature)
    return figures(places), after, places == 1


def measure_prompt(
    prefix: str,
    videos: States,
    kinds: Mapping[str, tuple[States, tuple[Half, Half]]],
    bootstrap: Bootstrap,
    *,
    dual: bool,
    show_progress_bar: bool = False,
) -> dict[str, tuple[PromptAnalysis, Readout]]:
    """Measure all layers with one prompt for each kind of query, and choose one layer for all of them.

    `videos` is ``(L + 1, V, D)``, and a kind its texts ``(L + 1, T, D)`` with the halves, in positions of both.
    """
    layers = [*range(1, len(videos)), -1]
    measured: dict[str, list[Readout]] = {}
    for kind, (texts, halves) in kinds.items():
        name = f"Ranking, {kind}" if kind else "Ranking"
        bar = progress_bar(name, "layers", each=layers, shown=show_progress_bar)
        states = zip(bar, texts, videos, strict=True)
        measured[kind] = [measure_layer(at, text, video, halves, bootstrap, dual=dual) for at, text, video in states]
    place = choose([joint_merit([one.merit for one in same]) for same in zip(*measured.values(), strict=True)])
    found = {}
    for kind, readouts in measured.items():
        chosen = readouts[place]
        margins = tuple(margin_over(chosen, other, prefix, bootstrap, kind=kind) for other in readouts[:-3:-1])
        rows = tuple(one.row for one in readouts)
        found[kind] = PromptAnalysis(prefix, rows, chosen.row.layer, margins, kind), chosen
    return found


def joint_merit(merits: Sequence[Merit]) -> Merit:
    """The mean over kinds of queries, each of which counts the same however many queries it has."""
    recall, reciprocal = (sum(values) / len(merits) for values in zip(*merits, strict=True))
    return round(recall, 12), round(reciprocal, 12)


def choose(merits: Sequence[Merit]) -> int:
    """Where the best merit is; of the longest run of equals the middle: its edges are likelier to do worse."""
    best = max(merits)
    runs = [list(run) for equal, run in itertools.groupby(range(len(merits)), lambda at: merits[at] == best) if equal]
    longest = max(runs, key=len)
    return longest[(len(longest) - 1) // 2]


def margin_over(chosen: Readout, other: Readout, over_prefix: str, bootstrap: Bootstrap, *, kind: str = "") -> Margin:
    """Recall@1 of `chosen` less that of `other`, on the same queries of the reporting half."""
    t2v = bootstrap.interval(chosen.t2v_hits, chosen.groups, less=other.t2v_hits)
    v2t = bootstrap.interval(chosen.v2t_hits, None, less=other.v2t_hits)
    return Margin(over_prefix, other.row.layer, t2v, v2t, kind)
