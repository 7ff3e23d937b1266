"""Training iterations at the 1.3B shape by phase, in processes of their own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.gpu_check.context import Context
from tools.gpu_check.report import NotHere, Row, Step

STRATEGIES = ("local", "zero3")
ITERATIONS = 4


def run(context: Context, step: Step) -> None:
    """A row for each strategy, on one rank."""
    for strategy in STRATEGIES:
        # On a CPU DeepSpeed first compiles its operator, once on a machine: minutes on a busy one.
        expected_s = 105 if context.cuda else 90 if strategy == "zero3" else 30
        measure(context, step, strategy, strategy, expected_s)
    step.data["zero3_over_local"] = _ratio(step)


def measure(
    context: Context, step: Step, label: str, strategy: str, expected_s: float, *settings: str
) -> None:
    """Measures one row: the benchmark with a strategy and settings, as for its ``--set``."""

    def fill(row: Row) -> None:
        if strategy == "zero3" and importlib.util.find_spec("deepspeed") is None:
            raise NotHere("DeepSpeed is not installed")
        one_run(context, step, row, label, strategy, settings)

    step.row(label, expected_s, fill)


def command(
    shape: str, strategy: str, out: Path, budget_s: float, settings: Sequence[str] = ()
) -> list[str]:
    """The benchmark's command line."""
    small = ("train.micro_batch=2",) if shape == "sprites" else ()
    return [
        sys.executable,
        *("-m", "tools.benchmarks.bench_train"),
        *("--shape", "sprites" if shape == "sprites" else "1.3b"),
        *("--strategy", strategy, "--accumulation", "1"),
        *("--warmup", "1", "--iterations", str(ITERATIONS)),
        *("--budget", f"{budget_s:.0f}", "--out", str(out)),
        *(word for setting in (*small, *settings) for word in ("--set", setting)),
    ]


def one_run(
    context: Context, step: Step, row: Row, label: str, strategy: str, settings: Sequence[str]
) -> None:
    """Runs it; what it had written counts even if it then fails."""
    out = step.out / f"training_{label.replace(', ', '_')}.json"
    out.unlink(missing_ok=True)
    left = max(step.report.left() - 5, 1)
    words = command(context.shape, strategy, out, left, settings)
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=left)
        failure = _last_line(done.stderr) if done.returncode else ""
        sys.stderr.write(done.stderr[-20000:])
    except subprocess.TimeoutExpired:
        failure = f"stopped after {left:.0f} s"
    if out.is_file():
        report = json.loads(out.read_text(encoding="utf-8"))
        row["machine"] = report.get("machine", {})
        for result in report.get("methods", [])[:1]:
            row |= {"iteration_s" if key == "seconds" else key: result[key] for key in result}
    failure = row.get("failed", failure)
    if failure:
        raise RuntimeError(failure)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it failed and said nothing"


def _ratio(step: Step) -> Any:
    local, sharded = (step.rows.get(name, {}).get("iteration_s") for name in STRATEGIES)
    return sharded / local if local and sharded else None
