"""Want of memory under a limit is told from damage that asks for too much."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from vidembed.video import memory


def test_without_a_limit_it_is_damage() -> None:
    assert not memory.is_short()
    memory.check(MemoryError())
    memory.check(OSError(errno.ENOMEM, "no room"))


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "x"), BlockingIOError(errno.EAGAIN, "x")])
def test_when_memory_is_short(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "is_short", lambda: True)
    with pytest.raises(MemoryError, match="limit") as info:
        memory.check(error)
    assert info.value.__cause__ is error


@pytest.mark.parametrize("error", [ValueError("x"), OSError(errno.EINVAL, "x")])
def test_other_errors_are_none(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "is_short", lambda: True)
    memory.check(error)
    assert not memory.is_want(error)
    assert not memory.is_want(None)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
@pytest.mark.parametrize(("limit", "short"), [(2**30, True), (2**40, False)])
def test_the_limit_of_a_process(limit: int, short: bool) -> None:
    script = (
        "import resource\nfrom vidembed.video import memory\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({limit}, resource.RLIM_INFINITY))\nprint(memory.is_short())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == f"{short}\n"
