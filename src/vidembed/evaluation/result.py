"""What an evaluation found: figures of every column and direction, and all that they depend on. JSON and ranks."""

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
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.evaluator import Temperature
from vidembed.evaluation.metrics import (
    Interval,
    average_precision,
    bootstrap_interval,
    mean_rank,
    median_rank,
    ndcg_at,
    ranks,
)
from vidembed.evaluation.two_stage import DualStages, Failure, Tally, asked_mask, reranked
from vidembed.scoring import ScoreFusion, dual_softmax
from vidembed.scoring.checks import FloatArray
from vidembed.text import write_atomically

DIRECTIONS: Final = ("t2v", "v2t")
COLUMNS: Final = {
    "raw": "raw",
    "dual_softmax": "dual-softmax",
    "rerank": "+ rerank",
    "rerank_dual_softmax": "+ both",
}
"""Columns by name, with their headings."""


class GivenStages(DualStages):
    """Dual-softmax on both stages with temperatures that are known.

    Args:
        first: Temperature of the first stage.
        second: Temperature of the second.
        k: Candidates that are ordered again.
    """

    def __init__(self, first: float, second: float, k: int) -> None:
        self.first, self.second, self.k = first, second, k


def needed(first: FloatArray, k: int, temperature: float) -> NDArray[np.bool_]:
    """Which pairs the second stage is asked about ``(Q, N)``, for both columns: the `k` best raw and dual-softmaxed.

    Args:
        first: ``(Q, N)`` of the first stage, queries as rows.
        k: Candidates a query.
        temperature: Of dual-softmax on the first stage.
    """
    return np.asarray(asked_mask(first, k) | asked_mask(dual_softmax(first, temperature=temperature), k))


def second_stage(
    first: FloatArray, odds: FloatArray, asked: NDArray[np.bool_], fusion: ScoreFusion | None = None
) -> FloatArray:
    """What the second stage ranks by ``(Q, N)``: log-odds, or log-odds fused with the first stage's similarity.

    A pair that was asked about and has no answer (NaN) stands below all that have one, so it counts against.

    Args:
        first: ``(Q, N)`` of the first stage, queries as rows.
        odds: ``(Q, N)`` log-odds, NaN where there is none.
        asked: ``(Q, N)``, which pairs were asked about.
        fusion: Of both stages, as the reranker has it; None for the log-odds alone.
    """
    answered = asked & np.isfinite(odds)
    known = np.where(answered, odds, 0.0)
    if fusion is not None:
        known = np.where(answered, fusion.fused_log_odds(np.where(answered, odds, np.nan), first), 0.0)
    least = known[answered].min() if answered.any() else 0.0
    return np.asarray(np.where(asked & ~answered, least - 1.0, known))


def rankings(
    first: FloatArray, second: FloatArray | None, *, temperature: float, second_temperature: float | None, k: int | None
) -> dict[str, FloatArray | None]:
    """Ranking scores ``(Q, N)`` of each of `COLUMNS`; None where the second stage was not run.

    Args:
        first: ``(Q, N)`` of the first stage, queries as rows.
        second: ``(Q, N)`` of `second_stage`, or None.
        temperature: Of dual-softmax on the first stage.
        second_temperature: Of dual-softmax on the second stage.
        k: Candidates of a query that are ordered again.
    """
    found: dict[str, FloatArray | None] = dict.fromkeys(COLUMNS)
    found["raw"], found["dual_softmax"] = first, dual_softmax(first, temperature=temperature)
    if second is not None and k is not None and second_temperature is not None:
        found["rerank"] = reranked(first, second, k)
        found["rerank_dual_softmax"] = GivenStages(temperature, second_temperature, k)(first, second)
    return found


CUTS: Final = (1, 5, 10)
"""Ranks of the recalls: those that papers on video retrieval report (VidVec, tables 1 to 3)."""

NDCG_DEPTH: Final = 10
"""Places that nDCG looks at (ours)."""


@dataclass(frozen=True, eq=False)
class Outcomes:
    """How each query fared.

    Attributes:
        ranks: ``(Q,)`` int64 of the best right answer, from 1; N + 1 where it was never found.
        ndcg: ``(Q,)`` nDCG of the first `NDCG_DEPTH`, from 0 to 1.
        average_precision: ``(Q,)``, from 0 to 1.
    """

    ranks: NDArray[np.int64]
    ndcg: FloatArray
    average_precision: FloatArray


