"""What `VideoEncoder` and `VideoReranker` share: inputs of every kind, through the host's ``preprocess``."""

from __future__ import annotations

import copy
import functools
import logging
import threading
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NoReturn, TypedDict, cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer
from torch import nn
from tqdm.auto import tqdm

from vidembed.backbone import ARCHITECTURES, BackboneError
from vidembed.backbone.cut import without_hooks
from vidembed.backbone.load import Backbone, load_backbone
from vidembed.errors import InputError
from vidembed.inputs import Prepared, check_one, collate, kind_of, split_rows, to_host_input
from vidembed.pipeline import (
    Failed,
    HalvingRunner,
    OnError,
    check_context,
    core_count,
    max_positions,
    prepare_ahead,
    token_batches,
)
from vidembed.video import Sampling, VideoError, item_name
from vidembed.video.fetch import UrlAccess

_PROCESSOR_LOCK = threading.Lock()
"""Fast tokenizers hold padding and truncation as state, which one thread could change under another. Decoding, the
long part, runs outside. Of the module and not of an encoder, which process pools pickle."""


class VideoInputs(BaseModel):
    """A sentence-transformers model that decodes its videos itself.

    Attributes:
        backbone: The MLLM that the modules are of, or None for what was loaded from a checkpoint.
        sampling: The frame grid.
        video_backend: Video decoder.
        allow_url: Whether http(s) sources are fetched.
    """

    backbone: Backbone | None
    sampling: Sampling
    video_backend: str
    allow_url: UrlAccess

    @property
    def _transformer(self) -> Transformer:
        return cast("Transformer", self[0])

    @abstractmethod
    def _modules_of(self, backbone: Backbone) -> list[nn.Module]:
        """Make the modules of a loaded MLLM; its weights are shared."""

    def __getstate__(self) -> dict[str, Any]:
        """For process pools: without the full MLLM, and without hooks, which do not pickle."""
        modules = {name: without_hooks(module) for name, module in self._modules.items() if module}
        return {**self.__dict__, "backbone": None, "_modules": modules}

    def _load_default_modules(
        self,
        model_name_or_path: str,
        token: bool | str | None,
        cache_folder: str | None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        local_files_only: bool = False,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        config_kwargs: dict[str, Any] | None = None,
        **_host: Any,
    ) -> tuple[list[nn.Module] | OrderedDict[str, nn.Module], dict[str, Any]]:
        """Called by the host for a model that is none of its own: make the modules of the MLLM."""
        if trust_remote_code:
            raise BackboneError(
                "trust_remote_code=True is refused: supported models load with transformers' own classes."
            )
        backbone = load_backbone(
            model_name_or_path,
            model_kwargs=model_kwargs,
            processor_kwargs=processor_kwargs,
            config_kwargs=config_kwargs,
            token=token,
            cache_dir=cache_folder,
            revision=revision,
            local_files_only=local_files_only or None,
        )
        return self._modules_of(backbone), {}

    def _load_converted_modules(  # type: ignore[override]
        self, model_name_or_path: str, *, model_type: str, **_host: Any
    ) -> NoReturn:
        """Called by the host for a checkpoint of another class, which it would take apart and give new modules.

        Raises:
            BackboneError: Always: the other class's prompt would be taken for the model's own.
        """
        kinds = {"SentenceTransformer": "VideoEncoder", "CrossEncoder": "VideoReranker"}
        raise BackboneError(
            f"{model_name_or_path} is a {model_type} checkpoint, which {type(self).__name__} cannot open. Load it as "
            f"{kinds.get(model_type, model_type)}, or give {type(self).__name__} a checkpoint of its own kind or the "
            "video MLLM that this one was made of."
        )

    def _load(self, item: Any, threads: int = 1) -> tuple[Any, list[dict[str, Any]]]:
        row = ARCHITECTURES.get(self._transformer.config.model_type)
        return to_host_input(
            item,
            self.sampling,
            backend=self.video_backend,
            allow_url=self.allow_url,
            min_frames=row.min_frames if row else 1,
            threads=threads,
        )

    def _call_host(
        self,
        items: list[Any],
        message_metadata: list[dict[str, Any]],
        prompt: str | None,
        processing_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        merged = copy.copy(processing_kwargs or {})
        # the frames are sampled already: else processors sample them again, or guess 24 fps
        merged["video"] = {**merged.get("video", {}), "do_sample_frames": False}
        if message_metadata:
            merged["video"]["video_metadata"] = message_metadata
        how = {"prompt": prompt, **kwargs}
        uncut = {**merged, "text": {**merged.get("text", {}), "truncation": False, "max_length": None}}
        with _PROCESSOR_LOCK:
            if not all(isinstance(item, dict) and set(item) == {"text"} for item in items):
                # cut, it would lose the end of its prompt, where it is read: the host keeps that end for texts only
                return super().preprocess(items, processing_kwargs=uncut, **how)
            features = super().preprocess(items, processing_kwargs=merged, **how)
            longest = int(features["attention_mask"].sum(1).max())
            if longest >= (max_positions(self._transformer.config) or longest + 1):  # is it as long, or cut there?
                return super().preprocess(items, processing_kwargs=uncut, **how)
            most = merged.get("text", {}).get("max_length") or kwargs.get("max_length") or self.max_seq_length
            if most is not None and longest >= most:  # texts were cut: is anything left of them?
                empty = super().preprocess([{"text": ""}], processing_kwargs=uncut, **how)["input_ids"].shape[1]
                if longest <= empty:
                    raise ValueError(
                        f"max_seq_length={most}: the prompt alone takes {empty} tokens, so nothing would be left of "
                        "the text. Set it higher."
                    )
        return features

    def _prepare_one(
        self,
        index: int,
        item: Any,
        *,
        prompt: str | None,
        processing_kwargs: dict[str, Any] | None,
        task: str | None,
        threads: int = 1,
    ) -> Prepared:
        host_input, metadata = self._load(item, threads)
        features = self._call_host([host_input], metadata, prompt, processing_kwargs, task=task)
        return Prepared(index, name_of(item), dict(features))


def is_text(item: Any) -> bool:
    """Whether an input is plain text. One that cannot be told apart is not: preparing it raises its error."""
    try:
        return kind_of(item) == "text"
    except (ValueError, VideoError):
        return False


def name_of(item: Any) -> str:
    """Name an input for messages."""
    if isinstance(item, dict) and "video" in item:
        item = item["video"]
    try:
        kind = kind_of(item)
    except (ValueError, TypeError, VideoError):
        return f"<{type(item).__name__}>"
    if kind == "video":
        return item_name(item)
    text = repr(item["text"] if isinstance(item, dict) and "text" in item else item)
    return text if len(text) <= 80 else text[:77] + "..."


logger = logging.getLogger(__name__)


class EncodeOptions(TypedDict, total=False):
    """Arguments of `VideoEncoder.encode`, as the host documents them, that leave the type of its result alone."""

    show_progress_bar: bool | None
    precision: Literal["float32", "int8", "uint8", "binary", "ubinary"]
    device: str | list[str | torch.device] | None
    normalize_embeddings: bool
    truncate_dim: int | None
    pool: dict[Literal["input", "output", "processes"], Any] | None
    chunk_size: int | None
    task: str | None
    processing_kwargs: dict[str, Any] | None
    on_error: OnError


class PipelinedSentenceTransformer(VideoInputs, SentenceTransformer):
    """A SentenceTransformer whose ``preprocess`` takes every kind of input and whose inference decodes ahead.

    Attributes:
        decode_workers: Inputs prepared at once.
        max_batch_tokens: Padded tokens per batch.
    """

    decode_workers: int
    max_batch_tokens: int

    def _inference(  # type: ignore[override]
        self,
        inputs: list[Any],
        *,
        show_progress_bar: bool,
        output_value: str | None,
        save_to_cpu: bool,
        truncate_dim: int | None,
        device: str | torch.device | None = None,
        on_error: OnError = "raise",
        **kwargs: Any,
    ) -> list[Any] | torch.Tensor:
        """The host's hook for local inference: same results, through the pipeline."""
        if inputs and all(isinstance(item, Prepared) for item in inputs):
            return super()._inference(
                inputs,
                show_progress_bar=False,
                output_value=output_value,
                save_to_cpu=save_to_cpu,
                truncate_dim=truncate_dim,
                device=device,
                **kwargs,
            )
        results: list[Any] = [None] * len(inputs)
        for index, value in self._results(
            inputs,
            show_progress_bar=show_progress_bar,
            output_value=output_value,
            save_to_cpu=save_to_cpu,
            truncate_dim=truncate_dim,
            device=device,
            on_error=on_error,
            **kwargs,
        ):
            results[index] = value
        if output_value != "sentence_embedding":
            return results
        vectors = [value for value in results if isinstance(value, torch.Tensor)]
        if len(vectors) < len(results):
            like = vectors[0] if vectors else torch.zeros(truncate_dim or self.get_embedding_dimension() or 0)
            missing = torch.full_like(like, float("nan"))
            results = [missing if isinstance(value, Failed) else value for value in results]
        return torch.stack(results) if results else torch.tensor([])

    def is_singular_input(self, inputs: Any) -> bool:  # type: ignore[override]
        """As the host's, for every kind of input that `encode` takes; any other iterable is an error."""
        is_singular = super().is_singular_input(inputs)
        if is_singular:
            check_one(inputs)
        return is_singular

    def _results(
        self,
        inputs: Iterable[Any],
        *,
        prompt: str | None,
        batch_size: int,
        show_progress_bar: bool,
        on_error: OnError,
        output_value: str | None,
        processing_kwargs: dict[str, Any] | None = None,
        **inference: Any,
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index, result or Failed) in input order."""
        if batch_size <= 0:
            raise ValueError(f"batch_size must be a positive integer, got {batch_size}.")
        task = inference.get("task")
        total = len(inputs) if isinstance(inputs, Sequence) else None
        at_once = min(self.decode_workers, total or self.decode_workers)
        prepared = prepare_ahead(
            inputs,
            is_text=is_text,
            prepare_one=functools.partial(
                self._prepare_one,
                prompt=prompt,
                processing_kwargs=processing_kwargs,
                task=task,
                threads=max(1, core_count() // at_once),  # several videos at a time need no threads of their own
            ),
            prepare_texts=functools.partial(
                self._prepare_texts, prompt=prompt, processing_kwargs=processing_kwargs, task=task
            ),
            name_of=name_of,
            on_error=on_error,
            workers=self.decode_workers,
        )

        def run(batch: list[Prepared]) -> Any:
            return self._inference(
                batch,
                prompt=None,
                batch_size=len(batch),
                show_progress_bar=False,
                output_value=output_value,
                **inference,
            )

        runner = HalvingRunner(run)
        with tqdm(total=total, desc="Encoding", unit="input", disable=not show_progress_bar) as bar:
            for batch, failed in token_batches(prepared, max_items=batch_size, max_tokens=self.max_batch_tokens):
                outcomes: list[tuple[int, Any]] = [(item.index, item) for item in failed]
                for item, value in zip(batch, runner(batch) if batch else [], strict=True):
                    outcomes.append((item.index, self._checked(item, value, output_value, on_error)))
                bar.update(len(outcomes))
                yield from sorted(outcomes, key=lambda outcome: outcome[0])

    @staticmethod
    def _checked(item: Prepared, value: Any, output_value: str | None, on_error: OnError) -> Any:
        if output_value == "sentence_embedding" and not bool(torch.isfinite(value).all()):
            error = InputError(
                f"inputs[{item.index}] {item.name}: the model gave a vector with values that are not finite. In "
                "float16 activations can overflow: load with model_kwargs={'dtype': 'bfloat16'} or 'float32'."
            )
            if on_error == "raise":
                raise error
            logger.warning("skipped %s", error)
            return Failed(item.index, item.name, error)
        return value

    # -- preparing inputs --------------------------------------------------------------------------------------------

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """As the host's, for every kind of input that `encode` takes."""
        if inputs and all(isinstance(item, Prepared) for item in inputs):
            return collate(list(inputs), pad_token_id=self.tokenizer.pad_token_id or 0)
        if not inputs:
            return {}
        if all(is_text(item) for item in inputs):
            features = self._call_host([self._load(item)[0] for item in inputs], [], prompt, **kwargs)
            text_kwargs = (kwargs.get("processing_kwargs") or {}).get("text", {})
            if text_kwargs.get("truncation") is not False:  # who wants texts uncut counts the tokens
                for index, tokens in enumerate(features["attention_mask"].sum(1).tolist()):
                    check_context(self._transformer.config, tokens, f"inputs[{index}] {name_of(inputs[index])}")
            return features
        rows = [
            self._prepare_one(
                index,
                item,
                prompt=prompt,
                processing_kwargs=kwargs.get("processing_kwargs"),
                task=kwargs.get("task"),
            )
            for index, item in enumerate(inputs)
        ]
        return collate(rows, pad_token_id=self.tokenizer.pad_token_id or 0)

    def _prepare_one(self, index: int, item: Any, **how: Any) -> Prepared:
        return self._within_context(super()._prepare_one(index, item, **how))

    def _within_context(self, prepared: Prepared) -> Prepared:
        check_context(self._transformer.config, prepared.tokens, f"inputs[{prepared.index}] {prepared.name}")
        return prepared

    def _prepare_texts(
        self,
        indices: Sequence[int],
        items: Sequence[Any],
        *,
        prompt: str | None,
        processing_kwargs: dict[str, Any] | None,
        task: str | None,
    ) -> list[Prepared]:
        features = self._call_host([self._load(item)[0] for item in items], [], prompt, processing_kwargs, task=task)
        rows = split_rows(features, indices, [name_of(item) for item in items])
        return [self._within_context(row) for row in rows]
