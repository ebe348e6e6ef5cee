"""A whole evaluation: a model and a reranker run on a benchmark, ranked in four ways, in both directions."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NoReturn, get_args

import numpy as np
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from vidembed.evaluation import result as results
from vidembed.evaluation import two_stage
from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.cache import Answer, ScoreCache, model_key, text_key, video_key
from vidembed.evaluation.embedder import Embedder, Vector, embedder_of
from vidembed.evaluation.report import write_reports
from vidembed.evaluation.result import EvaluationResult, Failure
from vidembed.evaluation.two_stage import DIRECTIONS, GivenTemperatures, Mask, Temperature
from vidembed.progress import progress_bar
from vidembed.scoring import ScoreFusion, dual_softmax
from vidembed.scoring.checks import FloatArray, whole_number
from vidembed.video.clip import content_fingerprint
from vidembed.yes_no import Answers

if TYPE_CHECKING:
    from vidembed.reranker import VideoReranker

logger = logging.getLogger(__name__)
OnFailure = Literal["raise", "count"]
_Keys = tuple[dict[int, str], list[str]]  # of the videos that are asked about, by place, and of all texts
TEXTS_AT_ONCE: Final = 256  # texts embedded between two commits of the cache (ours)
# videos reranked between two commits of the cache (ours): as many as are decoded ahead at most
VIDEOS_AT_ONCE: Final = 8


@dataclass(frozen=True, eq=False)
class FirstStage:
    """Similarities of a benchmark."""

    benchmark: Benchmark
    readable: Mask  # (V,), which videos have a vector
    scores: FloatArray  # (T, W), of all texts and the W readable videos
    failures: tuple[Failure, ...]  # the other videos

    def oriented(self, direction: str) -> FloatArray:
        """Similarities with queries as rows: ``(T, W)`` or ``(W, T)``."""
        return self.scores if direction == "t2v" else self.scores.T


@dataclass(frozen=True)
class TwoStageSearch:
    """An embedding model and a reranker of its candidates, to be run on benchmarks; the cache keeps what they find."""

    embedder: Embedder
    cache: ScoreCache
    reranker: VideoReranker | None = None  # in its own score mode and fusion; None for the first stage alone
    k: int | None = None  # candidates of a query that are reranked, at least 1; None without a reranker
    on_error: OnFailure = "raise"  # at a video that fails: "raise", or "count" to go on without it
    batch_size: int = 32
    show_progress_bar: bool = False
    work: dict[str, results.Tally] = field(  # what is done
        default_factory=lambda: {name: results.Tally() for name in ("videos", "texts", "pairs")}
    )

    def rerank_facts(self, name: str) -> results.RerankFacts | None:
        """What a result shows of the second stage, if there is one."""
        head = self.reranker
        if head is None or self.k is None:
            return None
        weights = head.prior_correction.video_weight, head.prior_correction.text_weight
        prior_weights = weights if head.mode == "prior_corrected" else None
        fused = self.fusion is not None
        return results.RerankFacts(name or head.source, head.fingerprint, head.mode, self.k, fused, prior_weights)

    @property
    def fusion(self) -> ScoreFusion | None:
        """What the reranker fuses log-odds and similarity with, if it does."""
        head = self.reranker
        return head.fusion if head is not None and head.fusion is not None and head.calibration_applies() else None

    def first(self, benchmark: Benchmark) -> FirstStage:
        """Embed what the cache does not hold, and compare all texts with all videos; errors as `evaluate`."""
        videos, failures = self._videos(benchmark)
        readable = np.array([vector is not None for vector in videos])  # (V,)
        if not readable.any():
            raise ValueError(
                f"videos: none of the {len(videos)} videos can be read; the first error: {failures[0].reason}"
            )
        texts = self._texts(benchmark)  # (T, D)
        vectors = np.stack([vector for vector in videos if vector is not None]).astype(np.float64)  # (W, D)
        return FirstStage(benchmark, readable, self.embedder.similarity(texts, vectors), tuple(failures))

    def _videos(self, benchmark: Benchmark) -> tuple[list[Vector | None], list[Failure]]:
        """Vectors ``(D,)`` of all videos, None of those that failed, and why; each video is a commit of its own."""
        model, tally = self.embedder.key, self.work["videos"]
        keys = [_key(path) for path in benchmark.videos]
        known = self.cache.vectors(model, [key for key in keys if key is not None])
        vectors: list[Vector | None] = [None if key is None else known.get(key) for key in keys]
        missing = [place for place, vector in enumerate(vectors) if vector is None]
        tally.cached += len(keys) - len(missing)
        failures: list[Failure] = []
        paths, before = [benchmark.videos[place] for place in missing], time.monotonic()
        with self._bar("Embedding videos", len(missing), "videos") as bar:
            for place, found in zip(missing, self.embedder.videos(paths, batch_size=self.batch_size), strict=True):
                key = keys[place]
                if not isinstance(found, Exception) and _key(benchmark.videos[place]) != key:
                    found = ValueError("the file was written to while it was being read")  # noqa: PLW2901
                if isinstance(found, Exception):
                    failures.append(self._failure(benchmark, place, found))
                else:
                    if key is not None:
                        self.cache.put_vectors(model, [(key, found)])
                    vectors[place] = found
                    tally.computed += 1
                tally.seconds += time.monotonic() - before
                before = time.monotonic()
                bar.update()
        return vectors, failures

    def _failure(self, benchmark: Benchmark, place: int, error: Exception) -> Failure:
        reason = str(getattr(error, "reason", None) or error)
        name, file = benchmark.video_ids[place], str(benchmark.videos[place])
        if self.on_error == "raise":
            remedy = "Replace the file, or count such videos against the model (--on-error count, on_error='count')."
            raise ValueError(f"video {name!r} ({file}): {reason}. {remedy}") from error
        logger.warning("counted as not found: %s (%s): %s", name, file, reason)
        return Failure(name, file, f"{type(error).__name__}: {reason}")

    def _texts(self, benchmark: Benchmark) -> FloatArray:
        """Vectors of all texts ``(T, D)``; equal ones are embedded once."""
        model, tally = self.embedder.key, self.work["texts"]
        keys = {text: text_key(text) for text in benchmark.texts}
        known = self.cache.vectors(model, list(keys.values()))
        missing = [text for text, key in keys.items() if key not in known]
        tally.cached += len(keys) - len(missing)
        with self._bar("Embedding texts", len(missing), "texts") as bar:
            for start in range(0, len(missing), TEXTS_AT_ONCE):
                chunk = missing[start : start + TEXTS_AT_ONCE]
                before = time.monotonic()
                vectors = self.embedder.texts(chunk, batch_size=self.batch_size)  # (C, D)
                tally.seconds += time.monotonic() - before
                if not (finite := np.isfinite(vectors).all(axis=1)).all():  # (C,)
                    bad = chunk[int(np.argmin(finite))]
                    raise ValueError(f"text {bad!r}: the model gave a vector that is not finite")
                fresh = {keys[text]: vector for text, vector in zip(chunk, vectors, strict=True)}
                self.cache.put_vectors(model, fresh.items())
                known |= fresh
                tally.computed += len(chunk)
                bar.update(len(chunk))
        return np.stack([known[keys[text]] for text in benchmark.texts]).astype(np.float64)

    def second(
        self, stage: FirstStage, temperatures: dict[str, Temperature]
    ) -> tuple[dict[str, FloatArray] | None, list[Failure]]:
        """Rerank both directions' candidates, a pair that both want once; None without a reranker.

        Returned are `second_stage` by direction, queries as rows, and the videos that lack an answer about some text.
        """
        if self.reranker is None or self.k is None:
            return None, []
        wanted = {
            way: two_stage.needed(stage.oriented(way), self.k, temperatures[f"first.{way}"].value) for way in DIRECTIONS
        }
        pairs = np.zeros(stage.benchmark.positives.shape, dtype=np.bool_)  # (T, V)
        pairs[:, stage.readable] = wanted["t2v"] | wanted["v2t"].T
        odds, failures = self._log_odds(stage.benchmark, pairs, self.reranker)
        odds = odds[:, stage.readable]  # (T, W)
        found = {
            way: two_stage.second_stage(stage.oriented(way), odds if way == "t2v" else odds.T, wanted[way], self.fusion)
            for way in DIRECTIONS
        }
        return found, failures

    def _log_odds(self, benchmark: Benchmark, pairs: Mask, reranker: VideoReranker) -> tuple[FloatArray, list[Failure]]:
        """Log-odds ``(T, V)`` of `pairs`, NaN elsewhere and where there is no answer; videos that lack one."""
        model = model_key(reranker.fingerprint, "head", str(reranker.video_backend))  # of every score mode
        columns = np.flatnonzero(pairs.any(axis=0)).tolist()
        videos = {place: video_key(benchmark.videos[place]) for place in columns}
        texts = [text_key(text) for text in benchmark.texts]
        odds = np.full(pairs.shape, np.nan)  # (T, V)
        failures: list[Failure] = []
        with self._bar("Reranking", int(pairs.sum()), "pairs") as bar:
            for start in range(0, len(columns), VIDEOS_AT_ONCE):
                chunk = columns[start : start + VIDEOS_AT_ONCE]
                rows = {place: np.flatnonzero(pairs[:, place]).tolist() for place in chunk}
                self._answer(benchmark, reranker, model, (videos, texts), rows)
                for place, of_video in rows.items():
                    asked = [texts[row] for row in of_video]
                    odds[of_video, place] = found = self._cached(reranker, model, videos[place], asked)
                    if lost := int(np.isnan(found).sum()):
                        reason = f"no answer about {lost} of {len(of_video)} texts; the log says why"
                        failures.append(Failure(benchmark.video_ids[place], str(benchmark.videos[place]), reason))
                    bar.update(len(of_video))
        return odds, failures

    def _answer(
        self, benchmark: Benchmark, reranker: VideoReranker, model: str, keys: _Keys, rows: dict[int, list[int]]
    ) -> None:
        """Run the reranker on what the cache lacks about some videos, each prefilled once; keep it in one commit."""
        (videos, texts), tally, priors = keys, self.work["pairs"], reranker.mode == "prior_corrected"
        missing: list[tuple[int, int]] = []  # of text and video; equal texts once
        for place, of_video in rows.items():
            known = set(self.cache.answers(model, videos[place], [texts[row] for row in of_video]))
            if priors:
                have = self.cache.priors(model, [videos[place], *(texts[row] for row in of_video)])
                known = {text for text in known if text in have and videos[place] in have}
            tally.cached += len(known)
            different = {texts[row]: row for row in of_video}
            missing += [(row, place) for text, row in different.items() if text not in known]
        if not missing:
            return
        before = time.monotonic()
        try:
            answers = reranker.answers(
                [{"text": benchmark.texts[row], "video": benchmark.videos[place]} for row, place in missing],
                priors=priors,
                on_error="raise" if self.on_error == "raise" else "skip",
                show_progress_bar=False,
            )
        except Exception as error:
            if not isinstance(error, ValueError) and not hasattr(error, "reason"):
                raise
            names = ", ".join(repr(benchmark.video_ids[place]) for place in dict.fromkeys(at for _, at in missing))
            remedy = "Count such pairs against the model with --on-error count (on_error='count')."
            raise ValueError(f"reranking, one of the videos {names}: {error}. {remedy}") from error
        tally.seconds += time.monotonic() - before
        answered = np.flatnonzero(~answers.missing).tolist()
        tally.computed += len(answered)
        there = [(at, videos[missing[at][1]], texts[missing[at][0]]) for at in answered]
        if answers.video_prior is not None and answers.text_prior is not None:  # before the answers, which need them
            self.cache.put_priors(model, {video: float(answers.video_prior[at]) for at, video, _ in there}.items())
            self.cache.put_priors(model, {text: float(answers.text_prior[at]) for at, _, text in there}.items())
        found = ((video, text, Answer(float(answers.yes[at]), float(answers.yes_no[at]))) for at, video, text in there)
        self.cache.put_answers(model, found)

    def _cached(self, reranker: VideoReranker, model: str, video: str, texts: Sequence[str]) -> FloatArray:
        """Log-odds in the reranker's mode of one video's pairs ``(n,)``, NaN where there is no answer."""
        known, nothing = self.cache.answers(model, video, texts), Answer(np.nan, np.nan)
        yes, yes_no = np.array([astuple(known.get(text, nothing)) for text in texts]).T
        answers = Answers(yes, yes_no)
        if reranker.mode == "prior_corrected":
            priors = self.cache.priors(model, [video, *texts])
            text_prior = np.array([priors.get(text, np.nan) for text in texts])
            answers = Answers(yes, yes_no, np.full(len(texts), priors.get(video, np.nan)), text_prior)
        return answers.log_odds(reranker.mode, reranker.prior_correction)

    def _bar(self, what: str, total: int, unit: str) -> tqdm[NoReturn]:
        return progress_bar(what, unit, total=total, shown=self.show_progress_bar)


def _key(path: Path) -> str | None:
    try:
        return video_key(path)
    except OSError:  # what reading it will say
        return None


def evaluate(
    benchmark: Benchmark,
    encoder: SentenceTransformer,
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
        reranker: Scores the `k` best of every query. Default: the rerank columns are not run.
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
        ValueError: A video cannot be read, with ``on_error="raise"``, or none can; an argument is out of range, the
            validation set shares a video with the benchmark, or `out` holds the result of something else.
    """
    began = time.monotonic()
    if (reranker is None) != (k is None):
        raise ValueError(f"k={k!r}: it needs reranker, which scores the best k; give both or neither")
    for name, value in (("k", k), ("batch_size", batch_size)):
        if value is not None:
            whole_number(name, value)
    if on_error not in get_args(OnFailure):
        raise ValueError(f"on_error={on_error!r} is not known. Allowed: {', '.join(get_args(OnFailure))}")
    if validation is not None:
        _check_disjoint(benchmark, validation)
    embedder = embedder_of(encoder)
    facts = results.BenchmarkFacts.of(benchmark)
    folder = None if out is None else Path(out)
    if folder is not None:
        _check_folder(folder, facts, embedder.fingerprint)
    given = temperatures or GivenTemperatures()
    with ScoreCache(None if folder is None else folder / "cache") as cache:
        search = TwoStageSearch(embedder, cache, reranker, k, on_error, batch_size, show_progress_bar)
        stages = [given.first] if reranker is None else [given.first, given.second]
        fitting = any(stage(way) is None for stage in stages for way in DIRECTIONS)
        known = search.first(validation) if validation is not None and fitting else None
        chosen = choose_temperatures(search, known, given)
        first = search.first(benchmark)
        second, unanswered = search.second(first, chosen)
    columns, ranks = results.columns_of(benchmark, first.readable, first.scores, second, chosen, k, seed)
    result = EvaluationResult(
        benchmark=facts,
        model={"name": model_name, "fingerprint": embedder.fingerprint, **embedder.facts()},
        rerank=search.rerank_facts(reranker_name),
        temperatures=chosen,
        validation=None if known is None else _validation_facts(known),
        columns=columns,
        failures=first.failures,
        unanswered=tuple(unanswered),
        work={name: tally.facts() for name, tally in search.work.items()},
        seconds=time.monotonic() - began,
        seed=seed,
        versions=results.versions(),
        hardware=results.hardware(str(encoder.device)),
        ranks=ranks,
    )
    if folder is not None:
        result.save(folder)
        write_reports(result, folder)
    return result


