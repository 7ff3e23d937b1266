"""The demo's report: one self-contained page with the videos side by side, curves and the table."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightx2v_sgmd.job.schema import Job
from lightx2v_sgmd.outputs import write_text

WIDTH, HEIGHT, MARGIN = 420, 150, 34


@dataclass(frozen=True)
class Example:
    """One prompt's videos.

    Attributes:
        prompt: The caption.
        videos: mp4 files by row name (``teacher``, ``undistilled``, ``student``).
        right: True for each that is right on everything.
    """

    prompt: str
    videos: dict[str, Path]
    right: dict[str, bool]


@dataclass(frozen=True)
class Curve:
    """A line of a plot, ready for SVG.

    Attributes:
        title: The title.
        points: SVG coordinates of the raw values and of their running mean.
        smooth: The same for the mean over a twentieth of the run.
        ticks: ``(x or y, label)`` for the ends of the value axis.
        last_step: The step at the right end.
    """

    title: str
    points: str
    smooth: str
    ticks: tuple[tuple[float, str], ...]
    last_step: int


def write_report(
    path: Path,
    metrics: dict[str, Any],
    trace: Sequence[dict[str, Any]],
    examples: Sequence[Example],
    job: Job,
) -> Path:
    """Writes the page; it needs no network and no file beside it.

    Args:
        path: The html file.
        metrics: The content of ``metrics.json``.
        trace: The lines of ``metrics.jsonl``.
        examples: The examples to show.
        job: The job that was trained.
    """
    from jinja2 import Environment, select_autoescape

    template = files("lightx2v_sgmd").joinpath("assets/report.html.j2").read_text(encoding="utf-8")
    page = Environment(autoescape=select_autoescape(default=True)).from_string(template)
    shown = [
        {
            "prompt": example.prompt,
            "videos": {name: _data_uri(video) for name, video in example.videos.items()},
            "right": example.right,
        }
        for example in examples
    ]
    html = page.render(
        m=metrics, examples=shown, curves=_curves(trace), job=job, job_yaml=job.to_yaml()
    )
    write_text(path, html)
    return path


def _data_uri(video: Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(video.read_bytes()).decode("ascii")


def _curves(trace: Sequence[dict[str, Any]]) -> list[Curve]:
    """The loss terms and gradient norms of a run, as far as it has them."""
    if not trace:
        return []
    titles = {
        "fisher": "Fisher: distance from the fake score to the teacher",
        "nr": "NR: the student follows the fake score (negative by design)",
        "rc": "RC: the fake score follows the student",
    }
    series = {title: [_number(line.get(key)) for line in trace] for key, title in titles.items()}
    for role in ("student", "fake_score"):
        title = f"Gradient norm of the {role.replace('_', ' ')}, before clipping"
        series[title] = [_number(line.get("grad_norm", {}).get(role)) for line in trace]
    steps = [int(line["step"]) for line in trace]
    return [
        _curve(title, steps, values)
        for title, values in series.items()
        if any(math.isfinite(v) for v in values)
    ]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _curve(title: str, steps: Sequence[int], values: Sequence[float]) -> Curve:
    kept = [(s, v) for s, v in zip(steps, values, strict=True) if math.isfinite(v)]
    ordered = sorted(v for _, v in kept)
    # The scale leaves out the outermost hundredth, so that one spike does not flatten the rest.
    low = ordered[int(0.01 * (len(ordered) - 1))]
    high = ordered[int(0.99 * (len(ordered) - 1))]
    if high <= low:
        low, high = low - 0.5, high + 0.5
    window = max(1, len(kept) // 20)
    means = []
    for index in range(len(kept)):
        near = [v for _, v in kept[max(0, index - window + 1) : index + 1]]
        means.append((kept[index][0], sum(near) / len(near)))

    def svg(points: Sequence[tuple[int, float]]) -> str:
        last = max(1, steps[-1])
        return " ".join(
            f"{MARGIN + (WIDTH - MARGIN) * s / last:.1f},{_height(v, low, high):.1f}"
            for s, v in points
        )

    ticks = tuple((_height(v, low, high), f"{v:.3g}") for v in (low, high))
    return Curve(title, svg(kept), svg(means), ticks, steps[-1])


def _height(value: float, low: float, high: float) -> float:
    share = min(1.0, max(0.0, (value - low) / (high - low)))
    return 8 + (HEIGHT - 24) * (1 - share)
