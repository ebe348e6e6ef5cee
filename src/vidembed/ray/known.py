"""Which contents the index has, in a form that can be sent to every worker."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


class KnownContents:
    """Says whether a content is known, so that it need not be decoded. Eight bytes a content.

    It can be wrong for one in 2**64 contents over the number of those that are known; who is told that a content is
    known looks it up.

    Args:
        contents: SHA-256 of each, hex.
    """

    def __init__(self, contents: Iterable[str]) -> None:
        self._first = np.unique(np.fromiter(map(_first, contents), dtype=np.uint64))  # (N,), sorted

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._first)

    def __call__(self, content: str) -> bool:
        """Whether a content (SHA-256, hex) is known."""
        wanted = np.uint64(_first(content))
        place = int(np.searchsorted(self._first, wanted))
        return place < len(self._first) and bool(self._first[place] == wanted)


def _first(content: str) -> int:
    return int(content[:16], 16)
