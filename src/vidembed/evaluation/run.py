"""A whole evaluation: two stages, four columns, both directions."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.cache import ScoreCache
from vidembed.evaluation.embedder import Embedder, embedder_of
from vidembed.evaluation.evaluator import (
    DEFAULT_SECOND_TEMPERATURE,
    DEFAULT_TEMPERATURE,
    GivenTemperatures,
    Temperature,
    choose,
)
from vidembed.evaluation.report import write_reports
from vidembed.evaluation.result import (
    COLUMNS,
    DIRECTIONS,
    RESULT_FILE,
    BenchmarkFacts,
    Column,
    EvaluationResult,
    Figures,
    Ranks,
    RerankFacts,
    figures,
    hardware,
    needed,
    outcomes,
    rankings,
    read_result,
    second_stage,
    told,
    versions,
)
from vidembed.evaluation.two_stage import (
    ON_FAILURE,
    Failure,
    FirstStage,
    OnFailure,
    Work,
    above_least,
    ask,
    asked_mask,
    first_stage,
)
from vidembed.scoring import dual_softmax
from vidembed.scoring.checks import FloatArray
from vidembed.video.sampling import content_fingerprint

if TYPE_CHECKING:
    from vidembed.reranker import VideoReranker
    from vidembed.scoring import ScoreFusion


@dataclass(frozen=True)
class _Run:
    """What stays the same for the test set and the validation set."""

    embedder: Embedder
    reranker: VideoReranker | None
    k: int | None
    cache: ScoreCache
    on_error: OnFailure
    batch_size: int
    work: Work
    show_progress_bar: bool

    def first(self, benchmark: Benchmark) -> FirstStage:
        return first_stage(
            benchmark,
            self.embedder,
            self.cache,
            on_error=self.on_error,
            batch_size=self.batch_size,
            work=self.work,
            show_progress_bar=self.show_progress_bar,
        )

    def second(
        self, stage: FirstStage, temperatures: dict[str, Temperature]
    ) -> tuple[dict[str, FloatArray] | None, list[Failure]]:
        """What the second stage ranks by, by direction, with queries as rows; None without a reranker."""
        if self.reranker is None or self.k is None:
            return None, []
        wanted = {way: needed(stage.oriented(way), self.k, temperatures[f"first.{way}"].value) for way in DIRECTIONS}
        both = wanted["t2v"] | wanted["v2t"].T  # (T, W): a pair that both directions want is asked once
        asked = np.zeros(stage.benchmark.positives.shape, dtype=np.bool_)  # (T, V)
        asked[:, stage.readable] = both
        odds, unanswered = ask(
            stage.benchmark,
            asked,
            self.reranker,
            self.cache,
            on_error=self.on_error,
            tally=self.work.pairs,
            show_progress_bar=self.show_progress_bar,
        )
        odds = odds[:, stage.readable]  # (T, W)
        turned = {"t2v": odds, "v2t": odds.T}
        fusion = _fusion_of(self.reranker)
        return {
            way: second_stage(stage.oriented(way), turned[way], wanted[way], fusion) for way in DIRECTIONS
        }, unanswered


def evaluate(
    benchmark: Benchmark,
    encoder: Any,
    *,
    reranker: VideoReranker | None = None,
    k: int | None = None,
    validation: Benchmark | None = None,
    temperatures: GivenTemperatures | None = None,
    out: str | Path | None = None,
    model_name: str = "",
    reranker_name: str = "",
    on_error: OnFailure = "raise",
    batch_size: int = 32,
    seed: int = 0,
    show_progress_bar: bool = False,
) -> EvaluationResult:
    """Measure retrieval on a benchmark: raw, with dual-softmax, reranked, and with both; texts to videos and back.

    Args:
        benchmark: Videos and texts, as `read_benchmark` gives them.
        encoder: A `VideoEncoder`, or any SentenceTransformer that takes video.
        reranker: Asked about the `k` best of every query. Default: the rerank columns are not run.
        k: Candidates of a query, at least 1: videos of a text, and texts of a video. Needed with `reranker`.
        validation: Other videos and texts, on which temperatures are fitted.
        temperatures: Given ones, which go before fitted ones. Where there is neither, `DEFAULT_TEMPERATURE` and
            `DEFAULT_SECOND_TEMPERATURE` are used, and the result says so. They are never fitted on `benchmark`.
        out: Folder of the result, the reports and the cache, from which an interrupted run goes on. Default: nothing
            is written.
        model_name: For the result.
        reranker_name: For the result.
        on_error: At a video that cannot be read: "raise", or "count" it against the model: its texts never find it,
            it finds none of them, and the result lists it.
        batch_size: Inputs embedded at once.
        seed: Of the bootstrap.
        show_progress_bar: Whether to show bars.

    Raises:
        VideoFailedError: A video cannot be read, with ``on_error="raise"``, or none can.
        ValueError: An argument is out of range, the validation set shares a video with the benchmark, or `out` holds
            the result of something else.
    """
    began = time.monotonic()
    _check(reranker, k, on_error, batch_size)
    if validation is not None:
        _check_disjoint(benchmark, validation)
    embedder = embedder_of(encoder)
    facts = BenchmarkFacts.of(benchmark)
    folder = None if out is None else Path(out)
    if folder is not None:
        _check_folder(folder, facts, embedder.fingerprint)
    work = Work()
    with ScoreCache(None if folder is None else folder / "cache") as cache:
        run = _Run(embedder, reranker, k, cache, on_error, batch_size, work, show_progress_bar)
        given = temperatures or GivenTemperatures()
        needed_ones = [given.first(way) for way in DIRECTIONS]
        needed_ones += [] if reranker is None else [given.second(way) for way in DIRECTIONS]
        fitting = any(one is None for one in needed_ones)
        known = run.first(validation) if validation is not None and fitting else None
        chosen = _temperatures(run, known, given)
        stage = run.first(benchmark)
        second, unanswered = run.second(stage, chosen)
    columns, ranks = _columns(stage, second, chosen, k, seed)
    result = EvaluationResult(
        benchmark=facts,
        model={"name": model_name, "fingerprint": embedder.fingerprint, **embedder.facts()},
        rerank=None if reranker is None or k is None else _rerank_facts(reranker, k, reranker_name),
        temperatures=chosen,
        validation=None if known is None else _validation_facts(known),
        columns=columns,
        failures=stage.failures,
        unanswered=tuple(unanswered),
        work={name: told(tally) for name, tally in vars(work).items()},
        seconds=time.monotonic() - began,
        seed=seed,
        versions=versions(),
        hardware=hardware(embedder.device),
        ranks=ranks,
    )
    if folder is not None:
        result.save(folder)
        write_reports(result, folder)
    return result


# -- checks ----------------------------------------------------------------------------------------------------------


def _check(reranker: VideoReranker | None, k: int | None, on_error: str, batch_size: int) -> None:
    if (reranker is None) != (k is None):
        raise ValueError(f"k={k!r}: give it together with reranker, which is asked about the k best")
    for name, value in (("k", k), ("batch_size", batch_size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}={value!r}: expected a whole number of at least 1")
    if on_error not in ON_FAILURE:
        raise ValueError(f"on_error={on_error!r} is not known. Allowed: {', '.join(ON_FAILURE)}")


def _check_disjoint(benchmark: Benchmark, validation: Benchmark) -> None:
    """Refuse a validation set that holds a video of the test set, under this name or as a copy."""
    by_size: dict[int, list[Path]] = {}
    for path in benchmark.videos:
        if path.is_file():
            by_size.setdefault(path.stat().st_size, []).append(path)
    contents: dict[Path, str] = {}
    for path in validation.videos:
        for other in by_size.get(path.stat().st_size, []) if path.is_file() else []:
            for one in (path, other):
                if one not in contents:
                    contents[one] = content_fingerprint(one)
            if contents[path] == contents[other]:
                raise ValueError(
                    f"validation: {path} is a video of the test set ({other}). Temperatures that are fitted on what is "
                    "measured make figures that look better than they are; take other videos"
                )


def _check_folder(folder: Path, facts: BenchmarkFacts, fingerprint: str) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out: {str(folder)!r} is a file; name a folder")
    if not (folder / RESULT_FILE).exists():
        return
    before = read_result(folder)
    there = (before.get("benchmark") or {}).get("digest"), (before.get("model") or {}).get("fingerprint")
    if there != (facts.digest, fingerprint):
        raise ValueError(
            f"out: {str(folder)!r} holds the result of another benchmark or model; name another folder, or remove "
            f"{RESULT_FILE} there"
        )


# -- temperatures ----------------------------------------------------------------------------------------------------


def _temperatures(run: _Run, known: FirstStage | None, given: GivenTemperatures) -> dict[str, Temperature]:
    """The temperatures of both stages, by ``"STAGE.DIRECTION"``."""
    chosen: dict[str, Temperature] = {}
    for way in DIRECTIONS:
        scores = None if known is None else _answerable(known, way, known.oriented(way))
        chosen[f"first.{way}"] = choose(given.first(way), DEFAULT_TEMPERATURE, scores, what=f"the first stage, {way}")
    if run.reranker is None or run.k is None:
        return chosen
    second = None
    if known is not None and any(given.second(way) is None for way in DIRECTIONS):
        second, _ = run.second(known, chosen)
    for way in DIRECTIONS:
        scores = None
        if known is not None and second is not None:
            dual = dual_softmax(known.oriented(way), temperature=chosen[f"first.{way}"].value)
            scores = _answerable(known, way, above_least(second[way], asked_mask(dual, run.k)))
        chosen[f"second.{way}"] = choose(
            given.second(way), DEFAULT_SECOND_TEMPERATURE, scores, what=f"the second stage, {way}"
        )
    return chosen


def _answerable(stage: FirstStage, way: str, scores: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Scores and positives of the queries that a readable answer is there for, queries as rows."""
    positives = stage.benchmark.positives[:, stage.readable]  # (T, W)
    right = positives if way == "t2v" else positives.T
    rows = right.any(axis=1)
    return scores[rows], right[rows]


