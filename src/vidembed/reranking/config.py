"""``vidembed_reranker.json``: how a reranker makes scores of what the head says, beside its weights or on its own."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sentence_transformers.util.file_io import load_file_path

from vidembed.backbone.errors import BackboneError
from vidembed.reranking.answers import ScoreMode, check_mode
from vidembed.scoring import PlattScaling, PriorCorrection, ScoreFusion

logger = logging.getLogger(__name__)

FILE_NAME = "vidembed_reranker.json"
FORMAT_VERSION = 2
"""1 had neither `RerankerConfig.first_stage` nor `RerankerConfig.chat_template`, and is still read."""


@dataclass(frozen=True)
class FirstStage:
    """The encoder whose similarities a fusion was fitted on.

    Attributes:
        fingerprint: `VideoEncoder.fingerprint`.
        layer: Decoder block that it reads of the reranker's own weights; None if it has other weights.
        prefix: What stands before the content in its prompt, None for nothing.
        truncate_dim: Dimensions of its vectors; None for all.
    """

    fingerprint: str
    layer: int | None = None
    prefix: str | None = None
    truncate_dim: int | None = None


@dataclass(frozen=True)
class RerankerConfig:
    """The numbers that turn answers into scores.

    Attributes:
        mode: Score mode; calibration and fusion were fitted in it.
        prior_correction: Weights of the priors in mode "prior_corrected".
        calibration: Platt scaling of the log-odds, None before `VideoReranker.calibrate`.
        fusion: Of log-odds and first-stage similarity, None if it was not fitted.
        sampling: The frame grid, as `Sampling.as_dict`.
        source: What the reranker was made of.
        weights: Which weights answer, see `VideoReranker.weights`.
        made_for: `VideoReranker.fingerprint_fields` when the numbers were fitted.
        first_stage: The encoder that `fusion` was fitted with; None if that is not known.
        chat_template: The MLLM's own, which the matching prompt takes the place of in a saved reranker; an encoder of
            the same weights needs it.
    """

    mode: ScoreMode = "yes_no"
    prior_correction: PriorCorrection = field(default_factory=PriorCorrection)
    calibration: PlattScaling | None = None
    fusion: ScoreFusion | None = None
    sampling: dict[str, Any] | None = None
    source: str = ""
    weights: str = ""
    made_for: dict[str, Any] = field(default_factory=dict)
    first_stage: FirstStage | None = None
    chat_template: str | None = None

    def write(self, file: str | Path) -> None:
        """Write the file; a folder gets one of the usual name."""
        target = Path(file)
        if target.is_dir():
            target = target / FILE_NAME
        content = {"format_version": FORMAT_VERSION, **asdict(self)}
        target.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def check_made_for(self, fields: dict[str, Any], *, name: str) -> None:
        """Refuse numbers that were fitted on another model or prompt. Another dtype is let pass, and another grid told.

        Raises:
            BackboneError: The model at hand is another.
        """
        if self.made_for and self.made_for.get("sampling") != fields.get("sampling"):
            logger.warning("%s: its numbers were fitted with another frame grid", name)
        if differing := differing_fields(self.made_for, fields):
            raise BackboneError(
                f"{name}: its numbers were fitted on another model ({', '.join(differing)} differ; it was made for "
                f"{self.source or 'an unnamed one'}). Calibrate this model, or load that one."
            )

    @classmethod
    def read(cls, file: str | Path) -> RerankerConfig:
        """Read the file back.

        Raises:
            BackboneError: It is of another format, or not such a file.
            FileNotFoundError: There is no such file.
        """
        again = "Calibrate or save the reranker again."
        try:
            content = json.loads(Path(file).read_text(encoding="utf-8"))
            version = content.pop("format_version", None)
        except (ValueError, AttributeError, TypeError) as error:
            raise BackboneError(f"{file}: not a JSON object ({error}). {again}") from error
        if version not in (1, FORMAT_VERSION):
            raise BackboneError(
                f"{file}: format_version {version!r}; this vidembed reads 1 and {FORMAT_VERSION}. {again}"
            )
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
    """Names of the fields by which a model is another than the one that numbers were fitted on.

    Args:
        made_for: `VideoReranker.fingerprint_fields` when they were fitted; empty if that is not known.
        fields: The same of the model at hand.

    Returns:
        Sorted names; none where `made_for` is empty. The frame grid is not compared, nor are weights of another dtype,
        whose digest differs by rounding.
    """
    there, here = (json.loads(json.dumps(one)) for one in (made_for, fields))  # tuples become lists
    passed = {"sampling", "dtype"}
    if there.get("dtype") != here.get("dtype"):
        passed.add("weights")
    return sorted(key for key in {*there, *here} - passed if made_for and there.get(key) != here.get(key))


def find_config(name: str, **hub: Any) -> RerankerConfig | None:
    """Read the file of a checkpoint, a folder or a name on the Hub; None if it has none.

    Args:
        name: Of the checkpoint.
        **hub: ``token``, ``cache_folder``, ``revision``, ``local_files_only``.

    Raises:
        BackboneError: It is not such a file.
    """
    file = load_file_path(name, FILE_NAME, **hub)
    return RerankerConfig.read(file) if file else None
