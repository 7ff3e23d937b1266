"""The demo's report: one self-contained page with the videos side by side, curves and the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightx2v_sgmd.apps.pages import COLOURS, empty_figure, figure_uri, render_page, video_uri
from lightx2v_sgmd.job.schema import Job

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Example:
    """One prompt's videos.

    Attributes:
        prompt: The caption.
        videos: mp4 files by row name (``teacher``, ``undistilled``, ``student``).
        right: True for each video that is right on everything.
    """

    prompt: str
    videos: dict[str, Path]
    right: dict[str, bool]


def report_page(
    metrics: dict[str, Any],
    trace: Sequence[dict[str, Any]],
    examples: Sequence[Example],
    job: Job,
) -> str:
    """The page as text; it needs no network and no file beside it.

    Args:
        metrics: The content of ``metrics.json``.
        trace: The lines of ``metrics.jsonl``.
        examples: The examples to show.
        job: The job that was trained.
    """
    shown = [
        {
            "prompt": example.prompt,
            "videos": {name: video_uri(video) for name, video in example.videos.items()},
            "right": example.right,
        }
        for example in examples
    ]
    curves = [
        {"title": title, "image": figure_uri(_curve(*series))}
        for title, series in _series(trace).items()
    ]
    return render_page(
        "report.html.j2", m=metrics, examples=shown, curves=curves, job=job, job_yaml=job.to_yaml()
    )


def _series(trace: Sequence[dict[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of the loss terms and gradient norms that a run has, by title."""
    titles = {
        "fisher": "Fisher: distance from the fake score to the teacher",
        "nr": "NR: the student follows the fake score (negative by design)",
        "rc": "RC: the fake score follows the student",
    }
    values = {title: [_number(line.get(key)) for line in trace] for key, title in titles.items()}
    for role in ("student", "fake_score"):
        title = f"Gradient norm of the {role.replace('_', ' ')}, before clipping"
        values[title] = [_number(line.get("grad_norm", {}).get(role)) for line in trace]
    steps = [int(line["step"]) for line in trace]
    series = {}
    for title, numbers in values.items():
        finite = [(s, v) for s, v in zip(steps, numbers, strict=True) if math.isfinite(v)]
        if finite:
            series[title] = ([s for s, _ in finite], [v for _, v in finite])
    return series


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def running_mean(values: Sequence[float]) -> list[float]:
    """The mean of each value and those before it, over a twentieth of all values."""
    window = max(1, len(values) // 20)
    near = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return [sum(some) / len(some) for some in near]


def _curve(steps: Sequence[int], values: Sequence[float]) -> Figure:
    """Each iteration's value in a thin line, and the running mean in a thick one."""
    figure = empty_figure(4.3, 1.6)
    (axes,) = figure.axes
    axes.plot(steps, values, color="#b9c7e4", linewidth=0.6)
    axes.plot(steps, running_mean(values), color=COLOURS[0], linewidth=1.4)
    axes.set_xlabel("iteration")
    ordered = sorted(values)
    # The scale leaves out the outermost hundredth, so that one spike does not flatten the rest.
    low, high = (ordered[int(share * (len(ordered) - 1))] for share in (0.01, 0.99))
    if high > low:
        axes.set_ylim(low, high)
    return figure