@dataclass(frozen=True)
class Figures:
    """The figures of one direction of one ranking; shares are in percent.

    Attributes:
        queries: How many.
        recall_1: R@1 with its interval.
        recall_5: R@5 with its interval.
        recall_10: R@10 with its interval.
        median_rank: MdR, from 1.
        mean_rank: MnR, from 1.
        ndcg_10: nDCG@10.
        mean_average_precision: mAP.
    """

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


def outcomes(
    scores: ArrayLike, positives: NDArray[np.bool_], *, rows: NDArray[np.bool_], columns: NDArray[np.bool_]
) -> Outcomes:
    """How each query fared, those included that could not be asked.

    A query that could not be asked, or none of whose right answers could be read, is never found: its rank is N + 1 and
    its other figures are 0. Where only some right answers could be read, the others count as never found.

    Args:
        scores: ``(rows, columns)`` of the queries and answers that could be read.
        positives: ``(Q, N)`` of all queries and all answers.
        rows: ``(Q,)``, which queries could be read.
        columns: ``(N,)``, which answers could be read.

    Raises:
        ValueError: Scores are of another shape or not finite.
    """
    count, width = positives.shape
    found = Outcomes(np.full(count, width + 1, dtype=np.int64), np.zeros(count), np.zeros(count))
    right = positives[np.ix_(rows, columns)]  # (rows, columns)
    has_answer = right.any(axis=1)
    if not has_answer.any():
        return found
    given, mask = np.asarray(scores)[has_answer], right[has_answer]
    at = np.flatnonzero(rows)[has_answer]
    here, all_right = mask.sum(axis=1), positives[at].sum(axis=1)
    found.ranks[at] = ranks(given, mask)
    found.ndcg[at] = ndcg_at(given, mask, NDCG_DEPTH) * _best_gain(here) / _best_gain(all_right)
    found.average_precision[at] = average_precision(given, mask) * here / all_right
    return found


def _best_gain(right: NDArray[np.integer]) -> FloatArray:
    """Gain of the best order with so many right answers, ``(Q,)``."""
    gains = np.cumsum(1 / np.log2(np.arange(2, NDCG_DEPTH + 2)))
    return np.asarray(gains[np.minimum(right, NDCG_DEPTH) - 1])


def figures(found: Outcomes, *, seed: int, groups: NDArray[np.intp] | None = None) -> Figures:
    """Means over the queries, with 95 % bootstrap intervals of the recalls.

    Args:
        found: Of `outcomes`.
        seed: Of the bootstrap.
        groups: ``(Q,)``, which queries are of one video; whole groups are drawn then.
    """
    recalls = [_percent(bootstrap_interval(found.ranks <= cut, seed=seed, groups=groups)) for cut in CUTS]
    return Figures(
        queries=len(found.ranks),
        recall_1=recalls[0],
        recall_5=recalls[1],
        recall_10=recalls[2],
        median_rank=median_rank(found.ranks),
        mean_rank=mean_rank(found.ranks),
        ndcg_10=100 * float(found.ndcg.mean()),
        mean_average_precision=100 * float(found.average_precision.mean()),
    )


def _percent(interval: Interval) -> Interval:
    return Interval(100 * interval.estimate, 100 * interval.low, 100 * interval.high, interval.level)


SCHEMA_VERSION: Final = 1
RESULT_FILE: Final = "result.json"
RANKS_FILE: Final = "ranks.npz"
_KIND: Final = "vidembed_evaluation"
_MAX_RANKS_BYTES: Final = 1 << 30  # of a ranks file that is read; that of MSVD is under 2 MB

Ranks = dict[str, NDArray[np.int64]]
"""Arrays ``(Q,)`` by ``"COLUMN.DIRECTION"``, and the groups of the queries of a direction by ``"groups.DIRECTION"``."""


