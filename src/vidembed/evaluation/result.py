"""The result of an evaluation: figures of every way to rank, in both directions, and what they depend on."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidembed.evaluation import metrics
from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.metrics import Interval
from vidembed.evaluation.two_stage import COLUMNS, DIRECTIONS, Mask, Temperature, rankings
from vidembed.scoring.checks import FloatArray, from_json, read_object
from vidembed.text import write_atomically

CUTS: Final = (1, 5, 10)  # ranks of the recalls: those that papers on video retrieval report (VidVec, tables 1 to 3)
NDCG_DEPTH: Final = 10  # places that nDCG looks at (ours)
SCHEMA_VERSION: Final = 1
RESULT_FILE: Final = "result.json"
RANKS_FILE: Final = "ranks.npz"
MAX_RANKS_BYTES: Final = 1 << 30  # largest file of ranks that is read, unpacked (ours); that of MSVD has under 2 MB
_KIND: Final = "vidembed_evaluation"
_PACKAGES: Final = ("vidembed", "torch", "transformers", "sentence-transformers", "av", "numpy")
# arrays ``(Q,)`` by ``"COLUMN.DIRECTION"``, and the groups of the queries of a direction by ``"groups.DIRECTION"``
Ranks = dict[str, NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """How each query fared, ``(Q,)`` each; nDCG and average precision are from 0 to 1."""

    ranks: NDArray[np.int64]  # of the best right answer, from 1; N + 1 where it was never found
    ndcg: FloatArray  # of the first `NDCG_DEPTH`
    average_precision: FloatArray


def outcomes(scores: ArrayLike, positives: Mask, *, rows: Mask, columns: Mask) -> Outcomes:
    """How each query fared; `positives` are ``(Q, N)``, `scores` of the `rows` ``(Q,)`` and `columns` ``(N,)`` read."""
    count, width = positives.shape
    # an unread query, or one with no right answer that was read, stays at rank N + 1 and 0
    found = Outcomes(np.full(count, width + 1, dtype=np.int64), np.zeros(count), np.zeros(count))
    right = positives[np.ix_(rows, columns)]  # (rows, columns)
    has_answer = right.any(axis=1)
    if not has_answer.any():
        return found
    given, mask = np.asarray(scores)[has_answer], right[has_answer]
    at = np.flatnonzero(rows)[has_answer]
    here, all_right = mask.sum(axis=1), positives[at].sum(axis=1)
    best = np.cumsum(1 / np.log2(np.arange(2, NDCG_DEPTH + 2)))  # gain of the best order of 1 to `NDCG_DEPTH` answers
    best_here, best_of_all = (best[np.minimum(right, NDCG_DEPTH) - 1] for right in (here, all_right))
    found.ranks[at] = metrics.ranks(given, mask)
    found.ndcg[at] = metrics.ndcg_at(given, mask, NDCG_DEPTH) * best_here / best_of_all
    found.average_precision[at] = metrics.average_precision(given, mask) * here / all_right
    return found


@dataclass(frozen=True)
class Figures:
    """The figures of one direction of one ranking; shares are in percent, recalls have 95 % bootstrap intervals."""

    queries: int
    recall_1: Interval
    recall_5: Interval
    recall_10: Interval
    median_rank: float
    mean_rank: float
    ndcg_10: float
    mean_average_precision: float

    @property
    def recalls(self) -> tuple[Interval, ...]:
        """R@1, R@5 and R@10."""
        return self.recall_1, self.recall_5, self.recall_10

    @classmethod
    def of(cls, found: Outcomes, *, seed: int, groups: NDArray[np.int64]) -> Figures:
        """Means over the queries; the bootstrap draws whole groups ``(Q,)``, the queries of one video."""
        recall_1, recall_5, recall_10 = (
            metrics.bootstrap_interval(found.ranks <= cut, seed=seed, groups=groups).percent() for cut in CUTS
        )
        median, mean = metrics.median_rank(found.ranks), metrics.mean_rank(found.ranks)
        ndcg, precision = 100 * float(found.ndcg.mean()), 100 * float(found.average_precision.mean())
        return cls(len(found.ranks), recall_1, recall_5, recall_10, median, mean, ndcg, precision)


@dataclass(frozen=True)
class Column:
    """One way to rank, by its name in `COLUMNS`, in both directions; None where it was not run."""

    name: str
    t2v: Figures | None
    v2t: Figures | None

    def of(self, direction: str) -> Figures | None:
        """The figures of a direction."""
        return self.t2v if direction == "t2v" else self.v2t


def columns_of(
    benchmark: Benchmark,
    readable: Mask,
    first: FloatArray,
    second: Mapping[str, FloatArray] | None,
    temperatures: Mapping[str, Temperature],
    k: int | None,
    seed: int,
) -> tuple[tuple[Column, ...], Ranks]:
    """Rank in the four ways of `COLUMNS`, in both directions, with temperatures by ``"STAGE.DIRECTION"``.

    Given are similarities `first` ``(T, W)`` of the W `readable` ``(V,)`` videos, and what `second_stage` returns.
    """
    texts, positives = np.ones(len(benchmark.texts), dtype=np.bool_), benchmark.positives  # (T,), (T, V)
    found: Ranks = {
        # texts of one video are no independent draws; a text of several counts to its first
        "groups.t2v": np.array([places[0] for places in benchmark.owners], dtype=np.int64),
        "groups.v2t": np.arange(len(benchmark.videos), dtype=np.int64),
    }
    measured: dict[str, dict[str, Figures | None]] = {name: dict.fromkeys(DIRECTIONS) for name in COLUMNS}
    for way in DIRECTIONS:
        scores, again = first if way == "t2v" else first.T, None if second is None else second[way]
        temperature, last = temperatures[f"first.{way}"].value, temperatures.get(f"second.{way}")
        last_value = None if last is None else last.value
        ranked = rankings(scores, again, temperature=temperature, second_temperature=last_value, k=k)
        for name, ranking in ranked.items():
            if ranking is None:
                continue
            right, rows, columns = (positives, texts, readable) if way == "t2v" else (positives.T, readable, texts)
            fared = outcomes(ranking, right, rows=rows, columns=columns)
            found[f"{name}.{way}"] = fared.ranks
            measured[name][way] = Figures.of(fared, seed=seed, groups=found[f"groups.{way}"])
    return tuple(Column(name, of["t2v"], of["v2t"]) for name, of in measured.items()), found


@dataclass(frozen=True)
class BenchmarkFacts:
    """What was measured on: fields of `Benchmark`, with counts of videos and texts."""

    name: str
    title: str
    split: str
    protocol: str
    source: str
    videos: int
    texts: int
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    digest: str  # SHA-256 of ids, texts and which belong together: equal ones have the same queries and answers

    @classmethod
    def of(cls, benchmark: Benchmark) -> BenchmarkFacts:
        """Take them from a benchmark."""
        same = {name: getattr(benchmark, name) for name in cls.__annotations__ if hasattr(benchmark, name)}
        content = json.dumps([benchmark.video_ids, benchmark.texts, benchmark.owners])
        counts = {"videos": len(benchmark.videos), "texts": len(benchmark.texts)}
        return cls(**{**same, **counts, "digest": hashlib.sha256(content.encode()).hexdigest()})


@dataclass(frozen=True)
class RerankFacts:
    """The second stage: a reranker's name and score mode, and how it is used."""

    model: str
    fingerprint: str  # SHA-256 of all that makes its answers
    mode: str
    k: int  # candidates of a query that are ordered again
    fused: bool  # whether log-odds are fused with the first stage's similarity, as its calibration has it
    prior_weights: tuple[float, float] | None = None  # of video and sentence, in mode "prior_corrected"


