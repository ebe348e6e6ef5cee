"""The inference half of `VideoReranker`: pairs grouped by video, decoded ahead, one prefill each."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any, Literal, TypedDict, cast

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from torch import nn
from tqdm.auto import tqdm

from vidembed.backbone import BackboneError, Parts, find_parts
from vidembed.backbone.adapters import describe_weights
from vidembed.backbone.answers import AnswerTokens
from vidembed.backbone.prefix import VideoPrefix
from vidembed.backbone.visual import encode_visual, has_pixels
from vidembed.encoding.host import VideoInputs, name_of
from vidembed.encoding.pipeline import (
    Failed,
    InputError,
    OnError,
    check_context,
    check_on_error,
    core_count,
    prepare_ahead,
)
from vidembed.encoding.prepared import Prepared, collate
from vidembed.fingerprint import fields_digest, module_fields, weights_digest
from vidembed.reranking.answers import Answers
from vidembed.reranking.pairs import Pair, VideoGroup, as_pair, by_video, check_indexed
from vidembed.reranking.reader import HeadReader, VideoPrompt
from vidembed.reranking.visual_cache import VisualTokenCache, visual_key
from vidembed.video.fingerprint import PICTURE_VERSION

logger = logging.getLogger(__name__)

_KEY = "cache_key"
_NOT_KEPT = ("pixel_values_videos", "modality", "attention_mask")


class PredictOptions(TypedDict, total=False):
    """Arguments of `VideoReranker.predict`, as the host documents them, that leave the type of its result alone."""

    show_progress_bar: bool | None
    activation_fn: Callable[[torch.Tensor], torch.Tensor] | None
    apply_softmax: bool | None
    device: str | list[str | torch.device] | None
    pool: dict[Literal["input", "output", "processes"], Any] | None
    chunk_size: int | None
    processing_kwargs: dict[str, Any] | None
    on_error: OnError


class PrefixSharingCrossEncoder(VideoInputs, CrossEncoder):
    """A CrossEncoder that reads the answers of its own head, each video prefilled once.

    Attributes:
        decode_workers: Videos prepared at once.
        shared_prefix: Whether to prefill each video once; False runs one pass per pair.
        visual_cache: Where visual tokens are kept from call to call, or None.
    """

    decode_workers: int
    shared_prefix: bool
    visual_cache: VisualTokenCache | None
    _answer_tokens: AnswerTokens

    def _find_head(self) -> Parts:
        parts = find_parts(cast("nn.Module", self._transformer.model))
        if parts.head is None:
            raise BackboneError("the reranker needs the language model head, which this checkpoint does not hold.")
        return parts

    @property
    def _reader(self) -> HeadReader:
        parts = find_parts(cast("nn.Module", self._transformer.model))
        return HeadReader(parts, self._transformer.processor, self._answer_tokens, shared_prefix=self.shared_prefix)

    @property
    def weights(self) -> str:
        """Which weights answer: those of the checkpoint, or with which adapters (such as a LoRA) switched on."""
        return describe_weights(cast("nn.Module", self._transformer.model))

    def fingerprint_fields(self) -> dict[str, Any]:
        """Everything that makes the head's answers what they are, as a JSON-able dict."""
        module = self._transformer
        return {
            **module_fields(module.config.model_type, module.processor),
            "weights": weights_digest(self._transformer.model),
            "adapters": self.weights,
            "sampling": self.sampling.as_dict(),
            "dtype": str(self.dtype).removeprefix("torch."),
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 hex digest of `fingerprint_fields`."""
        return fields_digest(self.fingerprint_fields())

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """As the host's, for every kind of pair that `predict` takes: whole prompts, one per pair, left-padded.

        Texts alone are taken too: the host's trainer counts the tokens of a column.
        """
        if inputs and all(isinstance(item, str) for item in inputs):
            return self._call_host(list(inputs), [], prompt, **kwargs)
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
        for row in rows:
            check_context(self._transformer.config, row.tokens, f"pairs[{row.index}] {row.name}")
        return collate(rows, pad_token_id=self.tokenizer.pad_token_id or 0) if rows else {}

    def is_singular_input(self, inputs: Any) -> bool:  # type: ignore[override]
        """Whether `inputs` is one pair; any other iterable that has an order is a batch."""
        if isinstance(inputs, Set):
            raise TypeError(f"inputs: got a {type(inputs).__name__}, whose pairs have no order. Pass list(inputs).")
        if isinstance(inputs, dict):
            return True
        return (
            isinstance(inputs, (tuple, list))
            and len(inputs) == 2
            and not any(isinstance(side, (tuple, list)) for side in inputs)
            and not all(isinstance(side, dict) and set(side) == {"text", "video"} for side in inputs)
        )

    @torch.inference_mode()
    def answers(
        self,
        inputs: Sequence[Any],
        *,
        priors: bool = False,
        prompt: str | None = None,
        on_error: OnError = "raise",
        show_progress_bar: bool | None = None,
        device: str | torch.device | None = None,
        processing_kwargs: dict[str, Any] | None = None,
    ) -> Answers:
        """Ask the head about pairs once, for every score mode.

        Args:
            inputs: A list of pairs, as `predict` takes.
            priors: Whether to ask about each video without a sentence (some tokens a video) and about each sentence
                without a video (one short pass a sentence) too.
            prompt: A system message.
            on_error: "raise", or "skip" to log a pair that fails and leave NaN in its place.
            show_progress_bar: Whether to show a bar; by default only if the log level is INFO or DEBUG.
            device: Where to run; default where the model is.
            processing_kwargs: As the host's.

        Raises:
            VideoError: A video could not be decoded.
            InputError: A pair is malformed, a sentence is empty or too long for the model.
        """
        check_on_error(on_error)
        check_indexed("inputs", inputs)
        found = np.full((3, len(inputs)), np.nan)
        pairs = list(told_apart(inputs, on_error))
        reader = self._reader
        for group, video in self.video_prompts(
            pairs,
            prompt=prompt,
            on_error=on_error,
            show_progress_bar=show_progress_bar,
            device=device,
            processing_kwargs=processing_kwargs,
        ):
            self.ask(
                reader, group, video, reader.prefill(video), found, priors=priors, prompt=prompt, on_error=on_error
            )
        whole, against_no, video_prior = found  # (N,) each
        if not priors:
            return Answers(whole, against_no)
        return Answers(whole, against_no, video_prior, self.text_priors(pairs, against_no, prompt))

    def video_prompts(
        self,
        pairs: Sequence[Pair],
        *,
        prompt: str | None,
        on_error: OnError,
        show_progress_bar: bool | None,
        device: str | torch.device | None,
        processing_kwargs: dict[str, Any] | None,
    ) -> Iterator[tuple[VideoGroup, VideoPrompt]]:
        """Yield each video of the pairs once, decoded and on the device; those that fail are left out or raise."""
        target = self._resolve_inference_device(device)
        self.eval()
        reader = self._reader
        groups = by_video(pairs)
        prepared = self._prepare_groups(groups, prompt=prompt, on_error=on_error, processing_kwargs=processing_kwargs)
        if show_progress_bar is None:
            show_progress_bar = logger.getEffectiveLevel() in {logging.INFO, logging.DEBUG}
        with tqdm(total=len(pairs), desc="Scoring", unit="pair", disable=not show_progress_bar) as bar:
            for group, item in zip(groups, prepared, strict=True):
                if not isinstance(item, Failed):
                    yield group, reader.video_prompt(self._with_tokens(item.features, target), prompt)
                bar.update(len(group.pairs))

    @staticmethod
    def ask(
        reader: HeadReader,
        group: VideoGroup,
        video: VideoPrompt,
        prefix: VideoPrefix | None,
        found: np.ndarray,
        *,
        priors: bool,
        prompt: str | None,
        on_error: OnError,
    ) -> None:
        """Write the answers about one video into `found` (3, N): `Answers.yes`, `yes_no` and `video_prior`."""
        kept, suffixes = _fitting(reader, video, group.pairs, prompt, on_error)
        if not kept:
            return
        if priors:
            suffixes.append(video.between + reader.suffix("", prompt))
        yes, yes_no = reader.about_video(video, prefix, suffixes)  # (n,) each
        prior = yes_no[-1].item() if priors else 0.0
        for pair, *said in zip(kept, yes.tolist(), yes_no.tolist(), strict=False):  # the last may be the prior's
            if not np.isfinite([*said, prior]).all():
                error = InputError(
                    f"pairs[{pair.index}] {name_of(pair.video)}: the model gave an answer that is not finite. In "
                    "float16 activations can overflow: load with model_kwargs={'dtype': 'bfloat16'} or 'float32'."
                )
                if on_error == "raise":
                    raise error
                logger.warning("skipped %s", error)
                continue
            found[:, pair.index] = *said, prior

    def text_priors(self, pairs: Sequence[Pair], answered: np.ndarray, prompt: str | None) -> np.ndarray:
        """Log-odds of Yes of each pair's sentence with no video (N,); NaN where `answered` (N,) is."""
        found = np.full_like(answered, np.nan)
        asked = [pair for pair in pairs if not np.isnan(answered[pair.index])]  # the others may not fit the context
        texts = list(dict.fromkeys(pair.text for pair in asked))
        if texts:
            told = dict(zip(texts, self._reader.about_nothing(texts, prompt).tolist(), strict=True))
            found[[pair.index for pair in asked]] = [told[pair.text] for pair in asked]
        return found

    # -- videos ------------------------------------------------------------------------------------------------------

    def _prepare_groups(
        self,
        groups: Sequence[VideoGroup],
        *,
        prompt: str | None,
        on_error: OnError,
        processing_kwargs: dict[str, Any] | None,
    ) -> Iterator[Prepared | Failed]:
        made_by: dict[str, Any] | None = None
        if self.visual_cache is not None:
            made_by = {
                **self.fingerprint_fields(),
                "prompt": prompt,
                "processing": repr(processing_kwargs),
                "decoder": [self.video_backend, PICTURE_VERSION],
            }
        return prepare_ahead(
            groups,
            is_text=lambda _group: False,
            prepare_one=functools.partial(
                self._prepare_group,
                prompt=prompt,
                processing_kwargs=processing_kwargs,
                workers=self.decode_workers,
                made_by=made_by,
            ),
            prepare_texts=lambda *_: [],
            name_of=lambda group: name_of(group.video),
            on_error=on_error,
            workers=self.decode_workers,
        )

    def _prepare_group(
        self,
        index: int,
        group: VideoGroup,
        *,
        prompt: str | None,
        processing_kwargs: dict[str, Any] | None,
        workers: int,
        made_by: dict[str, Any] | None,
    ) -> Prepared:
        """Decode a video and process it with an empty sentence; or find it in the cache, already seen."""
        key = None if made_by is None else visual_key(group.video, self.sampling, made_by)
        if key is not None and self.visual_cache is not None and (found := self.visual_cache.get(key)) is not None:
            return Prepared(index, name_of(group.video), dict(found))
        prepared = self._prepare_one(
            index,
            {"video": group.video, "text": ""},
            prompt=prompt,
            processing_kwargs=processing_kwargs,
            task=None,
            threads=max(1, core_count() // workers),
        )
        check_context(self._transformer.config, prepared.tokens, f"pairs[{group.pairs[0].index}] {prepared.name}")
        if key is not None and has_pixels(prepared.features):
            prepared.features[_KEY] = key
        return prepared

    def _with_tokens(self, features: dict[str, Any], target: torch.device | str) -> dict[str, Any]:
        """Features on the device; with a cache, visual tokens in the place of pixels."""
        key = features.pop(_KEY, None)
        moved = {
            name: value.to(target) if isinstance(value, torch.Tensor) else value for name, value in features.items()
        }
        if key is None or self.visual_cache is None:
            return moved
        seen = encode_visual(self._find_head(), moved)
        kept = {name: torch.as_tensor(value) for name, value in seen.items() if name not in _NOT_KEPT}
        self.visual_cache.put(key, kept)
        return seen


def told_apart(inputs: Sequence[Any], on_error: OnError) -> Iterator[Pair]:
    """Yield the pairs of a call; one that is none raises, or is logged and left out."""
    for index, item in enumerate(inputs):
        try:
            yield as_pair(index, item)
        except InputError as error:
            if on_error == "raise":
                raise
            logger.warning("skipped %s", error)


def _fitting(
    reader: HeadReader, video: VideoPrompt, pairs: Sequence[Pair], prompt: str | None, on_error: OnError
) -> tuple[list[Pair], list[list[int]]]:
    """The pairs whose sentence fits behind the video, and their suffixes."""
    kept, suffixes = [], []
    for pair in pairs:
        try:
            suffix = video.between + reader.suffix(pair.text, prompt)
            reader.check_length(video.tokens, suffix, f"pairs[{pair.index}]")
        except InputError as error:
            if on_error == "raise":
                raise
            logger.warning("skipped %s", error)
            continue
        kept.append(pair)
        suffixes.append(suffix)
    return kept, suffixes
