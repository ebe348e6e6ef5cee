"""Decode-ahead and token batches: order, bounds, errors, threads that end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vidembed.errors import InputError
from vidembed.inputs import Failed, HalvingRunner, Prepared, collate, split_rows, token_batches
from vidembed.pipeline import Feeder


def prepared(index: int, tokens: int) -> Prepared:
    ids = torch.arange(1, tokens + 1)[None]
    return Prepared(
        index, f"item{index}", {"input_ids": ids, "attention_mask": torch.ones_like(ids), "modality": "message"}
    )


def join(items: list[Prepared]) -> Any:
    return collate(items, pad_token_id=0)


def run(
    inputs: Any,
    *,
    workers: int = 2,
    on_error: Any = "raise",
    delay: float = 0.0,
    max_items: int = 1,
    max_tokens: int = 100,
    join: Any = join,
) -> Any:
    """Batches of inputs: of a number, a prompt one longer, and of a text, as long."""

    def one(index: int, item: Any) -> Prepared:
        time.sleep(delay * (item % 3))
        if item < 0:
            raise ValueError(f"bad value {item}")
        return prepared(index, item + 1)

    def texts(indices: Sequence[int], items: Sequence[Any]) -> list[Prepared]:
        return [one(index, len(item)) for index, item in zip(indices, items, strict=True)]

    feeder = Feeder(inputs, one, texts, name=str, on_error=on_error, workers=workers)
    return feeder.batches(partial(token_batches, max_items=max_items, max_tokens=max_tokens), join)


def wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.002)


@settings(max_examples=30)
@given(
    st.lists(st.one_of(st.integers(0, 9), st.text(max_size=5))),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 40),
    st.booleans(),
)
def test_batches_keep_every_input_in_order_within_bounds(
    inputs: list[Any], workers: int, max_items: int, max_tokens: int, as_list: bool
) -> None:
    source = inputs if as_list else iter(inputs)
    made = list(run(source, workers=workers, delay=0.0005, max_items=max_items, max_tokens=max_tokens))
    items = [item for batch, _ in made for item in batch]
    assert [item.index for item in items] == list(range(len(inputs)))
    for batch, features in made:
        assert len(batch) <= max_items
        assert len(batch) == 1 or max(item.tokens for item in batch) * len(batch) <= max_tokens
        expected = collate(batch, pad_token_id=0)
        assert features.keys() == expected.keys()
        assert torch.equal(features["input_ids"], expected["input_ids"])


def test_reading_stays_ahead_by_a_bounded_number() -> None:
    read: list[int] = []

    def source() -> Any:
        for index in range(1000):
            read.append(threading.get_ident())
            yield index % 5

    stream = run(source(), workers=3, max_items=2, max_tokens=1000)
    next(stream)
    time.sleep(0.1)  # nothing reads while the model runs
    assert len(read) <= 2 * 3 + 2 + 2
    stream.close()
    assert set(read) == {threading.get_ident()}  # the thread that Ctrl-C interrupts


class Source(list[int]):
    """A list that knows how far it was read."""

    read = 0

    def __iter__(self) -> Iterator[int]:
        for item in super().__iter__():
            self.read += 1
            yield item


def test_one_batch_of_a_list_is_made_while_the_model_runs() -> None:
    joined: list[int] = []

    def count(items: list[Prepared]) -> Any:
        joined.append(len(items))
        return join(items)

    source = Source([1] * 1000)
    stream = run(source, workers=1, max_items=8, max_tokens=1000, join=count)
    next(stream)
    wait_until(lambda: len(joined) == 2)
    time.sleep(0.1)
    assert joined == [8, 8]  # and no third
    assert source.read <= 8 + 8 + 1 + 2 * 1 + 1
    stream.close()


def test_error_is_raised_in_its_place_and_names_the_item() -> None:
    for source in ([1, 2, -7, 3], iter([1, 2, -7, 3])):
        stream = run(source)
        assert [next(stream)[0][0].index] == [0]
        with pytest.raises(InputError, match=r"inputs\[2\] -7: bad value -7"):
            list(stream)


def test_skip_yields_the_failure_in_its_place() -> None:
    ((batch, features),) = run([1, -7, "ab", -8], on_error="skip", max_items=8)
    assert [type(result) for result in batch] == [Prepared, Failed, Prepared, Failed]
    assert [result.index for result in batch] == [0, 1, 2, 3]
    assert features["input_ids"].shape == (2, 3)
    ((batch, features),) = run([-1, -2], on_error="skip", max_items=8)
    assert [type(result) for result in batch] == [Failed, Failed]
    assert features == {}


def test_a_batch_that_cannot_be_joined_is_named() -> None:
    before = threading.active_count()

    def refuse(items: list[Prepared]) -> Any:
        if any(item.index == 3 for item in items):
            raise RuntimeError("Sizes of tensors must match")
        return join(items)

    stream = run([1] * 6, max_items=2, join=refuse)
    next(stream)
    with pytest.raises(InputError, match=r"inputs\[2\] item2, inputs\[3\] item3: .*Sizes of tensors must match"):
        next(stream)
    assert threading.active_count() == before


def test_a_programming_error_is_not_skipped() -> None:
    with pytest.raises(TypeError):
        list(run([1, None], on_error="skip"))


@pytest.mark.parametrize("as_list", [True, False])
def test_threads_end_with_the_stream(as_list: bool) -> None:
    before = threading.active_count()
    stream = run(list(range(100)) if as_list else iter(range(100)), workers=4, delay=0.001)
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_what_the_inputs_raise_ends_the_threads(error: type[BaseException]) -> None:
    before = threading.active_count()

    def source() -> Any:
        yield from range(8)
        raise error("from the inputs")

    with pytest.raises(error, match="from the inputs"):
        list(run(source()))
    assert threading.active_count() == before


def test_ctrl_c_while_nothing_is_ready() -> None:
    before, release = threading.active_count(), threading.Event()

    def slow(index: int, _item: int) -> Prepared:
        if index == 0:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            threading.Timer(0.3, release.set).start()
        assert release.wait(20)
        return prepared(index, 1)

    feeder = Feeder(iter(range(100)), slow, name=str, on_error="raise", workers=2)
    with pytest.raises(KeyboardInterrupt):
        next(feeder.batches(partial(token_batches, max_items=1, max_tokens=9), join))
    wait_until(lambda: threading.active_count() == before)  # the timers too


def test_which_side_waits_is_measured() -> None:
    def slow(index: int, _item: int) -> Prepared:
        time.sleep(0.05)
        return prepared(index, 1)

    feeder = Feeder(range(6), slow, name=str, on_error="raise", workers=1)
    for _ in feeder.batches(partial(token_batches, max_items=1, max_tokens=9), join):
        pass
    assert feeder.waiting.for_decoding > 0.2
    assert str(feeder.waiting).startswith("waits for decoding ")
    feeder = Feeder([1] * 20, lambda index, _: prepared(index, 1), name=str, on_error="raise", workers=1)
    for _ in feeder.batches(partial(token_batches, max_items=1, max_tokens=9), join):
        time.sleep(0.03)
    assert feeder.waiting.for_model > 0.2
    assert str(feeder.waiting).startswith("waits for the model ")


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

    def model(batch: list[Prepared], features: Any) -> list[int]:
        assert features["input_ids"].shape[0] == len(batch)
        if len(batch) > fits:
            raise torch.OutOfMemoryError("no room")
        sizes.append(len(batch))
        return [item.index * 10 for item in batch]

    runner = HalvingRunner(model, join)
    items = [prepared(index, 3) for index in range(count)]
    assert runner(items, join(items)) == [index * 10 for index in range(count)]  # joined before, as by `Feeder`
    tries = len(sizes)
    assert runner(items) == [index * 10 for index in range(count)]  # and it has learnt what fits
    assert len(sizes) == 2 * tries


def test_out_of_memory_on_one_input_names_it() -> None:
    def model(_batch: list[Prepared], _features: Any) -> list[int]:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match=r"item0: out of memory on this input alone \(3 tokens\)"):
        HalvingRunner(model, join)([prepared(0, 3), prepared(1, 4)])
