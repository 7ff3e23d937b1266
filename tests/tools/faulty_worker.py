"""A worker of the GPU check whose steps fail in every way that a step may."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import types
from functools import partial
from pathlib import Path
from typing import Any

from tools.gpu_check import report, worker
from tools.gpu_check.report import DeviceLost, NotHere, Row, Step
from tools.gpu_check.steps import STEPS, StepPlan

report.GRACE_S = {"cpu": 5.0}


def raises(row: Row) -> None:
    row["half"] = 1
    raise RuntimeError("CUDA error:\n an illegal memory access")


def is_killed(row: Row) -> None:
    row["half"] = 1
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(out: Path, row: Row) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(900)"])
    (out / "child").write_text(str(child.pid))
    time.sleep(900)


def is_not_here(row: Row) -> None:
    raise NotHere("torchao is not installed")


def rows(context: Any, step: Step) -> None:
    step.row("works", 0.1, lambda row: row.update(value=float("inf")))
    step.row("raises", 0.1, raises)
    step.row("is killed", 0.1, is_killed)
    step.row("hangs", 1, partial(hangs, step.out))
    step.row("is not here", 0.1, is_not_here)
    step.row("too long", 1e6, raises)
    step.row("works after all", 0.1, lambda row: row.update(value=2))


def breaks(context: Any, step: Step) -> None:
    raise KeyError("a step's own mistake")


def loses_the_device(context: Any, step: Step) -> None:
    if "lost" not in step.rows:
        step.rows["lost"] = {"error": "CUDA error", "took_s": 0.0}
        raise DeviceLost
    step.row("in a new process", 0.1, lambda row: row.update(value=3))


def sleeps(context: Any, step: Step) -> None:
    step.row("sleeps", 0.1, lambda row: time.sleep(0.1))


def overruns(context: Any, step: Step) -> None:
    step.row("overruns", 9.0, lambda row: time.sleep(900))


FAULTY = {"rows": rows, "breaks": breaks, "device": loses_the_device, "last": sleeps}
"""The steps that run unless others are named."""
ALL = {**FAULTY, "overruns": overruns}


def install() -> None:
    """Puts these steps in the place of the real ones, in this process."""
    STEPS.clear()
    for name, run in ALL.items():
        module: Any = types.ModuleType(f"tools.gpu_check.steps.{name}")
        module.run = run
        sys.modules[module.__name__] = module
        shapes = dict.fromkeys(("14b", "1.3b", "sprites"), 0.1)
        STEPS[name] = StepPlan(name, name, name, shapes, shapes)


if __name__ == "__main__":
    install()
    worker.make_context = lambda report: object()
    sys.exit(worker.main())
