"""Progress bars: what is done, how fast, and how long it still takes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar, overload

from tqdm.auto import tqdm

if TYPE_CHECKING:
    _Base: TypeAlias = tqdm[Any]
else:
    _Base = tqdm  # it takes no type at run time

T = TypeVar("T")


class _Bar(_Base):
    """A bar that shows its speed with a unit and the time left, also where a unit takes longer than a second."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """What tqdm makes the line of, and the form of the line."""
        known = dict(super().format_dict)
        done, total, elapsed = known["n"], known["total"], known["elapsed"]
        # The mean until tqdm has a moving one
        rate = known["rate"] or ((done - known["initial"]) / elapsed if elapsed else 0)
        parts = ["{n_fmt}/{total_fmt} {unit}" if total else "{n_fmt} {unit}"]
        if rate:
            parts.append(f"{rate:,.0f} {{unit}}/s" if rate >= 10 else f"{rate:.2g} {{unit}}/s")
            if total and done < total:
                parts.append(f"{tqdm.format_interval((total - done) / rate)} left")
            elif total:
                parts.append("took {elapsed}")
        bar = "{percentage:3.0f}%|{bar:20}| " if total else ""
        return known | {"bar_format": f"{{desc}}: {bar}{', '.join(parts)}{{postfix}}"}


@dataclass
class Waiting:
    """How long the two sides of a run waited for each other, seconds."""

    began: float = field(default_factory=time.perf_counter)
    for_decoding: float = 0.0  # the thread of the model: nothing was ready for it
    for_model: float = 0.0  # what decodes and prepares: as much was ready as may be

    def __str__(self) -> str:
        """Say which side waited longer, and for which share of the time."""
        share = max(self.for_decoding, self.for_model) / max(time.perf_counter() - self.began, 1e-9)
        side = "decoding" if self.for_decoding > self.for_model else "the model"
        return f"waits for {side} {share:.0%}"


@overload
def progress_bar(name: str, unit: str, *, total: int | None = None, shown: bool, done: int = 0) -> tqdm[NoReturn]: ...
@overload
def progress_bar(name: str, unit: str, *, each: Iterable[T], shown: bool, delay_s: float = 0.0) -> tqdm[T]: ...
def progress_bar(
    name: str,
    unit: str,
    *,
    total: int | None = None,
    each: Iterable[Any] | None = None,
    shown: bool,
    done: int = 0,
    delay_s: float = 0.0,
) -> tqdm[Any]:
    """Return a bar on stderr, such as `Indexing:  42%|####      | 21/50 files, 1.9 files/s, 00:15 left`.

    Args:
        name: What is being done.
        unit: What is counted, in the plural.
        total: How many there are; None where it is not known, or `each` has a length.
        each: What to iterate over. None: `update` counts.
        shown: Whether to show it.
        done: How many were done before, and do not count for the speed.
        delay_s: Seconds before it appears. Such a bar goes away at its end.
    """
    how: dict[str, Any] = {"total": total, "initial": done, "disable": not shown, "dynamic_ncols": True}
    how |= {"delay": delay_s, "leave": False} if delay_s else {}
    return _Bar(each, desc=name, unit=unit, **how)
