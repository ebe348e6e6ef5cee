"""Score settings of a reranker (``vidembed_reranker.json``), how they are fitted, and what `rank` returns."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vidembed.errors import BackboneError
from vidembed.scoring import PlattScaling, PriorCorrection, ScoreFusion, checks
from vidembed.scoring.calibration import ReliabilityCurve, reliability_curve, reliability_plot, sigmoid
from vidembed.scoring.checks import FloatArray
from vidembed.yes_no import Answers, ScoreMode, check_mode

logger = logging.getLogger(__name__)

FILE_NAME = "vidembed_reranker.json"
FORMAT_VERSION = 2  # 1 had neither `first_stage` nor `chat_template` of `RerankerConfig`, and is still read


@dataclass(frozen=True)
class FirstStage:
    """The encoder whose similarities a fusion was fitted on."""

    fingerprint: str  # `VideoEncoder.fingerprint`
    layer: int | None = None  # decoder block that it reads of the reranker's own weights; None if it has others
    prefix: str | None = None  # what stands before the content in its prompt, None for nothing
    truncate_dim: int | None = None  # dimensions of its vectors; None for all


@dataclass(frozen=True)
class RerankerConfig:
    """The numbers that turn answers into scores."""

    mode: ScoreMode = "yes_no"  # calibration and fusion were fitted in it
    prior_correction: PriorCorrection = field(default_factory=PriorCorrection)  # of mode "prior_corrected"
    calibration: PlattScaling | None = None  # of the log-odds, None before `VideoReranker.calibrate`
    fusion: ScoreFusion | None = None  # of log-odds and first-stage similarity, None if it was not fitted
    sampling: dict[str, Any] | None = None  # the frame grid, as `Sampling.as_dict`
    source: str = ""  # what the reranker was made of
    weights: str = ""  # which weights answer, see `VideoReranker.weights`
    made_for: dict[str, Any] = field(default_factory=dict)  # `fingerprint_fields` when the numbers were fitted
    first_stage: FirstStage | None = None  # the encoder that `fusion` was fitted with; None if that is not known
    # the MLLM's own, which the matching prompt takes the place of; an encoder of the same weights needs it
    chat_template: str | None = None

    def write(self, file: str | Path) -> None:
        """Write the file; a folder gets one of the usual name."""
        content = json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=2, allow_nan=False)
        target = Path(file, FILE_NAME) if Path(file).is_dir() else Path(file)
        target.write_text(content + "\n", encoding="utf-8")

    def check_made_for(self, fields: dict[str, Any], *, name: str) -> None:
        """Raise BackboneError for numbers of another model or prompt. Another dtype passes; another grid is logged."""
        if self.made_for and self.made_for.get("sampling") != fields.get("sampling"):
            logger.warning("%s: it was fitted with other frame sampling", name)
        if differing := differing_fields(self.made_for, fields):
            raise BackboneError(
                f"{name}: it was fitted on another model ({', '.join(differing)} differ; its model is "
                f"{self.source or 'an unnamed one'}). Calibrate this model, or load that model."
            )

    @classmethod
    def read(cls, file: str | Path) -> RerankerConfig:
        """Read the file back; BackboneError if it is of another format, or not such a file."""
        again = "Calibrate or save the reranker again."
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
            version = content.pop("format_version", None)
        except (ValueError, AttributeError, TypeError) as error:
            raise BackboneError(f"{file}: not a JSON object ({error}). {again}") from error
        if version not in (1, FORMAT_VERSION):
            reads = f"this vidembed reads 1 and {FORMAT_VERSION}"
            raise BackboneError(f"{file}: format_version {version!r}; {reads}. {again}")
        try:
            mode = check_mode(content.pop("mode"))
            parts: dict[str, Any] = {
                name: None if (numbers := content.pop(name)) is None else kind(**numbers)
                for name, kind in (
                    ("prior_correction", PriorCorrection),
                    ("calibration", PlattScaling),
                    ("fusion", lambda **fields: ScoreFusion.of(fields)),
                    *((("first_stage", FirstStage),) if version > 1 else ()),
                )
            }
            return cls(mode=mode, **parts, **content)
        except (KeyError, TypeError, ValueError) as error:
            raise BackboneError(f"{file}: {error}. {again}") from error


def differing_fields(made_for: dict[str, Any], fields: dict[str, Any]) -> list[str]:
    """Names of the fields by which a model is another than the one that numbers were fitted on, sorted.

    `made_for` and `fields` are `VideoReranker.fingerprint_fields` then and now; if the first is empty, none differ. The
    frame grid is not compared, nor are weights of another dtype, whose digest differs by rounding.
    """
    there, here = (json.loads(json.dumps(one)) for one in (made_for, fields))  # tuples become lists
    passed = {"sampling", "dtype"}
    if there.get("dtype") != here.get("dtype"):
        passed.add("weights")
    return sorted(key for key in {*there, *here} - passed if made_for and there.get(key) != here.get(key))


FOLDS = 5  # default number of folds (ours)


@dataclass(frozen=True)
class Fit:
    """Numbers fitted on labelled pairs."""

    prior_correction: PriorCorrection  # fitted in mode "prior_corrected" only
    calibration: PlattScaling  # of the log-odds of the mode
    fusion: ScoreFusion | None  # of the same log-odds and the first stage's similarity, None without it


@dataclass(frozen=True, eq=False)
class CalibrationReport:
    """What calibration did. The curves "after" are of pairs that were not fitted on (cross-fitting)."""

    mode: ScoreMode
    pairs: int  # labelled pairs used
    matches: int  # how many of them match
    skipped: int  # pairs left out because they have no score
    fit: Fit  # on all pairs
    before: ReliabilityCurve  # of the scores as they are
    after: ReliabilityCurve  # of the calibrated scores
    fused: ReliabilityCurve | None  # of log-odds and similarity fused, None without similarities

    @property
    def ece_before(self) -> float:
        """Expected calibration error of the scores as they are."""
        return self.before.expected_calibration_error

    @property
    def ece_after(self) -> float:
        """The same of the calibrated scores."""
        return self.after.expected_calibration_error

    @property
    def ece_fused(self) -> float | None:
        """The same of the fused scores, None without similarities."""
        return None if self.fused is None else self.fused.expected_calibration_error

    def to_dict(self) -> dict[str, Any]:
        """The numbers of the report, JSON-able, errors rounded to four decimals."""
        counts = {name: getattr(self, name) for name in ("mode", "pairs", "matches", "skipped")}
        eces = {"before": self.ece_before, "after": self.ece_after, "fused": self.ece_fused}
        errors = {f"calibration_error_{name}": None if ece is None else round(ece, 4) for name, ece in eces.items()}
        return {**counts, **errors, "fit": asdict(self.fit)}

    def plot(self, path: str | Path) -> None:
        """Draw reliability before and after; errors as `vidembed.scoring.reliability_plot`."""
        reliability_plot(self.before, self.after, path)


def calibrate(
    answers: Answers,
    labels: ArrayLike,
    mode: ScoreMode,
    correction: PriorCorrection,
    groups: Sequence[str],
    first_stage: ArrayLike | None = None,
    folds: int = FOLDS,
    seed: int = 0,
) -> CalibrationReport:
    """Fit on labelled pairs, and report by cross-fitting; else as `VideoReranker.calibrate`.

    `correction` are the weights of the priors before, for the report. Pairs of one of the `groups` (P,), which are
    sentences, are never fitted on and reported on at once.
    """
    flags = checks.labels("labels", labels, len(answers.yes_no))
    similarity = None if first_stage is None else checks.vector("first_stage", first_stage, length=flags.size)
    if folds < 2:
        raise ValueError(f"folds={folds}: expected at least 2")
    kept = ~answers.missing
    answers, flags = answers.take(kept), flags[kept]
    similarity = None if similarity is None else similarity[kept]
    names = np.array([group for group, keep in zip(groups, kept, strict=True) if keep], dtype=object)  # (P,)
    if not flags.any() or flags.all():
        raise ValueError(
            f"labels: expected both classes, got {int(flags.sum())} matches among {flags.size} pairs with a score"
        )
    unique, member = np.unique(names, return_inverse=True)
    if len(unique) < 2:
        raise ValueError("pairs: expected at least 2 different texts, to fit on some and measure on others")
    # whole groups, dealt in a random order
    fold = np.random.default_rng(seed).permutation(len(unique))[member] % min(folds, len(unique))  # (P,)

    after = np.empty(flags.size)
    fused = None if similarity is None else np.empty(flags.size)
    for number in range(int(fold.max()) + 1):
        rest, held = fold != number, fold == number
        if not flags[rest].any() or flags[rest].all():
            raise ValueError(
                f"labels: fold {number} has only one class in its training part; give more pairs, or fewer folds"
            )
        known = None if similarity is None else similarity[rest]
        part = fit_numbers(answers.take(rest), flags[rest], mode, known, names[rest].tolist())
        odds = answers.take(held).log_odds(mode, part.prior_correction)
        after[held] = part.calibration(odds, kind="log_odds")
        if fused is not None and similarity is not None and part.fusion is not None:
            fused[held] = part.fusion(odds, similarity[held], names[held].tolist())
    fit = fit_numbers(answers, flags, mode, similarity, names.tolist())
    before = sigmoid(answers.log_odds(mode, correction))
    counts = int(flags.size), int(flags.sum()), int((~kept).sum())
    curves = reliability_curve(before, flags), reliability_curve(after, flags)
    return CalibrationReport(mode, *counts, fit, *curves, None if fused is None else reliability_curve(fused, flags))


def fit_numbers(
    answers: Answers,
    flags: NDArray[np.bool_],
    mode: ScoreMode,
    similarity: FloatArray | None = None,
    queries: Sequence[str] = (),
) -> Fit:
    """Fit prior weights (in mode "prior_corrected"), Platt scaling and, with similarities, fusion on all pairs."""
    correction = PriorCorrection()
    if mode == "prior_corrected":
        priors = {"video_prior": answers.video_prior, "text_prior": answers.text_prior}
        correction = PriorCorrection.fit(answers.yes_no, flags, **priors)
    odds = answers.log_odds(mode, correction)
    fusion = None if similarity is None else ScoreFusion.fit(odds, similarity, flags, queries)
    return Fit(correction, PlattScaling.fit(odds, flags, kind="log_odds"), fusion)


class Ranking(list[dict[str, Any]]):
    """The result of `VideoReranker.rank`: a list of dicts, best first."""

    def __init__(self, results: Sequence[dict[str, Any]], *, asked: int, candidates: int) -> None:
        super().__init__(results)
        self.asked = asked  # documents that the head was asked about
        self.candidates = candidates  # documents given

    @property
    def passes_saved(self) -> int:
        """Documents that the policy left out."""
        return self.candidates - self.asked
