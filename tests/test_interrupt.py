from __future__ import annotations

import signal
import threading

import pytest

from vidembed.interrupt import GracefulStop, uninterrupted


def test_the_first_asks_and_the_second_interrupts(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), GracefulStop("stopping soon") as stop:  # noqa: PT012 - one by one
        signal.raise_signal(signal.SIGINT)
        assert stop.asked
        assert capfd.readouterr().err == "\nstopping soon\n"
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_where_nothing_is_lost_the_first_interrupts() -> None:
    with GracefulStop() as stop:
        with pytest.raises(KeyboardInterrupt), stop.idle():
            signal.raise_signal(signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt), stop.idle():
            pytest.fail("it was asked to stop before")


def test_a_commit_within_is_not_cut_short() -> None:
    done = []
    with GracefulStop() as stop:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append(not stop.asked)
        done.append(stop.asked)
    assert done == [True, True]


def test_another_handler_stays() -> None:
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with GracefulStop() as stop:
            signal.raise_signal(signal.SIGINT)
            assert (seen, stop.asked) == ([signal.SIGINT], False)
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_nothing_is_changed() -> None:
    def enter() -> None:
        with GracefulStop():
            found.append(signal.getsignal(signal.SIGINT))

    found: list[object] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
