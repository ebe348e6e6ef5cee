"""Line charts as SVG within a page, which follow its light or dark colours (`charts.html` draws them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """A curve of a chart."""

    name: str
    points: tuple[Point, ...]  # by rising x


@dataclass(frozen=True)
class Chart:
    """One or two curves over the same axes. `label`, and `columns` with `rows`, say the same in words."""

    label: str  # what the chart shows, in a sentence or two
    x_title: str
    y_title: str
    x_ticks: Sequence[tuple[float, str]]  # value and text, the first and the last at the ends of the axis
    y_ticks: Sequence[tuple[float, str]]
    lines: tuple[Line, ...]
    guides: tuple[tuple[Point, Point], ...]  # thin dotted lines, such as the diagonal
    columns: tuple[str, ...]  # of the table of the figures
    rows: tuple[tuple[str, ...], ...]

    # the plot within its picture of 400 x 260 units (ours: on a phone a unit is nearly a CSS pixel)
    left: ClassVar = 44.0
    right: ClassVar = 378.0
    top: ClassVar = 10.0
    bottom: ClassVar = 214.0

    def x(self, value: float) -> str:
        """Return where a value of the x axis lies in the picture."""
        return _between(value, self.x_ticks, self.left, self.right)

    def y(self, value: float) -> str:
        """Return where a value of the y axis lies in the picture."""
        return _between(value, self.y_ticks, self.bottom, self.top)

    def path(self, points: Sequence[Point]) -> str:
        """Return points as those of a `polyline`."""
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)


def _between(value: float, ticks: Sequence[tuple[float, str]], start: float, end: float) -> str:
    low, high = ticks[0][0], ticks[-1][0]
    return f"{start + (end - start) * (value - low) / (high - low):.1f}"
