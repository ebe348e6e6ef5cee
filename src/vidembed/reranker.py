"""`VideoReranker`: the model's own head, asked whether a video matches a sentence."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from sentence_transformers.cross_encoder.modules import LogitScore
from torch import nn

from vidembed import card
from vidembed.backbone.cut import as_transformer_module
from vidembed.backbone.load import Backbone
from vidembed.backbone.sharing import Link, add_user
from vidembed.backbone.templates import match_template
from vidembed.calibration import (
    FILE_NAME,
    FOLDS,
    CalibrationReport,
    FirstStage,
    Ranking,
    RerankerConfig,
    calibrate,
    differing_fields,
)
from vidembed.checkpoint import CheckpointConfig
from vidembed.cross_encoder import PredictOptions, PrefixSharingCrossEncoder
from vidembed.errors import BackboneError, LayerError
from vidembed.pipeline import OnError, check_on_error
from vidembed.registry import portable_name
from vidembed.scoring import MarginPolicy, PlattScaling, checks
from vidembed.scoring.calibration import sigmoid
from vidembed.scoring.checks import FloatArray
from vidembed.video import Sampling
from vidembed.video.fetch import UrlAccess
from vidembed.visual_cache import VisualTokenCache
from vidembed.yes_no import AskOptions, PairInput, ScoreMode, answer_tokens, as_pair, check_indexed, check_mode

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder

logger = logging.getLogger(__name__)


class VideoReranker(PrefixSharingCrossEncoder):
    """A `CrossEncoder` that scores (text, video) pairs by the probability of Yes.

    The video stands first in the prompt, so it is run once for all the sentences asked of it: pairs are grouped by
    video, each video is prefilled once, and the sentences are packed behind it. Scores equal those of one pass per
    pair up to rounding.

    Args:
        model_name_or_path: A video MLLM of a supported architecture with its head, or what `save_pretrained` wrote.
            Names ``vidembed/...`` resolve to bundled and locally built models first.
        mode: "yes_no" scores P(Yes) against P(No). "yes" is the paper's: P(Yes) over the whole vocabulary (VidVec,
            section 3.3). "prior_corrected" takes out of "yes_no" what the head says of the video without a sentence
            and of the sentence without a video (after BLiM, arXiv 2507.23284). Default: what the calibration or
            checkpoint says, else "yes_no".
        calibration: What `calibrate` fitted, or the JSON file that `save_calibration` wrote of it.
        sampling: The frame grid; default what the checkpoint says, else ``Sampling()``.
        video_backend: Video decoder, "pyav" or "decord".
        allow_url: Whether http(s) sources are fetched.
        decode_workers: Videos prepared at once; default as `VideoEncoder`.
        shared_prefix: Whether to prefill each video once. False runs one pass per pair: slower, the same scores.
        max_batch_tokens: Padded tokens of a pass over several videos, for those with one sentence each. Default: that
            of `VideoEncoder` on a GPU; on the CPU 0, one video at a time, since nothing is gained there.
        visual_cache: Where the visual tokens of local files are kept from call to call; default nowhere.
        backbone: A loaded MLLM to share instead of `model_name_or_path`, as `VideoEncoder.backbone`.
        **kwargs: Everything `CrossEncoder` takes (``device``, ``model_kwargs``, ...).

    Attributes:
        prior_correction: Weights of the priors in mode "prior_corrected"; default the whole of both.
        calibration: Platt scaling of the log-odds, or None. With it, scores are calibrated probabilities.
        fusion: Of log-odds and first-stage similarity, or None. With it, `rank` with ``first_stage`` uses both.
        first_stage: The encoder that `fusion` was fitted with, or None if that is not known.

    Raises:
        BackboneError: The model is not supported, has no head, its tokenizer no one-token Yes and No, or `calibration`
            was fitted on another model.
        ValueError: `mode` is not known, or not that of `calibration`.

    Example:
        >>> from vidembed import VideoReranker
        >>> from vidembed.shapes import write_clips
        >>> import tempfile
        >>> reranker = VideoReranker("vidembed/shapes-rerank")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (first, record), (second, _) = write_clips(folder, 2, "test", 0)
        ...     scores = reranker.predict([(record.summary, first), (record.summary, second)])
        >>> scores.shape
        (2,)
    """

    _settings_name = FILE_NAME

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        *,
        mode: ScoreMode | None = None,
        calibration: RerankerConfig | str | Path | None = None,
        sampling: Sampling | None = None,
        video_backend: str = "pyav",
        allow_url: UrlAccess = False,
        decode_workers: int | None = None,
        shared_prefix: bool = True,
        max_batch_tokens: int | None = None,
        visual_cache: VisualTokenCache | None = None,
        backbone: Backbone | None = None,
        **kwargs: Any,
    ) -> None:
        if mode is not None:
            check_mode(mode)
        if model_name_or_path is None and backbone is None:
            raise ValueError("give either model_name_or_path or backbone.")
        if isinstance(calibration, (str, Path)):
            calibration = RerankerConfig.read(calibration)
        super().__init__(model_name_or_path, backbone, video_backend, allow_url, decode_workers, **kwargs)
        saved = calibration or (RerankerConfig.read(self._settings_file) if self._settings_file else None)
        config = saved or RerankerConfig()
        grid = config.sampling or (CheckpointConfig.read(self.recipe).sampling if self.recipe else {})
        known = backbone or (self.backbone if self.recipe else None)
        self.source = config.source or (known.name if known is not None else str(model_name_or_path))
        self.sampling = sampling or Sampling(**grid)
        self.shared_prefix, self.max_batch_tokens = shared_prefix, max_batch_tokens
        self.visual_cache = visual_cache
        self._answer_tokens = answer_tokens(self.tokenizer, name=self.source)
        self._parts = self.parts  # refuses a model without its head
        self._mode: ScoreMode = config.mode
        self.prior_correction = config.prior_correction
        self.calibration = config.calibration
        self.fusion = config.fusion
        self._made_for = config.made_for if config.calibration or config.fusion else {}
        self.first_stage = config.first_stage
        self._first_stage_encoders: list[VideoEncoder] = []  # in a list, for it is no part of this module
        if self.backbone is None and config.chat_template is not None:  # the MLLM that a saved reranker holds
            processor = copy.copy(self._transformer.processor)
            processor.chat_template = config.chat_template
            self.backbone = Backbone(self._transformer.model, processor, self.source)
            self.links = [Link.of(parameter, parameter) for parameter in self._transformer.model.parameters()]
            add_user(self.backbone.model, self)
        if saved is not None:
            saved.check_made_for(self.fingerprint_fields(), name=self.source)
        if mode is not None:
            self.mode = mode

    def _modules_of(self, backbone: Backbone) -> list[nn.Module]:
        tokens = answer_tokens(backbone.processor.tokenizer, name=backbone.name)
        template = match_template(backbone.processor, name=backbone.name)
        model = self._own(backbone.model, backbone)
        module = as_transformer_module(model, backbone.processor, chat_template=template, task="any-to-any")
        return [module, LogitScore(tokens.yes[0], tokens.no[0])]

    @property
    def mode(self) -> ScoreMode:
        """The score mode. It can be set until `calibrate` has fitted numbers for it; then ValueError."""
        return self._mode

    @mode.setter
    def mode(self, mode: ScoreMode) -> None:
        check_mode(mode)
        if mode != self._mode and (self.calibration or self.fusion):
            raise ValueError(
                f"mode={mode!r}: this reranker was calibrated in mode {self._mode!r}. Set calibration and fusion to "
                f"None first, or use another reranker."
            )
        self._mode = mode

    def encoder(self, *, layer: int | None = None, **kwargs: Any) -> VideoEncoder:
        """Make an encoder that reads decoder block `layer` of the same weights, with this reranker's frame grid.

        Args:
            layer: Default that of `first_stage`, with its prefix and ``truncate_dim``.
            **kwargs: As `VideoEncoder` takes.

        Raises:
            LayerError: `layer` is not a block of the model, or missing where `first_stage` does not say it.
            BackboneError: This reranker was loaded from a saved one that does not hold the MLLM's chat template.
        """
        from vidembed.encoder import VideoEncoder  # noqa: PLC0415 - each can make the other

        if self.backbone is None:
            raise BackboneError(
                "this saved reranker has the matching prompt in place of the prompt of the model, which older "
                "versions did not store. Save it again, or make both from one MLLM: "
                "VideoReranker(MLLM).encoder(layer=...)."
            )
        known: dict[str, Any] = {}
        if layer is None:
            if self.first_stage is None or self.first_stage.layer is None:
                raise LayerError(
                    "layer: give the decoder layer to read; this reranker has no calibration that names one."
                )
            layer = self.first_stage.layer
            known = {"prefix": self.first_stage.prefix, "truncate_dim": self.first_stage.truncate_dim}
        shared = {"sampling": self.sampling, "video_backend": self.video_backend, "allow_url": self.allow_url}
        shared["device"] = str(self.device)
        return VideoEncoder(layer=layer, backbone=self.backbone, **{**shared, **known, **kwargs})

    @property
    def can_fuse(self) -> bool:
        """Whether ``rank(..., first_stage="own")`` is possible: a fusion, and the encoder that it was fitted with."""
        if self.fusion is None or self.first_stage is None or not self.calibration_applies():
            return False
        return bool(self._first_stage_encoders) or (self.backbone is not None and self.first_stage.layer is not None)

    def use_first_stage(self, encoder: VideoEncoder) -> None:
        """Let ``rank(..., first_stage="own")`` compare with this encoder, where it has other weights than the reranker.

        Raises:
            ValueError: The fusion was fitted with another encoder, or there is none.
        """
        if self.first_stage is None or self.first_stage.fingerprint != encoder.fingerprint:
            reason = "the fusion of this reranker was fitted with another encoder; calibrate it with this one."
            raise ValueError(f"encoder: {reason}")
        self._first_stage_encoders = [encoder]

    def _first_stage_encoder(self) -> VideoEncoder:
        if not self.can_fuse:
            raise ValueError(
                "first_stage='own': the reranker has no fusion, or the encoder that the fusion was fitted with is not "
                "loaded. Call "
                "calibrate(..., first_stage=..., encoder=...), or use_first_stage(encoder)."
            )
        if not self._first_stage_encoders:
            self._first_stage_encoders = [self.encoder()]
        encoder, known = self._first_stage_encoders[0], self.first_stage
        if encoder.backbone is not self.backbone and known is not None and encoder.fingerprint != known.fingerprint:
            raise ValueError("first_stage='own': the encoder was changed since the fusion was fitted. Calibrate again.")
        return encoder.to(self.device)

    def _first_stage_of(self, encoder: VideoEncoder) -> FirstStage:
        """What is to be kept of an encoder; its layer only if an encoder of these weights has the same fingerprint."""
        fingerprint, config = encoder.fingerprint, encoder.checkpoint_config
        if config is not None and self.backbone is not None:
            kept = FirstStage(fingerprint, config.layer, config.prefix, encoder.truncate_dim)
            with suppress(LayerError):  # of a deeper model
                own = self.encoder(layer=kept.layer, prefix=kept.prefix, truncate_dim=kept.truncate_dim)
                if own.fingerprint == fingerprint:
                    return kept
        return FirstStage(fingerprint)

    def __getstate__(self) -> dict[str, Any]:
        """For process pools: without what belongs to the full MLLM."""
        return {**super().__getstate__(), "_first_stage_encoders": [], "_parts": None}

    def _write_settings(self, path: str) -> None:
        config = self._config_to_save()
        if (config.calibration, config.fusion) != (self.calibration, self.fusion):
            logger.warning(
                "%s: calibration and fusion are not saved, because the model changed after they were fitted", path
            )
        config.write(path)

    def _config_to_save(self) -> RerankerConfig:
        """`scoring_config`, without the numbers that were fitted on other weights than those saved beside it."""
        config, fields = self.scoring_config, self.fingerprint_fields()
        if not differing_fields(config.made_for, fields):
            return config
        return replace(config, calibration=None, fusion=None, made_for=fields)

    def _create_model_card(
        self, path: str, model_name: str | None = None, train_datasets: list[str] | None = None
    ) -> None:
        """Write our card, or after training that of sentence-transformers with our usage."""
        data, config, file = self.model_card_data, self._config_to_save(), Path(path, "README.md")
        name = card.shown_name(data, path, model_name)
        if card.TRAINED_TAG not in data.tags:  # the card of sentence-transformers would score pairs of texts
            file.write_text(card.reranker_card(name, config), encoding="utf-8")
            return
        data.add_tags([*card.TAGS])
        write = functools.partial(super()._create_model_card, path, model_name, train_datasets)
        card.write_with_usage(file, write, data, card.reranker_usage(name, config))

    def save_calibration(self, file: str | Path) -> None:
        """Write mode, prior weights, calibration and fusion to a JSON file, without the weights of the model."""
        self.scoring_config.write(file)

    def calibration_applies(self) -> bool:
        """Whether `calibration` and `fusion` were fitted on the model as it is now.

        False after a trainer has trained the model: until `calibrate` is called again, scores come without them, and
        the log says so.

        Raises:
            BackboneError: The model was changed in another way, such as by switching an adapter.
        """
        if not (differing := differing_fields(self._made_for, self.fingerprint_fields())):
            return True
        changed = f"calibration and fusion were fitted on the model before it changed ({', '.join(differing)} differ)"
        if card.TRAINED_TAG in self.model_card_data.tags:
            logger.warning("%s: they are not used; call calibrate again", changed)
            return False
        raise BackboneError(
            f"{changed}. Call calibrate again, undo the change, or set calibration and fusion to None to use raw "
            f"scores."
        )

    @property
    def scoring_config(self) -> RerankerConfig:
        """The numbers that make scores of answers, with what they were made for."""
        return RerankerConfig(
            mode=self.mode,
            prior_correction=self.prior_correction,
            calibration=self.calibration,
            fusion=self.fusion,
            sampling=self.sampling.as_dict(),
            source=portable_name(self.source),
            weights=self.weights,
            made_for=((self.calibration or self.fusion) and self._made_for) or self.fingerprint_fields(),
            first_stage=self.first_stage,
            chat_template=None if self.backbone is None else str(self.backbone.processor.chat_template),
        )

    @overload  # type: ignore[override]
    def predict(
        self,
        inputs: PairInput | Sequence[PairInput],
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int = ...,
        *,
        convert_to_numpy: Literal[True] = ...,
        convert_to_tensor: Literal[False] = ...,
        **options: Unpack[PredictOptions],
    ) -> np.ndarray: ...

    @overload
    def predict(
        self,
        inputs: PairInput | Sequence[PairInput],
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int = ...,
        *,
        convert_to_numpy: bool = ...,
        convert_to_tensor: Literal[True],
        **options: Unpack[PredictOptions],
    ) -> torch.Tensor: ...

    @overload
    def predict(
        self,
        inputs: PairInput | Sequence[PairInput],
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int = ...,
        *,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        **options: Unpack[PredictOptions],
    ) -> np.ndarray | torch.Tensor | list[torch.Tensor]: ...

    def predict(self, inputs: Any, *args: Any, on_error: OnError = "raise", **kwargs: Any) -> Any:
        """Score pairs; arguments and results are those of `CrossEncoder.predict`.

        Args:
            inputs: One pair or a list: (text, video), (video, text) or ``{"text": ..., "video": ...}``, the video in
                any form that `VideoEncoder` takes.
            *args: As those of `CrossEncoder.predict`. `batch_size` bounds the videos of a pass; see `max_batch_tokens`.
            on_error: "raise" raises at the first pair that fails, naming it. "skip" logs it and returns a
                `numpy.ma.MaskedArray`, whose mask is True where a pair has no score.
            **kwargs: Likewise.

        Returns:
            Scores in [0, 1] (N,) float32, unless another ``activation_fn`` is given: it gets the log-odds.

        Raises:
            VideoError: A video could not be decoded.
            InputError: A pair is malformed, a sentence is empty or too long for the model.
        """
        check_on_error(on_error)
        if on_error == "raise":
            return super().predict(inputs, *args, on_error=on_error, **kwargs)
        if kwargs.get("convert_to_tensor") or not kwargs.get("convert_to_numpy", True):
            raise ValueError("on_error='skip' marks pairs without a score by a NumPy mask; leave convert_to_* out.")
        scores = np.atleast_1d(super().predict(inputs, *args, on_error=on_error, **kwargs))
        missing = np.isnan(scores)
        return np.ma.MaskedArray(np.where(missing, 0.0, scores).astype(np.float32), mask=missing)

    def _inference(  # type: ignore[override]
        self,
        inputs: list[PairInput],
        *,
        activation_fn: Callable[[torch.Tensor], torch.Tensor] | None,
        **given: Any,
    ) -> torch.Tensor:
        """What `predict` and the workers of process pools call; not all that is `given` is used."""
        asked = {name: value for name, value in given.items() if name in AskOptions.__annotations__}
        answers = self.answers(inputs, priors=self.mode == "prior_corrected", **asked)
        odds = answers.log_odds(self.mode, self.prior_correction)  # (N,)
        if self.calibration is not None and self.calibration_applies():
            odds = self.calibration.slope * odds + self.calibration.intercept
        values = torch.from_numpy(odds).float()
        return values if activation_fn is None else activation_fn(values)

    def rank(  # type: ignore[override]
        self,
        query: Any,
        documents: Sequence[Any],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        first_stage: ArrayLike | Literal["own"] | None = None,
        policy: MarginPolicy | None = None,
        **kwargs: Any,
    ) -> Ranking:
        """Rank documents for a query, as `CrossEncoder.rank`: texts for a video or videos for a text.

        Args:
            query: A text or a video.
            documents: What it is compared with: videos or texts.
            top_k: How many to return, at least 1; None for all.
            return_documents: Whether each result holds its document, under "document" (and "text" if it is one).
            first_stage: ``(N,)`` similarities that the first stage gave the documents. If a fusion was fitted
                (`calibrate` with ``first_stage``), scores are made of both. "own" finds the similarities here, with the
                encoder that the fusion was fitted with: in the same prefill if its prompt begins as the reranker's
                does, else in a pass of its own. Give all candidates: the scores depend on each other.
            policy: Leave out documents whose first-stage score makes it improbable that they enter the top `top_k`;
                needs `first_stage` and `top_k`.
            **kwargs: As `predict`. With ``on_error="skip"``, documents that failed are left out.

        Returns:
            A list of dicts with "corpus_id" and "score", best first; ties in the order of `documents`. Where the score
            is fused, also with "similarity" (cosine) and "match" (the head's own probability). It also says how many
            documents were asked about.

        Raises:
            ValueError: `top_k` is below 1, `first_stage` is not one finite number a document, or `policy` lacks what it
                needs.
        """
        encoder: VideoEncoder | None = None
        if isinstance(first_stage, str):
            if first_stage != "own":
                raise ValueError(f"first_stage={first_stage!r}: give similarities, 'own' or None.")
            if policy is not None:
                reason = "it needs the similarities before reranking; give them instead of 'own'."
                raise ValueError(f"policy: {reason}")
            encoder, first_stage = self._first_stage_encoder(), None
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}: at least 1, or None for all documents.")
        if policy is not None and (first_stage is None or top_k is None):
            raise ValueError("policy: it needs first_stage and top_k; give both.")
        check_indexed("documents", documents)
        count = len(documents)
        if not count:
            return Ranking([], asked=0, candidates=0)
        asked, similarity = np.arange(count), None
        if first_stage is not None:
            similarity = checks.vector("first_stage", first_stage, length=count)
            if policy is not None and top_k is not None:
                asked = np.flatnonzero(policy.asked(similarity, top_k=top_k))  # (M,)
            similarity = similarity[asked]
        pairs = [(query, documents[index]) for index in asked.tolist()]
        found = self._scores(pairs, similarity, encoder, **kwargs)
        scores = found["score"]  # (M,)
        places = sorted(np.flatnonzero(~np.ma.getmaskarray(scores)), key=lambda place: -float(scores[place]))
        ranking = Ranking([], asked=len(asked), candidates=count)
        for place in places[:top_k]:
            document = documents[index := int(asked[place])]
            shown = {"document": document, **({"text": document} if isinstance(document, str) else {})}
            values = {name: float(each[place]) for name, each in found.items()}
            ranking.append({"corpus_id": index, **values, **(shown if return_documents else {})})
        return ranking

    def _scores(
        self, pairs: Sequence[PairInput], similarity: FloatArray | None, encoder: VideoEncoder | None, **kwargs: Any
    ) -> dict[str, np.ma.MaskedArray[Any, Any]]:
        """Scores of pairs (M,), failed ones masked; with a fusion and similarities, given or found, its parts too."""
        given = similarity is not None or encoder is not None
        if not given or self.fusion is None or not self.calibration_applies():
            return {"score": np.ma.asarray(self.predict(pairs, **kwargs))}
        if "activation_fn" in kwargs:
            raise ValueError(
                "activation_fn: a fused score is already a probability; leave out activation_fn or first_stage."
            )
        priors = self.mode == "prior_corrected"
        if encoder is None:
            odds = self.answers(pairs, priors=priors, **kwargs).log_odds(self.mode, self.prior_correction)  # (M,)
        else:
            answers, similarity = self.answers_and_similarities(pairs, encoder, priors=priors, **kwargs)
            odds, known = answers.log_odds(self.mode, self.prior_correction), np.isfinite(similarity)
            similarity = np.where(known, similarity, float(similarity[known].min()) if known.any() else 0.0)
        assert similarity is not None  # noqa: S101 - given or found
        scaling = self.calibration or PlattScaling(1.0, 0.0)
        match = sigmoid(scaling.slope * odds + scaling.intercept)
        values = {"score": self.fusion(odds, similarity), "similarity": similarity, "match": match}
        return {name: np.ma.MaskedArray(each, mask=np.isnan(odds)) for name, each in values.items()}

    def calibrate(
        self,
        pairs: Sequence[Any],
        labels: ArrayLike,
        *,
        first_stage: ArrayLike | None = None,
        encoder: VideoEncoder | None = None,
        folds: int = FOLDS,
        seed: int = 0,
        **kwargs: Any,
    ) -> CalibrationReport:
        """Fit on labelled pairs what makes scores calibrated probabilities, and use it from now on.

        Platt scaling of the log-odds; in mode "prior_corrected" the weights of the priors before it; and with
        `first_stage` a fusion of both scores, which `rank` uses. `save_pretrained` and `save_calibration` keep it.

        Args:
            pairs: P pairs, as `predict` takes: those that a reranker will see, such as the top K of a first stage.
            labels: ``(P,)``, 1 where the video matches the text, else 0.
            first_stage: ``(P,)`` similarities that the first stage gave the pairs. The pairs of one text are taken for
                the candidates of one query, the best among them.
            encoder: What gave them. With it, the reranker knows for which encoder its fusion is, and can find the
                similarities itself (``rank(..., first_stage="own")``, `encoder`).
            folds: Parts for cross-fitting, by which the report is of pairs that were not fitted on.
            seed: Of the deal into parts.
            **kwargs: As `answers`, except `priors`.

        Raises:
            ValueError: One class only, fewer than 2 different sentences, an argument of another shape, or `encoder`
                without `first_stage`.
        """
        if encoder is not None and first_stage is None:
            raise ValueError("encoder: it names the source of first_stage; give first_stage too.")
        answers = self.answers(pairs, priors=self.mode == "prior_corrected", **kwargs)
        failed = answers.missing.tolist()
        texts = ["" if failed[index] else as_pair(index, pair).text for index, pair in enumerate(pairs)]
        report = calibrate(answers, labels, self.mode, self.prior_correction, texts, first_stage, folds, seed)
        fit = report.fit
        self.prior_correction, self.calibration, self.fusion = fit.prior_correction, fit.calibration, fit.fusion
        self._made_for = self.fingerprint_fields()
        self.first_stage = None if encoder is None else self._first_stage_of(encoder)
        self._first_stage_encoders = []
        if encoder is not None and not self.can_fuse:
            self.use_first_stage(encoder)
        return report
