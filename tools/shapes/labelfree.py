"""Measures choices without labels on the bundled model: ``python -m tools.shapes.labelfree choice`` and ``adapt``.

``choice``: the layer is chosen on random subsets of clips by what the model says of them, as ``build(layer="auto",
videos=...)`` does, and compared with the best layer for captions and for short queries of held-out clips. ``adapt``:
the last layer after `vidembed.training.adapt`, against the same number of true pairs of the same clips.

Measured are three sets of clips of the test split. Layers are chosen on other clips of it, as a user chooses on videos
like those to be searched, or with ``--split train`` on unlike ones. Adapters are trained on clips of the training
split.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from vidembed.analysis.layers import open_mllm, read_states
from vidembed.analysis.measure import choose, cosines, joint_merit, merit_of
from vidembed.analysis.own_queries import OwnTexts, caption_videos, own_texts, read_records
from vidembed.captions import TextPair
from vidembed.encoder import VideoEncoder
from vidembed.errors import CroppedTexts
from vidembed.evaluation.metrics import ranks, recall_at
from vidembed.evaluation.shapes import draw_sets
from vidembed.registry import portable_name
from vidembed.shapes import CHECKPOINT, ClipRecord, write_clips
from vidembed.shapes.language import SUMMARY_ATTRIBUTES
from vidembed.shapes.world import Split
from vidembed.training import adapt, align
from vidembed.training.adapting import LORA, hold_out, settings_for

logger = logging.getLogger(__name__)

MEASURED: Final = (0, 10, 20)
"""Seeds of the sets of clips of the test split that figures are of."""
POOLS: Final = (101, 202)
"""Seeds of the pools that subsets are drawn from, none of whose clips is measured. Of the first one of them also the
clips of the training split that the adapter is trained on."""
BOUNDS: Final = {"captions": 1.5, "short": 4.0}
"""Points of mean Recall@1 that a choice may lose against the best layer."""
WITHIN: Final = 5.0
"""Points of Recall@1 that own pairs may lose against true ones."""

States = NDArray[np.float32]
Written = Sequence[tuple[Path, ClipRecord]]
Curves = dict[str, list[float]]
"""Of each kind of query: mean Recall@1 of both directions in percent, by layer."""


@dataclass(frozen=True)
class Queries:
    """Queries of one kind with their states.

    Attributes:
        states: Of all layers, ``(L + 1, V, D)``, one text a video.
        texts: ``V`` of them; equal ones are one query.
    """

    states: States
    texts: tuple[str, ...]

    def among(self, at: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where the different texts of some videos are (T,), and which of these videos each is true of (T, V')."""
        texts = np.array(self.texts)[at]  # (V',)
        _, first = np.unique(texts, return_index=True)
        first = np.sort(first)
        return at[first], texts[first][:, None] == texts[None, :]


def merits(videos: States, kinds: Iterable[Queries], at: NDArray[np.intp]) -> list[tuple[float, float]]:
    """What `vidembed.analyze_layers` chooses by, on these videos: one a layer, the last that of layer -1.

    Args:
        videos: ``(L + 1, V, D)``.
        kinds: Of queries.
        at: Positions of the videos ``(V',)``.
    """
    of_kinds = []
    for kind in kinds:
        texts, positives = kind.among(at)
        states = zip(kind.states, videos, strict=True)
        of_kinds.append([merit_of(cosines(text[texts], video[at]), positives)[1] for text, video in states])
    return [joint_merit(same) for same in zip(*of_kinds, strict=True)]


def layer_name(place: int, layers: int) -> int:
    """The number of a layer, from 1, or -1 for the last with its trained norm."""
    return -1 if place == layers - 1 else place + 1


def losses(curves: Mapping[str, Sequence[float]], chosen: Sequence[int]) -> dict[str, list[float]]:
    """Points that choices of a layer, by place, lose against the best one, of each kind of query."""
    return {kind: [round(max(curve) - curve[place], 3) for place in chosen] for kind, curve in curves.items()}


