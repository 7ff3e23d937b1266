"""Curves of quality against compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightx2v_sgmd.apps.comparison.columns import Column
from lightx2v_sgmd.apps.pages import COLOURS, SOFT, empty_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNITS = {"forwards": "forward equivalents of one sample", "seconds": "CPU seconds"}
"""Label of the horizontal axis by the unit of compute."""


def plot_title(column: Column) -> str:
    """The title of a column's plot, with the direction that is better."""
    direction = {"up": " (higher is better)", "down": " (lower is better)", "": ""}[column.better]
    return f"{column.title}{direction}"


def plot(results: dict[str, Any], column: Column, unit: str, log: bool = False) -> Figure | None:
    """A column against compute, for every trained row; None if there is nothing to draw.

    A line is a row's mean over seeds, its shade the standard deviation. Dashed lines are the
    teacher and its undistilled steps.

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
    means = [point[column.key]["mean"] for points in rows.values() for point in points]
    if log:
        levels = {label: value for label, value in levels.items() if value > 0}
        means = [mean for mean in means if mean > 0]
    if not means:
        return None
    from matplotlib.ticker import FormatStrFormatter, LogLocator

    figure = empty_figure(4.7, 2.5)
    (axes,) = figure.axes
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.minorticks_off()
    axes.grid(axis="y", color="#e6e9ef", linewidth=0.6)
    axes.set_xlabel(UNITS[unit])
    for index, (label, points) in enumerate(rows.items()):
        _plot_row(axes, label, COLOURS[index % len(COLOURS)], points, column.key, unit)
    for label, value in levels.items():
        axes.axhline(value, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)), label=f"_{label}")
        axes.annotate(
            label,
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color=SOFT,
        )
    return figure


def _plot_row(
    axes: Axes, label: str, colour: str, points: list[dict[str, Any]], key: str, unit: str
) -> None:
    compute = [point[unit] for point in points]
    means = [point[key]["mean"] for point in points]
    axes.plot(compute, means, "o-", color=colour, linewidth=1.3, markersize=2.5, label=label)
    spreads = [point[key]["std"] for point in points]
    if None not in spreads:
        lower = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
        upper = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
        axes.fill_between(compute, lower, upper, color=colour, alpha=0.12, linewidth=0)
