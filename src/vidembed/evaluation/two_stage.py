"""Scores of a two-stage search: which pairs are candidates, how they are ordered again, and dual-softmax on both.

Score matrices are ``(Q, N)``, queries as rows, unless they are of texts and videos, ``(T, V)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidembed.captions import CaptionedVideo
from vidembed.scoring import ScoreFusion, dual_softmax, fit_temperature
from vidembed.scoring.checks import FloatArray, matrix, number

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder

Mask = NDArray[np.bool_]
DIRECTIONS: Final = ("t2v", "v2t")
# ways to rank by name, with their headings
COLUMNS: Final = {"raw": "raw", "dual_softmax": "dual-softmax", "rerank": "+ rerank", "rerank_dual_softmax": "+ both"}
# of cosines where none is given or fitted: 1 / 100, the bound of CLIP's learned scale (arXiv 2103.00020, 2.5)
DEFAULT_TEMPERATURE: Final = 0.01
# of the head's log-odds where none is given or fitted: their exponentials are the odds themselves (ours)
DEFAULT_SECOND_TEMPERATURE: Final = 1.0


def top_candidates(first: ArrayLike, k: int) -> NDArray[np.intp]:
    """Columns of each row's `k` highest scores ``(Q, min(k, N))``, best first; ties in the order of the columns."""
    if k < 1:
        raise ValueError(f"k={k}: expected at least 1")
    return np.argsort(-matrix("first", first), axis=1, kind="stable")[:, :k]


def candidate_mask(first: ArrayLike, k: int) -> Mask:
    """Which pairs are among the `k` best of their row ``(Q, N)``; errors as `top_candidates`."""
    mask = np.zeros(np.shape(first), dtype=np.bool_)
    np.put_along_axis(mask, top_candidates(first, k), values=True, axis=1)
    return mask


def needed(first: FloatArray, k: int, temperature: float) -> Mask:
    """Which pairs the reranker scores ``(Q, N)``: the `k` best of each row as they are, and with dual-softmax."""
    return np.asarray(candidate_mask(first, k) | candidate_mask(dual_softmax(first, temperature=temperature), k))


def second_stage(
    first: FloatArray, odds: FloatArray, candidates: Mask, fusion: ScoreFusion | None = None
) -> FloatArray:
    """What the second stage ranks by ``(Q, N)``: log-odds, fused with `first` if `fusion` is given."""
    answered = candidates & np.isfinite(odds)
    known = np.where(answered, odds, 0.0)
    if fusion is not None:
        known = np.where(answered, fusion.fused_log_odds(np.where(answered, odds, np.nan), first), 0.0)
    least = known[answered].min() if answered.any() else 0.0  # an answer that lacks counts against the model
    return np.asarray(np.where(candidates & ~answered, least - 1.0, known))


def reranked(first: ArrayLike, second: ArrayLike, k: int) -> FloatArray:
    """Ranking scores ``(Q, N)`` of a two-stage search: the `k` best of `first` by `second`, then the others by `first`.

    Values of `second` outside the `k` best are not looked at. Scores are to be ranked within each row. Errors as
    `top_candidates`, and a ValueError if shapes differ.
    """
    one, two = matrix("first", first), matrix("second", second)
    if one.shape != two.shape:
        raise ValueError(f"second: expected shape {one.shape} as first's, got {two.shape}")
    candidates = candidate_mask(one, k)
    below = one - one.max(axis=1, keepdims=True) - 1.0  # at most -1
    least = np.where(candidates, two, np.inf).min(axis=1, keepdims=True)
    return np.asarray(np.where(candidates, two - least, below))  # from 0


def above_least(log_odds: ArrayLike, candidates: ArrayLike) -> FloatArray:
    """Log-odds ``(Q, N)`` above the least, 0 where a pair is none: dual-softmax weighs scores that are above zero."""
    odds, mask = matrix("log_odds", log_odds), np.asarray(candidates, dtype=np.bool_)
    return np.asarray(np.where(mask, odds - odds[mask].min(), 0.0))


def dual_reranked(
    first: ArrayLike, second: ArrayLike, k: int, *, temperature: float, second_temperature: float
) -> FloatArray:
    """`reranked` with dual-softmax before the `k` best are taken, and on the log-odds of the queries that have them."""
    one = dual_softmax(first, temperature=temperature)
    two = dual_softmax(above_least(second, candidate_mask(one, k)), temperature=second_temperature)
    return reranked(one, two, k)