def within(lost: Mapping[str, Sequence[float]], bounds: Mapping[str, float]) -> int:
    """How many choices are within the bounds of every kind of query."""
    choices = zip(*(np.asarray(lost[kind]) <= bound for kind, bound in bounds.items()), strict=True)
    return sum(all(choice) for choice in choices)


def subsets(pool: int, size: int, n: int, seed: int) -> list[NDArray[np.intp]]:
    """Positions of `n` random subsets of a pool, ascending."""
    rng = np.random.default_rng(seed)
    return [np.sort(rng.choice(pool, min(size, pool), replace=False)) for _ in range(n)]


def mean_curves(sets: Sequence[Curves]) -> Curves:
    """The mean of several sets of clips."""
    return {kind: np.mean([one[kind] for one in sets], axis=0).round(3).tolist() for kind in sets[0]}


def curves_of(videos: States, captions: States, short: States, records: Sequence[ClipRecord]) -> Curves:
    """Retrieval at every layer; of a short query every clip with the same attributes is right. States (L + 1, N, D)."""
    told = np.array(["|".join(record.attributes[name] for name in SUMMARY_ATTRIBUTES) for record in records])
    found: Curves = {}
    for kind, texts, right in (
        ("captions", captions, np.eye(len(told), dtype=bool)),
        ("short", short, told[:, None] == told),
    ):
        curve = []
        for text, video in zip(texts, videos, strict=True):
            scores = cosines(text, video)
            ways = (ranks(scores, right), ranks(scores.T, right.T))
            curve.append(100 * sum(recall_at(places, 1) for places in ways) / 2)
        found[kind] = curve
    return found


def measured_curves(encoder: VideoEncoder, sets: Sequence[Written]) -> Curves:
    """Measure every layer on each set of clips: the mean of the sets."""
    curves = []
    for written in sets:
        records = [record for _, record in written]
        texts = [record.caption for record in records] + [record.summary for record in records]
        videos, states, _ = read_states(encoder, [path for path, _ in written], texts, show_progress_bar=True)
        curves.append(curves_of(videos, states[:, : len(records)], states[:, len(records) :], records))
    return mean_curves(curves)


