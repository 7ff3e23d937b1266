"""Curves of quality against compute, as coordinates for SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from lightx2v_sgmd.apps.comparison.columns import Column

WIDTH: Final = 470
HEIGHT: Final = 250
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34
COLOURS: Final = (
    "#2f6fed",
    "#d9480f",
    "#11845b",
    "#8a3ffc",
    "#c2255c",
    "#0b7285",
    "#946200",
    "#5b6474",
)


@dataclass(frozen=True)
class Line:
    """A row's curve.

    Attributes:
        label: The row.
        colour: Colour of the line.
        points: SVG coordinates of the means.
        band: SVG coordinates of the area within the spread; empty for one seed.
        dots: The means one by one.
    """

    label: str
    colour: str
    points: str
    band: str
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Plot:
    """A plot.

    Attributes:
        title: The title.
        lines: The trained rows.
        levels: ``(y, label)`` of the teacher and of the undistilled steps.
        x_ticks, y_ticks: ``(coordinate, label)``.
        x_label: Label of the horizontal axis.
    """

    title: str
    lines: tuple[Line, ...]
    levels: tuple[tuple[float, str], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_label: str


def plot(results: dict[str, Any], column: Column, unit: str, log: bool = False) -> Plot | None:
    """A column against compute, for every trained row; None if there is nothing to draw.

    Args:
        results: The results of ``build_results``.
        column: The column that is drawn.
        unit: ``forwards`` or ``seconds``.
        log: True if the vertical axis is logarithmic.
    """
    rows = {
        label: [point for point in row["curve"] if column.key in point]
        for label, row in results["rows"].items()
        if row.get("curve") and "method" in row
    }
    levels = {
        label: row["curve"][0][column.key]["mean"]
        for label, row in results["rows"].items()
        if "method" not in row and column.key in row["curve"][0]
    }
    if log:
        levels = {label: value for label, value in levels.items() if value > 0}
    values = [v for points in rows.values() for p in points for v in _extent(p[column.key], log)]
    if not values:
        return None
    height = _Axis([*values, *levels.values()], HEIGHT - BOTTOM, TOP, log)
    across = _Axis(
        [0.0, *(p[unit] for points in rows.values() for p in points)], LEFT, WIDTH - RIGHT
    )
    lines = tuple(
        _line(label, COLOURS[index % len(COLOURS)], points, column.key, unit, across, height)
        for index, (label, points) in enumerate(rows.items())
    )
    shown = tuple((height(value), label) for label, value in levels.items())
    what = {"forwards": "forward equivalents of one sample", "seconds": "CPU seconds"}[unit]
    direction = {"up": " (higher is better)", "down": " (lower is better)", "": ""}[column.better]
    title = f"{column.title}{direction}"
    return Plot(title, lines, shown, across.ticks(), height.ticks(), what)


def _extent(value: dict[str, Any], log: bool) -> tuple[float, ...]:
    """The range of a point: its mean and spread."""
    mean, spread = value["mean"], value["std"] or 0.0
    ends = (mean - spread, mean, mean + spread)
    return tuple(end for end in ends if end > 0) if log else ends


class _Axis:
    """Values to coordinates, over all of ``values`` with a little room."""

    def __init__(
        self, values: Sequence[float], start: float, end: float, log: bool = False
    ) -> None:
        self.start, self.end, self.log = start, end, log
        numbers = [math.log10(max(v, 1e-9)) if log else v for v in values]
        low, high = min(numbers), max(numbers)
        if high - low < 1e-9:
            low, high = low - 0.5, high + 0.5
        self.low, self.high = low, high

    def __call__(self, value: float) -> float:
        number = math.log10(max(value, 1e-9)) if self.log else value
        share = (number - self.low) / (self.high - self.low)
        return round(self.start + (self.end - self.start) * min(1.0, max(0.0, share)), 1)

    def ticks(self) -> tuple[tuple[float, str], ...]:
        """Round values along the axis."""
        if self.log:
            span = range(math.floor(self.low), math.ceil(self.high) + 1)
            values = [m * 10.0**e for e in span for m in (1, 2, 5)]
        else:
            step = 10 ** math.floor(math.log10((self.high - self.low) / 2))
            step *= next(m for m in (5, 2, 1) if (self.high - self.low) / (m * step) >= 2)
            first = math.ceil(self.low / step)
            values = [step * (first + i) for i in range(int((self.high - self.low) / step) + 2)]
        inside = [
            v for v in values if self.low <= (math.log10(v) if self.log else v) <= self.high + 1e-12
        ]
        return tuple((self(value), f"{value:.6g}") for value in inside)


def _line(
    label: str,
    colour: str,
    points: Sequence[dict[str, Any]],
    key: str,
    unit: str,
    across: _Axis,
    height: _Axis,
) -> Line:
    dots = tuple((across(p[unit]), height(p[key]["mean"])) for p in points)
    band = ""
    if all(p[key]["std"] is not None for p in points):
        upper = [(across(p[unit]), height(p[key]["mean"] + p[key]["std"])) for p in points]
        lower = [(across(p[unit]), height(p[key]["mean"] - p[key]["std"])) for p in points]
        band = _coordinates([*upper, *reversed(lower)])
    return Line(label, colour, _coordinates(dots), band, dots)


def _coordinates(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
