from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidembed.serve.batching import Batcher, QueueFullError

WAIT = 20.0  # seconds until a test gives up


class Model:
    """Doubles numbers, notes its batches, fails at -1, and waits while it is held."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Event()
        self.free.set()
        self.busy = threading.Event()

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.busy.set()
        assert self.free.wait(WAIT)
        if -1 in items:
            raise ValueError("minus one")
        return [2 * item for item in items]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def start(model: Model) -> Iterator[Callable[..., Batcher[int, int]]]:
    started: list[Batcher[int, int]] = []

    def make(**how: Any) -> Batcher[int, int]:
        started.append(Batcher(model, **{"max_items": 4, "wait_s": 0.0, "max_queue": 10, **how}))
        return started[-1]

    yield make
    model.free.set()
    for batcher in started:
        batcher.close()
        assert not batcher.alive


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():
            await asyncio.sleep(0.002)


async def held(batcher: Batcher[int, int], model: Model) -> asyncio.Task[list[int]]:
    """Have the thread work on a first request until `model.free` is set."""
    model.free.clear()
    first = asyncio.create_task(batcher.submit([0]))
    await until(model.busy.is_set)
    return first


def test_what_waits_together_is_run_together_in_order_and_no_request_is_cut(
    start: Callable[..., Batcher[int, int]], model: Model
) -> None:
    async def main() -> None:
        batcher = start()
        first = await held(batcher, model)
        tasks = [asyncio.create_task(batcher.submit(items)) for items in ([1, 2], [3], [4, 5], [6], [7, 8, 9])]
        await until(lambda: batcher.waiting == 9)
        model.free.set()
        assert await first == [0]
        assert await asyncio.gather(*tasks) == [[2, 4], [6], [8, 10], [12], [14, 16, 18]]

    asyncio.run(main())
    assert model.batches == [[0], [1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_a_long_request_is_run_in_parts_and_short_ones_have_their_turn_between(
    start: Callable[..., Batcher[int, int]], model: Model
) -> None:
    async def main() -> None:
        batcher = start(max_queue=100)
        first = await held(batcher, model)
        long = asyncio.create_task(batcher.submit(list(range(1, 12))))
        await until(lambda: batcher.waiting == 11)
        short = asyncio.create_task(batcher.submit([20, 21]))
        await until(lambda: batcher.waiting == 13)
        call = asyncio.create_task(batcher.call(lambda: len(model.batches)))
        await until(lambda: batcher.waiting == 14)
        model.free.set()
        assert await first == [0]
        assert await short == [40, 42]
        assert await call == 3
        assert await long == [2 * item for item in range(1, 12)]

    asyncio.run(main())
    assert model.batches == [[0], [1, 2, 3, 4], [20, 21], [5, 6, 7, 8], [9, 10, 11]]


def test_a_long_request_that_fails_or_is_given_up_is_not_run_further(
    start: Callable[..., Batcher[int, int]], model: Model
) -> None:
    async def main() -> None:
        batcher = start(max_queue=100)
        first = await held(batcher, model)
        failing = asyncio.create_task(batcher.submit([1, -1, *range(2, 30)]))
        await until(lambda: batcher.waiting == 30)
        model.free.set()
        assert await first == [0]
        with pytest.raises(ValueError, match="minus one"):
            await failing
        assert batcher.waiting == 0
        model.free.clear()
        model.busy.clear()
        given_up = asyncio.create_task(batcher.submit(list(range(40, 60))))
        await until(model.busy.is_set)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        model.free.set()
        assert await batcher.submit([60]) == [120]

    asyncio.run(main())
    assert model.batches == [[0], [1, -1, 2, 3], [40, 41, 42, 43], [60]]


def test_a_batch_waits_for_others(start: Callable[..., Batcher[int, int]], model: Model) -> None:
    async def main() -> None:
        batcher = start(wait_s=WAIT, max_items=2)
        assert await asyncio.gather(batcher.submit([1]), batcher.submit([2])) == [[2], [4]]

    asyncio.run(main())
    assert model.batches == [[1, 2]]


def test_a_full_queue_refuses_and_takes_again(start: Callable[..., Batcher[int, int]], model: Model) -> None:
    async def main() -> None:
        batcher = start(max_queue=3)
        first = await held(batcher, model)
        second = asyncio.create_task(batcher.submit([1, 2, 3]))
        await until(lambda: batcher.waiting == 3)
        with pytest.raises(QueueFullError, match="3 inputs are waiting for the model, and at most 3 can wait"):
            await batcher.submit([4])
        with pytest.raises(QueueFullError):
            await batcher.call(lambda: 1)
        model.free.set()
        assert (await first, await second) == ([0], [2, 4, 6])
        assert await batcher.submit([4]) == [8]

    asyncio.run(main())


def test_one_request_does_not_fail_for_another(start: Callable[..., Batcher[int, int]], model: Model) -> None:
    async def main() -> None:
        batcher = start()
        await_first = await held(batcher, model)
        tasks = [asyncio.create_task(batcher.submit(items)) for items in ([1], [-1], [2])]
        await until(lambda: batcher.waiting == 3)
        model.free.set()
        await await_first
        good, bad, other = await asyncio.gather(*tasks, return_exceptions=True)
        assert (good, other) == ([2], [4])
        assert isinstance(bad, ValueError)

    asyncio.run(main())


def test_what_is_given_up_before_it_began_is_not_run(start: Callable[..., Batcher[int, int]], model: Model) -> None:
    async def main() -> None:
        batcher = start()
        first = await held(batcher, model)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.submit([5]), 0.01)
        model.free.set()
        await first
        assert await batcher.submit([6]) == [12]

    asyncio.run(main())
    assert model.batches == [[0], [6]]


def test_a_function_runs_between_batches(start: Callable[..., Batcher[int, int]], model: Model) -> None:
    async def main() -> None:
        batcher = start()
        first = await held(batcher, model)
        one = asyncio.create_task(batcher.submit([1]))
        await until(lambda: batcher.waiting == 1)
        call = asyncio.create_task(batcher.call(lambda: len(model.batches)))
        await until(lambda: batcher.waiting == 2)
        two = asyncio.create_task(batcher.submit([2]))
        await until(lambda: batcher.waiting == 3)
        model.free.set()
        assert (await first, await one, await call, await two) == ([0], [2], 2, [4])
        with pytest.raises(ZeroDivisionError):
            await batcher.call(lambda: 1 // 0)

    asyncio.run(main())
    assert model.batches == [[0], [1], [2]]


def test_closing_fails_what_waits_and_what_comes_after(start: Callable[..., Batcher[int, int]], model: Model) -> None:
    async def main() -> None:
        batcher = start()
        first = await held(batcher, model)
        second = asyncio.create_task(batcher.submit([1]))
        await until(lambda: batcher.waiting == 1)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        with pytest.raises(QueueFullError, match="stopping"):
            await second
        model.free.set()
        await closing
        assert await first == [0]
        with pytest.raises(QueueFullError, match="stopping"):
            await batcher.submit([1])

    asyncio.run(main())


def test_results_of_another_number_are_no_results() -> None:
    batcher: Batcher[int, int] = Batcher(lambda items: items[:-1], max_items=4, wait_s=0, max_queue=9)
    with pytest.raises(RuntimeError, match="1 results for 2 inputs"):
        asyncio.run(batcher.submit([1, 2]))
    batcher.close()


@settings(max_examples=25)
@given(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=8), st.integers(1, 6))
def test_every_request_gets_its_own_results(requests: list[list[int]], max_items: int) -> None:
    sizes: list[int] = []
    batcher: Batcher[int, int] = Batcher(
        lambda items: [item + 1 for item in items], max_items=max_items, wait_s=0, max_queue=100, observe=sizes.append
    )

    async def main() -> list[list[int]]:
        return await asyncio.gather(*map(batcher.submit, requests))

    assert asyncio.run(main()) == [[item + 1 for item in request] for request in requests]
    batcher.close()
    assert sum(sizes) == sum(map(len, requests))
    assert max(sizes, default=0) <= max_items
