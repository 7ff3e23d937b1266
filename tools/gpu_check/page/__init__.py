"""The page of GPU figures, from reports of a check; what is not in them is not measured yet."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tools.gpu_check.page import sections as sections
from tools.gpu_check.page.causes import cause
from tools.gpu_check.page.goals import GOAL_GPU, GOALS, figures, rows
from tools.gpu_check.page.published import BEST
from tools.gpu_check.page.sections import UNKNOWN, markdown_table, number
from tools.gpu_check.report import FORMAT

INTRODUCTION = """# GPU figures

`python -m tools.gpu_check --page REPORT.json` writes this page from what
`python -m tools.gpu_check` measured ([how to run it](../gpu.md)). Every figure stands beside the
ceilings that the same run measured. What no GPU has measured says so; no figure here comes from a
CPU.
"""


GOALS_NOTE = """What was mended after these runs, and what it should change, is in
[decision 026](../decisions/026-first-light.md); only another run can tell."""


class PageError(ValueError):
    """A report that no page can be made of; one line."""


def page_of(paths: list[Path]) -> str:
    """The page.

    Args:
        paths: Reports of the same GPU; steps of later ones replace those of earlier ones.

    Raises:
        PageError: one is no report, is a CPU's, or is another GPU's or shape's than the others.
    """
    data = merged([read_report(path) for path in paths], paths)
    parts = [INTRODUCTION, _about(data), _goals(data), *sections.all_of(data), _published(data)]
    parts.append(_missing(data))
    return "\n".join(part.strip() + "\n" for part in parts if part.strip())


def read_report(path: Path) -> dict[str, Any]:
    """One report's data."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PageError(f"--page: {path} cannot be read as a report: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT or "steps" not in data:
        raise PageError(f"--page: {path} is no report of this version; give a gpu_check.json")
    if data.get("device") != "cuda":
        raise PageError(
            f"--page: {path} is a rehearsal on a {data.get('device')}, and the page has a GPU's "
            "figures only; give the report of a run on a GPU"
        )
    return data


def merged(reports: list[dict[str, Any]], paths: list[Path]) -> dict[str, Any]:
    """One report with the steps of all; rows that were measured replace rows that were not."""
    if not reports:
        return {"steps": {}}
    whole = {**reports[0], "commits": [], "dates": []}
    steps: dict[str, Any] = {}
    for report, path in zip(reports, paths, strict=True):
        for key in ("shape", "size"):
            if report[key] != whole[key]:
                raise PageError(
                    f"--page: {path} is of {key} {report[key]}, {paths[0]} of {whole[key]}; give "
                    "reports of one shape"
                )
        names = {_gpu_name(whole), _gpu_name(report)} - {""}
        if len(names) > 1:
            both = " and ".join(sorted(names))
            raise PageError(
                f"--page: {path} and {paths[0]} are of different GPUs, {both}; give reports of one"
            )
        whole["commits"].append(report["commit"])
        whole["dates"].append(report["started"])
        for name, step in report["steps"].items():
            if name in steps and step.get("status") == "skipped":
                continue
            before = steps.get(name, {}).get("rows", {})
            after = step.get("rows", {})
            kept = {label: row for label, row in before.items() if "took_s" in row}
            newer = {
                label: _if_finite(row)
                for label, row in after.items()
                if "skipped" not in row or label not in kept
            }
            steps[name] = {**step, "rows": {**kept, **newer}}
    return {**whole, "steps": steps}


def _if_finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row; without its figures, which then say nothing, if its network gave no real numbers."""
    if row.get("difference_to_stock") not in ("nan", "inf"):
        return row
    error = f"the network gave numbers that are not finite, in {row['ms']:.0f} ms a forward"
    return {"error": error, "took_s": row["took_s"]}


def _gpu_name(data: dict[str, Any]) -> str:
    return str(rows(data, "machine").get("gpu", {}).get("name", ""))


def _about(data: dict[str, Any]) -> str:
    if not data["steps"]:
        return "**Not measured yet**: no GPU has run the check. Every table below waits for it."
    gpu, packages = rows(data, "machine").get("gpu", {}), rows(data, "machine").get("packages", {})
    versions = ", ".join(
        f"{name} {packages[name]}"
        for name in ("torch", "diffusers", "transformers", "deepspeed")
        if name in packages
    )
    height, width, frames = data["size"]
    dates, commits = _listed(data["dates"]), _listed(data["commits"])
    return (
        f"Measured {dates} at commit {commits} on one {gpu.get('name', 'GPU that is not named')} "
        f"({number(gpu.get('memory_total_gib'), 1)} GiB, CUDA {gpu.get('cuda', UNKNOWN)}, cuDNN "
        f"{gpu.get('cudnn', UNKNOWN)}); {versions}. Shape {data['shape']}, {height}x{width}, "
        f"{frames} frames, one video."
    )


def _goals(data: dict[str, Any]) -> str:
    found = figures(data)
    name = _gpu_name(data)
    lines = []
    for goal in GOALS:
        sign = "at most" if goal.at_most else "at least"
        value = found.get(goal.figure)
        if value is None:
            verdict = UNKNOWN
        elif name and GOAL_GPU not in name:
            verdict = f"set for an {GOAL_GPU}"
        else:
            verdict = "**met**" if goal.met(value) else "**not met**"
        shown = UNKNOWN if value is None else f"{value:.3g} {goal.unit}"
        why = cause(goal, data)
        lines.append([goal.what, f"{sign} {goal.limit:g} {goal.unit}", shown, verdict, why])
    table = markdown_table(["goal", "limit", "measured", "", "what the reports say of it"], lines)
    note = f"Every figure is of one {name}. {GOALS_NOTE}\n\n" if name else ""
    return f"## Goals on one {GOAL_GPU}\n\n{note}{table}"


def _published(data: dict[str, Any]) -> str:
    found = figures(data)
    lines = []
    for each in BEST:
        value = found.get(each.ours)
        unit = "times faster than bf16" if each.ours == "fp8_gain" else "s"
        ours = UNKNOWN if value is None else f"{value:.3g} {unit}"
        lines.append([each.what, each.machine, each.figure, ours, each.source])
    table = markdown_table(["what", "on", "published", "ours", "source"], lines)
    note = "Their authors' own figures, on other machines and versions; ours are this page's."
    return f"## Beside the best published figures\n\n{note}\n\n{table}"


def _missing(data: dict[str, Any]) -> str:
    if not data["steps"]:
        return ""
    from tools.gpu_check import summary
    from tools.gpu_check.report import Report

    report = Report(Path("report"), data)
    parts = ["## What failed, was left out or is missing"]
    for title, lines in (
        ("Failed", summary.failures(report)),
        ("Left out for lack of time", summary.left_out(report)),
        ("Not run", summary.steps_not_run(report)),
        ("Not on that machine", summary.missing(report)),
    ):
        listed = "\n".join(f"- {line}" for line in lines) or "- nothing"
        parts.append(f"{title}:\n\n{listed}")
    return "\n\n".join(parts)


def _listed(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))