def choice(
    model: str | Path,
    *,
    clips: int = 200,
    pool: int = 400,
    size: int = 100,
    n: int = 20,
    split: Split = "test",
    prefix: str | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Choose a layer on random subsets, by several kinds of queries, and say what each choice loses.

    Args:
        model: The MLLM.
        clips: Of each measured set.
        pool: Clips of each pool.
        size: Clips of a subset; all of them choose, as the choosing half of twice as many does.
        n: Subsets of each pool.
        split: Of the pools: clips like the measured ones, or of the training split.
        prefix: A line before the content of each prompt.
        device: Where the model runs.

    Returns:
        ``curves`` of the measured clips (layers 1 to L, and -1), ``pools`` (what was usable), and ``chosen_on``: by
        kind of query the layers chosen, the points lost (mean and most, by kind of measured query), and how many of
        the choices are within `BOUNDS`.
    """
    encoder = open_mllm(model, prefix=prefix, device=device, dtype=None)
    chosen: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        sizes = [*((seed, clips) for seed in MEASURED), *((seed, pool) for seed in POOLS)]
        sets = draw_sets(Path(scratch), sizes)
        curves = measured_curves(encoder, sets[: len(MEASURED)])
        drawn = sets[len(MEASURED) :]
        if split == "train":
            drawn = [write_clips(Path(scratch) / f"pool-{seed}", pool, "train", seed) for seed in POOLS]
        layers = len(curves["captions"])
        pools = []
        for number, written in enumerate(drawn):
            own, kinds, videos = own_states(encoder, written)
            pools.append({"described": own.described, "used": len(own.texts), "kind": own.kind})
            for at in subsets(len(own.texts), size, n, number):
                for name, some in arms(kinds, own.kind).items():
                    chosen.setdefault(name, []).append(choose(merits(videos, some, at)))
    found = {}
    for name, places in chosen.items():
        lost = losses(curves, places)
        found[name] = {
            "layers": sorted({layer_name(place, layers) for place in places}),
            **{kind: [round(float(np.mean(values)), 2), max(values)] for kind, values in lost.items()},
            "within": within(lost, BOUNDS),
            "choices": len(places),
        }
    sizes_of = {"model": portable_name(str(model)), "clips": clips, "size": size, "split": split}
    return {**sizes_of, "curves": curves, "pools": pools, "chosen_on": found}


def own_states(encoder: VideoEncoder, written: Written) -> tuple[OwnTexts, dict[str, Queries], States]:
    """What the model says of clips, and states of their videos, of that and of true texts."""
    records = {path.resolve(): record for path, record in written}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CroppedTexts)  # the result says so
        own = own_texts(caption_videos(encoder, list(records)))
    true = [records[one.video.resolve()] for one in own.texts]
    kinds = {
        "own dense": [one.dense for one in own.texts],
        f"own {own.kind}": [one.short for one in own.texts],
        "true dense": [record.caption for record in true],
        "true short": [record.summary for record in true],
    }
    flat = [text for texts in kinds.values() for text in texts]
    videos, states, _ = read_states(encoder, [one.video for one in own.texts], flat, show_progress_bar=True)
    parts = np.split(states, len(kinds), axis=1)
    found = {kind: Queries(part, tuple(texts)) for (kind, texts), part in zip(kinds.items(), parts, strict=True)}
    return own, found, videos


def arms(kinds: Mapping[str, Queries], kind: str) -> dict[str, list[Queries]]:
    """What a layer is chosen on; the first is what `build` does."""
    names = [("own dense", f"own {kind}"), ("own dense",), (f"own {kind}",), ("true dense", "true short")]
    names += [("true dense",), ("true short",)]
    return {" + ".join(some): [kinds[name] for name in some] for some in names}


def final_recalls(encoder: VideoEncoder, sets: Sequence[Written]) -> dict[str, float]:
    """Recall@1 in percent of an encoder, mean over sets of clips; short queries as of `curves_of`."""
    found: dict[str, list[float]] = {}
    for written in sets:
        records = [record for _, record in written]
        videos = np.asarray(encoder.encode([path for path, _ in written], show_progress_bar=False))
        told = np.array(["|".join(record.attributes[name] for name in SUMMARY_ATTRIBUTES) for record in records])
        for kind, texts, right in (
            ("captions", [record.caption for record in records], np.eye(len(told), dtype=bool)),
            ("short", [record.summary for record in records], told[:, None] == told),
        ):
            vectors = np.asarray(encoder.encode([{"text": text} for text in texts], show_progress_bar=False))
            scores = cosines(vectors, videos)
            for way, both in (("t2v", (scores, right)), ("v2t", (scores.T, right.T))):
                found.setdefault(f"{kind} {way}", []).append(100 * recall_at(ranks(*both), 1))
    return {name: round(float(np.mean(values)), 2) for name, values in found.items()}


def adapted(
    model: str | Path, *, clips: int = 200, pool: int = 440, seed: int = POOLS[0], device: str = "cpu"
) -> dict[str, Any]:
    """Adapt on what the model says of clips, and on as many true pairs of the same clips, and measure the last layer.

    Args:
        model: The MLLM.
        clips: Of each measured set.
        pool: Clips that are described.
        seed: Of them, of the split and of the training.
        device: Where the model runs.

    Returns:
        Recall@1 in percent of the measured clips ``before``, after ``own`` pairs and after ``true`` ones; ``lost``,
        points of own pairs against true ones; ``adapt``, what `adapt` reports itself.
    """
    with tempfile.TemporaryDirectory() as scratch:
        sets = [write_clips(Path(scratch) / f"measured-{one}", clips, "test", one) for one in MEASURED]
        written = write_clips(Path(scratch) / "pool", pool, "train", seed)
        before = final_recalls(open_mllm(model, prefix=None, device=device, dtype=None), sets)
        out = Path(scratch) / "own"
        report = adapt(model, [path for path, _ in written], out, device=device, seed=seed, progress=True)
        own = final_recalls(VideoEncoder(report.folder, device=device), sets)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CroppedTexts)  # `adapt` has said so
            rest = hold_out(own_texts(read_records(out / "captions.jsonl"), seed=seed).texts, None, seed=seed)[1]
        records = {path.resolve(): record for path, record in written}
        pairs = [TextPair(records[one.video.resolve()].caption, records[one.video.resolve()].summary) for one in rest]
        settings = settings_for(len(pairs), seed)
        folder = align(
            model, pairs, Path(scratch) / "true", held_out=0, lora=LORA, training=settings, device=device, progress=True
        )
        true = final_recalls(VideoEncoder(folder, device=device), sets)
    lost = {name: round(true[name] - own[name], 2) for name in true}
    rows = {"before": before, "own": own, "true": true, "lost": lost}
    return {"model": portable_name(str(model)), "pairs": len(pairs), "adapt": report.to_dict(), **rows}


def tables(found: Mapping[str, Any]) -> str:
    """The figures of `choice` or of `adapted` as Markdown."""
    if "chosen_on" in found:
        layers = len(found["curves"]["captions"])
        names = [str(layer_name(place, layers)) for place in range(layers)]
        rows = [["R@1, mean of both directions", *names]]
        rows += [[kind, *(f"{value:.1f}" for value in curve)] for kind, curve in found["curves"].items()]
        bounds = " and ".join(f"{bound} on {kind}" for kind, bound in BOUNDS.items())
        second = [["chosen on", "layers", "lost on captions (most)", "lost on short (most)", f"within {bounds}"]]
        for name, one in found["chosen_on"].items():
            lost = [f"{one[kind][0]:.1f} ({one[kind][1]:.1f})" for kind in BOUNDS]
            second.append([name, ", ".join(map(str, one["layers"])), *lost, f"{one['within']} of {one['choices']}"])
        used = "; ".join(f"{one['used']} of {one['described']} used, {one['kind']}" for one in found["pools"])
        return f"{_table(rows)}\n\nPools: {used}.\n\n{_table(second)}"
    names = list(found["before"])
    rows = [["R@1", *names]] + [
        [row, *(f"{found[row][name]:.1f}" for name in names)] for row in ("before", "own", "true")
    ]
    rows.append(["true less own", *(f"{found['lost'][name]:+.1f}" for name in names)])
    held = max(found["lost"].values()) <= WITHIN
    return (
        f"{_table(rows)}\n\n{found['pairs']} pairs each; within {WITHIN} points everywhere: {'yes' if held else 'no'}."
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.shapes.labelfree", description=__doc__)
    parser.add_argument("what", choices=("choice", "adapt"))
    parser.add_argument("--model", default=CHECKPOINT, help="folder or name of the MLLM")
    parser.add_argument("--clips", type=int, default=200, help="of each measured set")
    parser.add_argument("--pool", type=int, help="clips that are described (400 a pool for choice, 440 for adapt)")
    parser.add_argument("--size", type=int, default=100, help="choice: clips of a subset")
    parser.add_argument("--subsets", type=int, default=20, help="choice: subsets of each pool")
    parser.add_argument("--split", choices=("test", "train"), default="test", help="choice: of the pools")
    parser.add_argument("--prefix", help="choice: a line before the content of each prompt")
    parser.add_argument("--seed", type=int, default=POOLS[0], help="adapt: of the clips and of the training")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="figures as JSON")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO)
    torch.set_num_threads(options.threads)
    same = {"clips": options.clips, "device": options.device} | ({"pool": options.pool} if options.pool else {})
    if options.what == "choice":
        how = {"size": options.size, "n": options.subsets, "split": options.split, "prefix": options.prefix}
        found = choice(options.model, **how, **same)
    else:
        found = adapted(options.model, seed=options.seed, **same)
    print(tables(found))  # noqa: T201 - what the command is for
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
