"""`VideoReranker`: the model's own head, asked whether a video matches a sentence."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.modules import LogitScore
from torch import nn
from tqdm.auto import tqdm

from vidembed.backbone import BackboneError, Parts, find_parts
from vidembed.backbone.answers import SCORE_MODES, ScoreMode, answer_tokens, yes_log_odds
from vidembed.backbone.load import Backbone, check_dtype
from vidembed.backbone.module import as_transformer_module
from vidembed.backbone.prefix import can_share_prefix, logits_of, prefill, prefix_length, read_suffixes
from vidembed.backbone.templates import match_template
from vidembed.encoding.host import VideoInputs, name_of
from vidembed.encoding.pairs import Pair, VideoGroup, as_pair, by_video
from vidembed.encoding.pipeline import (
    Failed,
    InputError,
    OnError,
    check_on_error,
    core_count,
    default_workers,
    prepare_ahead,
)
from vidembed.encoding.prepared import Prepared, collate
from vidembed.models import resolve_model
from vidembed.video import Sampling

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder

logger = logging.getLogger(__name__)

_NOT_FOR_MODEL = ("modality", "num_images_per_sample", "num_videos_per_sample", "logits_to_keep")


class VideoReranker(VideoInputs, CrossEncoder):
    """A `CrossEncoder` that scores (text, video) pairs by the probability of Yes.

    The video stands first in the prompt, so it is run once for all the sentences asked of it: pairs are grouped by
    video, each video is prefilled once, and the sentences are packed behind it. Scores equal those of one pass per
    pair up to rounding.

    Args:
        model_name_or_path: A video MLLM of a supported architecture with its head, or what `save_pretrained` wrote.
        mode: "yes_no" scores P(Yes) against P(No). "yes" is the paper's: P(Yes) over the whole vocabulary (VidVec,
            section 3.3).
        sampling: The frame grid; default ``Sampling()``.
        video_backend: Video decoder, "pyav" or "decord".
        allow_url: Whether http(s) sources are fetched.
        decode_workers: Videos prepared at once; default one per core, at most 8.
        shared_prefix: Whether to prefill each video once. False runs one pass per pair: slower, the same scores.
        backbone: A loaded MLLM to share instead of `model_name_or_path`, as `VideoEncoder.backbone`.
        **kwargs: Everything `CrossEncoder` takes (``device``, ``model_kwargs``, ...).

    Raises:
        BackboneError: The model is not supported, has no head, or its tokenizer no one-token Yes and No.
        ValueError: `mode` is not known.

    Example:
        >>> from vidembed import VideoReranker
        >>> from vidembed.shapes import write_clips
        >>> import tempfile
        >>> reranker = VideoReranker("vidembed/shapes-mllm")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     (first, record), (second, _) = write_clips(folder, 2, "test", 0)
        ...     scores = reranker.predict([(record.summary, first), (record.summary, second)])
        >>> scores.shape
        (2,)
    """

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        *,
        mode: ScoreMode = "yes_no",
        sampling: Sampling | None = None,
        video_backend: str = "pyav",
        allow_url: bool = False,
        decode_workers: int | None = None,
        shared_prefix: bool = True,
        backbone: Backbone | None = None,
        **kwargs: Any,
    ) -> None:
        if mode not in SCORE_MODES:
            raise ValueError(f"mode={mode!r} is not known. Allowed: {', '.join(SCORE_MODES)}.")
        if (model_name_or_path is None) == (backbone is None):
            raise ValueError("give model_name_or_path or backbone, one of them.")
        check_dtype((kwargs.get("model_kwargs") or {}).get("dtype"))
        self.backbone: Backbone | None = None
        if backbone is not None:
            kwargs["modules"] = self._modules_of(backbone)
            kwargs.setdefault("device", str(next(backbone.model.parameters()).device))
        name = None if model_name_or_path is None else resolve_model(str(model_name_or_path))
        super().__init__(name, **kwargs)
        self.mode: ScoreMode = mode
        self.sampling = sampling or Sampling()
        self.video_backend = video_backend
        self.allow_url = allow_url
        self.decode_workers = decode_workers or default_workers()
        self.shared_prefix = shared_prefix
        self._parts = self._find_head()
        self._answers = answer_tokens(self._transformer.tokenizer, name=str(model_name_or_path or "the model"))

    def _modules_of(self, backbone: Backbone) -> list[nn.Module]:
        self.backbone = backbone
        tokens = answer_tokens(backbone.processor.tokenizer, name=backbone.name)
        template = match_template(backbone.processor, name=backbone.name)
        module = as_transformer_module(backbone.model, backbone.processor, chat_template=template, task="any-to-any")
        return [module, LogitScore(tokens.yes[0], tokens.no[0])]

    def _find_head(self) -> Parts:
        parts = find_parts(cast("nn.Module", self._transformer.model))
        if parts.head is None:
            raise BackboneError("the reranker needs the language model head, which this checkpoint does not hold.")
        return parts

    def encoder(self, *, layer: int, **kwargs: Any) -> VideoEncoder:
        """Make an encoder that reads decoder block `layer` of the same weights, with this reranker's frame grid.

        Args:
            layer: As `VideoEncoder` takes.
            **kwargs: As `VideoEncoder` takes.

        Raises:
            LayerError: `layer` is not a block of the model.
            BackboneError: This reranker was loaded from a saved reranker, which carries its own prompt alone.
        """
        from vidembed.encoder import VideoEncoder  # noqa: PLC0415 - each can make the other

        if self.backbone is None:
            raise BackboneError(
                "a saved reranker carries the matching prompt in the place of the model's own. Make both of one MLLM: "
                "VideoReranker(MLLM).encoder(layer=...)."
            )
        shared = {"sampling": self.sampling, "video_backend": self.video_backend, "allow_url": self.allow_url}
        return VideoEncoder(layer=layer, backbone=self.backbone, **{**shared, **kwargs})

    # -- scoring -----------------------------------------------------------------------------------------------------

    def get_model_kwargs(self) -> list[str]:
        """The host's extra keyword arguments of `predict`, and ``on_error``."""
        return [*super().get_model_kwargs(), "on_error"]

    def predict(self, inputs: Any, *args: Any, on_error: OnError = "raise", **kwargs: Any) -> Any:
        """Score pairs; arguments and results are those of `CrossEncoder.predict`.

        Args:
            inputs: One pair or a list: (text, video), (video, text) or ``{"text": ..., "video": ...}``, the video in
                any form that `VideoEncoder` takes.
            *args: As the host's.
            on_error: "raise" raises at the first pair that fails, naming it. "skip" logs it and returns a
                `numpy.ma.MaskedArray`, whose mask is True where a pair has no score.
            **kwargs: As the host's.

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

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """As the host's, for every kind of pair that `predict` takes: whole prompts, one per pair, left-padded."""
        rows = [
            self._prepare_one(
                pair.index,
                {"video": pair.video, "text": pair.text},
                prompt=prompt,
                processing_kwargs=kwargs.get("processing_kwargs"),
                task=None,
            )
            for pair in (as_pair(index, item) for index, item in enumerate(inputs))
        ]
        return collate(rows, pad_token_id=self.tokenizer.pad_token_id or 0) if rows else {}

    def is_singular_input(self, inputs: Any) -> bool:  # type: ignore[override]
        """Whether `inputs` is one pair."""
        if isinstance(inputs, dict):
            return True
        return (
            isinstance(inputs, (tuple, list))
            and len(inputs) == 2
            and not any(isinstance(side, (tuple, list)) for side in inputs)
            and not all(isinstance(side, dict) and set(side) == {"text", "video"} for side in inputs)
        )

    def rank(  # type: ignore[override]
        self,
        query: Any,
        documents: Sequence[Any],
        top_k: int | None = None,
        return_documents: bool = False,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Rank documents for a query, as `CrossEncoder.rank`: texts for a video or videos for a text.

        Args:
            query: A text or a video.
            documents: What it is compared with: videos or texts.
            top_k: How many to return, at least 1; None for all.
            return_documents: Whether each result holds its document, under "document" (and "text" if it is one).
            **kwargs: As `predict`. With ``on_error="skip"``, documents that failed are left out.

        Returns:
            Dicts with "corpus_id" and "score", best first; ties in the order of `documents`.

        Raises:
            ValueError: `top_k` is below 1.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}: at least 1, or None for all documents.")
        if not len(documents):
            return []
        scores = self.predict([(query, document) for document in documents], **kwargs)
        masked = np.ma.getmaskarray(scores) if isinstance(scores, np.ma.MaskedArray) else np.zeros(len(scores), bool)
        results: list[dict[str, Any]] = []
        for corpus_id in sorted(np.flatnonzero(~masked), key=lambda index: -float(scores[index])):
            result: dict[str, Any] = {"corpus_id": int(corpus_id), "score": float(scores[corpus_id])}
            if return_documents:
                document = documents[int(corpus_id)]
                result["document"] = document
                if isinstance(document, str):
                    result["text"] = document
            results.append(result)
        return results[:top_k]

    @torch.inference_mode()
    def _inference(  # type: ignore[override]
        self,
        inputs: list[Any],
        *,
        prompt: str | None,
        show_progress_bar: bool,
        activation_fn: Any,
        device: str | torch.device | None = None,
        on_error: OnError = "raise",
        processing_kwargs: dict[str, Any] | None = None,
        **_host: Any,
    ) -> torch.Tensor:
        """The host's hook for local inference: grouped by video, one prefill each."""
        target = self._resolve_inference_device(device)
        self.eval()
        odds = torch.full((len(inputs),), float("nan"))  # (N,)
        groups = by_video(self._pairs(inputs, on_error))
        prepared = prepare_ahead(
            groups,
            is_text=lambda _group: False,
            prepare_one=functools.partial(
                self._prepare_group, prompt=prompt, processing_kwargs=processing_kwargs, workers=self.decode_workers
            ),
            prepare_texts=lambda *_: [],
            name_of=lambda group: name_of(group.video),
            on_error=on_error,
            workers=self.decode_workers,
        )
        with tqdm(total=len(inputs), desc="Scoring", unit="pair", disable=not show_progress_bar) as bar:
            for group, item in zip(groups, prepared, strict=True):
                bar.update(len(group.pairs))
                if isinstance(item, Failed):
                    continue
                features = {
                    key: value.to(target) if isinstance(value, torch.Tensor) else value
                    for key, value in item.features.items()
                }
                for pair, value in self._score_group(group, features, prompt, on_error):
                    odds[pair.index] = value
        return cast("torch.Tensor", activation_fn(odds)) if activation_fn is not None else odds

    @staticmethod
    def _pairs(inputs: list[Any], on_error: OnError) -> list[Pair]:
        pairs = []
        for index, item in enumerate(inputs):
            try:
                pairs.append(as_pair(index, item))
            except InputError as error:
                if on_error == "raise":
                    raise
                logger.warning("skipped %s", error)
        return pairs

    def _prepare_group(
        self,
        index: int,
        group: VideoGroup,
        *,
        prompt: str | None,
        processing_kwargs: dict[str, Any] | None,
        workers: int,
    ) -> Prepared:
        """Decode a video and process it with an empty sentence; the real ones share what comes before."""
        return self._prepare_one(
            index,
            {"video": group.video, "text": ""},
            prompt=prompt,
            processing_kwargs=processing_kwargs,
            task=None,
            threads=max(1, core_count() // workers),
        )

    def _score_group(
        self, group: VideoGroup, features: dict[str, Any], prompt: str | None, on_error: OnError
    ) -> list[tuple[Pair, float]]:
        """Log-odds of each pair about one video."""
        config: Any = self._parts.base.config
        length = prefix_length(features["input_ids"], (config.video_token_id, config.image_token_id))
        limit = int(config.get_text_config().max_position_embeddings)
        between = self._between(features["input_ids"][0, length:].tolist(), prompt)
        kept, suffixes = [], []
        for pair in group.pairs:
            suffix = between + self._suffix(pair.text, prompt)
            if length + len(suffix) > limit:
                error = InputError(
                    f"pairs[{pair.index}]: the video takes {length} tokens and the sentence {len(suffix)}, and the "
                    f"model takes {limit} in all. Shorten the sentence, or lower Sampling.max_frames or max_pixels."
                )
                if on_error == "raise":
                    raise error
                logger.warning("skipped %s", error)
                continue
            kept.append(pair)
            suffixes.append(suffix)
        if not kept:
            return []
        if self.shared_prefix and can_share_prefix(self._parts):
            hidden = read_suffixes(self._parts, prefill(self._parts, features), suffixes)  # (N, D)
        else:
            hidden = torch.stack([self._read_alone(features, length, suffix) for suffix in suffixes])
        odds = yes_log_odds(logits_of(self._parts, hidden), self._answers, self.mode)  # (N,)
        return list(zip(kept, odds.cpu().tolist(), strict=True))

    def _between(self, tail: list[int], prompt: str | None) -> list[int]:
        """What the processor itself writes after the last visual token, before the rest of the template."""
        own = self._suffix("", prompt)
        if tail[len(tail) - len(own) :] != own:
            raise BackboneError(
                f"{type(self._transformer.processor).__name__} does not tokenize the end of a prompt as it does alone; "
                "please report it with the version of transformers."
            )
        return tail[: len(tail) - len(own)]

    def _suffix(self, text: str, prompt: str | None) -> list[int]:
        """Token ids of a prompt after its last visual token."""
        processor: Any = self._transformer.processor
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": "video", "video": "placeholder"}, {"type": "text", "text": text}]}
        ]
        if prompt:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": prompt}]})
        rendered = str(processor.apply_chat_template(messages, tokenize=False))
        _, mark, after = rendered.partition(str(processor.video_token))
        if not mark or processor.video_token in after:
            raise InputError(f"the sentence {text[:80]!r} holds the video placeholder {processor.video_token!r}.")
        return list(processor.tokenizer.encode(after, add_special_tokens=False))

    def _read_alone(self, features: dict[str, Any], length: int, suffix: list[int]) -> torch.Tensor:
        """Hidden state of the last token of one whole prompt (D,): the plain path, and the oracle of the other."""
        ids = features["input_ids"]
        tail = torch.tensor([suffix], device=ids.device)
        inputs = {key: value for key, value in features.items() if key not in _NOT_FOR_MODEL}
        inputs["input_ids"] = torch.cat([ids[:, :length], tail], dim=1)  # (1, P + S)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        for key in ("mm_token_type_ids", "token_type_ids"):
            if key in inputs:
                inputs[key] = torch.cat([inputs[key][:, :length], torch.zeros_like(tail)], dim=1)
        return cast("torch.Tensor", self._parts.base(**inputs, use_cache=False).last_hidden_state[0, -1])
