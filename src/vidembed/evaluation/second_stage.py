"""The second stage on a benchmark: the head asked about chosen pairs, each once, all texts of a video together."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from vidembed.evaluation.benchmark import Benchmark
from vidembed.evaluation.cache import Answer, ScoreCache, model_key, text_key, video_key
from vidembed.evaluation.first_stage import Failure, OnFailure, Tally, VideoFailedError
from vidembed.reranking.answers import Answers
from vidembed.scoring._checks import FloatArray

if TYPE_CHECKING:
    from vidembed.reranker import VideoReranker

logger = logging.getLogger(__name__)

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
