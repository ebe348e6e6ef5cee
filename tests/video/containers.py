"""Containers that behave otherwise than FFmpeg's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import pytest

from vidembed.video import container as container_module


class Altered:
    """What `FrameReader` opens from now on is a container some of whose methods are replaced by those given here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **methods: Callable[..., Any]) -> None:
        self.methods = methods
        self.opened = 0
        self.container: Any = None
        monkeypatch.setattr("vidembed.video.reader.open_container", self._open)

    @contextmanager
    def _open(self, handle: Any, item: str) -> Iterator[Altered]:
        self.opened += 1
        with container_module.open_container(handle, item) as self.container:
            yield self

    def __getattr__(self, name: str) -> Any:
        return self.methods.get(name) or getattr(self.container, name)


def seeking_late(monkeypatch: pytest.MonkeyPatch, late: float) -> Altered:
    """A container whose index points so many seconds past the target."""

    def seek(target: int, *, stream: Any, backward: bool) -> None:
        altered.container.seek(target + int(Fraction(late) / stream.time_base), stream=stream, backward=backward)

    altered = Altered(monkeypatch, seek=seek)
    return altered
