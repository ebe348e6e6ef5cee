"""What an evaluation found: figures of every column and direction, and all that they depend on. JSON and ranks."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vidembed.atomic import write_atomically
from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.columns import COLUMNS, DIRECTIONS
from vidembed.evaluation.figures import Figures
from vidembed.evaluation.first_stage import Failure, Tally
from vidembed.evaluation.metrics import Interval
from vidembed.evaluation.temperatures import Temperature

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
