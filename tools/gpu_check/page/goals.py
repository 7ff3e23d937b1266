"""The figures that count, taken out of a report, and the goals they are held to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

GOAL_GPU = "H100"
"""The goals are set for one of these."""


@dataclass(frozen=True)
class Goal:
    """The value that a figure should reach.

    Attributes:
        what: In words.
        figure: A key of ``figures``.
        unit: Behind the figure.
        limit: In the same unit.
        row: The step and the row of a report that the figure comes from.
        at_most: True if the figure should be below the limit, not above.
    """

    what: str
    figure: str
    unit: str
    limit: float
    row: tuple[str, str]
    at_most: bool = True

    def met(self, value: float) -> bool:
        """True if a figure reaches it."""
        return value <= self.limit if self.at_most else value >= self.limit


_ENGINE = "engine, as it comes"

GOALS = (
    Goal(
        "14B forward at 32,760 tokens, bf16, exact attention",
        "forward_s",
        "s",
        2.6,
        ("forward", _ENGINE),
    ),
    Goal(
        "14B forward at 32,760 tokens, fp8 weights and activations",
        "fp8_s",
        "s",
        2.2,
        ("forward", "engine, fp8"),
    ),
    Goal("whole 14B video of four steps, with the decode", "video_s", "s", 13, ("video", _ENGINE)),
    Goal(
        "faster than stock diffusers compiled",
        "over_stock_compiled",
        "times",
        1.3,
        ("forward", "stock, compiled"),
        at_most=False,
    ),
    Goal(
        "faster than stock diffusers eager",
        "over_stock_eager",
        "times",
        1.5,
        ("forward", "stock, eager"),
        at_most=False,
    ),
    Goal(
        "training MFU over the iteration, 1.3B shape, local",
        "mfu_percent",
        "%",
        45,
        ("training", "local"),
        at_most=False,
    ),
    Goal(
        "ZeRO-3 on one rank beside local, time of an iteration",
        "zero3_over_local",
        "times",
        1.1,
        ("training", "zero3"),
    ),
    Goal(
        "inference memory: farthest stage from its plan",
        "inference_memory_percent",
        "%",
        10,
        ("video", _ENGINE),
    ),
    Goal(
        "training memory: farthest strategy from its plan",
        "training_memory_percent",
        "%",
        10,
        ("training", "local"),
    ),
    Goal(
        "largest error of an exact attention kernel, bf16",
        "kernel_error",
        "of its output",
        2e-2,
        ("attention", "sdpa"),
    ),
)


def rows(data: dict[str, Any], step: str) -> dict[str, Any]:
    """The rows of a step in a report's data; {} if it has none."""
    found: dict[str, Any] = data.get("steps", {}).get(step, {}).get("rows", {})
    return found


def figures(data: dict[str, Any]) -> dict[str, float]:
    """Every figure of a report that is there, by name."""
    found: dict[str, float] = {}
    for name, figure in _FIGURES.items():
        try:
            value = figure(data)
        except (KeyError, ZeroDivisionError, ValueError, TypeError):
            continue  # a row that is not there, or failed before it had this
        if value is not None:
            found[name] = float(value)
    return found


def _engine_ms(data: dict[str, Any]) -> float:
    return float(rows(data, "forward")["engine, as it comes"]["ms"])


def _of_14b(figure: Callable[[dict[str, Any]], float]) -> Callable[[dict[str, Any]], float | None]:
    """The figure if it is the 14B shape's at full size."""

    def only(data: dict[str, Any]) -> float | None:
        full = data.get("shape") == "14b" and data.get("size") == [480, 832, 81]
        return figure(data) if full else None

    return only


def _video(data: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = rows(data, "video")["engine, as it comes"]
    return found


def _kernel_error(data: dict[str, Any]) -> float:
    return max(
        row["relative_error"]
        for row in rows(data, "attention").values()
        if "relative_error" in row and "approximate" not in row["kernel"]
    )


def _farthest(ratios: list[float]) -> float:
    return 100 * max(abs(ratio - 1) for ratio in ratios)


_FIGURES: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "forward_s": _of_14b(lambda d: _engine_ms(d) / 1e3),
    "fp8_s": _of_14b(lambda d: rows(d, "forward")["engine, fp8"]["ms"] / 1e3),
    "fp8_gain": _of_14b(lambda d: _engine_ms(d) / rows(d, "forward")["engine, fp8"]["ms"]),
    "video_s": _of_14b(lambda d: _video(d)["second"]["total"]),
    "denoise_s": _of_14b(lambda d: _video(d)["second"]["denoise"]),
    "over_stock_compiled": _of_14b(
        lambda d: rows(d, "forward")["stock, compiled"]["ms"] / _engine_ms(d)
    ),
    "over_stock_eager": _of_14b(lambda d: rows(d, "forward")["stock, eager"]["ms"] / _engine_ms(d)),
    "mfu_percent": lambda d: 100 * rows(d, "training")["local"]["mfu"],
    "zero3_over_local": lambda d: (
        rows(d, "training")["zero3"]["iteration_s"] / rows(d, "training")["local"]["iteration_s"]
    ),
    "inference_memory_percent": lambda d: _farthest(list(_video(d)["memory_ratio"].values())),
    "training_memory_percent": lambda d: _farthest(
        [
            row["memory_to_plan"]
            for step in ("training", "selective")
            for row in rows(d, step).values()
            if "memory_to_plan" in row
        ]
    ),
    "kernel_error": _kernel_error,
}
