"""Decoding ahead of the model in threads, and batches formed by tokens.

While the model runs on one batch, worker threads decode the next videos and run the processor on them. Memory stays
bounded: at most `ahead` inputs are decoded and not yet in a batch.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch

from vidembed.errors import InputError, keep_warnings, warn
from vidembed.inputs import Prepared
from vidembed.video import VideoError

logger = logging.getLogger(__name__)

OnError = Literal["raise", "skip"]
T = TypeVar("T")

TEXT_CHUNK = 64  # texts per call of the tokenizer: rendering is per text, the call is not


@dataclass(frozen=True)
class Failed:
    """An input that could not be prepared or embedded.

    Attributes:
        index: Position among the inputs of the call.
        name: How the input is named in messages.
        error: Why.
    """

    index: int
    name: str
    error: Exception


def max_positions(config: Any) -> int | None:
    """Tokens that a model takes in all, by its transformers config; None if that does not say."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def check_context(config: Any, tokens: int, name: str, *, parts: str = "") -> None:
    """Refuse a prompt that exceeds the context of the model, whose output would look as good as any other.

    Args:
        config: The model's transformers config.
        tokens: Of the whole prompt, visual ones included.
        name: How to name the input in the error.
        parts: What the tokens are of, for the error.

    Raises:
        InputError: There are more tokens than the model takes.
    """
    limit = max_positions(config)
    if limit is not None and tokens > limit:
        raise InputError(
            f"{name}: {parts or f'it takes {tokens} tokens with its prompt'}, and the model takes {limit} in all. "
            "Shorten the text, or lower Sampling.max_frames or max_pixels."
        )


def check_on_error(on_error: str) -> None:
    """Raise ValueError unless `on_error` is known."""
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r} is not known. Allowed: 'raise', 'skip'.")


def wants_bar(show_progress_bar: bool | None) -> bool:
    """Whether to show a progress bar; where it is not said, if sentence-transformers logs at INFO or DEBUG."""
    if show_progress_bar is None:
        return logging.getLogger("sentence_transformers").getEffectiveLevel() in (logging.INFO, logging.DEBUG)
    return show_progress_bar


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_workers() -> int:
    """Inputs prepared at once: one per core, at most 8 (more decoders than that wait on memory, not on cores)."""
    return min(8, core_count())


def prepare_ahead(
    inputs: Iterable[Any],
    *,
    is_text: Callable[[Any], bool],
    prepare_one: Callable[[int, Any], Prepared],
    prepare_texts: Callable[[Sequence[int], Sequence[Any]], list[Prepared]],
    name_of: Callable[[Any], str],
    on_error: OnError,
    workers: int,
) -> Iterator[Prepared | Failed]:
    """Prepare inputs in worker threads and yield them in input order.

    Args:
        inputs: Read lazily, `workers` ahead.
        is_text: Whether an input is plain text; runs of texts are prepared together.
        prepare_one: Decodes one input and runs the processor on it.
        prepare_texts: Runs the processor on several texts.
        name_of: Names an input.
        on_error: "raise" raises the first input's error; "skip" yields it as `Failed`.
        workers: Number of threads.

    Raises:
        VideoError: A video could not be decoded, with ``on_error="raise"``.
        InputError: Another input could not be prepared, with ``on_error="raise"``.
    """

    def one(index: int, item: Any) -> list[Prepared | Failed]:
        try:
            return [prepare_one(index, item)]
        except (VideoError, ValueError, OSError) as error:
            return [Failed(index, name_of(item), error)]

    def texts(indices: list[int], items: list[Any]) -> list[Prepared | Failed]:
        try:
            return list(prepare_texts(indices, items))
        except (ValueError, OSError):  # find the one that fails
            return [result for index, item in zip(indices, items, strict=True) for result in one(index, item)]

    executor = ThreadPoolExecutor(workers, thread_name_prefix="vidembed-decode")
    pending: deque[Future[tuple[list[Prepared | Failed], list[Warning]]]] = deque()
    jobs = _jobs(inputs, is_text)
    try:
        while True:
            while len(pending) < 2 * workers and (job := next(jobs, None)) is not None:
                indices, items, all_text = job
                work = (
                    functools.partial(texts, indices, items)
                    if all_text
                    else functools.partial(one, indices[0], items[0])
                )
                pending.append(executor.submit(_keeping_warnings, work))
            if not pending:
                return
            for result in _warning_here(*pending.popleft().result()):
                if isinstance(result, Failed):
                    _report(result, on_error)
                yield result
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _jobs(inputs: Iterable[Any], is_text: Callable[[Any], bool]) -> Iterator[tuple[list[int], list[Any], bool]]:
    """Runs of up to `TEXT_CHUNK` texts, and every other input on its own."""
    for all_text, run in itertools.groupby(enumerate(inputs), key=lambda pair: is_text(pair[1])):
        size = TEXT_CHUNK if all_text else 1
        while chunk := list(itertools.islice(run, size)):
            yield [index for index, _ in chunk], [item for _, item in chunk], all_text


