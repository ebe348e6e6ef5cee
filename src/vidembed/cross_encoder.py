"""The inference half of `VideoReranker`: pairs grouped by video, decoded ahead, one prefill each."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence, Set
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from torch import nn
from tqdm.auto import tqdm

from vidembed.backbone import BackboneError, Parts, find_parts
from vidembed.backbone.cut import describe_weights
from vidembed.backbone.prefix import VideoPrefix, can_share_prefix, encode_visual, has_pixels, read_suffixes
from vidembed.checkpoint import fields_digest, module_fields, weights_digest
from vidembed.errors import InputError
from vidembed.inputs import Prepared, collate, name_of
from vidembed.pipeline import Failed, OnError, VideoModel, check_on_error, core_count, prepare_ahead
from vidembed.scoring.checks import FloatArray
from vidembed.video.clip import PICTURE_VERSION
from vidembed.visual_cache import VisualTokenCache, visual_key
from vidembed.yes_no import (
    Answers,
    AnswerTokens,
    HeadReader,
    Pair,
    VideoGroup,
    VideoPrompt,
    as_pair,
    by_video,
    check_indexed,
)

if TYPE_CHECKING:
    from vidembed.encoder import VideoEncoder


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


class PrefixSharingCrossEncoder(VideoModel, CrossEncoder):
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
    _argument = "pairs"

    def _find_head(self) -> Parts:
        parts = find_parts(cast("nn.Module", self._transformer.model))
        if parts.head is None:
            raise BackboneError("the reranker needs the language model head, which this checkpoint does not hold.")
        return parts

    @property
    def head_reader(self) -> HeadReader:
        """What asks the head of the model as it is now."""
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
            return self._features(list(inputs), None, prompt=prompt, **kwargs)
        rows = [
            self._prepare(
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
        reader = self.head_reader
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
        reader = self.head_reader
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
            told = dict(zip(texts, self.head_reader.about_nothing(texts, prompt).tolist(), strict=True))
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
            functools.partial(
                self._prepare_group,
                prompt=prompt,
                processing_kwargs=processing_kwargs,
                workers=self.decode_workers,
                made_by=made_by,
            ),
            name=lambda group: name_of(group.video),
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
        prepared = self._prepare(
            group.pairs[0].index,
            {"video": group.video, "text": ""},
            prompt=prompt,
            processing_kwargs=processing_kwargs,
            task=None,
            threads=max(1, core_count() // workers),
        )
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


@torch.inference_mode()
def answers_and_embeddings(
    reranker: PrefixSharingCrossEncoder,
    texts: Sequence[str],
    videos: Sequence[Any],
    encoder: VideoEncoder,
    *,
    priors: bool = False,
    prompt: str | None = None,
    on_error: OnError = "raise",
    **how: Any,
) -> tuple[Answers, np.ndarray]:
    """`VideoReranker.answers_and_embeddings`, which documents the arguments."""
    check_on_error(on_error)
    if reason := _why_apart(reranker, encoder, prompt):
        raise ValueError(reason)
    pairs = list(told_apart([{"text": text, "video": video} for video in videos for text in texts], on_error))
    found = np.full((3, len(videos) * len(texts)), np.nan)
    vectors = np.full((len(videos), encoder.get_embedding_dimension() or 0), np.nan, dtype=np.float32)
    for group, vector in _ask_and_embed(
        reranker, pairs, encoder, found, priors=priors, prompt=prompt, on_error=on_error, **how
    ):
        vectors[[pair.index // len(texts) for pair in group.pairs]] = vector
    return _as_answers(reranker, pairs, found, priors=priors, prompt=prompt), vectors


@torch.inference_mode()
def answers_and_similarities(
    reranker: PrefixSharingCrossEncoder,
    inputs: Sequence[Any],
    encoder: VideoEncoder,
    *,
    priors: bool = False,
    prompt: str | None = None,
    on_error: OnError = "raise",
    **how: Any,
) -> tuple[Answers, FloatArray]:
    """Ask the head about pairs, and compare sentence and video of each by an encoder.

    Where encoder and reranker share weights and the beginning of their prompts, one prefill a video serves both; else
    the encoder runs each video by itself.

    Args:
        reranker: Whose head is asked.
        inputs: N pairs, as `VideoReranker.predict` takes.
        encoder: The first stage.
        priors: As `VideoReranker.answers`.
        prompt: Of the reranker, as `VideoReranker.answers`.
        on_error: As `VideoReranker.answers`.
        **how: The other arguments of `VideoReranker.answers`.

    Returns:
        Answers of the pairs, and their cosines (N,) float64; both NaN where a pair failed.
    """
    check_on_error(on_error)
    pairs = list(told_apart(inputs, on_error))
    found = np.full((3, len(inputs)), np.nan)
    similarity = np.full(len(inputs), np.nan)
    texts = list(dict.fromkeys(pair.text for pair in pairs))
    if not texts:
        return _as_answers(reranker, pairs, found, priors=priors, prompt=prompt), similarity
    vectors = encoder.encode_query([{"text": text} for text in texts], on_error=on_error, show_progress_bar=False)
    queries = dict(zip(texts, vectors, strict=True))

    def compare(group: VideoGroup, vector: np.ndarray) -> None:
        for pair in group.pairs:
            similarity[pair.index] = _cosine(queries[pair.text], vector)

    if _why_apart(reranker, encoder, prompt) is None:
        for group, vector in _ask_and_embed(
            reranker, pairs, encoder, found, priors=priors, prompt=prompt, on_error=on_error, **how
        ):
            compare(group, vector)
        answers = _as_answers(reranker, pairs, found, priors=priors, prompt=prompt)
    else:
        answers = reranker.answers(inputs, priors=priors, prompt=prompt, on_error=on_error, **how)
        groups = by_video(pairs)
        videos = encoder.encode_document(
            [{"video": group.video} for group in groups], on_error=on_error, show_progress_bar=False
        )
        for group, vector in zip(groups, videos, strict=True):
            compare(group, vector)
    failed = answers.missing | np.isnan(similarity)
    similarity[failed] = np.nan
    return answers.without(failed), similarity


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one.astype(np.float64), other.astype(np.float64)  # (D,) each; shorter than 1 if they were truncated
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def _ask_and_embed(
    reranker: PrefixSharingCrossEncoder,
    pairs: Sequence[Pair],
    encoder: VideoEncoder,
    found: np.ndarray,
    *,
    priors: bool,
    prompt: str | None,
    on_error: OnError,
    show_progress_bar: bool | None = None,
    device: str | torch.device | None = None,
    processing_kwargs: dict[str, Any] | None = None,
) -> Iterator[tuple[VideoGroup, np.ndarray]]:
    """Write the answers about each video into `found` (3, N), and yield its pairs and its vector (D,)."""
    reader = reranker.head_reader
    view: Parts = find_parts(cast("nn.Module", encoder.transformers_model))
    tail = _rendered(encoder, prompt)[1]
    eol = list(encoder.processor.tokenizer.encode(tail, add_special_tokens=False))
    for group, video in reranker.video_prompts(
        pairs,
        prompt=prompt,
        on_error=on_error,
        show_progress_bar=show_progress_bar,
        device=device,
        processing_kwargs=processing_kwargs,
    ):
        prefix = reader.prefill(video)
        assert prefix is not None  # noqa: S101 - `_why_apart` has seen that it can be shared
        reranker.ask(reader, group, video, prefix, found, priors=priors, prompt=prompt, on_error=on_error)
        yield group, _embed(view, prefix, video, eol)[: encoder.get_embedding_dimension()]


def _as_answers(
    reranker: PrefixSharingCrossEncoder, pairs: Sequence[Pair], found: np.ndarray, *, priors: bool, prompt: str | None
) -> Answers:
    yes, yes_no, video_prior = found  # (N,) each
    if not priors:
        return Answers(yes, yes_no)
    return Answers(yes, yes_no, video_prior, reranker.text_priors(pairs, yes_no, prompt))


def _embed(view: Parts, prefix: VideoPrefix, video: VideoPrompt, eol: list[int]) -> np.ndarray:
    """Vector of the video (D,): the first blocks of the prefix are those that the cut decoder would have made."""
    hidden = read_suffixes(view, prefix.first(view.depth), [video.between + eol])  # (1, D)
    vector: np.ndarray = torch.nn.functional.normalize(hidden.float(), dim=1)[0].cpu().numpy()
    return vector


def _why_apart(reranker: PrefixSharingCrossEncoder, encoder: VideoEncoder, prompt: str | None) -> str | None:
    """Why one prefill cannot serve both, or None if it can."""
    if encoder.backbone is None or reranker.backbone is None or encoder.backbone.model is not reranker.backbone.model:
        return "encoder: it has other weights than this reranker; make it with reranker.encoder(layer=...)."
    if encoder.sampling != reranker.sampling:
        return f"encoder: its frame grid is {encoder.sampling}, and the reranker's {reranker.sampling}."
    if not (reranker.shared_prefix and can_share_prefix(find_parts(encoder.backbone.model))):
        return "answers_and_embeddings needs shared_prefix=True, and attention 'sdpa' or 'eager'."
    heads = [_rendered(model, prompt)[0] for model in (reranker, encoder)]
    if heads[0] != heads[1]:
        return (
            f"encoder: its prompt begins with {heads[1]!r} and the reranker's with {heads[0]!r}, so that they share no "
            "prefill. Make it with prefix=None."
        )
    return None


def _rendered(model: PrefixSharingCrossEncoder | VideoEncoder, prompt: str | None) -> tuple[str, str]:
    """What a model's prompt about a video holds before the placeholder and after it."""
    processor: Any = model.processor
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "video", "video": "placeholder"}]}]
    if prompt:
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": prompt}]})
    head, _, tail = str(processor.apply_chat_template(messages, tokenize=False)).partition(str(processor.video_token))
    return head, tail
