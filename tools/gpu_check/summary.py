"""The end of a check on the terminal: what was found, what failed, what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tools.gpu_check.report import MARK, Report, Row
from tools.gpu_check.steps import STEPS


def failures(report: Report) -> list[str]:
    """A line for each step and row that failed."""
    found = [f"{where}: {row['error']}" for where, row in _all(report) if "error" in row]
    return found + [
        f"{name}: {label}: this step has no such row on this machine or at this shape"
        for name, label in _never_asked(report)
    ]


def left_out(report: Report) -> list[str]:
    """A line for each step and row that there was no time for."""
    found = []
    for where, row in _all(report):
        if row.get("status") == "skipped":
            found.append(f"{where}: {row['reason']}")
        elif "skipped" in row:
            found.append(f"{where}: {row['skipped']}")
    return found


def steps_to_repeat(report: Report) -> list[str]:
    """The steps that there was no time for, as a whole or for one of their rows."""
    return list(dict.fromkeys(line.partition(":")[0] for line in left_out(report)))


def steps_not_run(report: Report) -> list[str]:
    """A line for each step that the report does not have."""
    run = {*report.steps}
    if "engine, tiled" in _rows(report, "vae"):  # earlier checks measured it there
        run.add("decodes")
    return [f"{name}: {step.title}" for name, step in STEPS.items() if name not in run]


def missing(report: Report) -> list[str]:
    """A line for each kernel, package or tool that is not here, or is broken."""
    doctor = _rows(report, "machine").get("doctor", {})
    found = [
        f"{check['name']}: {check['detail']}"
        for check in doctor.get("checks", [])
        if check["state"] in ("missing", "broken")
    ]
    for where, row in _all(report):
        if "unavailable" in row and f"attention {where.partition(': ')[2]}" not in " ".join(found):
            found.append(f"{where}: {row['unavailable']}")
    return found


def table(report: Report) -> str:
    """All of it."""
    lines = ["", f"{'step':<10} {'state':<8} {'seconds':>8}  what was found"]
    for name, step in report.steps.items():
        state, seconds = step.get("status", "unknown"), step.get("took_s", 0.0)
        if state == "done" and any("error" in row for row in step.get("rows", {}).values()):
            state = "failed"
        lines.append(f"{name:<10} {state:<8} {seconds:>8.1f}  {_found(name, step)}")
    for title, listed in (
        ("failed", failures(report)),
        ("left out for lack of time", left_out(report)),
        ("not on this machine", missing(report)),
    ):
        lines += ["", f"{title}: {'nothing' if not listed else ''}".rstrip()]
        lines += [f"  {line}" for line in listed]
    if steps := steps_to_repeat(report):
        shape = report.data["shape"]
        again = f"{MARK} --out ANOTHER_DIR --shape {shape} --steps {' '.join(steps)}"
        lines += ["", f"to measure what was left out: {again}"]
    lines += ["", f"report: {report.path}"]
    return "\n".join(lines)


def _rows(report: Report, step: str) -> dict[str, Row]:
    rows: dict[str, Row] = report.steps.get(step, {}).get("rows", {})
    return rows


def _never_asked(report: Report) -> Iterator[tuple[str, str]]:
    """A step and a row of ``--rows`` that it left out without a reason, for each such row."""
    for label in report.data.get("rows", []):
        having = {name: step for name, step in report.steps.items() if label in STEPS[name].rows}
        ended = all(step.get("status") == "done" for step in having.values())
        if ended and not any(label in step["rows"] for step in having.values()):
            yield from ((name, label) for name in having)


def _all(report: Report) -> Iterator[tuple[str, Row]]:
    for name, step in report.steps.items():
        yield name, step
        for label, row in step.get("rows", {}).items():
            yield f"{name}: {label}", row


def _found(name: str, step: dict[str, Any]) -> str:
    rows = step.get("rows", {})
    short = _SHORT.get(name)
    words = [short(label, row) for label, row in rows.items()] if short else []
    return "; ".join(word for word in words if word)[:400] or STEPS[name].title


def _one(key: str, unit: str, digits: int = 1) -> Callable[[str, Row], str]:
    def say(label: str, row: Row) -> str:
        return f"{label} {row[key]:.{digits}f} {unit}" if key in row else ""

    return say


_SHORT: dict[str, Callable[[str, Row], str]] = {
    "limits": _one("tflops", "TFLOP/s"),
    "attention": _one("tflops", "TFLOP/s"),
    "bundled": _one("latents_max_difference", "off", 5),
    "forward": _one("ms", "ms"),
    "kernels": _one("ms", "ms"),
    "vae": _one("s", "s", 3),
    "decodes": _one("s", "s", 3),
    "video": _one("s", "s", 2),
    "training": _one("iteration_s", "s an iteration", 2),
    "selective": _one("iteration_s", "s an iteration", 2),
    "tests": lambda label, row: row.get("said", ""),
}