class DualStages:
    """`dual_reranked` with temperatures fitted on similarities, log-odds and positives ``(Q, N)`` of another set."""

    def __init__(self, first: ArrayLike, second: ArrayLike, positives: ArrayLike, k: int) -> None:
        self.k = k
        self.first = fit_temperature(matrix("first", first), positives).temperature
        candidates = candidate_mask(dual_softmax(first, temperature=self.first), k)
        self.second = fit_temperature(above_least(second, candidates), positives).temperature

    def __call__(self, first: ArrayLike, second: ArrayLike) -> FloatArray:
        """Ranking scores ``(Q, N)``."""
        return dual_reranked(first, second, self.k, temperature=self.first, second_temperature=self.second)


def rankings(
    first: FloatArray,
    second: FloatArray | None = None,
    *,
    temperature: float,
    second_temperature: float | None = None,
    k: int | None = None,
) -> dict[str, FloatArray | None]:
    """Ranking scores ``(Q, N)`` of each of `COLUMNS`; None for reranking where `second` (of `second_stage`) is None."""
    found: dict[str, FloatArray | None] = dict.fromkeys(COLUMNS)
    found["raw"], found["dual_softmax"] = first, dual_softmax(first, temperature=temperature)
    if second is not None and k is not None and second_temperature is not None:
        found["rerank"] = reranked(first, second, k)
        both = {"temperature": temperature, "second_temperature": second_temperature}
        found["rerank_dual_softmax"] = dual_reranked(first, second, k, **both)
    return found


@dataclass(frozen=True)
class Temperature:
    """A temperature, in the unit of the scores, and where it came from."""

    value: float
    origin: Literal["given", "fitted", "default, not fitted"]
    queries: int | None = None  # validation queries that it was fitted on; None where it was not fitted
    recall_before: float | None = None  # R@1 of those queries without dual-softmax, in percent
    recall_after: float | None = None  # the same with it

    @classmethod
    def choose(
        cls, given: float | None, default: float, known: tuple[FloatArray, Mask] | None, *, what: str
    ) -> Temperature:
        """Take the given temperature, else fit one on scores and positives ``(Q, N)`` of other data, else `default`."""
        if given is not None:
            return cls(given, "given")
        if known is None:
            return cls(default, "default, not fitted")
        try:
            fitted = fit_temperature(*known)
        except ValueError as error:
            found = f"no temperature of {what} can be fitted on it ({error})"
            raise ValueError(f"validation: {found}. Give a larger validation set, or a temperature") from error
        return cls(fitted.temperature, "fitted", fitted.queries, 100 * fitted.recall_before, 100 * fitted.recall_after)


@dataclass(frozen=True)
class GivenTemperatures:
    """Temperatures of the user's, by stage and direction; None for those to be fitted, or else the default."""

    t2v: float | None = None
    v2t: float | None = None
    second_t2v: float | None = None
    second_v2t: float | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        for name, value in vars(self).items():
            if value is not None:
                number(f"temperature {name}", value, above_zero=True)

    def first(self, direction: str) -> float | None:
        """That of the first stage."""
        return self.t2v if direction == "t2v" else self.v2t

    def second(self, direction: str) -> float | None:
        """That of the second stage."""
        return self.second_t2v if direction == "t2v" else self.second_v2t


@dataclass(frozen=True, eq=False)
class Candidates:
    """P pairs for `VideoReranker.calibrate`."""

    pairs: list[tuple[dict[str, str], Path]]  # of text and video
    labels: Mask  # (P,), whether the text is a caption of the video
    similarities: FloatArray  # (P,), cosines of the first stage
    missed: int  # captions none of whose videos are among the candidates


def first_stage_candidates(
    encoder: VideoEncoder, captioned: Sequence[CaptionedVideo], *, k: int = 10, show_progress_bar: bool | None = None
) -> Candidates:
    """Search every caption among the videos of all captions, and keep the `k` best of each; equal ones are merged.

    The default of 10 is what the paper reranks with its optimized model (VidVec, section 4).
    """
    if not captioned or any(one.label is not None for one in captioned):
        raise ValueError("captioned: expected at least one caption, and none with a label")
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
