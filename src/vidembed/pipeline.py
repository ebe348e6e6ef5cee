"""What both models share: loading, fingerprints, decoding ahead of the model in threads, batches formed by tokens."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import threading
import time
from abc import abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NoReturn, Self, TypeVar, cast

import torch
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer
from sentence_transformers.util.file_io import load_file_path
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from vidembed import proof
from vidembed.backbone.cut import declare_sampling, without_hooks
from vidembed.backbone.load import Backbone, Features, check_device, check_dtype, load_backbone
from vidembed.backbone.options import check_quantized_once, log_loaded, quantization_name
from vidembed.backbone.sharing import (
    Links,
    after_move,
    applied_adapters,
    before_move,
    before_training,
    is_packed,
    own_modules,
    weights_digest,
)
from vidembed.checkpoint import ADAPTER_FILES, FILE_NAME, CheckpointConfig, open_recipe
from vidembed.errors import BackboneError, InputError, kept_warnings, warn
from vidembed.inputs import (
    AS_BYTES,
    BYTES,
    PATCH_SIZES,
    PIXELS,
    Failed,
    Prepared,
    chunks,
    is_text,
    load_input,
    name_of,
    processor_for_call,
    shallow_copy,
    share_cores,
    split_rows,
)
from vidembed.progress import Waiting
from vidembed.registry import resolve_model
from vidembed.video import Sampling, VideoError, VideoFrames
from vidembed.video.fetch import UrlAccess
from vidembed.video.worker import worker_count

if TYPE_CHECKING:
    from sentence_transformers.base.modules.transformer import ProcessingKwargs

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
T = TypeVar("T")

_PIXEL_SETTINGS = (  # numbers of an image or video processor that change pixels; not its class or the library's version
    *("size", "do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
    *("patch_size", "temporal_patch_size", "merge_size", "use_token_compression", "cap_pixels_per_frame"),
)


class VideoModel(BaseModel):
    """What `VideoEncoder` and `VideoReranker` share: a sentence-transformers model that decodes its videos itself."""

    backbone: Backbone | None  # the MLLM that the modules are of, or None for what was loaded from a checkpoint
    links: Links  # parameters on the memory of the MLLM's, with those
    linked: int  # of them at first
    recipe: Path | None  # file of the recipe that was loaded
    loaded_as: str | None  # name or path that was given; None for a model made of an MLLM in memory
    sampling: Sampling
    video_backend: str
    allow_url: UrlAccess  # whether http(s) sources are fetched
    _argument: ClassVar[str] = "inputs"  # how errors name an input: inputs[0]
    _settings_name: ClassVar[str]  # file beside the weights

    def __init__(
        self,
        model_name_or_path: str | Path | None,
        backbone: Backbone | None,
        video_backend: str,
        allow_url: UrlAccess,
        decode_workers: int | None,
        **kwargs: Any,
    ) -> None:
        check_dtype((kwargs.get("model_kwargs") or {}).get("dtype"))
        check_device(kwargs.get("device"))
        self.backbone, self.recipe, self.links, self.linked = None, None, [], 0
        self._settings_file: str | None = None  # of the checkpoint that is loaded
        self.loaded_as = None if model_name_or_path is None else str(model_name_or_path)
        name = None if model_name_or_path is None else resolve_model(str(model_name_or_path))
        if backbone is not None:
            if name is not None:
                raise ValueError("give either model_name_or_path or backbone.")
            kwargs["modules"] = self._modules_of(backbone)
            kwargs.setdefault("device", str(next(backbone.model.parameters()).device))
        if name is not None:
            kwargs["model_kwargs"] = {**(kwargs.get("model_kwargs") or {}), "use_safetensors": True}
            if "quantization_config" in kwargs["model_kwargs"]:
                of_hub = {key: kwargs[key] for key in ("token", "revision", "local_files_only") if key in kwargs}
                raw, _ = PretrainedConfig.get_config_dict(name, cache_dir=kwargs.get("cache_folder"), **of_hub)
                check_quantized_once(raw, kwargs["model_kwargs"], name=name)
        super().__init__(name, **kwargs)
        if name is not None:
            log_loaded(self._transformer.model, name=str(model_name_or_path))
        if name is not None and self.backbone is None:
            hub = {"token", "cache_folder", "revision", "local_files_only"} & set(kwargs)
            self._settings_file = load_file_path(name, self._settings_name, **{key: kwargs[key] for key in hub})
        self.video_backend = video_backend
        self.allow_url = allow_url
        self.decode_workers = decode_workers or worker_count(0 if self.device.type == "cpu" else 1)

    @property
    def _transformer(self) -> Transformer:
        return cast("Transformer", self[0])

    def _own(self, module: PreTrainedModel, backbone: Backbone) -> PreTrainedModel:
        """Modules of this model's own on the weights of an MLLM, of which `module` is all or a cut."""
        own, self.links = own_modules(module, backbone.model, self)
        self.backbone, self.linked = backbone, len(self.links)
        return own

    def is_on_weights_of(self, other: VideoModel) -> bool:
        """Whether this model is a cut of the same MLLM, both are as they were made, and in memory once."""
        if self.backbone is None or other.backbone is None or self.backbone.model is not other.backbone.model:
            return False
        if any(used for model in (self, other) for used in applied_adapters(model._transformer.model).values()):  # noqa: SLF001
            return False
        there = {id(link.loaded): link.own.data_ptr() for link in other.links}
        same = all(there.get(id(link.loaded)) == link.own.data_ptr() for link in self.links)
        return same and len(self.links) == self.linked

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], *args: Any, **kwargs: Any) -> Self:
        """Called by all that moves or casts a model; others on the same weights stay as they are."""
        if self.backbone is None:
            return super()._apply(fn, *args, **kwargs)
        self.links = before_move(self.backbone.model, self, fn)
        super()._apply(fn, *args, **kwargs)
        self.links = after_move(self.backbone.model, self)
        return self

    def train(self, mode: bool = True) -> Self:
        """As in torch. What will be trained gets memory of its own first, if another model is on the same weights."""
        if mode and self.backbone is not None:
            self.links = before_training(self.backbone.model, self)
        return super().train(mode)

    @abstractmethod
    def _modules_of(self, backbone: Backbone) -> list[nn.Module]:
        """Make the modules of a loaded MLLM; its weights are shared."""

    @abstractmethod
    def _write_settings(self, path: str) -> None:
        """Write what a checkpoint holds beside the files of sentence-transformers."""

    def save(
        self,
        path: str,
        model_name: str | None = None,
        create_model_card: bool = True,
        train_datasets: list[str] | None = None,
        safe_serialization: bool = True,
    ) -> None:
        """Save a checkpoint that plain sentence-transformers loads, and this model's own settings beside it.

        Raises:
            BackboneError: Adapter layers are in the model that would be read back as random blocks.
        """
        if not safe_serialization:
            raise ValueError("safe_serialization=False is refused: weights are saved as safetensors only.")
        model = self._transformer.model
        if quantized := next((name for name, tensor in model.named_parameters() if is_packed(tensor)), None):
            raise BackboneError(
                f"{quantized} is quantized, and quantized weights cannot be saved. Save the model loaded without "
                f"quantize, and pass quantize when you load it."
            )
        layer = next(iter(applied_adapters(model)), None)
        known = getattr(model, "_hf_peft_config_loaded", False) or type(model).__module__.startswith("peft.")
        if layer is not None and not known:
            raise BackboneError(
                f"{layer} is an adapter layer that transformers does not know, so it cannot be saved in a checkpoint. "
                f"Merge the adapter first (LanguageAdapter.merge), or save the adapter alone."
            )
        declare_sampling(self._transformer.processor, self.sampling)
        super().save(path, model_name, create_model_card, train_datasets)
        self._write_settings(path)

    def fingerprint_fields(self) -> dict[str, Any]:
        """Everything that the results depend on, as a JSON-able dict.

        Weights enter as a digest of sampled values, read anew at each call, so the same model has the same fingerprint
        whether it was cut on the fly or loaded from a checkpoint, on any device; a trained model, other adapters,
        another layer, prompt, frame grid, dtype or ``truncate_dim`` has another. What it does not see:
        `vidembed.backbone.sharing.weights_digest`.
        """
        module = self._transformer
        processor = module.processor
        pixels: dict[str, object] = {}
        for kind in ("video_processor", "image_processor"):
            values: dict[str, object] = getattr(processor, kind).to_dict()
            pixels[kind] = {name: values[name] for name in _PIXEL_SETTINGS if values.get(name) is not None}
        quantized = getattr(module.config, "quantization_config", None)
        return {
            "model_type": module.config.model_type,
            "chat_template": hashlib.sha256(str(processor.chat_template).encode()).hexdigest(),
            **pixels,
            "weights": weights_digest(module.model),
            "sampling": self.sampling.as_dict(),
            "dtype": str(self.dtype).removeprefix("torch."),
            **({} if quantized is None else {"quantization": quantization_name(quantized)}),
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 hex digest of `fingerprint_fields`."""
        return fields_digest(self.fingerprint_fields())

    def get_model_kwargs(self) -> list[str]:
        """The extra keyword arguments of sentence-transformers' `encode` or `predict`, and ``on_error``."""
        return [*super().get_model_kwargs(), "on_error"]

    def __getstate__(self) -> dict[str, Any]:
        """For process pools: without the full MLLM, and without hooks, which do not pickle."""
        modules = {name: without_hooks(module) for name, module in self._modules.items() if module}
        return {**self.__dict__, "backbone": None, "links": [], "_modules": modules}

    def _load_default_modules(
        self, model_name_or_path: str, *_args: Any, **kwargs: Any
    ) -> tuple[list[nn.Module] | OrderedDict[str, nn.Module], dict[str, Any]]:
        """Called, by keywords, for a model that is no checkpoint of sentence-transformers: a recipe or an MLLM."""
        hub = {key: kwargs.pop(key, None) for key in ("token", "cache_folder", "local_files_only")}
        how = {"token": hub["token"], "cache_dir": hub["cache_folder"]}
        how |= {"local_files_only": hub["local_files_only"] or None, **kwargs}
        file = load_file_path(model_name_or_path, FILE_NAME, **hub, revision=kwargs.get("revision"))
        if file is None:
            return self._modules_of(load_backbone(model_name_or_path, **how)), {}
        self.recipe, config = Path(file), CheckpointConfig.read(file)
        if config.recipe is not None and config.recipe.adapter:
            for name in ADAPTER_FILES:  # from the Hub, if the recipe is there
                load_file_path(model_name_or_path, name, **hub, revision=kwargs.get("revision"))
        return self._modules_of(open_recipe(self.recipe.parent, config, **how)), {}

    def _load_converted_modules(  # type: ignore[override]
        self, model_name_or_path: str, *, model_type: str, **_kwargs: object
    ) -> NoReturn:
        """Called for a checkpoint of another class, whose prompt would be taken for the model's own: an error."""
        kinds = {"SentenceTransformer": "VideoEncoder", "CrossEncoder": "VideoReranker"}
        own = type(self).__name__
        raise BackboneError(
            f"{model_name_or_path} is a {model_type} checkpoint, which {own} cannot open. Load it as "
            f"{kinds.get(model_type, model_type)}, or give {own} a checkpoint of its own kind, or the video MLLM that "
            f"this checkpoint was made from."
        )

    def _prepare(
        self, index: int, item: object, *, threads: int = 1, as_bytes: bool = False, **options: Any
    ) -> Prepared:
        """Decode one input and run the processor on it; `options` are those of `_features`.

        With `as_bytes`, pixels of videos are those that `normalized` takes, where that is proven to change nothing.
        """
        # frames of one temporal patch: with fewer, Qwen3-VL refuses a video
        least = getattr(self._transformer.processor.video_processor, "temporal_patch_size", None) or 1
        loaded, metadata = load_input(
            item, self.sampling, backend=self.video_backend, allow_url=self.allow_url, min_frames=least, threads=threads
        )
        name = name_of(item)
        options["as_bytes"] = as_bytes and self._can_take_bytes(options.get("processing_kwargs"))
        return Prepared(
            index, name, self._features([loaded], [f"{self._argument}[{index}] {name}"], metadata, **options)
        )

    def _can_take_bytes(self, processing_kwargs: ProcessingKwargs | None) -> bool:
        """Whether pixels may stay bytes up to the model's device: bit-equal there, and nobody asked otherwise."""
        video_processor = self._transformer.processor.video_processor
        asked = (processing_kwargs or {}).get("video", {}).keys() & {*AS_BYTES, *PATCH_SIZES}
        if asked or not all(getattr(video_processor, name, False) for name in AS_BYTES):
            return False

        def prepare(as_bytes: bool) -> Features:
            loaded, metadata = load_input(proof.probe_video(still=56), self.sampling)
            return self._features([loaded], None, metadata, as_bytes=as_bytes)

        return proof.takes_bytes(self._transformer.model, prepare, video_processor)

    def can_join(self) -> bool:
        """Whether prompts with media can be joined into one batch; tried once on the processor."""

        def prepare(videos: list[VideoFrames]) -> Features:
            loaded = [load_input(video, self.sampling) for video in videos]
            return self._features([item for item, _ in loaded], None, [one for _, meta in loaded for one in meta])

        model, pad_token_id = self._transformer.model, self.tokenizer.pad_token_id or 0
        return proof.can_join(model, prepare, pad_token_id=pad_token_id)

    def _prepare_texts(self, indices: Sequence[int], items: Sequence[object], **options: Any) -> list[Prepared]:
        names = [name_of(item) for item in items]
        places = [f"{self._argument}[{index}] {name}" for index, name in zip(indices, names, strict=True)]
        features = self._features([load_input(item, self.sampling)[0] for item in items], places, **options)
        return split_rows(features, indices, names)

    def _features(
        self,
        items: list[Any],
        names: Sequence[str] | None,
        message_metadata: Sequence[dict[str, Any]] = (),
        *,
        prompt: str | None = None,
        processing_kwargs: ProcessingKwargs | None = None,
        as_bytes: bool = False,
        **kwargs: Any,
    ) -> Features:
        """Run the processor on what `load_input` made. With names for errors, none may exceed the model's context."""
        asked = processing_kwargs or {}
        # the frames are sampled already: else processors sample them again, or guess 24 fps
        video = {**asked.get("video", {}), **(AS_BYTES if as_bytes else {}), "do_sample_frames": False}
        if message_metadata:
            video["video_metadata"] = list(message_metadata)
        text = asked.get("text", {})
        transformer = shallow_copy(
            self._transformer, processor=processor_for_call(self._transformer.processor, as_bytes=as_bytes)
        )
        model = shallow_copy(self, _modules={**self._modules, "0": transformer})
        process: Callable[..., Features] = functools.partial(
            super(VideoModel, model).preprocess, **kwargs, prompt=prompt
        )
        uncut = {**asked, "video": video, "text": {**text, "truncation": False, "max_length": None}}
        if all(isinstance(item, dict) and set(item) == {"text"} for item in items):
            features = process(items, processing_kwargs={**asked, "video": video})
            longest = int(features["attention_mask"].sum(1).max())
            most = text.get("max_length") or kwargs.get("max_length") or self.max_seq_length
            if longest >= (max_positions(self._transformer.config) or longest + 1):  # is it as long, or cut there?
                features = process(items, processing_kwargs=uncut)
            elif most is not None and longest >= most:  # texts were cut: is anything left of them?
                empty = process([{"text": ""}], processing_kwargs=uncut)["input_ids"].shape[1]
                if longest <= empty:
                    raise ValueError(
                        f"max_seq_length={most}: the prompt alone takes {empty} tokens, which leaves no room for the "
                        f"text. Use a larger value."
                    )
        else:  # cut, it would lose the end of its prompt, where it is read: that end is kept for texts only
            features = process(items, processing_kwargs=uncut)
        for name, tokens in zip(names or (), features["attention_mask"].sum(1).tolist(), strict=names is not None):
            check_context(self._transformer.config, tokens, name)
        features = dict(features)
        if as_bytes and PIXELS in features:
            features[BYTES] = features.pop(PIXELS)
        return features


def fields_digest(fields: Mapping[str, object]) -> str:
    """SHA-256 hex digest of a JSON-able dict, independent of key order."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def max_positions(config: PretrainedConfig | None) -> int | None:
    """Tokens that a model takes in all; None if its config does not say."""
    return getattr(config and config.get_text_config(), "max_position_embeddings", None)


def check_context(config: PretrainedConfig, tokens: int, name: str, *, parts: str = "") -> None:
    """Raise InputError for a prompt of `tokens` (visual ones too) that exceeds the context of the model.

    Its vector would look like any other. `name` and `parts` (what the tokens are of) are for the error.
    """
    limit = max_positions(config)
    if limit is not None and tokens > limit:
        raise InputError(
            f"{name}: {parts or f'it takes {tokens} tokens with its prompt'}, and the limit of the model is {limit}. "
            "Shorten the text, or lower Sampling.max_frames or max_pixels."
        )


def check_on_error(on_error: str) -> None:
    """Raise ValueError unless `on_error` is known."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r} is not known. Allowed: 'raise', 'skip'.")