def _keeping_warnings(work: Callable[[], list[Prepared | Failed]]) -> tuple[list[Prepared | Failed], list[Warning]]:
    with keep_warnings() as kept:
        return work(), kept


def _warning_here(results: list[Prepared | Failed], kept: list[Warning]) -> list[Prepared | Failed]:
    for warning in kept:
        warn(warning)
    return results


def _report(failed: Failed, on_error: OnError) -> None:
    name = "" if isinstance(failed.error, InputError) else f"inputs[{failed.index}] {failed.name}: "
    if on_error == "raise":
        if isinstance(failed.error, (VideoError, InputError)):
            raise failed.error
        raise InputError(f"{name}{failed.error}") from failed.error
    logger.warning("skipped %s%s", name, failed.error)


def token_batches(
    prepared: Iterable[Prepared | Failed], *, max_items: int, max_tokens: int
) -> Iterator[tuple[list[Prepared], list[Failed]]]:
    """Group prepared inputs into batches of at most `max_items` rows and `max_tokens` padded tokens.

    An input longer than `max_tokens` is a batch of its own. Order is kept; failed inputs travel with the batch that
    is open when they appear.
    """
    batch: list[Prepared] = []
    failed: list[Failed] = []
    for item in prepared:
        if isinstance(item, Failed):
            failed.append(item)
            continue
        width = max((entry.tokens for entry in batch), default=0)
        if batch and (len(batch) == max_items or max(width, item.tokens) * (len(batch) + 1) > max_tokens):
            yield batch, failed
            batch, failed = [], []
        batch.append(item)
    if batch or failed:
        yield batch, failed


class HalvingRunner(Generic[T]):
    """Runs batches, and halves a batch that does not fit into memory. Says so in the log, and remembers.

    Args:
        run: Runs one batch and returns one result per item.
    """

    def __init__(self, run: Callable[[list[Prepared]], Sequence[T]]) -> None:
        self._run = run
        self._max_tokens: int | None = None  # padded tokens of the largest half that a failure led to

    def __call__(self, batch: list[Prepared]) -> list[T]:
        """Run one batch.

        Raises:
            torch.OutOfMemoryError: A single input does not fit; the message names it.
        """
        padded = max(item.tokens for item in batch) * len(batch)
        if self._max_tokens is not None and padded > self._max_tokens and len(batch) > 1:
            return self._halves(batch)
        try:
            return list(self._run(batch))
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise torch.OutOfMemoryError(
                    f"{batch[0].name}: out of memory on this input alone ({batch[0].tokens} tokens). Lower "
                    f"Sampling.max_frames or Sampling.max_pixels, or load the model in a smaller dtype. ({error})"
                ) from error
        # outside the except block: the traceback would keep the failed batch's memory alive
        self._max_tokens = padded // 2
        logger.warning("out of memory on a batch of %d inputs (%d tokens): halving it", len(batch), padded)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._halves(batch)

    def _halves(self, batch: list[Prepared]) -> list[T]:
        middle = len(batch) // 2
        return self(batch[:middle]) + self(batch[middle:])
