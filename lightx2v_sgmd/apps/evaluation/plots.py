"""The plots of an evaluation's report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lightx2v_sgmd.apps.evaluation.options import METRICS
from lightx2v_sgmd.apps.pages import COLOURS, LINE, SOFT, empty_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE_COLOURS = {"weights": COLOURS[0], "against": COLOURS[1]}


def motion_histogram(results: dict[str, Any], names: dict[str, str]) -> Figure:
    """A histogram of motion of both sides; dashed lines separate slow and fast videos.

    Args:
        results: The content of ``metrics.json``.
        names: Names of the sides, for readers.
    """
    flows = {side: [video[side]["optflow"] for video in results["videos"]] for side in names}
    most = max(max(values) for values in flows.values()) or 1.0
    bins = np.linspace(0, most * 1.0001, min(20, max(5, len(results["videos"]) // 3)) + 1)
    figure = empty_figure(4.7, 2.5)
    (axes,) = figure.axes
    for side, values in flows.items():
        shares = np.histogram(values, bins)[0] / len(values)
        axes.stairs(shares, bins, fill=True, color=SIDE_COLOURS[side], alpha=0.18)
        axes.stairs(shares, bins, color=SIDE_COLOURS[side], linewidth=1.4, label=names[side])
    if motion := results.get("motion"):
        for key in ("slow_below", "fast_above"):
            axes.axvline(motion[key], color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_xlabel("OptFlow, pixels per frame")
    axes.set_ylabel("share of videos", size=7, color=SOFT)
    axes.legend(fontsize=7, frameon=False)
    return figure


def difference_plot(results: dict[str, Any]) -> Figure | None:
    """The differences from the reference, in its standard deviations, with their intervals.

    Args:
        results: The content of ``metrics.json``, with a reference.
    """
    rows = []
    for name, difference in results["differences"].items():
        if not (key := METRICS[name].key):
            continue
        spread = float(np.std([video["against"][key] for video in results["videos"]]))
        if spread > 0 and difference["low"] is not None:
            ends = [difference[end] / spread for end in ("low", "mean", "high")]
            rows.append((METRICS[name].title, *ends))
    if not rows:
        return None
    figure = empty_figure(4.7, 0.6 + 0.24 * len(rows))
    (axes,) = figure.axes
    axes.axvline(0, color=LINE, linewidth=1)
    for place, (_, low, mean, high) in enumerate(reversed(rows)):
        clear = low > 0 or high < 0
        colour = COLOURS[1] if clear else SOFT
        axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
        axes.plot([mean], [place], "o", color=colour, markersize=4)
    axes.set_yticks(range(len(rows)), [row[0] for row in reversed(rows)])
    axes.set_xlabel("difference, in standard deviations of the reference's videos")
    axes.margins(y=0.08)
    return figure


def motion_pairs(results: dict[str, Any], names: dict[str, str]) -> Figure:
    """Each video's OptFlow against that of the reference's video of the same prompt and seed.

    Args:
        results: The content of ``metrics.json``, with a reference.
        names: Names of the sides, for readers.
    """
    first, second = (
        [video[side]["optflow"] for video in results["videos"]] for side in ("against", "weights")
    )
    figure = empty_figure(4.7, 2.5)
    (axes,) = figure.axes
    most = max(*first, *second, 1e-6)
    axes.plot([0, most], [0, most], color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.plot(first, second, "o", color=COLOURS[0], markersize=3, alpha=0.55, markeredgewidth=0)
    axes.set_xlabel(f"OptFlow of {names['against']}")
    axes.set_ylabel(f"OptFlow of {names['weights']}", size=7, color=SOFT)
    return figure
