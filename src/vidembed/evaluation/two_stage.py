"""The first stage on a benchmark: every video and text embedded once, cached, and compared."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm

from vidembed.captions import CaptionedVideo
from vidembed.errors import VideoFailedError
from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.cache import Answer, ScoreCache, model_key, text_key, video_key
from vidembed.evaluation.embedder import Embedder, Vector
from vidembed.scoring import dual_softmax, fit_temperature
from vidembed.scoring.checks import FloatArray, matrix
from vidembed.yes_no import Answers

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder
    from vidembed.reranker import VideoReranker


logger = logging.getLogger(__name__)

OnFailure = Literal["raise", "count"]
ON_FAILURE: Final = ("raise", "count")

TEXTS_AT_ONCE: Final = 256
"""Texts embedded between two commits of the cache (ours)."""


@dataclass
class Tally:
    """What was computed, what came from the cache, and how long the computing took.

    Attributes:
        computed: Items.
        cached: Items.
        seconds: Of computing.
    """

    computed: int = 0
    cached: int = 0
    seconds: float = 0.0

    @property
    def per_second(self) -> float | None:
        """Computed items a second; None if nothing was computed."""
        return self.computed / self.seconds if self.computed and self.seconds else None


@dataclass
class Work:
    """The work of a run, by kind."""

    videos: Tally = field(default_factory=Tally)
    texts: Tally = field(default_factory=Tally)
    pairs: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class Failure:
    """A video that could not be used.

    Attributes:
        video_id: As the benchmark names it.
        file: Its path.
        reason: What was found.
    """

    video_id: str
    file: str
    reason: str


@dataclass(frozen=True, eq=False)
class FirstStage:
    """Similarities of a benchmark.

    Attributes:
        benchmark: What was embedded.
        readable: ``(V,)``, which videos have a vector.
        scores: ``(T, W)`` similarities of all texts and the W readable videos.
        failures: The other videos.
    """

    benchmark: Benchmark
    readable: NDArray[np.bool_]
    scores: FloatArray
    failures: tuple[Failure, ...]

    def oriented(self, direction: str) -> FloatArray:
        """Similarities with queries as rows: ``(T, W)`` or ``(W, T)``."""
        return self.scores if direction == "t2v" else self.scores.T


def first_stage(
    benchmark: Benchmark,
    embedder: Embedder,
    cache: ScoreCache,
    *,
    on_error: OnFailure = "raise",
    batch_size: int = 32,
    work: Work | None = None,
    show_progress_bar: bool = False,
) -> FirstStage:
    """Embed what the cache does not hold, and compare all texts with all videos.

    Args:
        benchmark: Videos and texts.
        embedder: The model.
        cache: Where vectors are kept, each video's in a commit of its own.
        on_error: "raise", or "count" to go on without a video that fails.
        batch_size: Inputs embedded at once.
        work: Counts what is done.
        show_progress_bar: Whether to show bars.

    Raises:
        VideoFailedError: A video cannot be read, or none can.
        ValueError: A text cannot be embedded.
    """
    work = work or Work()
    videos, failures = _videos(benchmark, embedder, cache, on_error, batch_size, work.videos, show_progress_bar)
    readable = np.array([vector is not None for vector in videos])
    if not readable.any():
        raise VideoFailedError(f"videos: none of {len(videos)} can be read; the first: {failures[0].reason}")
    texts = _texts(benchmark, embedder, cache, batch_size, work.texts, show_progress_bar)
    vectors = np.stack([vector for vector in videos if vector is not None]).astype(np.float64)  # (W, D)
    return FirstStage(benchmark, readable, embedder.similarity(texts, vectors), tuple(failures))


def _videos(
    benchmark: Benchmark,
    embedder: Embedder,
    cache: ScoreCache,
    on_error: OnFailure,
    batch_size: int,
    tally: Tally,
    show_progress_bar: bool,
) -> tuple[list[Vector | None], list[Failure]]:
    """Vectors of all videos, None of those that failed, and why."""
    model = embedder.key
    keys = [_key(path) for path in benchmark.videos]
    known = cache.vectors(model, [key for key in keys if key is not None])
    vectors: list[Vector | None] = [None if key is None else known.get(key) for key in keys]
    missing = [place for place, vector in enumerate(vectors) if vector is None]
    tally.cached += len(keys) - len(missing)
    failures: list[Failure] = []
    before = time.monotonic()
    with tqdm(total=len(missing), desc="Embedding videos", unit="video", disable=not show_progress_bar) as bar:
        stream = embedder.videos([benchmark.videos[place] for place in missing], batch_size=batch_size)
        for index, found in stream:
            place = missing[index]
            result = _unchanged(benchmark.videos[place], keys[place], found)
            if isinstance(result, Exception):
                failures.append(_failure(benchmark, place, result, on_error))
            else:
                key = keys[place]
                if key is not None:
                    cache.put_vectors(model, [(key, result)])
                vectors[place] = result
                tally.computed += 1
            tally.seconds += time.monotonic() - before
            before = time.monotonic()
            bar.update()
    return vectors, failures


def _key(path: Path) -> str | None:
    try:
        return video_key(path)
    except OSError:  # what reading it will say
        return None


def _unchanged(path: Path, key: str | None, found: Vector | Exception) -> Vector | Exception:
    """What was found, unless the file was written to meanwhile."""
    if isinstance(found, Exception) or _key(path) == key:
        return found
    return ValueError("the file was written to while it was being read")


def _failure(benchmark: Benchmark, place: int, error: Exception, on_error: OnFailure) -> Failure:
    reason = str(getattr(error, "reason", None) or error)
    name, file = benchmark.video_ids[place], str(benchmark.videos[place])
    if on_error == "raise":
        raise VideoFailedError(
            f"video {name!r} ({file}): {reason}. Replace the file, or count such videos against the model (--on-error "
            "count, on_error='count')."
        ) from error
    logger.warning("counted against: %s (%s): %s", name, file, reason)
    return Failure(name, file, f"{type(error).__name__}: {reason}")


def _texts(
    benchmark: Benchmark, embedder: Embedder, cache: ScoreCache, batch_size: int, tally: Tally, show_progress_bar: bool
) -> FloatArray:
    """Vectors of all texts ``(T, D)``; equal ones are embedded once."""
    model = embedder.key
    keys = {text: text_key(text) for text in benchmark.texts}
    known = cache.vectors(model, list(keys.values()))
    missing = [text for text, key in keys.items() if key not in known]
    tally.cached += len(keys) - len(missing)
    with tqdm(total=len(missing), desc="Embedding texts", unit="text", disable=not show_progress_bar) as bar:
        for start in range(0, len(missing), TEXTS_AT_ONCE):
            chunk = missing[start : start + TEXTS_AT_ONCE]
            before = time.monotonic()
            vectors = embedder.texts(chunk, batch_size=batch_size)  # (C, D)
            tally.seconds += time.monotonic() - before
            finite = np.isfinite(vectors).all(axis=1)  # (C,)
            if not finite.all():
                raise ValueError(f"text {chunk[int(np.argmin(finite))]!r}: the model gave a vector that is not finite")
            fresh = {keys[text]: vector for text, vector in zip(chunk, vectors, strict=True)}
            cache.put_vectors(model, fresh.items())
            known |= fresh
            tally.computed += len(chunk)
            bar.update(len(chunk))
    return np.stack([known[keys[text]] for text in benchmark.texts]).astype(np.float64)


def top_candidates(first: ArrayLike, k: int) -> NDArray[np.intp]:
    """Columns of each row's `k` highest scores ``(Q, min(k, N))``, best first; ties in the order of the columns.

    Raises:
        ValueError: ``first`` is not a finite ``(Q, N)`` matrix, or ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"k={k}: expected at least 1")
    return np.argsort(-matrix("first", first), axis=1, kind="stable")[:, :k]