@dataclass(frozen=True)
class ValidationFacts:
    """What temperatures were fitted on: as `BenchmarkFacts`, and what could not be used."""

    title: str
    split: str
    source: str
    videos: int
    texts: int
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Failure:
    """A video that could not be used: its id in the benchmark, its path, and what was found."""

    video_id: str
    file: str
    reason: str


class WorkFacts(TypedDict):
    """Items computed and taken from the cache, the seconds of computing, and shares of these, None of nothing."""

    computed: int
    cached: int
    seconds: float
    per_second: float | None
    share_cached: float | None


@dataclass
class Tally:
    """Counts `WorkFacts`."""

    computed: int = 0
    cached: int = 0
    seconds: float = 0.0

    def facts(self) -> WorkFacts:
        """As JSON values."""
        done, cached, seconds = self.computed, self.cached, self.seconds
        speed = done / seconds if done and seconds else None
        share = cached / (done + cached) if done + cached else None
        return WorkFacts(computed=done, cached=cached, seconds=seconds, per_second=speed, share_cached=share)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide figures."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def hardware(device: str) -> dict[str, str | int | None]:
    """Platform, processors, and the name of a torch device."""
    name = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        import torch  # noqa: PLC0415 - it is loaded by now, and this module is read without it

        name = str(torch.cuda.get_device_name(device))
    place = {"platform": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()}
    return {**place, "device": device, "device_name": name}


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What an evaluation found."""

    benchmark: BenchmarkFacts
    model: dict[str, object]  # name, fingerprint, layer, prefix, sampling and so on
    rerank: RerankFacts | None  # the second stage, or None
    temperatures: dict[str, Temperature]  # by ``"STAGE.DIRECTION"``, STAGE being "first" or "second"
    validation: ValidationFacts | None  # what temperatures were fitted on, or None
    columns: tuple[Column, ...]  # always the four of `COLUMNS`
    failures: tuple[Failure, ...]  # videos that could not be used and count against the model
    unanswered: tuple[Failure, ...]  # videos without an answer of the second stage, about some of their texts
    work: dict[str, WorkFacts]  # by "videos", "texts" and "pairs", validation set included
    seconds: float  # wall time of this run
    seed: int
    versions: dict[str, str]
    hardware: dict[str, str | int | None]
    ranks: Ranks  # of every query, for paired comparisons

    def column(self, name: str) -> Column:
        """The figures of a column; a ValueError if there is none."""
        for one in self.columns:
            if one.name == name:
                return one
        raise ValueError(f"column={name!r}: expected one of {', '.join(COLUMNS)}")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the ranks, as JSON values; a ValueError if a figure is not finite."""
        fields = {name: value for name, value in vars(self).items() if name != "ranks"}
        whole = {"kind": _KIND, "schema_version": SCHEMA_VERSION, **fields}
        return dict(json.loads(json.dumps(whole, allow_nan=False, default=asdict)))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], ranks: Ranks) -> EvaluationResult:
        """Make it of what `to_dict` gave; a ValueError if that is of another kind or version, or incomplete."""
        fields = dict(content)
        kind, version = fields.pop("kind", None), fields.pop("schema_version", None)
        if (kind, version) != (_KIND, SCHEMA_VERSION):
            raise ValueError(f"expected kind {_KIND!r} of schema_version {SCHEMA_VERSION}, got {kind!r} of {version!r}")
        try:
            made: EvaluationResult = from_json(cls, {**fields, "ranks": ranks})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a complete evaluation ({error!r}); evaluate again") from error
        return made

    def save(self, folder: Path) -> None:
        """Write ``ranks.npz`` and then ``result.json``, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        packed = io.BytesIO()
        np.savez_compressed(packed, allow_pickle=False, **self.ranks)
        write_atomically(folder / RANKS_FILE, packed.getvalue())
        write_atomically(folder / RESULT_FILE, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> EvaluationResult:
        """Read what `save` wrote; a ValueError if there is no such result, or it is not whole."""
        content = read_result(folder)
        file = folder / RANKS_FILE
        try:
            with zipfile.ZipFile(file) as packed:  # it is compressed: what counts is what it unpacks to
                size = sum(member.file_size for member in packed.infolist())
            if size > MAX_RANKS_BYTES:
                raise ValueError(f"{size} bytes, more than {MAX_RANKS_BYTES}")  # noqa: TRY301 - of the file, as the others
            with np.load(file, allow_pickle=False) as arrays:
                ranks = {name: np.asarray(arrays[name], dtype=np.int64) for name in arrays.files}
            return cls.from_dict(content, ranks)
        except (OSError, ValueError, MemoryError, zipfile.BadZipFile) as error:  # an array can claim any size
            raise ValueError(f"{folder}: not a complete result of `vidembed evaluate`: {error}") from error


def read_result(folder: Path) -> dict[str, Any]:
    """Read the JSON of a result; a ValueError if there is none, or it is no JSON object."""
    try:
        return read_object(folder / RESULT_FILE)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: not a result of `vidembed evaluate`: {error}") from error
