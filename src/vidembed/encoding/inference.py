"""The inference half of `VideoEncoder`: the host's hooks, run through the decode-ahead pipeline."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypedDict

import torch
from sentence_transformers import SentenceTransformer
from tqdm.auto import tqdm

from vidembed.encoding.host import VideoInputs, is_text, name_of
from vidembed.encoding.inputs import check_one
from vidembed.encoding.pipeline import (
    Failed,
    HalvingRunner,
    InputError,
    OnError,
    check_context,
    core_count,
    prepare_ahead,
    token_batches,
)
from vidembed.encoding.prepared import Prepared, collate, split_rows

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


class EmbeddingError(InputError):
    """The model gave a vector that is not finite; the message names the input."""


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
            error = EmbeddingError(
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