def asked_mask(first: ArrayLike, k: int) -> NDArray[np.bool_]:
    """Which pairs the second stage is asked about ``(Q, N)``: the `k` best of each row; errors as `top_candidates`."""
    columns = top_candidates(first, k)
    mask = np.zeros(np.shape(first), dtype=np.bool_)
    np.put_along_axis(mask, columns, values=True, axis=1)
    return mask


def reranked(first: ArrayLike, second: ArrayLike, k: int) -> FloatArray:
    """Ranking scores of a two-stage search: the `k` best of `first` by `second`, the others below, by `first`.

    Args:
        first: ``(Q, N)`` of the first stage.
        second: ``(Q, N)`` of the second; values outside the `k` best are not looked at.
        k: Candidates that are ordered again.

    Returns:
        ``(Q, N)`` float64, to be ranked within each row.

    Raises:
        ValueError: Shapes differ, a score is not finite, or ``k`` is below 1.
    """
    one, two = matrix("first", first), matrix("second", second)
    if one.shape != two.shape:
        raise ValueError(f"second: expected shape {one.shape} as first's, got {two.shape}")
    asked = asked_mask(one, k)
    below = one - one.max(axis=1, keepdims=True) - 1.0  # at most -1
    least = np.where(asked, two, np.inf).min(axis=1, keepdims=True)
    return np.asarray(np.where(asked, two - least, below))  # from 0


