"""Scores of held-out clips with the bundled reranker, and what is fitted on them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vidembed.calibration import Fit, fit_numbers
from vidembed.evaluation.two_stage import needed, second_stage, top_candidates
from vidembed.reranker import VideoReranker
from vidembed.scoring.checks import FloatArray
from vidembed.shapes.clips import ClipRecord, iterate_clips, write_clip, write_clips
from vidembed.shapes.language import SUMMARY_ATTRIBUTES
from vidembed.yes_no import Answers, ScoreMode, check_mode

FIT_DEPTH: Final = 10
"""Candidates of each query that calibration, fusion and prior weights are fitted on."""
QUERIES: Final[dict[str, Callable[[ClipRecord], str]]] = {
    "captions": lambda record: record.caption,
    "summaries": lambda record: record.summary,
}
SENTENCES: Final[dict[str, Callable[[ClipRecord], str]]] = {**QUERIES, "statements": lambda record: record.right}
"""What prior weights and calibration are fitted on: statements are short ones, some long and some short."""
FITTED_ON: Final[dict[str, Callable[[ClipRecord], str]]] = {**SENTENCES, "tags": lambda record: record.tags}
"""What the fusion is fitted on: also lists of words. The head does not understand them, which a fusion can see by a
query's candidates, and a calibration of single answers cannot: it would be wrong for sentences too."""
DIRECTIONS: Final = ("t2v", "v2t")


@dataclass(frozen=True, eq=False)
class Scores:
    """Everything asked of one set of clips with one kind of query; matrices are (texts, clips).

    Attributes:
        first: Cosines.
        answers: Of the head, each flattened from (texts, clips).
        positives: Which clips a text is true of.
    """

    first: FloatArray
    answers: Answers
    positives: NDArray[np.bool_]

    def asked(self, direction: str, k: int, temperature: float) -> NDArray[np.bool_]:
        """Which pairs the second stage is asked about ``(Q, N)``, as `vidembed.evaluation.two_stage.needed`."""
        return needed(self.oriented(direction)[0], k, temperature)

    def oriented(
        self, direction: str, mode: str = "yes_no", fit: Fit | None = None, asked: NDArray[np.bool_] | None = None
    ) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
        """First stage, second stage (log-odds of a score mode, or "fused") and positives, with queries as rows.

        Args:
            direction: "t2v" or "v2t".
            mode: A score mode, or "fused".
            fit: The numbers for it.
            asked: ``(Q, N)``, the candidates that are fused with each other; None for all.
        """
        prior = fit.prior_correction if fit else None
        flat = self.answers.log_odds("yes_no" if mode == "fused" else check_mode(mode), prior)
        first, odds, positives = self.first, flat.reshape(self.first.shape), self.positives
        if direction == "v2t":
            first, odds, positives = first.T, odds.T, positives.T
        if mode == "fused" and fit and fit.fusion:
            odds = second_stage(first, odds, np.ones_like(positives) if asked is None else asked, fit.fusion)
        return first, odds, positives


def ask(
    reranker: VideoReranker,
    layer: int,
    written: Sequence[tuple[Path, ClipRecord]],
    kinds: Mapping[str, Callable[[ClipRecord], str]] = QUERIES,
) -> dict[str, Scores]:
    """Embed the clips, and ask about each with every text of some kinds, in one prefill a clip."""
    encoder = reranker.encoder(layer=layer, prefix=None)
    paths, records = [path for path, _ in written], [record for _, record in written]
    texts = {kind: [say(record) for record in records] for kind, say in kinds.items()}
    every = list(dict.fromkeys(text for some in texts.values() for text in some))
    answers, vectors = reranker.answers_and_embeddings(every, paths, encoder, priors=True, show_progress_bar=True)
    queries = encoder.encode([{"text": text} for text in every])
    similarity = queries.astype(np.float64) @ vectors.astype(np.float64).T  # (every, clips)
    cells = np.arange(len(every) * len(paths)).reshape(len(paths), len(every)).T  # answers are listed clip by clip
    found = {}
    for kind, some in texts.items():
        rows = np.array([every.index(text) for text in some])
        positives = np.array([[is_true(kind, one, other) for other in records] for one in records])
        found[kind] = Scores(similarity[rows], answers.take(cells[rows].reshape(-1)), positives)
    return found


def told_by(record: ClipRecord, kind: str) -> tuple[str, ...]:
    """Names of the attributes that a clip's text of a kind tells."""
    short = kind == "summaries" or (kind == "statements" and "background" not in record.right)  # all long ones name it
    return SUMMARY_ATTRIBUTES if short else tuple(record.attributes)


def is_true(kind: str, described: ClipRecord, shown: ClipRecord) -> bool:
    """Whether one clip's text of a kind is true of another."""
    return all(described.attributes[name] == shown.attributes[name] for name in told_by(described, kind))


def candidates(scores: Scores) -> tuple[Answers, FloatArray, NDArray[np.bool_], NDArray[np.intp]]:
    """Answers, similarities, labels and number of the text, of each text's best clips by the first stage, (P,)."""
    best = top_candidates(scores.first, FIT_DEPTH)  # (T, K)
    rows = np.repeat(np.arange(len(best)), best.shape[1])
    columns = best.reshape(-1)
    answers = scores.answers.take(np.ravel_multi_index((rows, columns), scores.first.shape))
    return answers, scores.first[rows, columns], scores.positives[rows, columns], rows


def fit_on(known: Mapping[str, Scores]) -> Fit:
    """Fit on the top candidates of every text: prior weights and calibration on sentences, fusion on every kind."""

    def fit(kinds: Collection[str], mode: ScoreMode) -> Fit:
        answers, similarities, labels, rows = zip(*(candidates(known[kind]) for kind in kinds), strict=True)
        joined = Answers(*(np.concatenate([getattr(one, field.name) for one in answers]) for field in fields(Answers)))
        queries = [f"{kind} {row}" for kind, some in zip(kinds, rows, strict=True) for row in some]
        return fit_numbers(joined, np.concatenate(labels), mode, np.concatenate(similarities), queries)

    sentences = [kind for kind in known if kind in SENTENCES]
    prior = fit(sentences, "prior_corrected").prior_correction
    return Fit(prior, fit(sentences, "yes_no").calibration, fit(known, "yes_no").fusion)


def draw(
    folder: Path, clips: int, other_clips: int, seed: int
) -> tuple[list[tuple[Path, ClipRecord]], list[tuple[Path, ClipRecord]]]:
    """Write the clips that are reported on, and others that none of them equals."""
    written = write_clips(folder / "measured", clips, "test", seed)
    taken = {tuple(record.attributes.values()) for _, record in written}
    fresh = (record for record in iterate_clips("test", seed + 1) if tuple(record.attributes.values()) not in taken)
    others = [(write_clip(one.scene, folder / f"other-{one.name}.mp4"), one) for one in islice(fresh, other_clips)]
    return written, others
