"""The inference half of `VideoReranker`: pairs grouped by video, decoded ahead of the model, one prefill each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Sequence, Set
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.util import batch_to_device
from tqdm.auto import tqdm

from vidembed.backbone.architectures import Parts, find_parts
from vidembed.backbone.prefix import Sharing, encode_visual, packs, read_suffixes
from vidembed.backbone.sharing import applied_adapters
from vidembed.errors import BackboneError, InputError
from vidembed.inputs import (
    BYTES,
    MAX_BATCH_TOKENS,
    PIXELS,
    Failed,
    HalvingRunner,
    Prepared,
    collate,
    load_input,
    name_of,
    normalized,
    on_device,
    pinned,
    token_batches,
)
from vidembed.pipeline import Feeder, OnError, VideoModel, check_context, wants_bar
from vidembed.progress import progress_bar
from vidembed.proof import can_batch, find_sharing, probe_video
from vidembed.scoring.checks import FloatArray
from vidembed.video import VideoFrames
from vidembed.video.clip import core_count
from vidembed.video.picture import PICTURE_VERSION
from vidembed.visual_cache import VisualTokenCache, visual_key
from vidembed.yes_no import (
    Answers,
    AnswerTokens,
    AskOptions,
    HeadReader,
    Pair,
    VideoPrompt,
    around_video,
    as_pair,
    by_video,
    check_indexed,
    pairs_of,
)

if TYPE_CHECKING:
    from sentence_transformers.base.modules.transformer import ProcessingKwargs

    from vidembed.backbone.load import Features
    from vidembed.encoder import VideoEncoder

BATCH_BYTES = 2**30  # of the pixels of a pass, in float32: 1 GiB beside the model (ours)
_KEY = "cache_key"  # in features whose visual tokens are to be put into the cache
_NOT_KEPT = (PIXELS, "modality", "attention_mask")


class PredictOptions(TypedDict, total=False):
    """Arguments of `VideoReranker.predict`, as `CrossEncoder` documents them, that do not change its type."""

    show_progress_bar: bool | None
    activation_fn: Callable[[torch.Tensor], torch.Tensor] | None
    apply_softmax: bool | None
    device: str | list[str | torch.device] | None
    pool: dict[Literal["input", "output", "processes"], Any] | None
    chunk_size: int | None
    processing_kwargs: ProcessingKwargs | None
    on_error: OnError


class PrefixSharingCrossEncoder(VideoModel, CrossEncoder):
    """A CrossEncoder that reads the answers of its own head, each video prefilled once."""

    shared_prefix: bool  # whether to prefill each video once; else one pass per pair
    max_batch_tokens: int | None  # padded, of a pass over several videos; None for the default of the device
    visual_cache: VisualTokenCache | None  # where visual tokens are kept from call to call
    _answer_tokens: AnswerTokens
    _parts: Parts | None = None
    _argument = "pairs"

    @property
    def parts(self) -> Parts:
        """The parts of the model, found again where model or head is another since; BackboneError without a head."""
        model, known = self._transformer.model, self._parts
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        if known is None or known.base is not model.base_model or known.head is not head:
            known = find_parts(model)
            if known.head is None:
                raise BackboneError(
                    "the reranker needs the language model head, which this checkpoint does not have. Load the full "
                    "video MLLM."
                )
            self._parts = known
        return known

    @property
    def sharing(self) -> Sharing | None:
        """How sentences share the prefix of a video, tried once on the model; None is one whole pass per pair.

        Raises:
            UnsupportedBackboneError: Not even one whole pass gives what the processor's own prompt of a pair gives.
        """
        # tried without sharing too: a whole pass is put together of a video and a sentence as well
        found = find_sharing(self.reader(), self._probe)
        return found if self.shared_prefix else None

    def reader(self, prompt: str | None = None, sharing: Sharing | None = None) -> HeadReader:
        """The head, asked with a system message `prompt`; by default each sentence is one whole pass."""
        return HeadReader(self.parts, self.processor, self._answer_tokens, prompt, sharing)

    def _probe(self, text: str, video: VideoFrames | None = None) -> Features:
        """The processor's features of a sentence about a probe video, on the device of the model."""
        loaded, metadata = load_input({"video": video or probe_video(), "text": text}, self.sampling)
        prompt = self._features([loaded], None, metadata)  # unnamed: it may exceed the context of the model
        moved: Features = batch_to_device(prompt, self.parts.base.device)
        return moved

    def can_batch(self) -> bool:
        """Whether one pass can answer about several videos as one for each does; tried once on the model."""
        return self.can_join() and can_batch(self.reader(), self._probe, seen=self.visual_cache is not None)

    @property
    def weights(self) -> str:
        """Which weights answer: those of the checkpoint, or with which adapters (such as a LoRA) switched on."""
        applied = applied_adapters(self._transformer.model).values()
        names = sorted({adapter for adapters in applied for adapter in adapters})
        return f"base weights with adapter {', '.join(names)}" if names else "base weights"

    def fingerprint_fields(self) -> dict[str, Any]:
        """Everything that the head's answers depend on, as a JSON-able dict; `VideoModel.fingerprint_fields`."""
        return {**super().fingerprint_fields(), "adapters": self.weights}

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> Features:
        """As in sentence-transformers: left-padded prompts of pairs, or texts alone, whose tokens trainers count."""
        if inputs and all(isinstance(item, str) for item in inputs):
            return self._features(list(inputs), None, prompt=prompt, **kwargs)
        options = AskOptions(prompt=prompt, processing_kwargs=kwargs.get("processing_kwargs"))
        rows = [self._prepare_pair(as_pair(index, item), options) for index, item in enumerate(inputs)]
        return collate(rows, pad_token_id=self.tokenizer.pad_token_id or 0) if rows else {}

    def _prepare_pair(self, pair: Pair, options: AskOptions, *, threads: int = 1, as_bytes: bool = False) -> Prepared:
        how: dict[str, Any] = {
            "as_bytes": as_bytes,
            "prompt": options.prompt,
            "processing_kwargs": options.processing_kwargs,
            "task": None,
        }
        return self._prepare(pair.index, {"video": pair.video, "text": pair.text}, threads=threads, **how)

    def is_singular_input(self, inputs: object) -> bool:  # type: ignore[override]
        """Whether `inputs` is one pair; any other iterable that has an order is a batch."""
        if isinstance(inputs, Set):
            raise TypeError(f"inputs: got a {type(inputs).__name__}, which has no order. Pass a list of pairs.")
        if isinstance(inputs, dict):
            return True
        return (
            isinstance(inputs, (tuple, list))
            and len(inputs) == 2
            and not any(isinstance(side, (tuple, list)) for side in inputs)
            and not all(isinstance(side, dict) and set(side) == {"text", "video"} for side in inputs)
        )

    def answers(
        self,
        inputs: Sequence[Any],
        *,
        priors: bool = False,
        prompt: str | None = None,
        on_error: OnError = "raise",
        show_progress_bar: bool | None = None,
        device: str | torch.device | None = None,
        processing_kwargs: ProcessingKwargs | None = None,
        batch_size: int = 32,
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
            processing_kwargs: As of `CrossEncoder.predict`.
            batch_size: Most videos in one pass, of those with one sentence each, where several share one
                (``max_batch_tokens``). With `priors`, each has its own.

        Raises:
            VideoError: A video could not be decoded.
            InputError: A pair is malformed, a sentence is empty or too long for the model.
        """
        options = AskOptions(priors, prompt, on_error, show_progress_bar, device, processing_kwargs, batch_size)
        check_indexed("inputs", inputs)
        return self._ask(list(pairs_of(inputs, options)), len(inputs), options)

    @torch.inference_mode()
    def _ask(
        self,
        pairs: Sequence[Pair],
        count: int,
        options: AskOptions,
        then: Callable[[list[Pair], VideoPrompt], None] | None = None,
    ) -> Answers:
        """Answers about `pairs`, at their positions among `count`; after each video, `then` gets its pairs and it."""
        target = self._resolve_inference_device(options.device)
        self.eval()
        reader = self.reader(options.prompt, self.sharing)
        found = np.full((4, count), np.nan)  # the fields of `Answers`
        groups = by_video(pairs)
        most = self._batch_tokens(groups, options, target) if then is None else 0
        alone = [group for group in groups if not most or len(group) > 1]
        with (
            progress_bar("Scoring", "pairs", total=len(pairs), shown=wants_bar(options.show_progress_bar)) as bar,
            closing(self._video_prompts(reader, alone, options, target)) as videos,
        ):
            for group, video in zip(alone, videos, strict=True):
                if not isinstance(video, Failed):
                    self._ask_about(reader, video, group, found, options)
                    if then is not None:
                        then(group, video)
                bar.update(len(group))
            if most:
                single = [group[0] for group in groups if len(group) == 1]
                self._ask_together(reader, single, most, found, options, bar)
        if not options.priors:
            return Answers(*found[:2])
        asked = [pair for pair in pairs if not np.isnan(found[1, pair.index])]  # the others may not fit the context
        if texts := list(dict.fromkeys(pair.text for pair in asked)):
            prior = dict(zip(texts, reader.about_nothing(texts).tolist(), strict=True))
            found[3, [pair.index for pair in asked]] = [prior[pair.text] for pair in asked]
        return Answers(*found)

    def _video_prompts(
        self, reader: HeadReader, groups: Sequence[list[Pair]], options: AskOptions, target: torch.device
    ) -> Generator[VideoPrompt | Failed, None, None]:
        with closing(self._prepare_groups(groups, options, target)) as items:
            for item in items:
                if isinstance(item, Failed):
                    yield item
                else:
                    yield reader.video_prompt(self._with_tokens(item.features, target))

    def prepared_videos(self, videos: Iterable[Any], options: AskOptions) -> Generator[Prepared | Failed, None, None]:
        """Decode videos, in order and ahead of the model, for `video_prompt`."""
        self.eval()
        groups = ([Pair(index, video, "")] for index, video in enumerate(videos))
        # a list is read in other threads, anything else in this one
        asked = list(groups) if isinstance(videos, (list, tuple)) else groups
        return self._prepare_groups(asked, options, self._resolve_inference_device(options.device))

    @torch.inference_mode()
    def video_prompt(self, reader: HeadReader, item: Prepared) -> VideoPrompt:
        """Prefill a video of `prepared_videos`, once for all that is to be asked of it."""
        return reader.video_prompt(self._with_tokens(item.features, reader.parts.base.device))

    def _ask_about(
        self, reader: HeadReader, video: VideoPrompt, pairs: Sequence[Pair], found: np.ndarray, options: AskOptions
    ) -> None:
        """Write the answers about one video into `found` (4, N): `Answers.yes`, `yes_no` and `video_prior`."""
        kept, suffixes = [], []
        for pair in pairs:
            try:
                suffixes.append(self._suffix(reader, video, pair))
                kept.append(pair)
            except InputError as error:
                options.skip(error)
        if not kept:
            return
        if options.priors:
            suffixes.append(reader.after(video, ""))
        yes, yes_no = reader.about_video(video, suffixes)  # (n,) each
        prior = yes_no[-1].item() if options.priors else 0.0
        for pair, *answer in zip(kept, yes.tolist(), yes_no.tolist(), strict=False):  # the last may be the prior's
            self._keep(pair, answer, prior, found, options)

    def _suffix(self, reader: HeadReader, video: VideoPrompt, pair: Pair) -> list[int]:
        """Token ids of a pair's prompt after the video; InputError where the model cannot take them."""
        suffix = reader.after(video, pair.text)
        parts = f"the video takes {video.tokens} tokens and the sentence {len(suffix)}"
        check_context(self._transformer.config, video.tokens + len(suffix), f"pairs[{pair.index}]", parts=parts)
        return suffix

    def _ask_together(
        self, reader: HeadReader, pairs: list[Pair], most: int, found: np.ndarray, options: AskOptions, bar: tqdm[Any]
    ) -> None:
        """Write the answers about videos with one sentence each into `found`; passes of at most `most` tokens."""
        device = reader.parts.base.device

        def rows() -> Generator[Prepared | Failed, None, None]:
            with closing(self._prepare_groups([[pair] for pair in pairs], options, device)) as items:
                for place, (pair, item) in enumerate(zip(pairs, items, strict=True)):
                    row = item
                    if isinstance(item, Prepared):
                        # pixels wait for their batch where they were made, visual tokens on the device: they are fewer
                        seen = item.features if self.visual_cache is None else self._with_tokens(item.features, device)
                        video = reader.video_prompt(seen, prefilled=False)
                        try:
                            whole = video.followed_by(self._suffix(reader, video, pair))
                            row = Prepared(place, item.name, whole)
                        except InputError as error:
                            options.skip(error)
                            row = Failed(item.index, item.name, error)
                    yield row

        def join(batch: list[Prepared]) -> Features:
            return self._with_tokens(collate(batch, pad_token_id=reader.pad_token_id), device)

        def read(_batch: list[Prepared], features: Features) -> list[list[float]]:
            answers: list[list[float]] = torch.stack(reader.log_odds(reader.read_whole(features)), dim=1).tolist()
            return answers

        run = HalvingRunner(read, join)
        with closing(rows()) as waiting:
            for batch in token_batches(waiting, max_items=options.batch_size, max_tokens=most):
                ready = [row for row in batch if isinstance(row, Prepared)]
                for part in packs([row.float_bytes for row in ready], BATCH_BYTES):
                    some = [ready[place] for place in part]
                    for row, answer in zip(some, run(some), strict=True):
                        self._keep(pairs[row.index], answer, 0.0, found, options)
                bar.update(len(batch))

    @staticmethod
    def _keep(pair: Pair, answer: Sequence[float], prior: float, found: np.ndarray, options: AskOptions) -> None:
        if np.isfinite([*answer, prior]).all():
            found[:3, pair.index] = *answer, prior
            return
        reason = (
            "the model gave an answer that is not finite. In float16 activations can overflow: load with "
            "model_kwargs={'dtype': 'bfloat16'} or 'float32'."
        )
        options.skip(InputError(f"pairs[{pair.index}] {name_of(pair.video)}: {reason}"))

    def _batch_tokens(self, groups: Sequence[list[Pair]], options: AskOptions, target: torch.device) -> int:
        """Most padded tokens of a pass over several videos with one sentence each; 0 if each has a pass of its own."""
        most = self.max_batch_tokens
        if most is None:
            most = 0 if target.type == "cpu" else MAX_BATCH_TOKENS
        several = self.shared_prefix and options.batch_size > 1 and sum(len(group) == 1 for group in groups) > 1
        return most if most and several and not options.priors and self.can_batch() else 0

    def _prepare_groups(
        self, groups: Iterable[list[Pair]], options: AskOptions, target: torch.device
    ) -> Generator[Prepared | Failed, None, None]:
        """Decode each video and process it with an empty sentence; or find it in the cache, already seen."""
        cache, made_by = self.visual_cache, {}
        if cache is not None:
            asked = {"prompt": options.prompt, "processing": repr(options.processing_kwargs)}
            made_by = {**self.fingerprint_fields(), **asked, "decoder": [self.video_backend, PICTURE_VERSION]}
        threads = max(1, core_count() // self.decode_workers)

        def prepare(index: int, group: list[Pair]) -> Prepared:
            pair = group[0]
            key = None if cache is None else visual_key(pair.video, self.sampling, made_by)
            if cache is not None and key is not None and (found := cache.get(key)) is not None:
                return Prepared(index, name_of(pair.video), dict(found))
            prepared = self._prepare_pair(replace(pair, text=""), options, threads=threads, as_bytes=True)
            has_pixels = {PIXELS, BYTES} & prepared.features.keys() and "pixel_values" not in prepared.features
            if cache is not None and has_pixels:
                prepared.features[_KEY] = key
            return prepared

        on_error, workers = options.on_error, self.decode_workers
        feeder = Feeder(groups, prepare, name=lambda group: name_of(group[0].video), on_error=on_error, workers=workers)
        one_by_one = functools.partial(map, lambda item: [item])
        with closing(feeder.batches(one_by_one, lambda items: pinned(items[0].features, target))) as batches:
            for [item], features in batches:
                yield item if isinstance(item, Failed) else replace(item, features=features)

    def _with_tokens(self, features: Features, target: torch.device) -> Features:
        """Features on the device; with a cache, visual tokens in the place of pixels."""
        known = {name: value for name, value in features.items() if name != _KEY}
        moved = normalized(on_device(known, target), self._transformer.processor.video_processor)
        if _KEY not in features or self.visual_cache is None:
            return moved
        seen = encode_visual(self.parts, moved)  # of what is not kept too, so that all can go into one batch
        tensors = {name: torch.as_tensor(value) for name, value in seen.items() if name not in _NOT_KEPT}
        if features[_KEY] is not None:
            self.visual_cache.put(features[_KEY], tensors)
        return {name: tensor.to(target) for name, tensor in tensors.items()}

    def answers_and_embeddings(
        self, texts: Sequence[str], videos: Sequence[Any], encoder: VideoEncoder, **kwargs: Any
    ) -> tuple[Answers, np.ndarray]:
        """Ask every text (T) of every video (V), as `answers`, and embed the videos, with one prefill a video for both.

        The encoder is made of the same weights (`VideoReranker.encoder`), with ``prefix=None``, to begin prompts alike.

        Returns:
            Answers of ``V * T`` pairs, all texts of the first video first; and the videos' vectors ``(V, D)`` float32,
            as ``encoder.encode`` gives them. With ``on_error="skip"``, both are NaN where a video failed.

        Raises:
            ValueError: The encoder has other weights, another frame grid, or a prompt that begins otherwise.
        """
        options = AskOptions(**kwargs)
        inputs = [{"text": text, "video": video} for video in videos for text in texts]
        vectors = np.full((len(videos), encoder.get_embedding_dimension() or 0), np.nan, dtype=np.float32)
        embed = self.embedding_by_prefix(encoder, options.prompt)

        def keep(pairs: list[Pair], video: VideoPrompt) -> None:
            vectors[[pair.index // len(texts) for pair in pairs]] = embed(video)

        return self._ask(list(pairs_of(inputs, options)), len(inputs), options, keep), vectors

    def answers_and_similarities(
        self, inputs: Sequence[Any], encoder: VideoEncoder, **kwargs: Any
    ) -> tuple[Answers, FloatArray]:
        """Ask the head about N pairs, as `answers`, and compare sentence and video of each by an encoder.

        Where encoder and reranker share weights and the beginning of their prompts, one prefill a video serves both;
        else the encoder runs each video by itself.

        Returns:
            Answers of the pairs, and their cosines (N,) float64; both NaN where a pair failed.
        """
        options = AskOptions(**kwargs)
        pairs = list(pairs_of(inputs, options))
        similarity = np.full(len(inputs), np.nan)
        texts = list(dict.fromkeys(pair.text for pair in pairs))
        how: dict[str, Any] = {"on_error": options.on_error, "show_progress_bar": False}
        queries = dict(zip(texts, encoder.encode_query([{"text": text} for text in texts], **how), strict=True))

        def compare(pairs: list[Pair], vector: np.ndarray) -> None:
            for pair in pairs:  # (D,) each; shorter than 1 if they were truncated
                one, other = queries[pair.text].astype(np.float64), vector.astype(np.float64)
                similarity[pair.index] = one @ other / (np.linalg.norm(one) * np.linalg.norm(other))

        if self._why_apart(encoder, options.prompt) is None:
            embed = self.embedding_by_prefix(encoder, options.prompt)
            answers = self._ask(pairs, len(inputs), options, lambda pairs, video: compare(pairs, embed(video)))
        else:
            answers, groups = self._ask(pairs, len(inputs), options), by_video(pairs)
            if groups:
                vectors = encoder.encode_document([{"video": group[0].video} for group in groups], **how)
                for group, vector in zip(groups, vectors, strict=True):
                    compare(group, vector)
        failed = answers.missing | np.isnan(similarity)
        similarity[failed] = np.nan
        return answers.without(failed), similarity

    def embedding_by_prefix(
        self, encoder: VideoEncoder, prompt: str | None = None
    ) -> Callable[[VideoPrompt], np.ndarray]:
        """What makes an encoder's vector of a video (D,) from the prefix that the reranker has prefilled.

        ValueError for an encoder with other weights, another frame grid, or a prompt that begins otherwise.
        """
        if reason := self._why_apart(encoder, prompt):
            raise ValueError(reason)
        view, sharing = encoder.parts, self.sharing
        eol = around_video(encoder.processor, prompt)[1]

        def embed(video: VideoPrompt) -> np.ndarray:
            assert video.prefix is not None and sharing is not None  # noqa: S101, PT018 - `_why_apart` has seen it
            after = encoder.processor.tokenizer.encode(video.lead + eol, add_special_tokens=False)
            prefix = video.prefix.first(view.depth)
            hidden = read_suffixes(view, prefix, [[*video.between, *after]], sharing)  # (1, D)
            vector: np.ndarray = torch.nn.functional.normalize(hidden.float(), dim=1)[0].cpu().numpy()
            return vector[: encoder.get_embedding_dimension()]

        return embed

    def _why_apart(self, encoder: VideoEncoder, prompt: str | None) -> str | None:
        """Why one prefill cannot serve both, or None if it can."""
        if not encoder.is_on_weights_of(self):
            return "encoder: it has other weights than this reranker; make it with reranker.encoder(layer=...)."
        if encoder.sampling != self.sampling:
            return f"encoder: its frame grid is {encoder.sampling}, and the reranker's {self.sampling}."
        if self.sharing is None:
            return "answers_and_embeddings needs shared_prefix=True, and a model whose sentences can share a prefix."
        own, other = (around_video(model.processor, prompt)[0] for model in (self, encoder))
        if own != other:
            return (
                f"encoder: its prompt begins with {other!r} and the reranker's with {own!r}, so that they share no "
                "prefill. Make it with prefix=None."
            )
        return None
