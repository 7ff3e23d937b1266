"""The tests that carry the mark ``gpu``, through pytest, in a process of its own."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from tools.gpu_check.context import Context
from tools.gpu_check.report import NotHere, Row, Step
from tools.gpu_check.supervisor import ROOT

_RESULT = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b")


def files() -> list[str]:
    """The files that have such tests: to collect all tests would take longer than to run these."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    marked = [path for path in found if "mark.gpu" in path.read_text(encoding="utf-8")]
    return [str(path.relative_to(ROOT)) for path in marked]


def run(context: Context, step: Step) -> None:
    """One row for each file, so that one that hangs costs itself."""
    for file in files():

        def measure(row: Row, file: str = file) -> None:
            if importlib.util.find_spec("pytest") is None:
                raise NotHere("pytest is not installed")
            one_file(file, step, row)

        step.row(file, 30 if context.cuda else 5, measure)


def one_file(file: str, step: Step, row: Row) -> None:
    """Runs one file's; a row has the tests by outcome."""
    log = step.out / f"{Path(file).stem}.log"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "gpu",
        "-v",
        "--tb=short",
        "-p",
        "no:cacheprovider",
    ]
    left = max(step.report.left() - 2, 1)
    try:
        with log.open("w", encoding="utf-8") as output:
            code = subprocess.run(
                [*command, file], cwd=ROOT, stdout=output, stderr=output, timeout=left
            ).returncode
        stopped = ""
    except subprocess.TimeoutExpired:
        code, stopped = 1, f"stopped after {left:.0f} s"
    text = log.read_text(encoding="utf-8", errors="replace")
    row["tests"] = outcomes(text)
    found = list(row["tests"].values())
    row["counts"] = {outcome.lower(): found.count(outcome) for outcome in sorted(set(found))}
    row["said"] = ", ".join(f"{count} {outcome}" for outcome, count in row["counts"].items())
    if stopped:
        raise RuntimeError(stopped)
    bad = [name for name, each in row["tests"].items() if each in ("FAILED", "ERROR")]
    if code not in (0, 5) or bad:
        names = ", ".join(name.split("::", 1)[1] for name in bad) or f"pytest ended with {code}"
        raise RuntimeError(f"{names}; see {log.name}")


def outcomes(text: str) -> dict[str, str]:
    """Each test's outcome, from pytest's verbose lines."""
    matches = (_RESULT.match(line) for line in text.splitlines())
    return {match[1]: match[2] for match in matches if match}
