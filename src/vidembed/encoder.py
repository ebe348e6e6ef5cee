"""`VideoEncoder`: a SentenceTransformer that takes videos in every form, correctly and fast."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, Unpack, cast, overload

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import truncate_embeddings
from torch import nn

from vidembed.backbone.architectures import Parts, find_parts
from vidembed.backbone.cut import as_transformer_module, cut, default_layer
from vidembed.backbone.load import Backbone, Features
from vidembed.backbone.sharing import add_user, applied_adapters, weights_digest
from vidembed.backbone.templates import ZERO_SHOT_PREFIX, eol_template
from vidembed.card import TAGS, TRAINED_TAG, encoder_usage, model_card, shown_name, updated, write_with_usage
from vidembed.checkpoint import FILE_NAME, CheckpointConfig, merged, put_adapter
from vidembed.errors import BackboneError, InputError, LayerChosen, LayerError, warn
from vidembed.inputs import (
    MAX_BATCH_TOKENS,
    Failed,
    HalvingRunner,
    Input,
    Prepared,
    collate,
    is_text,
    kind_of,
    load_input,
    name_of,
    normalized,
    on_device,
    pinned,
    token_batches,
)
from vidembed.pipeline import Feeder, OnError, VideoModel, check_on_error, report, wants_bar
from vidembed.progress import progress_bar
from vidembed.registry import portable_name
from vidembed.video import Sampling, VideoError
from vidembed.video.clip import core_count

if TYPE_CHECKING:
    from sentence_transformers.base.modules.transformer import ProcessingKwargs

    from vidembed.backbone.options import ModelOptions
    from vidembed.reranker import VideoReranker
    from vidembed.video.fetch import UrlAccess

Result: TypeAlias = "torch.Tensor | dict[str, object]"
"""Of one input: a vector (D,), token embeddings (S, D), or all outputs of the model by name."""

_STANDARD_KEYS = ("type", "pooling_mode", "include_prompt")
_STANDARD = [{"type": "Pooling", "pooling_mode": "lasttoken", "include_prompt": True}, {"type": "Normalize"}]


@dataclass(frozen=True)
class EncodedItem:
    """One result of `VideoEncoder.encode_stream`."""

    index: int  # position among the inputs
    embedding: np.ndarray | None  # the vector (D,) float32, or None when the input failed
    error: Exception | None  # why it failed, or None


class EncodeOptions(TypedDict, total=False):
    """Arguments of `VideoEncoder.encode`, as `SentenceTransformer` documents them, that do not change its type."""

    show_progress_bar: bool | None
    precision: Literal["float32", "int8", "uint8", "binary", "ubinary"]
    device: str | list[str | torch.device] | None
    normalize_embeddings: bool
    truncate_dim: int | None
    pool: dict[Literal["input", "output", "processes"], Any] | None
    chunk_size: int | None
    task: str | None
    processing_kwargs: ProcessingKwargs | None
    on_error: OnError


class VideoEncoder(VideoModel, SentenceTransformer):
    """A `SentenceTransformer` for video, image and text.

    Everything a SentenceTransformer does works as documented there; inputs may also be paths, `VideoSegment`,
    `VideoFrames`, bytes and binary file objects, mixed in one list with text and images. Videos are decoded by
    presentation time in threads, ahead of the model, and batches are formed by tokens.

    Args:
        model_name_or_path: A vidembed checkpoint (any SentenceTransformer that takes video), or a video MLLM of a
            supported architecture, which is cut on the fly without copying weights. Names ``vidembed/...`` resolve to
            bundled and locally built models first.
        layer: Which decoder block to read, 1-based, or -1 for the last with its trained final norm. Default for an
            MLLM: the block at 24/28 of the depth, as in the paper (section 4), with a warning that says so. Of a
            checkpoint it is known, and another value is refused.
        prefix: For an MLLM only: a line before the content of the prompt. "zero-shot" is what the paper puts there for
            models as they are (`vidembed.backbone.ZERO_SHOT_PREFIX`); None is nothing; other text stands for itself.
        sampling: The frame grid; default what the checkpoint says, else ``Sampling()`` (2 frames per second, at most
            180 frames: VidVec section 4).
        video_backend: Video decoder, "pyav" or "decord".
        allow_url: Whether http(s) sources are fetched.
        decode_workers: Decode threads; default one per core, less one where the model is on a GPU, and at most one per
            GiB of the machine's memory.
        max_batch_tokens: Padded tokens per batch.
        backbone: A loaded MLLM to share instead of `model_name_or_path`, as `VideoReranker.backbone`.
        **kwargs: Everything `SentenceTransformer` takes (``device``, ``model_kwargs``, ``truncate_dim``, ...).

    Raises:
        LayerError: `layer` is not a block of the model, or not that of the checkpoint.
        UnsupportedBackboneError: The model is no supported video model.
        BackboneError: The processor is missing, or the dtype unknown.

    Examples:
        >>> from vidembed import VideoEncoder
        >>> encoder = VideoEncoder("vidembed/shapes")
        >>> encoder.encode({"text": "a red square moves down"}).shape == (encoder.get_embedding_dimension(),)
        True
    """

    _settings_name = FILE_NAME

    def __init__(
        self,
        model_name_or_path: str | Path | None = None,
        *,
        layer: int | None = None,
        prefix: str | None = "zero-shot",
        sampling: Sampling | None = None,
        video_backend: str = "pyav",
        allow_url: UrlAccess = False,
        decode_workers: int | None = None,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        backbone: Backbone | None = None,
        **kwargs: Any,
    ) -> None:
        self._layer_asked = layer
        self._prefix_asked = ZERO_SHOT_PREFIX if prefix == "zero-shot" else prefix
        self.checkpoint_config: CheckpointConfig | None = None
        super().__init__(model_name_or_path, backbone, video_backend, allow_url, decode_workers, **kwargs)
        if "video" not in self.modalities:
            raise BackboneError(
                f"{model_name_or_path}: this model takes {', '.join(map(str, self.modalities))}, but not video. Use a "
                "checkpoint made by vidembed.build, or a video MLLM with layer=..."
            )
        if self._settings_file is not None:
            self.checkpoint_config = CheckpointConfig.read(self._settings_file)
        config = self.checkpoint_config
        if layer not in (None, self.layer):
            known = self.layer or "of its choice"
            raise LayerError(
                f"layer={layer}: {model_name_or_path} is a checkpoint that reads layer {known}. "
                "Leave layer out, or build another checkpoint from the full model with vidembed.build."
            )
        if self._prefix_asked not in (ZERO_SHOT_PREFIX, config.prefix if config else None):
            raise BackboneError(f"prefix={prefix!r}: {model_name_or_path} is a checkpoint and carries its prompts.")
        self.sampling = sampling or (Sampling(**config.sampling) if config else Sampling())
        self.max_batch_tokens = max_batch_tokens
        if config is not None and config.recipe is not None and self.recipe is not None:
            made = self.fingerprint_fields()
            given = {"weights", *(["video_processor", "image_processor"] if kwargs.get("processor_kwargs") else [])}
            config.recipe.check({key: made[key] for key in made if key not in given}, self.recipe.parent)

    def _modules_of(self, backbone: Backbone) -> list[nn.Module]:
        parts = find_parts(backbone.model, name=backbone.name)
        layer, prefix = self._layer_asked, self._prefix_asked
        recipe = None if self.recipe is None else CheckpointConfig.read(self.recipe)
        if recipe is not None:
            layer, prefix = recipe.layer, recipe.prefix
        if layer is None:
            layer = default_layer(backbone.model, name=backbone.name)
            warn(
                LayerChosen(
                    f"{backbone.name}: no layer was given, so block {layer} of {parts.depth} is read, at the relative "
                    f"depth that the paper reads without training (24 of 28). `vidembed build --layer auto` chooses "
                    f"one "
                    "on your own captioned videos."
                )
            )
        view = self._own(cut(backbone.model, layer, name=backbone.name), backbone)
        if recipe is not None and recipe.recipe is not None and recipe.recipe.adapter and self.recipe is not None:
            put_adapter(view, self.recipe.parent)
        template = eol_template(backbone.processor, prefix=prefix, name=backbone.name)
        module = as_transformer_module(view, backbone.processor, chat_template=template)
        kind, source, grid = parts.model_type, portable_name(backbone.name), Sampling().as_dict()
        self.checkpoint_config = recipe or CheckpointConfig(layer, parts.depth, kind, source, prefix, grid)
        return [module, Pooling(module.get_embedding_dimension(), "lasttoken"), Normalize()]

    @property
    def layer(self) -> int | None:
        """The decoder block that is read (-1: the last, with its trained norm); None if the checkpoint does not say."""
        return self.checkpoint_config.layer if self.checkpoint_config else None

    @property
    def parts(self) -> Parts:
        """The parts of the model that runs: the MLLM's, cut after the layer."""
        return find_parts(self._transformer.model)

    def reranker(self, **kwargs: Any) -> VideoReranker:
        """Make a reranker on the same weights, with this encoder's frame grid; `kwargs` as `VideoReranker` takes.

        Raises:
            BackboneError: This encoder was loaded from a cut checkpoint, which holds no head.
        """
        from vidembed.reranker import VideoReranker  # noqa: PLC0415 - each can make the other

        if self.backbone is None:
            source = self.checkpoint_config.source if self.checkpoint_config else "its MLLM"
            raise BackboneError(
                f"this checkpoint was cut, so it has no language model head to rerank with. Load "
                f"VideoReranker({source!r}), or make "
                "both of one MLLM: VideoEncoder(MLLM, layer=...).reranker()."
            )
        shared = {"sampling": self.sampling, "video_backend": self.video_backend, "allow_url": self.allow_url}
        shared["device"] = str(self.device)
        return VideoReranker(backbone=self.backbone, **{**shared, **kwargs})

    def use_modules(self, other: VideoEncoder) -> None:
        """Use the modules of an encoder with the same fingerprint, so that the weights are in memory once."""
        self[0], self.backbone, self.links, self.linked = other[0], other.backbone, other.links, other.linked
        if self.backbone is not None:
            add_user(self.backbone.model, self)

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Save a plain checkpoint with weights; for a recipe, the cut weights with its adapter merged.

        Raises:
            BackboneError: Other adapter layers are in the model.
        """
        transformer, config = self._transformer, self.checkpoint_config
        model = transformer.model
        if config is not None and config.recipe is not None and config.recipe.adapter and applied_adapters(model):
            transformer.model = merged(model)
        try:
            super().save(path, *args, **kwargs)
        finally:
            transformer.model = model

    def _write_settings(self, path: str) -> None:
        if config := self._current_config():
            config.write(path)

    def _current_config(self) -> CheckpointConfig | None:
        """`checkpoint_config`, of the model as it is now."""
        config = self.checkpoint_config
        return config and replace(config, sampling=self.sampling.as_dict(), fingerprint=self.fingerprint, recipe=None)

    def _create_model_card(
        self, path: str, model_name: str | None = None, train_datasets: list[str] | None = None
    ) -> None:
        """Write our card, the card that was loaded brought up to date, or after training both in one."""
        data, config, before = self.model_card_data, self._current_config(), self.checkpoint_config
        trained, loaded = TRAINED_TAG in data.tags, cast("str | None", self._model_card_text)
        name = shown_name(data, path, model_name)
        if trained:
            data.add_tags([*TAGS])
        file = Path(path, "README.md")
        if config is not None and not trained and not loaded:
            file.write_text(model_card(name, config), encoding="utf-8")
            return
        write = functools.partial(super()._create_model_card, path, model_name, train_datasets)
        if trained or not loaded:
            write_with_usage(file, write, data, encoder_usage(name, config))
            return
        write()
        if config is not None and before is not None:
            text = file.read_text(encoding="utf-8")
            file.write_text(updated(text, name, before=before.fingerprint, now=config.fingerprint), encoding="utf-8")

    def fingerprint_fields(self) -> dict[str, Any]:
        """Everything that the vectors depend on, as a JSON-able dict; `VideoModel.fingerprint_fields`."""
        modules = [part for part in self if part is not self._transformer]
        settings = [{"type": type(part).__name__, **getattr(part, "get_config_dict", dict)()} for part in modules]
        known = [{key: one[key] for key in _STANDARD_KEYS if key in one} for one in settings]
        after = [{**one, "weights": weights_digest(part)} for one, part in zip(settings, modules, strict=True)]
        return {
            **super().fingerprint_fields(),
            **({} if known == _STANDARD else {"modules": after}),
            "layer": self.layer,
            "prompts": {key: value for key, value in self.prompts.items() if value},
            "default_prompt_name": self.default_prompt_name,
            "truncate_dim": self.truncate_dim,
        }

    @overload  # type: ignore[override]
    def encode(
        self,
        inputs: Input | Sequence[Input],
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int = ...,
        *,
        output_value: Literal["sentence_embedding"] = ...,
        convert_to_numpy: Literal[True] = ...,
        convert_to_tensor: Literal[False] = ...,
        **options: Unpack[EncodeOptions],
    ) -> np.ndarray: ...

    @overload
    def encode(
        self,
        inputs: Input | Sequence[Input],
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int = ...,
        *,
        output_value: Literal["sentence_embedding"] = ...,
        convert_to_numpy: bool = ...,
        convert_to_tensor: Literal[True],
        **options: Unpack[EncodeOptions],
    ) -> torch.Tensor: ...

    @overload
    def encode(
        self,
        inputs: list[Input],
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int = ...,
        *,
        output_value: Literal["sentence_embedding", "token_embeddings"] = ...,
        convert_to_numpy: Literal[False],
        convert_to_tensor: Literal[False] = ...,
        **options: Unpack[EncodeOptions],
    ) -> list[torch.Tensor]: ...

    @overload
    def encode(
        self,
        inputs: Input | Sequence[Input],
        prompt_name: str | None = ...,
        prompt: str | None = ...,
        batch_size: int = ...,
        *,
        output_value: Literal["sentence_embedding", "token_embeddings"] | None = ...,
        convert_to_numpy: bool = ...,
        convert_to_tensor: bool = ...,
        **options: Unpack[EncodeOptions],
    ) -> np.ndarray | torch.Tensor | list[torch.Tensor] | dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]: ...

    def encode(self, inputs: Any, *args: Any, on_error: OnError = "raise", **kwargs: Any) -> Any:
        """Compute embeddings; arguments and results are those of `SentenceTransformer.encode`.

        Args:
            inputs: One input or a list: text, a path, `VideoSegment`, `VideoFrames`, bytes, a binary file object, an
                image, or the dicts of sentence-transformers, mixed at will. A string that ends in a video suffix is a
                file, there or missing; pass ``{"text": ...}`` for words that look like one.
            *args: As those of `SentenceTransformer.encode`.
            on_error: "raise" raises at the first input that fails, naming it. "skip" logs it and puts a row of NaN in
                its place, which no search can rank; use `encode_stream` to get at the reasons.
            **kwargs: Likewise.

        Raises:
            VideoError: A video could not be decoded.
            InputError: Another input could not be prepared, or its vector is not finite.
            ValueError: An argument is out of range.
        """
        check_on_error(on_error)
        if on_error == "skip":
            precision = kwargs.get("precision", "float32")
            if precision != "float32" or kwargs.get("output_value", "sentence_embedding") != "sentence_embedding":
                raise ValueError(
                    f"on_error='skip' marks failed inputs by NaN, which precision={precision!r} or another "
                    f"output_value cannot represent. Use encode_stream, and quantize its results."
                )
        return super().encode(inputs, *args, on_error=on_error, **kwargs)

    if TYPE_CHECKING:  # inherited, and they call `encode`
        encode_query = encode  # type: ignore[assignment]
        encode_document = encode  # type: ignore[assignment]

    def encode_stream(
        self,
        inputs: Iterable[Input],
        *,
        batch_size: int = 32,
        on_error: OnError = "raise",
        show_progress_bar: bool | None = None,
        prompt: str | None = None,
        truncate_dim: int | None = None,
    ) -> Iterator[EncodedItem]:
        """Embed inputs one batch at a time, in order, as they are ready; `inputs` is read lazily.

        Args:
            inputs: As `encode` takes, any number of them.
            batch_size: Most inputs per batch; ``max_batch_tokens`` bounds it too.
            on_error: "raise" as `encode` does, or "skip" to yield the error in the place of the vector.
            show_progress_bar: Whether to show a bar; by default only if the log level is INFO or DEBUG.
            prompt: As in `encode`.
            truncate_dim: As in `encode`.

        Yields:
            An `EncodedItem` per input, in input order.
        """
        check_on_error(on_error)
        bar, size = wants_bar(show_progress_bar), truncate_dim if truncate_dim is not None else self.truncate_dim
        results = self._results(
            inputs, prompt=prompt, batch_size=batch_size, show_progress_bar=bar, truncate_dim=size, on_error=on_error
        )
        for index, value in enumerate(results):
            vector = value.float().numpy() if isinstance(value, torch.Tensor) else None
            yield EncodedItem(index, vector, value.error if isinstance(value, Failed) else None)

    def is_singular_input(self, inputs: object) -> bool:  # type: ignore[override]
        """As in sentence-transformers, for every kind of input that `encode` takes.

        ValueError if `inputs` is neither one input nor a list of them, but a Series, a generator, a set.
        """
        if not super().is_singular_input(inputs):
            return False
        try:
            if isinstance(inputs, Iterable) and not isinstance(inputs, Mapping):
                kind_of(inputs)
        except VideoError:
            pass  # preparing it raises its own error
        except ValueError as error:
            raise ValueError(
                f"inputs: got a {type(inputs).__name__}, which is not an input or a list of inputs. Pass "
                f"list(inputs), or use encode_stream, which reads any iterable lazily."
            ) from error
        return True

    def preprocess(self, inputs: Sequence[Input], prompt: str | None = None, **kwargs: Any) -> Features:
        """As in sentence-transformers, for every kind of input that `encode` takes: the features of one batch."""
        if not inputs:
            return {}
        if not all(is_text(item) for item in inputs):
            rows = [self._prepare(index, item, prompt=prompt, **kwargs) for index, item in enumerate(inputs)]
            if len(rows) > 1 and any(row.has_media for row in rows) and not self.can_join():
                raise ValueError(
                    f"inputs: got {len(rows)} with videos or images in one batch, and inputs of this model "
                    f"({type(self.processor).__name__}) cannot be joined. Pass them one at a time, as encode does."
                )
            return collate(rows, pad_token_id=self.tokenizer.pad_token_id or 0)
        uncut = (kwargs.get("processing_kwargs") or {}).get("text", {}).get("truncation") is False
        # who wants texts uncut counts their tokens
        names = None if uncut else [f"inputs[{index}] {name_of(item)}" for index, item in enumerate(inputs)]
        return self._features([load_input(item, self.sampling)[0] for item in inputs], names, prompt=prompt, **kwargs)

    def _inference(  # type: ignore[override]
        self, inputs: list[Input], *, output_value: str | None, truncate_dim: int | None, **options: Any
    ) -> list[Result | Failed] | torch.Tensor:
        """What `encode` and the workers of process pools call."""
        results = list(self._results(inputs, output_value=output_value, truncate_dim=truncate_dim, **options))
        if output_value != "sentence_embedding":
            return results
        if not results:
            return torch.tensor([])
        empty = torch.zeros(truncate_dim or self.get_embedding_dimension() or 0)
        like = next((value for value in results if isinstance(value, torch.Tensor)), empty)  # (D,)
        missing = torch.full_like(like, float("nan"))
        return torch.stack([value if isinstance(value, torch.Tensor) else missing for value in results])  # (N, D)

    def _results(
        self,
        inputs: Iterable[Input],
        *,
        batch_size: int,
        show_progress_bar: bool,
        output_value: str | None = "sentence_embedding",
        prompt: str | None = None,
        processing_kwargs: ProcessingKwargs | None = None,
        task: str | None = None,
        on_error: OnError = "raise",
        **readout: Any,
    ) -> Iterator[Result | Failed]:
        """Yield the result of each input, or `Failed`, in input order; `readout` are arguments of `_embed_batch`."""
        if batch_size <= 0:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size}.")
        size = readout.get("truncate_dim")
        if size is not None and not (isinstance(size, (int, np.integer)) and size > 0):
            raise ValueError(f"truncate_dim must be a positive integer, got {size}.")
        total = len(inputs) if isinstance(inputs, Sequence) else None
        at_once = min(self.decode_workers, total or self.decode_workers)
        options: dict[str, Any] = {"prompt": prompt, "processing_kwargs": processing_kwargs, "task": task}
        feeder = Feeder(
            inputs,
            # several videos at a time need no threads of their own
            functools.partial(self._prepare, threads=max(1, core_count() // at_once), as_bytes=True, **options),
            functools.partial(self._prepare_texts, **options),
            on_error=on_error,
            workers=self.decode_workers,
        )
        target, most = self._resolve_inference_device(readout.get("device")), self.max_batch_tokens
        group = functools.partial(token_batches, max_items=batch_size, max_tokens=most, joins=self.can_join)

        def join(items: list[Prepared]) -> Features:
            return pinned(collate(items, pad_token_id=self.tokenizer.pad_token_id or 0), target)

        embed = HalvingRunner(
            functools.partial(self._embed_batch, output_value=output_value, task=task, **readout), join
        )
        bar = progress_bar("Encoding", "inputs", total=total, shown=show_progress_bar)
        with bar, closing(feeder.batches(group, join)) as batches:
            for batch, features in batches:
                values = iter(embed([item for item in batch if isinstance(item, Prepared)], features))
                results: list[Result | Failed] = [item if isinstance(item, Failed) else next(values) for item in batch]
                if output_value == "sentence_embedding":
                    results = [_finite(*pair, on_error) for pair in zip(batch, results, strict=True)]
                bar.set_postfix_str(str(feeder.waiting), refresh=False)
                bar.update(len(results))
                del batch, features, values  # the next is made while these are used
                yield from results

    @torch.inference_mode()
    def _embed_batch(
        self,
        batch: list[Prepared],
        features: Features,
        *,
        output_value: str | None,
        truncate_dim: int | None,
        save_to_cpu: bool = True,
        normalize_embeddings: bool = False,
        device: str | torch.device | None = None,
        **forward_kwargs: Any,
    ) -> list[Result]:
        """Run the model on one batch, which `features` are of."""
        target = self._resolve_inference_device(device)
        self.eval()
        features = normalized(on_device(features, target), self._transformer.processor.video_processor)
        outputs = self(features, **forward_kwargs)  # __call__, for `compile`
        if truncate_dim is not None:
            outputs["sentence_embedding"] = truncate_embeddings(outputs["sentence_embedding"], truncate_dim)
        if output_value is None:
            return [
                {
                    name: value[row] if isinstance(value, torch.Tensor) and value.shape[:1] == (len(batch),) else value
                    for name, value in outputs.items()
                }
                for row in range(len(batch))
            ]
        values: torch.Tensor = outputs[output_value]  # (B, D) or (B, S_max, D)
        if output_value == "token_embeddings":
            return list(values)
        values = nn.functional.normalize(values, dim=1) if normalize_embeddings else values
        return list(values.cpu() if save_to_cpu else values)


def _finite(item: Prepared | Failed, vector: Result | Failed, on_error: OnError) -> Result | Failed:
    """The vector (D,) of an input, or `Failed` if a value of it is not finite."""
    if not isinstance(vector, torch.Tensor) or bool(torch.isfinite(vector).all()):
        return vector
    error = InputError(
        f"inputs[{item.index}] {item.name}: the model gave a vector with values that are not finite. In float16 "
        "activations can overflow: load with model_kwargs={'dtype': 'bfloat16'} or 'float32'."
    )
    return report(Failed(item.index, item.name, error), on_error)


def load_encoder(
    name: str,
    *,
    layer: int | None = None,
    sampling: Mapping[str, Any] | None = None,
    options: ModelOptions | None = None,
) -> VideoEncoder:
    """Load an encoder as commands, workers and the server do.

    Args:
        name: As `VideoEncoder` takes it.
        layer: Decoder layer, for a model that is not a vidembed checkpoint.
        sampling: Fields of `Sampling` to set; the others stay as the checkpoint has them.
        options: How it is loaded. Default: as the checkpoint has it, on the best device.

    Raises:
        ValueError: There is no such model, it takes no video, or an argument is out of range.
    """
    kwargs = {} if options is None else options.kwargs()
    try:
        encoder = VideoEncoder(name, layer=layer, **kwargs)
    except OSError as error:  # what transformers raises for a model that it cannot find
        where = "" if Path(name).exists() else "is not a folder, is not in the model store, and "
        raise ValueError(f"model: {name!r} {where}cannot be loaded: {error}") from error
    if sampling:
        encoder.sampling = replace(encoder.sampling, **sampling)
    return encoder
