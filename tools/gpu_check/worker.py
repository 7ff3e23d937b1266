"""Measures the steps of a report one after another, in a process that may die.

    python -m tools.gpu_check.worker OUT/gpu_check.json

The supervisor starts it. It exits with ``LOST`` when the GPU answers nothing more, which another
process can mend.
"""

from __future__ import annotations

import importlib
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tools.gpu_check.report import DeviceLost, Report, Step, free_memory, one_line, say
from tools.gpu_check.steps import STEPS

LOST = 75


def unfinished(report: Report) -> list[str]:
    """The steps that are still to be done or to be ended."""
    return [name for name in report.data["wanted"] if "status" not in report.steps.get(name, {})]


def run_steps(report: Report) -> int:
    """Runs what is not done; the process's exit code."""
    context: Any = None
    for name in unfinished(report):
        plan, left = STEPS[name], report.left()
        least = plan.least_s[report.data["shape"]]
        expected = min(plan.expected_s[report.data["shape"]], max(left, 1.0))
        step = Step(report, name, expected)
        if left < least and not step.rows:
            reason = f"{max(left, 0):.0f} s left, {least:g} s needed to begin"
            step.data |= {"status": "skipped", "reason": reason}
            report.save()
            say(f"{name}: skipped: {step.data['reason']}", report)
            continue
        report.running(name, None, expected)
        start = time.monotonic()
        try:
            if name != "machine":  # which also speaks where the libraries do not import
                context = context or make_context(report)
            importlib.import_module(f"tools.gpu_check.steps.{plan.module}").run(context, step)
            step.data["status"] = "done"
        except DeviceLost:
            report.idle()
            return LOST
        except Exception as error:  # a step fails alone
            traceback.print_exc(file=sys.stderr)
            step.data |= {"status": "failed", "error": one_line(error)}
        step.data["took_s"] = round(time.monotonic() - start, 2)
        free_memory()
        report.idle()
        say(f"{name}: {step.data['status']} after {step.data['took_s']:.1f} s", report)
    return 0


def make_context(report: Report) -> Any:
    """Imports the libraries; a machine where that fails fails here, in the step that needs them."""
    import torch

    from tools.gpu_check.context import Context

    device = torch.device(report.data["device"])
    height, width, frames = report.data["size"]
    limits = report.steps.get("limits", {}).get("ceilings", {})
    return Context(report.data["shape"], (height, width, frames), device, limits)


def main() -> int:
    """Runs it."""
    return run_steps(Report.read(Path(sys.argv[1])))


if __name__ == "__main__":
    sys.exit(main())
