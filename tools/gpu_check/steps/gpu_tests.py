"""The tests that carry the mark ``gpu``, through pytest, in processes of their own."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from pathlib import Path

from tools.gpu_check.context import Context
from tools.gpu_check.report import NotHere, Row, Step
from tools.gpu_check.supervisor import ROOT

_STARTED = re.compile(r"^(tests/\S+::.+?)(?: (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b.*)?$")
SILENCE_S = {"cuda": 60.0, "cpu": 300.0}
"""A test that says nothing for so long is taken to hang; a CPU may have other work."""


def files() -> list[str]:
    """The files that have such tests: to collect all tests would take longer than to run these."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    marked = [path for path in found if "mark.gpu" in path.read_text(encoding="utf-8")]
    return [str(path.relative_to(ROOT)) for path in marked if path.name != "test_gpu_check.py"]


def run(context: Context, step: Step) -> None:
    """A row; another for the rest, as long as a test takes its process with it."""
    left_out: list[str] = []

    def measure(row: Row) -> None:
        if importlib.util.find_spec("pytest") is None:
            raise NotHere("pytest is not installed")
        run_tests(files(), left_out, step, row)

    for number in range(1, 6):
        label = "all" if number == 1 else f"the rest, {number}"
        row = step.row(label, 60 if context.cuda else 20, measure)
        if "broke_off" not in row or not row["tests"]:  # without one, the next would end alike
            break
        left_out += [*row["tests"]]


def run_tests(wanted: list[str], left_out: list[str], step: Step, row: Row) -> None:
    """Runs files without some of their tests.

    Args:
        wanted: Files.
        left_out: Tests that have run, or that broke an earlier process.
        step: Whose folder the log goes to.
        row: Gets the tests by outcome, and ``broke_off`` if not all of them were reached.

    Raises:
        RuntimeError: some failed; names them.
    """
    log = step.out / f"tests_{len(left_out)}.log"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short"]
    command += ["-p", "no:cacheprovider", *(f"--deselect={name}" for name in left_out), *wanted]
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        stopped = _wait(process, log, step)
    text = log.read_text(encoding="utf-8", errors="replace")
    row["tests"] = outcomes(text)
    found = list(row["tests"].values())
    row["counts"] = {outcome.lower(): found.count(outcome) for outcome in sorted(set(found))}
    row["said"] = ", ".join(f"{count} {outcome}" for outcome, count in row["counts"].items())
    bad = [name for name, each in row["tests"].items() if each in ("FAILED", "ERROR", "BROKE OFF")]
    if stopped or "BROKE OFF" in found:
        row["broke_off"] = stopped or f"pytest died with exit code {process.returncode}"
    if process.returncode not in (0, 5) or bad:
        names = ", ".join(name.partition("::")[2] for name in bad)
        reasons = [names, row.get("broke_off", ""), f"see {log.name}"]
        raise RuntimeError("; ".join(filter(None, reasons)))


def _wait(process: subprocess.Popen[bytes], log: Path, step: Step) -> str:
    """Waits while the log grows; why the process was stopped, or ""."""
    size, since = -1, time.monotonic()
    silence_s = SILENCE_S[step.report.data["device"]]
    while process.poll() is None:
        time.sleep(0.2)
        now = log.stat().st_size
        if now != size:
            size, since = now, time.monotonic()
        silent = time.monotonic() - since > silence_s
        if silent or step.report.left() < 2:
            process.kill()
            process.wait()
            return (
                f"stopped: nothing for {silence_s:g} s" if silent else "stopped: the budget ended"
            )
    return ""


def outcomes(text: str) -> dict[str, str]:
    """Each test's outcome, from pytest's verbose lines; ``BROKE OFF`` for one without an end."""
    matches = (
        _STARTED.match(line.rstrip()) for line in text.split("short test summary")[0].splitlines()
    )
    return {match[1].strip(): match[2] or "BROKE OFF" for match in matches if match}