# -- figures ---------------------------------------------------------------------------------------------------------


def _columns(
    stage: FirstStage,
    second: dict[str, FloatArray] | None,
    chosen: dict[str, Temperature],
    k: int | None,
    seed: int,
) -> tuple[tuple[Column, ...], Ranks]:
    every = np.ones(len(stage.benchmark.texts), dtype=np.bool_)
    positives = stage.benchmark.positives  # (T, V)
    ranks: Ranks = {
        # texts of one video are no independent draws; a text of several counts to its first
        "groups.t2v": np.array([places[0] for places in stage.benchmark.owners], dtype=np.int64),
        "groups.v2t": np.arange(len(stage.benchmark.videos), dtype=np.int64),
    }
    found: dict[str, dict[str, Figures | None]] = {name: dict.fromkeys(DIRECTIONS) for name in COLUMNS}
    for way in DIRECTIONS:
        last = chosen.get(f"second.{way}")
        ranked = rankings(
            stage.oriented(way),
            None if second is None else second[way],
            temperature=chosen[f"first.{way}"].value,
            second_temperature=None if last is None else last.value,
            k=k,
        )
        right, rows, answers = positives, every, stage.readable
        if way == "v2t":
            right, rows, answers = positives.T, stage.readable, every
        for name, scores in ranked.items():
            if scores is not None:
                fared = outcomes(scores, right, rows=rows, columns=answers)
                ranks[f"{name}.{way}"] = fared.ranks
                found[name][way] = figures(fared, seed=seed, groups=ranks[f"groups.{way}"])
    return tuple(Column(name, of["t2v"], of["v2t"]) for name, of in found.items()), ranks


def _rerank_facts(reranker: VideoReranker, k: int, name: str) -> RerankFacts:
    weights = reranker.prior_correction
    return RerankFacts(
        model=name or reranker.source,
        fingerprint=reranker.fingerprint,
        mode=reranker.mode,
        k=k,
        fused=_fusion_of(reranker) is not None,
        prior_weights=(weights.video_weight, weights.text_weight) if reranker.mode == "prior_corrected" else None,
    )


def _fusion_of(reranker: VideoReranker) -> ScoreFusion | None:
    return reranker.fusion if reranker.fusion is not None and reranker.calibration_applies() else None


def _validation_facts(stage: FirstStage) -> dict[str, Any]:
    benchmark = stage.benchmark
    return {
        "title": benchmark.title,
        "split": benchmark.split,
        "source": benchmark.source,
        "videos": len(benchmark.videos),
        "texts": len(benchmark.texts),
        "missing": list(benchmark.missing),
        "notes": list(benchmark.notes),
        "failures": [f"{one.video_id}: {one.reason}" for one in stage.failures],
    }