@dataclass(frozen=True)
class BenchmarkFacts:
    """What was measured on.

    Attributes:
        name: As `Benchmark`.
        title: As `Benchmark`.
        split: As `Benchmark`.
        protocol: As `Benchmark`.
        source: As `Benchmark`.
        videos: How many videos.
        texts: How many texts.
        missing: Ids of videos that were left out, because there is no file.
        notes: As `Benchmark`.
        digest: SHA-256 of ids, texts and which belong together: equal ones ask the same.
    """

    name: str
    title: str
    split: str
    protocol: str
    source: str
    videos: int
    texts: int
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    digest: str

    @classmethod
    def of(cls, benchmark: Benchmark) -> BenchmarkFacts:
        """Take them from a benchmark."""
        asked = json.dumps([benchmark.video_ids, benchmark.texts, benchmark.owners])
        return cls(
            name=benchmark.name,
            title=benchmark.title,
            split=benchmark.split,
            protocol=benchmark.protocol,
            source=benchmark.source,
            videos=len(benchmark.videos),
            texts=len(benchmark.texts),
            missing=benchmark.missing,
            notes=benchmark.notes,
            digest=hashlib.sha256(asked.encode()).hexdigest(),
        )


@dataclass(frozen=True)
class RerankFacts:
    """The second stage.

    Attributes:
        model: Its name.
        fingerprint: SHA-256 of all that makes its answers.
        mode: Score mode.
        k: Candidates of a query that are ordered again.
        fused: Whether log-odds are fused with the first stage's similarity, as its calibration has it.
        prior_weights: Of the video's and the sentence's prior, in mode "prior_corrected".
    """

    model: str
    fingerprint: str
    mode: str
    k: int
    fused: bool
    prior_weights: tuple[float, float] | None = None


@dataclass(frozen=True)
class Column:
    """One way to rank, in both directions; None where it was not run.

    Attributes:
        name: One of `COLUMNS`.
        t2v: Texts rank videos.
        v2t: Videos rank texts.
    """

    name: str
    t2v: Figures | None
    v2t: Figures | None

    def of(self, direction: str) -> Figures | None:
        """The figures of a direction."""
        return self.t2v if direction == "t2v" else self.v2t