def above_least(log_odds: ArrayLike, asked: ArrayLike) -> FloatArray:
    """Log-odds made fit for dual-softmax: above the least that was asked, and 0 where a pair was not.

    Dual-softmax weighs scores that are above zero, and probabilities near 0 or 1 leave it nothing to weigh.

    Args:
        log_odds: ``(Q, N)``.
        asked: ``(Q, N)`` booleans.
    """
    odds, mask = matrix("log_odds", log_odds), np.asarray(asked, dtype=np.bool_)
    return np.asarray(np.where(mask, odds - odds[mask].min(), 0.0))


class DualStages:
    """Dual-softmax on both stages, with temperatures fitted on a validation set.

    The first stage's scores are dual-softmaxed before the `k` best are taken, and so are the log-odds of the pairs that
    were asked about, over the queries that asked.

    Args:
        first: ``(Q, N)`` of the validation set.
        second: ``(Q, N)`` log-odds of the validation set.
        positives: ``(Q, N)`` booleans.
        k: Candidates that are ordered again.
    """

    def __init__(self, first: ArrayLike, second: ArrayLike, positives: ArrayLike, k: int) -> None:
        self.k = k
        self.first = fit_temperature(matrix("first", first), positives).temperature
        asked = asked_mask(dual_softmax(first, temperature=self.first), k)
        self.second = fit_temperature(above_least(second, asked), positives).temperature

    def __call__(self, first: ArrayLike, second: ArrayLike) -> FloatArray:
        """Ranking scores ``(Q, N)`` of another set."""
        one = dual_softmax(first, temperature=self.first)
        two = dual_softmax(above_least(second, asked_mask(one, self.k)), temperature=self.second)
        return reranked(one, two, self.k)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Pairs for `VideoReranker.calibrate`.

    Attributes:
        pairs: P of (text, video).
        labels: ``(P,)`` booleans: whether the text is a caption of the video.
        similarities: ``(P,)`` cosines of the first stage.
        missed: Captions none of whose videos are among the candidates.
    """

    pairs: list[tuple[dict[str, str], Path]]
    labels: NDArray[np.bool_]
    similarities: FloatArray
    missed: int


def first_stage_candidates(
    encoder: VideoEncoder, captioned: Sequence[CaptionedVideo], *, k: int = 10, show_progress_bar: bool | None = None
) -> Candidates:
    """Search every caption among the videos of all captions, and keep the `k` best of each.

    Args:
        encoder: The first stage.
        captioned: Captions and their videos. Equal captions, and equal paths, are one; several videos may share one.
        k: Candidates of a caption. Default 10, as the paper reranks with its optimized model (VidVec, section 4).
        show_progress_bar: As `VideoEncoder.encode`.

    Raises:
        ValueError: ``k`` is below 1, there are no captions, or some have a label.
        VideoError: A video could not be decoded.
    """
    if not captioned or any(one.label is not None for one in captioned):
        raise ValueError("captioned: expected at least one caption, and none with a label, whose negatives are given")
    texts = list(dict.fromkeys(one.text for one in captioned))
    videos = list(dict.fromkeys(one.video for one in captioned))
    right = np.zeros((len(texts), len(videos)), dtype=np.bool_)  # (T, V)
    rows, columns = {text: row for row, text in enumerate(texts)}, {video: at for at, video in enumerate(videos)}
    for one in captioned:
        right[rows[one.text], columns[one.video]] = True
    vectors = encoder.encode_document(videos, show_progress_bar=show_progress_bar)  # (V, D)
    queries = encoder.encode_query([{"text": text} for text in texts], show_progress_bar=show_progress_bar)  # (T, D)
    similarity = np.asarray(queries, dtype=np.float64) @ np.asarray(vectors, dtype=np.float64).T  # (T, V)
    best = top_candidates(similarity, k)  # (T, K)
    labels = np.take_along_axis(right, best, axis=1)  # (T, K)
    return Candidates(
        pairs=[({"text": texts[row]}, videos[at]) for row, found in enumerate(best.tolist()) for at in found],
        labels=labels.reshape(-1),
        similarities=np.take_along_axis(similarity, best, axis=1).reshape(-1),
        missed=int((~labels.any(axis=1)).sum()),
    )


VIDEOS_AT_ONCE: Final = 8
"""Videos asked about between two commits of the cache (ours): as many as are decoded ahead at most."""


def reranker_key(reranker: VideoReranker) -> str:
    """Names the reranker in a cache: its fingerprint and the video decoder. Every score mode is made of its answers."""
    return model_key(reranker.fingerprint, "head", str(reranker.video_backend))


def ask(
    benchmark: Benchmark,
    asked: NDArray[np.bool_],
    reranker: VideoReranker,
    cache: ScoreCache,
    *,
    on_error: OnFailure = "raise",
    tally: Tally | None = None,
    show_progress_bar: bool = False,
) -> tuple[FloatArray, list[Failure]]:
    """Ask the head about pairs that the cache does not hold.

    Args:
        benchmark: Videos and texts.
        asked: ``(T, V)``, which pairs are wanted.
        reranker: Asked in its own score mode. All texts of a video are asked together, so it is prefilled once.
        cache: Where answers are kept.
        on_error: "raise", or "count" to leave pairs without an answer.
        tally: Counts pairs.
        show_progress_bar: Whether to show a bar.

    Returns:
        ``(T, V)`` log-odds of the mode, NaN where a pair was not asked about or has no answer; and the videos some of
        whose pairs have none.

    Raises:
        VideoFailedError: A pair has no answer, with ``on_error="raise"``.
    """
    tally = tally or Tally()
    priors = reranker.mode == "prior_corrected"
    model = reranker_key(reranker)
    texts = [text_key(text) for text in benchmark.texts]
    odds = np.full(asked.shape, np.nan)  # (T, V)
    failures: list[Failure] = []
    wanted = np.flatnonzero(asked.any(axis=0)).tolist()
    keys = {place: video_key(benchmark.videos[place]) for place in wanted}
    with tqdm(total=int(asked.sum()), desc="Asking the head", unit="pair", disable=not show_progress_bar) as bar:
        for start in range(0, len(wanted), VIDEOS_AT_ONCE):
            chunk = wanted[start : start + VIDEOS_AT_ONCE]
            rows = {place: np.flatnonzero(asked[:, place]).tolist() for place in chunk}
            _fill(benchmark, reranker, cache, model, texts, keys, rows, priors=priors, on_error=on_error, tally=tally)
            for place, places in rows.items():
                odds[places, place] = _odds(reranker, cache, model, keys[place], [texts[row] for row in places])
                lost = int(np.isnan(odds[places, place]).sum())
                if lost:
                    reason = f"no answer about {lost} of {len(places)} texts; the log says why"
                    failures.append(Failure(benchmark.video_ids[place], str(benchmark.videos[place]), reason))
                bar.update(len(places))
    return odds, failures


def _fill(
    benchmark: Benchmark,
    reranker: VideoReranker,
    cache: ScoreCache,
    model: str,
    texts: Sequence[str],
    keys: dict[int, str],
    rows: dict[int, list[int]],
    *,
    priors: bool,
    on_error: OnFailure,
    tally: Tally,
) -> None:
    """Ask what the cache lacks about some videos, and keep it in one commit."""
    pairs: list[tuple[int, int]] = []  # of text and video; equal texts once
    for place, wanted in rows.items():
        known = set(cache.answers(model, keys[place], [texts[row] for row in wanted]))
        if priors:
            have = cache.priors(model, [keys[place], *(texts[row] for row in wanted)])
            known = {text for text in known if text in have and keys[place] in have}
        by_text = {texts[row]: row for row in wanted}
        tally.cached += len(known)
        pairs += [(row, place) for text, row in by_text.items() if text not in known]
    if not pairs:
        return
    before = time.monotonic()
    try:
        said = reranker.answers(
            [{"text": benchmark.texts[row], "video": benchmark.videos[place]} for row, place in pairs],
            priors=priors,
            on_error="raise" if on_error == "raise" else "skip",
            show_progress_bar=False,
        )
    except Exception as error:
        names = ", ".join(repr(benchmark.video_ids[place]) for place in dict.fromkeys(place for _, place in pairs))
        if not isinstance(error, ValueError) and not hasattr(error, "reason"):
            raise
        raise VideoFailedError(
            f"reranking, one of the videos {names}: {error}. Count such pairs against the model with --on-error count "
            "(on_error='count')."
        ) from error
    tally.seconds += time.monotonic() - before
    _keep(cache, model, said, [(keys[place], texts[row]) for row, place in pairs])
    tally.computed += int((~said.missing).sum())


def _keep(cache: ScoreCache, model: str, said: Answers, pairs: Sequence[tuple[str, str]]) -> None:
    there = np.flatnonzero(~said.missing).tolist()
    for prior, side in ((said.video_prior, 0), (said.text_prior, 1)):
        if prior is not None:  # before the answers: those are looked for with them
            cache.put_priors(model, {pairs[at][side]: float(prior[at]) for at in there}.items())
    answers = [(*pairs[at], Answer(float(said.yes[at]), float(said.yes_no[at]))) for at in there]
    cache.put_answers(model, answers)


def _odds(reranker: VideoReranker, cache: ScoreCache, model: str, video: str, texts: Sequence[str]) -> FloatArray:
    """Log-odds of the reranker's mode of one video's pairs ``(n,)``, NaN where there is no answer."""
    known = cache.answers(model, video, texts)
    nothing = Answer(np.nan, np.nan)
    found = [known.get(text, nothing) for text in texts]
    video_prior = text_prior = None
    if reranker.mode == "prior_corrected":
        priors = cache.priors(model, [video, *texts])
        video_prior = np.full(len(texts), priors.get(video, np.nan))
        text_prior = np.array([priors.get(text, np.nan) for text in texts])
    answers = Answers(
        np.array([one.yes for one in found]), np.array([one.yes_no for one in found]), video_prior, text_prior
    )
    return answers.log_odds(reranker.mode, reranker.prior_correction)
