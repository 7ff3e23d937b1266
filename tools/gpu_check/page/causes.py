"""Causes that a report itself gives: why a goal was missed, or why its figure is not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tools.gpu_check.page.goals import Goal, figures, rows
from tools.gpu_check.page.sections import least_ms, network_blocks

Data = dict[str, Any]


def cause(goal: Goal, data: Data) -> str:
    """The cause in words, "" if the report says nothing of it.

    Args:
        goal: The goal.
        data: A report, or several merged ones.
    """
    value = figures(data).get(goal.figure)
    if value is None:
        reason = _why_missing(goal, data)
        expected = _EXPECTED.get(goal.figure)
        return "; ".join(filter(None, [reason, expected(data) if expected else ""]))
    explain = _MISSED.get(goal.figure)
    if goal.met(value):
        explain = _MET.get(goal.figure)
    return explain(data) if explain else ""


def _why_missing(goal: Goal, data: Data) -> str:
    step, label = goal.row
    found = data["steps"].get(step)
    if found is None:
        return f"the step {step} did not run" if data["steps"] else ""
    row = found.get("rows", {}).get(label, {})
    for key, words in (("error", "failed"), ("unavailable", "not on that machine")):
        if key in row:
            return f"{words}: {row[key]}"
    if "skipped" in row:
        return f"no time: {row['skipped']}"
    if found.get("status") == "skipped":
        return f"no time: {found['reason']}"
    return f"failed: {found['error']}" if "error" in found else ""


def _forward(data: Data) -> str:
    """The parts of the engine's forward, and what the fastest exact kernel would change."""
    row = rows(data, "forward")["engine, as it comes"]
    spent, least = row.get("kernels_ms"), least_ms(data, False)
    if spent is None or len(least) < 2:
        return ""
    parts = (
        ("attention", "attention"),
        ("products", "product"),
        ("the passes between them", "elementwise"),
        ("idle time", "idle"),
    )
    said = ", ".join(f"{name} {spent.get(part, 0) / 1e3:.2f} s" for name, part in parts)
    said += f"; products and attention alone at this page's best rates: {_least_s(data):.2f} s"
    kernels = {
        name: each["self"]["ms"]
        for name, each in rows(data, "attention").items()
        if "self" in each and "approximate" not in each["kernel"]
    }
    used, fastest = row["attention"], min(kernels, key=lambda name: kernels[name])
    if used not in kernels or used == fastest:
        return said
    blocks = network_blocks(data)
    saved = kernels[used] - kernels[fastest]
    return (
        f"{said}. Attention ran by {used}; {fastest} is {saved:.1f} ms a call faster in the table "
        f"below, {blocks * saved / 1e3:.2f} s in {blocks} blocks"
    )


def _ratio(stock: str) -> Callable[[Data], str]:
    """The largest ratio to a row of stock diffusers that the card leaves room for."""

    def said(data: Data) -> str:
        least, theirs = _least_s(data), rows(data, "forward")[stock]["ms"] / 1e3
        if least is None:
            return ""
        return (
            f"products and attention alone take {least:.2f} s at this page's best rates, which is "
            f"{theirs / least:.2f} times faster than {stock}: no exact forward in bf16 can be "
            "faster at these rates"
        )

    return said


def _least_s(data: Data) -> float | None:
    least = least_ms(data, False)
    return sum(least.values()) / 1e3 if len(least) == 2 else None


def _video(data: Data) -> str:
    """Arithmetic of the rows that were measured."""
    forward = rows(data, "forward").get("engine, as it comes", {}).get("ms")
    decode = rows(data, "vae").get("engine, as it comes", {}).get("s")
    if forward is None or decode is None:
        return ""
    whole = 4 * forward / 1e3 + decode
    return f"four forwards and the decode of the tables below add up to {whole:.1f} s"


def _mfu(data: Data) -> str:
    """The share without what is computed twice."""
    useful = rows(data, "training")["local"].get("mfu_useful")
    if useful is None:
        return ""
    return (
        f"operations that gradient checkpointing computes twice are counted twice; counted once, "
        f"the share is {useful:.1%}"
    )


_EXPECTED: dict[str, Callable[[Data], str]] = {"video_s": _video}
"""The words of other rows on a figure that is not there, by figure."""
_MISSED: dict[str, Callable[[Data], str]] = {
    "forward_s": _forward,
    "over_stock_compiled": _ratio("stock, compiled"),
    "over_stock_eager": _ratio("stock, eager"),
    "mfu_percent": _mfu,
}
_MET: dict[str, Callable[[Data], str]] = {"mfu_percent": _mfu}
"""The words that a reader must know of a figure that reaches its goal, by figure."""