def _check_disjoint(benchmark: Benchmark, validation: Benchmark) -> None:
    """Refuse a validation set that holds a video of the test set, under this name or as a copy."""
    by_size: dict[int, list[Path]] = {}
    for path in benchmark.videos:
        if path.is_file():
            by_size.setdefault(path.stat().st_size, []).append(path)
    fingerprint = functools.cache(content_fingerprint)
    for path in validation.videos:
        for other in by_size.get(path.stat().st_size, []) if path.is_file() else []:
            if fingerprint(path) == fingerprint(other):
                raise ValueError(
                    f"validation: {path} is a video of the test set ({other}). Temperatures fitted on the test set "
                    f"make figures look too good; use other videos"
                )


def _check_folder(folder: Path, facts: results.BenchmarkFacts, fingerprint: str) -> None:
    """Refuse a folder that holds the result of another benchmark or model."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"out: {str(folder)!r} is a file; give a folder")
    if not (folder / results.RESULT_FILE).exists():
        return
    before = results.read_result(folder)
    there = (before.get("benchmark") or {}).get("digest"), (before.get("model") or {}).get("fingerprint")
    if there != (facts.digest, fingerprint):
        remedy = f"name another folder, or remove {results.RESULT_FILE} there"
        raise ValueError(f"out: {str(folder)!r} has the result of another benchmark or model; {remedy}")


def choose_temperatures(
    search: TwoStageSearch, known: FirstStage | None, given: GivenTemperatures
) -> dict[str, Temperature]:
    """The temperatures of both stages by ``"STAGE.DIRECTION"``: given ones, else fitted on `known`, else defaults."""
    chosen: dict[str, Temperature] = {}
    default, second_default = two_stage.DEFAULT_TEMPERATURE, two_stage.DEFAULT_SECOND_TEMPERATURE
    for way in DIRECTIONS:
        scores = None if known is None else _answerable(known, way, known.oriented(way))
        chosen[f"first.{way}"] = Temperature.choose(given.first(way), default, scores, what=f"the first stage, {way}")
    if search.reranker is None or search.k is None:
        return chosen
    second = None
    if known is not None and any(given.second(way) is None for way in DIRECTIONS):
        second, _ = search.second(known, chosen)
    for way in DIRECTIONS:
        scores = None
        if known is not None and second is not None:
            dual = dual_softmax(known.oriented(way), temperature=chosen[f"first.{way}"].value)
            above = two_stage.above_least(second[way], two_stage.candidate_mask(dual, search.k))
            scores = _answerable(known, way, above)
        what = f"the second stage, {way}"
        chosen[f"second.{way}"] = Temperature.choose(given.second(way), second_default, scores, what=what)
    return chosen


def _answerable(stage: FirstStage, way: str, scores: FloatArray) -> tuple[FloatArray, Mask]:
    """Scores and positives, queries as rows, of the queries that have a readable answer."""
    positives = stage.benchmark.positives[:, stage.readable]  # (T, W)
    right = positives if way == "t2v" else positives.T
    rows = right.any(axis=1)
    return scores[rows], right[rows]


def _validation_facts(stage: FirstStage) -> results.ValidationFacts:
    on = results.BenchmarkFacts.of(stage.benchmark)
    failures = tuple(f"{one.video_id}: {one.reason}" for one in stage.failures)
    return results.ValidationFacts(on.title, on.split, on.source, on.videos, on.texts, on.missing, on.notes, failures)