@dataclass(frozen=True, eq=False)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        benchmark: What was measured on.
        model: Name, fingerprint, layer, prefix, sampling and so on.
        rerank: The second stage, or None.
        temperatures: By ``"STAGE.DIRECTION"``, STAGE being "first" or "second".
        validation: What temperatures were fitted on, or None.
        columns: Always the four of `COLUMNS`.
        failures: Videos that could not be used and count against.
        unanswered: Videos that the second stage has no answer about, for some of their texts at least.
        work: By kind ("videos", "texts", "pairs"), validation set included: computed, cached, seconds, per_second.
        seconds: Wall time of this run.
        seed: Of the bootstrap.
        versions: Of Python and packages.
        hardware: Platform, processors, device.
        ranks: Of every query, for paired comparisons.
    """

    benchmark: BenchmarkFacts
    model: dict[str, Any]
    rerank: RerankFacts | None
    temperatures: dict[str, Temperature]
    validation: dict[str, Any] | None
    columns: tuple[Column, ...]
    failures: tuple[Failure, ...]
    unanswered: tuple[Failure, ...]
    work: dict[str, Any]
    seconds: float
    seed: int
    versions: dict[str, str]
    hardware: dict[str, Any]
    ranks: Ranks

    def column(self, name: str) -> Column:
        """The figures of a column.

        Raises:
            ValueError: There is no such column.
        """
        for one in self.columns:
            if one.name == name:
                return one
        raise ValueError(f"column={name!r}: expected one of {', '.join(COLUMNS)}")

    def to_dict(self) -> dict[str, Any]:
        """Everything but the ranks, as JSON values."""
        fields = {name: value for name, value in vars(self).items() if name != "ranks"}
        plain = {
            name: [asdict(one) for one in value] if name in ("columns", "failures", "unanswered") else value
            for name, value in fields.items()
        }
        plain["benchmark"] = asdict(self.benchmark)
        plain["rerank"] = None if self.rerank is None else asdict(self.rerank)
        plain["temperatures"] = {name: asdict(one) for name, one in self.temperatures.items()}
        whole = {"kind": _KIND, "schema_version": SCHEMA_VERSION, **plain}
        return dict(json.loads(json.dumps(whole, allow_nan=False)))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], ranks: Ranks) -> EvaluationResult:
        """Make it of what `to_dict` gave.

        Raises:
            ValueError: It is of another kind or version, or incomplete.
        """
        fields = dict(content)
        kind, version = fields.pop("kind", None), fields.pop("schema_version", None)
        if (kind, version) != (_KIND, SCHEMA_VERSION):
            raise ValueError(f"expected kind {_KIND!r} of schema_version {SCHEMA_VERSION}, got {kind!r} of {version!r}")
        try:
            facts = fields["benchmark"]
            fields["benchmark"] = BenchmarkFacts(
                **{**facts, "missing": tuple(facts["missing"]), "notes": tuple(facts["notes"])}
            )
            fields["rerank"] = None if fields["rerank"] is None else _rerank(fields["rerank"])
            fields["temperatures"] = {name: Temperature(**one) for name, one in fields["temperatures"].items()}
            fields["columns"] = tuple(
                Column(one["name"], *(_figures(one[way]) for way in DIRECTIONS)) for one in fields["columns"]
            )
            for name in ("failures", "unanswered"):
                fields[name] = tuple(Failure(**one) for one in fields[name])
            return cls(**fields, ranks=ranks)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no whole evaluation ({error!r}); evaluate again") from error

    def save(self, folder: Path) -> None:
        """Write ``ranks.npz`` and then ``result.json``, each whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        packed = io.BytesIO()
        np.savez_compressed(packed, allow_pickle=False, **self.ranks)
        write_atomically(folder / RANKS_FILE, packed.getvalue())
        write_atomically(folder / RESULT_FILE, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> EvaluationResult:
        """Read what `save` wrote.

        Raises:
            ValueError: There is no such result, or it is not whole.
        """
        content = read_result(folder)
        file = folder / RANKS_FILE
        try:
            with zipfile.ZipFile(file) as packed:  # it is compressed: what counts is what it unpacks to
                size = sum(member.file_size for member in packed.infolist())
            if size > _MAX_RANKS_BYTES:
                raise ValueError(f"{size} bytes, more than {_MAX_RANKS_BYTES}")  # noqa: TRY301 - of the file, as the others
            with np.load(file, allow_pickle=False) as arrays:
                ranks = {name: np.asarray(arrays[name], dtype=np.int64) for name in arrays.files}
            return cls.from_dict(content, ranks)
        except (OSError, ValueError, MemoryError, zipfile.BadZipFile) as error:  # an array can claim any size
            raise ValueError(f"{folder}: no whole result of `vidembed evaluate`: {error}") from error


def read_result(folder: Path) -> dict[str, Any]:
    """Read the JSON of a result.

    Raises:
        ValueError: There is none, or it is no JSON object.
    """
    file = folder / RESULT_FILE
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: no result of `vidembed evaluate`: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(content).__name__}")  # noqa: TRY004 - of the file
    return content


def told(tally: Tally) -> dict[str, Any]:
    """A tally as JSON values, with the share that came from the cache."""
    whole = tally.computed + tally.cached
    return {
        **asdict(tally),
        "per_second": tally.per_second,
        "share_cached": tally.cached / whole if whole else None,
    }


def _rerank(content: Mapping[str, Any]) -> RerankFacts:
    weights = content["prior_weights"]
    return RerankFacts(**{**content, "prior_weights": None if weights is None else tuple(weights)})


def _figures(content: Mapping[str, Any] | None) -> Figures | None:
    if content is None:
        return None
    recalls = {name: Interval(**content[name]) for name in ("recall_1", "recall_5", "recall_10")}
    return Figures(**{**content, **recalls})


PACKAGES: Final = ("vidembed", "torch", "transformers", "sentence-transformers", "av", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide figures."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed as a package"
    return found


def hardware(device: str) -> dict[str, Any]:
    """Platform, processors, and the name of a torch device."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "device": device,
        "device_name": _device_name(device),
    }


def _device_name(device: str) -> str:
    if not device.startswith("cuda"):
        return platform.processor() or platform.machine()
    import torch  # noqa: PLC0415 - it is loaded by now, and this module is read without it

    return str(torch.cuda.get_device_name(device))
