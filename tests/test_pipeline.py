"""Decode-ahead and token batches: order, bounds, errors, threads that end."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidembed.errors import InputError
from vidembed.inputs import Prepared, collate, split_rows
from vidembed.pipeline import Failed, HalvingRunner, prepare_ahead, token_batches


def prepared(index: int, tokens: int) -> Prepared:
    ids = torch.arange(1, tokens + 1)[None]
    return Prepared(
        index, f"item{index}", {"input_ids": ids, "attention_mask": torch.ones_like(ids), "modality": "message"}
    )


def run(inputs: Any, *, workers: int = 2, on_error: Any = "raise", delay: float = 0.0) -> Any:
    def one(index: int, item: Any) -> Prepared:
        time.sleep(delay * (item % 3))
        if item < 0:
            raise ValueError(f"bad value {item}")
        return prepared(index, item + 1)

    def texts(indices: Sequence[int], items: Sequence[Any]) -> list[Prepared]:
        return [one(index, len(item)) for index, item in zip(indices, items, strict=True)]

    return prepare_ahead(inputs, one, texts, name=str, on_error=on_error, workers=workers)


@settings(max_examples=30)
@given(
    st.lists(st.one_of(st.integers(0, 9), st.text(max_size=5))),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 40),
)
def test_batches_keep_every_input_in_order_within_bounds(
    inputs: list[Any], workers: int, max_items: int, max_tokens: int
) -> None:
    batches = list(
        token_batches(run(inputs, workers=workers, delay=0.0005), max_items=max_items, max_tokens=max_tokens)
    )
    items = [item for batch in batches for item in batch]
    assert [item.index for item in items] == list(range(len(inputs)))
    for batch in batches:
        assert len(batch) <= max_items
        assert len(batch) == 1 or max(item.tokens for item in batch) * len(batch) <= max_tokens


def test_reading_stays_ahead_by_a_bounded_number() -> None:
    read: list[int] = []

    def source() -> Any:
        for index in range(1000):
            read.append(index)
            yield index % 5

    stream = run(source(), workers=3)
    next(stream)
    assert len(read) <= 2 * 3 + 2
    stream.close()


def test_error_is_raised_in_its_place_and_names_the_item() -> None:
    stream = run([1, 2, -7, 3])
    assert [next(stream).index, next(stream).index] == [0, 1]
    with pytest.raises(InputError, match=r"inputs\[2\] -7: bad value -7"):
        next(stream)


def test_skip_yields_the_failure_in_its_place() -> None:
    results = list(run([1, -7, "ab", -8], on_error="skip"))
    assert [type(result) for result in results] == [Prepared, Failed, Prepared, Failed]
    assert [result.index for result in results] == [0, 1, 2, 3]
    batches = list(token_batches(results, max_items=8, max_tokens=100))
    assert batches == [results]


def test_a_programming_error_is_not_skipped() -> None:
    with pytest.raises(TypeError):
        list(run([1, None], on_error="skip"))


def test_threads_end_with_the_stream() -> None:
    before = threading.active_count()
    stream = run(iter(range(100)), workers=4)
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_collate_and_split_are_inverse(lengths: list[int]) -> None:
    items = [prepared(index, tokens) for index, tokens in enumerate(lengths)]
    batch = collate(items, pad_token_id=0)
    assert batch["input_ids"].shape == (len(lengths), max(lengths))
    assert bool(batch["attention_mask"][:, -1].all())  # left padding: the last column is real in every row
    again = split_rows(batch, range(len(items)), [item.name for item in items])
    for item, row in zip(items, again, strict=True):
        assert torch.equal(item.features["input_ids"], row.features["input_ids"])


@given(st.integers(1, 16), st.integers(1, 6))
def test_halving_gives_what_the_whole_batch_would(count: int, fits: int) -> None:
    sizes: list[int] = []

    def model(batch: list[Prepared]) -> list[int]:
        if len(batch) > fits:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(batch))
        return [item.index * 10 for item in batch]

    runner = HalvingRunner(model)
    items = [prepared(index, 3) for index in range(count)]
    assert runner(items) == [index * 10 for index in range(count)]
    tries = len(sizes)
    assert runner(items) == [index * 10 for index in range(count)]  # and it has learnt what fits
    assert len(sizes) == 2 * tries


def test_out_of_memory_on_one_input_names_it() -> None:
    def model(_batch: list[Prepared]) -> list[int]:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match=r"item0: out of memory on this input alone \(3 tokens\)"):
        HalvingRunner(model)([prepared(0, 3), prepared(1, 4)])