def wants_bar(show_progress_bar: bool | None) -> bool:
    """Whether to show a progress bar; by default, if sentence-transformers logs at INFO or DEBUG."""
    if show_progress_bar is None:
        return logging.getLogger("sentence_transformers").getEffectiveLevel() in (logging.INFO, logging.DEBUG)
    return show_progress_bar


class Feeder(Generic[T]):
    """Prepares inputs in threads and joins them into batches in another, one batch ahead of the model.

    A list is read there too, and any other iterable in the thread of the caller, which alone can be interrupted: by at
    most twice `workers` ahead of what is joined. Texts are prepared several at a time by `prepare_texts`, without it
    each by itself. An error is raised, with "skip" given as `Failed`; `name` names its input.
    """

    def __init__(
        self,
        inputs: Iterable[T],
        prepare: Callable[[int, T], Prepared],
        prepare_texts: Callable[[Sequence[int], Sequence[T]], list[Prepared]] | None = None,
        *,
        name: Callable[[T], str] = name_of,
        on_error: OnError,
        workers: int,
    ) -> None:
        self.waiting = Waiting()
        self._prepare, self._prepare_texts, self._name, self._on_error = prepare, prepare_texts, name, on_error
        self._jobs = chunks(inputs, texts_together=prepare_texts is not None)
        self._is_list = isinstance(inputs, (list, tuple))
        self._room = 2 * workers
        self._pending: deque[Future[tuple[list[Prepared | Failed], list[Warning]]]] = deque()
        self._change = threading.Condition()  # of what is pending, of `_ended` and of the batch that is made
        self._ended = False  # nothing more is read
        self._idle_since = 0.0  # when the last input was prepared, so far
        # each of them resizes on its share of the cores: on all, they would be in one another's way
        share = functools.partial(share_cores, workers) if workers > 1 else None
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="vidembed-decode", initializer=share)

    def batches(
        self,
        group: Callable[[Iterator[Prepared | Failed]], Iterator[list[Prepared | Failed]]],
        join: Callable[[list[Prepared]], Features],
    ) -> Generator[tuple[list[Prepared | Failed], Features], None, None]:
        """Yield batches, in input order, as `group` divides them, and what `join` makes of each. Once.

        Both run in a thread of their own. Its threads have ended when this has, or is closed.
        """
        batches = group(self._prepared())

        def make() -> tuple[list[Prepared | Failed] | None, Features, list[Warning]]:
            kept: list[Warning] = []
            kept_warnings.set(kept)  # of this thread
            batch = next(batches, None)
            items = [item for item in batch or () if isinstance(item, Prepared)]
            return batch, _joined(items, join) if items else {}, kept

        maker = ThreadPoolExecutor(1, thread_name_prefix="vidembed-batch")
        try:
            made, returned = maker.submit(make), 0.0
            while True:
                asked = time.perf_counter()
                if returned and made.done() and not self._ended and all(one.done() for one in list(self._pending)):
                    self.waiting.for_model += asked - max(returned, self._idle_since)
                self._wait_for(made)
                batch, features, kept = made.result()
                for warning in kept:
                    warn(warning)
                if batch is None:
                    return
                if not self._is_list:
                    self._read()  # while the model runs, nobody does
                made = maker.submit(make)
                returned = time.perf_counter()
                self.waiting.for_decoding += returned - asked
                yield batch, features
                del batch, features
        finally:
            with self._change:
                self._ended = True
                for one in self._pending:
                    one.cancel()
                self._pending.clear()
                self._change.notify_all()
            maker.shutdown(wait=True, cancel_futures=True)
            self._threads.shutdown(wait=True, cancel_futures=True)

    def _wait_for(self, made: Future[Any]) -> None:
        """Read inputs until a batch is made."""

        def wake(_made: object) -> None:
            with self._change:
                self._change.notify_all()

        def can_go_on() -> bool:
            return made.done() or not (self._is_list or self._ended or len(self._pending) >= self._room)

        made.add_done_callback(wake)
        while not made.done():
            if not self._is_list:
                self._read()
            with self._change:
                self._change.wait_for(can_go_on)

    def _read(self) -> None:
        """Have threads prepare as many inputs as there is room for."""
        while not self._ended and len(self._pending) < self._room:
            job = next(self._jobs, None)
            with self._change:
                if job is None or self._ended:
                    self._ended = True
                else:
                    self._pending.append(self._threads.submit(self._prepare_chunk, job))
                self._change.notify_all()

    def _prepared(self) -> Iterator[Prepared | Failed]:
        """Yield what is prepared, in order; in the thread that makes batches."""
        while True:
            if self._is_list:
                self._read()
            with self._change:
                self._change.wait_for(lambda: self._pending or self._ended)
                if not self._pending:
                    return
                head = self._pending.popleft()
                self._change.notify_all()
            results, kept = head.result()
            for warning in kept:
                warn(warning)
            for result in results:
                yield report(result, self._on_error) if isinstance(result, Failed) else result

    def _prepare_chunk(self, chunk: list[tuple[int, T]]) -> tuple[list[Prepared | Failed], list[Warning]]:
        kept: list[Warning] = []
        kept_warnings.set(kept)  # of this thread of the executor
        results: list[Prepared | Failed] = []
        try:
            if self._prepare_texts is not None and is_text(chunk[0][1]):
                with suppress(ValueError, OSError):  # the one that fails is found below
                    return [*self._prepare_texts([index for index, _ in chunk], [item for _, item in chunk])], kept
            for index, item in chunk:
                try:
                    results.append(self._prepare(index, item))
                except (VideoError, ValueError, OSError) as error:
                    results.append(Failed(index, self._name(item), error))
            return results, kept
        finally:
            self._idle_since = time.perf_counter()


def _joined(items: list[Prepared], join: Callable[[list[Prepared]], Features]) -> Features:
    """What `join` makes of a batch; InputError with the names of its inputs where they do not fit together."""
    try:
        return join(items)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError) as error:
        names = ", ".join(f"inputs[{item.index}] {item.name}" for item in items)
        raise InputError(f"{names}: they cannot be batched ({error}). Try batch_size=1.") from error


def report(failed: Failed, on_error: OnError) -> Failed:
    """Raise the error of an input, named, with ``on_error="raise"``; else log it and return it."""
    name = "" if isinstance(failed.error, InputError) else f"inputs[{failed.index}] {failed.name}: "
    if on_error == "raise":
        if isinstance(failed.error, (VideoError, InputError)):
            raise failed.error
        raise InputError(f"{name}{failed.error}") from failed.error
    logger.warning("skipped %s%s", name, failed.error)
    return failed
