"""The page of `vidembed demo`: what was measured in the run, and how it is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import comb
from typing import Literal, get_args

import numpy as np

from vidembed.analysis.layers import open_mllm, read_states
from vidembed.analysis.measure import cosines
from vidembed.checkpoint import CheckpointConfig
from vidembed.encoder import VideoEncoder
from vidembed.evaluation.metrics import ranks, recall_at
from vidembed.index import Hit, VideoIndex
from vidembed.index.gallery import MATCH, SIMILARITY, Bar, Pictures, card_of, durations_of
from vidembed.index.table import path_of
from vidembed.pages import render
from vidembed.pages.charts import Chart, Line
from vidembed.reranker import VideoReranker
from vidembed.scoring import ReliabilityCurve, reliability_curve
from vidembed.shapes import ClipRecord

QUERIES = 6  # whose hits are shown: short captions of the first clips that were drawn
HITS = 3  # of each
BINS = 10  # of the reliability curve: fewer than usual, for there are few hits with a score in the middle
LEAST = 10  # hits of a bin that is drawn
HEAD = ("P(Yes)", "How sure the model is, asked whether the clip shows what was asked for.")
Kind = Literal["long", "short"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PERCENT = tuple((share / 100, str(share)) for share in range(0, 101, 20))


@dataclass(frozen=True, slots=True)
class Asked:
    """A query and its hits."""

    query: str
    right: set[str]  # URIs of the clips that it describes
    hits: Sequence[Hit]  # best first

    @property
    def succeeded(self) -> bool:
        """Whether a right clip came first."""
        return self.hits[0].uri in self.right


@dataclass(frozen=True, slots=True)
class Way:
    """One way to order clips, and what it found."""

    name: str
    meaning: str
    score: tuple[str, str]  # name and meaning of what it orders by
    results: Sequence[Asked]  # of the long captions, then of the short ones

    def of(self, kind: Kind) -> Sequence[Asked]:
        """What the long captions found, which tell everything, or the short ones, which tell four attributes."""
        half = len(self.results) // 2
        return self.results[:half] if kind == "long" else self.results[half:]

    def bar(self, hit: Hit) -> Bar:
        """The score that this way orders a hit by."""
        if self.score is SIMILARITY or hit.probability is None:
            return Bar(*SIMILARITY, hit.score, f"{hit.score:.2f}")
        return Bar(*self.score, hit.probability, f"{hit.probability:.0%}")


@dataclass(frozen=True, slots=True)
class Demo:
    """What a run found."""

    model: str
    config: CheckpointConfig | None  # of the model, where it says what it was made of
    records: Mapping[str, ClipRecord]  # the clips by URI, in the order in which they were drawn
    ways: Sequence[Way]  # of the best last
    layers: Chart | None = None
    reliability: Chart | None = None

    def shown(self) -> list[int]:
        """Places of the short captions that are shown: the first `QUERIES` different ones, whatever they found."""
        first = {one.query: place for place, one in reversed([*enumerate(self.ways[0].of("short"))])}
        return sorted(first.values())[:QUERIES]

    def succeeded(self) -> list[Asked]:
        """Different short captions that the best way found a right clip first for."""
        return [*{one.query: one for one in self.ways[-1].of("short") if one.succeeded}.values()]


# name, meaning and score of each way: the first stage, the answer of the model, and both, as by `search --rerank`
WAYS = (
    (
        "Video vectors",
        "The vector of the query is compared with that of each clip. Clips are read once, when they are indexed.",
        SIMILARITY,
    ),
    ("Head", "The same model is asked about each of the first hits: does the clip match the words, Yes or No?", HEAD),
    ("Fused", "Cosine and answer together, with weights fitted on other clips: vidembed search --rerank.", MATCH),
)


def ways_of(*results: Sequence[Asked]) -> list[Way]:
    """Return the first of `WAYS` with what they found."""
    return [Way(*about, found) for about, found in zip(WAYS, results, strict=False)]


def recalls(results: Sequence[Asked], clips: int) -> tuple[float, float, float, float]:
    """Return how often a right clip is among the first 1 and 5, and how often it would be in a random order."""
    found = [sum(any(hit.uri in one.right for hit in one.hits[:k]) for one in results) for k in (1, 5)]
    chance = [sum(1 - comb(clips - len(one.right), k) / comb(clips, k) for one in results) for k in (1, min(5, clips))]
    first, five, by_chance, by_chance_five = (count / len(results) for count in (*found, *chance))
    return first, five, by_chance, by_chance_five


def layer_chart(
    reranker: VideoReranker,
    encoder: VideoEncoder,
    records: Mapping[str, ClipRecord],
    queries: Sequence[tuple[str, set[str]]],
) -> Chart:
    """Measure Recall@1 at every layer of the model that the encoder was cut from, which the reranker holds."""
    config = encoder.checkpoint_config
    assert config is not None and reranker.backbone is not None  # noqa: S101, PT018 - so it is of the bundled model
    how = {"prefix": config.prefix, "sampling": encoder.sampling}
    mllm = open_mllm(reranker.backbone, device=str(encoder.device), dtype=None, **how)
    texts = [query for query, _ in queries]
    of_videos, of_texts, _ = read_states(mllm, [path_of(uri) for uri in records], texts, show_progress_bar=True)
    right = np.array([[uri in true for uri in records] for _, true in queries])  # (T, V)
    half = len(queries) // 2
    lines, names = [], [*(str(layer) for layer in range(1, len(of_videos))), "norm"]
    for name, part in (("long captions", slice(half)), ("short captions", slice(half, None))):
        found = [
            recall_at(ranks(cosines(text[part], video), right[part]), 1)
            for text, video in zip(of_texts, of_videos, strict=True)
        ]
        lines.append(Line(name, tuple(enumerate(found, start=1))))
    long, short = ([value for _, value in line.points] for line in lines)
    used, last = ([f"{found[layer - 1]:.0%}" for found in (long, short)] for layer in (config.layer, config.depth))
    return Chart(
        label=f"Layer {config.layer} puts a right clip first for {used[0]} of the long captions and {used[1]} of the "
        f"short ones; the last, {config.depth}, for {last[0]} and {last[1]}.",
        x_title="layer (norm: after the last, with the trained norm)",
        y_title="a right clip first, %",
        x_ticks=tuple((float(place), name) for place, name in enumerate(names, start=1)),
        y_ticks=PERCENT,
        lines=tuple(lines),
        guides=(((config.layer, 0.0), (config.layer, 1.0)),),
        columns=("Layer", *(line.name.capitalize() for line in lines)),
        rows=tuple((name, f"{one:.1%}", f"{other:.1%}") for name, one, other in zip(names, long, short, strict=True)),
    )


def reliability_chart(by_head: Sequence[Asked], fused: Sequence[Asked]) -> Chart:
    """Compare the probabilities of all hits that the head was asked about with how many of them are right."""

    def curve(results: Sequence[Asked]) -> ReliabilityCurve:
        pairs = [(hit.probability or 0.0, hit.uri in one.right) for one in results for hit in one.hits]
        scores, labels = zip(*pairs, strict=True)
        return reliability_curve(scores, labels, bins=BINS)

    curves = {"head alone": curve(by_head), "fused": curve(fused)}
    errors = [f"{name} {100 * one.expected_calibration_error:.1f}" for name, one in curves.items()]
    rows = []
    for place in range(BINS):
        cells = [f"{100 * place // BINS} to {100 * (place + 1) // BINS} %"]
        for one in curves.values():
            count = int(one.counts[place])
            cells += [str(count), f"{one.frequency[place]:.0%}" if count else "-"]
        rows.append(tuple(cells))
    lines = []
    for name, one in curves.items():
        many = one.counts >= LEAST
        lines.append(Line(name, tuple(zip(one.confidence[many].tolist(), one.frequency[many].tolist(), strict=True))))
    return Chart(
        label=f"A point stands for {LEAST} hits or more. Mean distance of all hits from the dotted line, in points: "
        f"{', '.join(errors)}.",
        x_title="score of a hit, %",
        y_title="hits that are right, %",
        x_ticks=PERCENT,
        y_ticks=PERCENT,
        lines=tuple(lines),
        guides=(((0.0, 0.0), (1.0, 1.0)),),
        columns=("Score", *(f"{name.capitalize()}: {what}" for name in curves for what in ("hits", "right"))),
        rows=tuple(rows),
    )


def as_html(demo: Demo, index: VideoIndex, commands: Sequence[str]) -> str:
    """Return the page; `commands` are searches that succeeded."""
    clips, places, pictures = len(demo.records), demo.shown(), Pictures()
    best = [[way.of("short")[place] for way in demo.ways] for place in places]
    durations = durations_of(index, (hit for same in best for one in same for hit in one.hits[:HITS]))

    def cards(way: Way, one: Asked) -> list[tuple[object, bool]]:
        shown = [replace(hit, caption=demo.records[hit.uri].summary) for hit in one.hits[:HITS]]
        return [(card_of(hit, pictures, durations, [way.bar(hit)]), hit.uri in one.right) for hit in shown]

    recall = {}
    for kind in KINDS:
        found = [(way.name, way.meaning, recalls(way.of(kind), clips)) for way in demo.ways]
        bars = [Bar(name, meaning, first, f"{first:.1%}") for name, meaning, (first, *_) in found]
        chance = found[0][2][2]
        recall[kind] = [*bars, Bar("Chance", "What a random order would give.", chance, f"{chance:.1%}")]
    return render(
        "demo.html",
        title=f"{clips} clips, searched in words",
        model=demo.model,
        config=demo.config,
        clips=clips,
        ways=demo.ways,
        recall=recall,
        queries=[
            (
                same[0].query,
                len(same[0].right),
                [(way, cards(way, one)) for way, one in zip(demo.ways, same, strict=True)],
            )
            for same in best
        ],
        layers=demo.layers,
        reliability=demo.reliability,
        commands=commands,
    )
