"""The time that a process may work on a file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from vidembed.video.process import worker as module
from vidembed.video.process.worker import Allowance


class FakeWorker:
    """Notes why it was killed."""

    killed: str | None = None

    def kill(self, why: str) -> None:
        self.killed = why


class FakeTimer:
    """Fires when the clock is set past its end."""

    armed: list[FakeTimer] = []  # noqa: RUF012

    def __init__(self, interval: float, function: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.interval, self.fire = interval, lambda: function(*args)

    def start(self) -> None:
        FakeTimer.armed.append(self)

    def cancel(self) -> None:
        FakeTimer.armed.remove(self)

    def join(self) -> None:
        assert self not in FakeTimer.armed


def test_only_the_time_inside_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.threading, "Timer", FakeTimer)
    worker: Any = FakeWorker()
    allowance = Allowance(10.0)
    intervals = []
    for _ in range(4):
        with allowance.spent_by(worker):
            intervals.append(FakeTimer.armed[0].interval)
            now[0] += 3
        assert FakeTimer.armed == []
        now[0] += 1000
    assert intervals == [10.0, 7.0, 4.0, 1.0]
    with allowance.spent_by(worker):
        assert FakeTimer.armed[0].interval == 0
        FakeTimer.armed[0].fire()
    assert worker.killed == "timeout"


def test_an_error_inside_disarms_it() -> None:
    worker: Any = FakeWorker()
    before = threading.active_count()
    with pytest.raises(KeyError), Allowance(600.0).spent_by(worker):
        raise KeyError
    assert threading.active_count() == before
    assert worker.killed is None


def test_no_limit() -> None:
    worker: Any = FakeWorker()
    before = threading.active_count()
    with Allowance(None).spent_by(worker):
        assert threading.active_count() == before


def test_a_limit_beyond_what_a_timer_takes() -> None:
    worker: Any = FakeWorker()
    with Allowance(1e300).spent_by(worker):
        pass
    assert worker.killed is None
