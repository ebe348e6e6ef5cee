"""What is derived from the rows of an index is brought up to date when a run ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vidembed.index import ann, bank, compact
from vidembed.index.compact import Spec

if TYPE_CHECKING:
    from vidembed.index.meta import QueryEncoder
    from vidembed.index.table import VideoIndex


@dataclass(frozen=True, slots=True)
class Derived:
    """What an index shall have beside its rows.

    Attributes:
        exact_up_to: Rows up to which searches are exact, and no ANN index is built; remembered, however many rows there
            are. None: what an earlier run gave, or `vidembed.index.ann.EXACT_UP_TO`.
        compact: Compact copies to have, such as `int8`, `binary` or `float32-512`. Those that are there stay.
        query_bank: Queries of a new query bank. None: the one that is there stays.
        beta: Inverse temperature of the bank. None: that of the one that is there, or the default.
    """

    exact_up_to: int | None = None
    compact: Sequence[str] = ()
    query_bank: Sequence[str] | None = None
    beta: float | None = None

    def check(self, dimension: int | None = None) -> None:
        """Refuse what cannot be, before anything is indexed.

        Raises:
            ValueError: A value is out of range.
        """
        if self.exact_up_to is not None and self.exact_up_to < 0:
            raise ValueError(f"exact_up_to: got {self.exact_up_to}; a number of rows is needed, 0 or more")
        for name in self.compact:
            Spec.parse(name, dimension)
        if self.query_bank is not None:
            bank.check_queries(self.query_bank)


def refresh(index: VideoIndex, encoder: QueryEncoder, derived: Derived | None = None, *, progress: bool = True) -> None:
    """Make and bring up to date the ANN index, the query bank and the compact copies of an index.

    An interruption leaves each as it was, or stale and therefore unused; the next run makes it.

    Args:
        index: The index; nobody else may be writing to it.
        encoder: The model of the index.
        derived: What it shall have. Default: an ANN index if there are many rows, and what is there already.
        progress: Show bars on stderr.

    Raises:
        ValueError: A value of `derived` is out of range.
        IndexMismatchError: The query bank at hand was made by another model.
        RuntimeError: The model gave no usable vector for a bank query.
    """
    derived = derived or Derived()
    written = ann.refresh(index, exact_up_to=derived.exact_up_to)  # first, since it makes a version of the table
    written |= bank.refresh(index, encoder, derived.query_bank, beta=derived.beta, progress=progress)
    written |= compact.refresh(index, derived.compact, progress=progress)
    if written:
        index.flush()


def facts(index: VideoIndex) -> dict[str, Any]:
    """Return what `vidembed info` says of how an index is searched."""
    return {
        "exact_up_to": ann.threshold(index),
        "ann": ann.facts(index),
        "compact": compact.facts(index),
        "query_bank": bank.facts(index),
    }
