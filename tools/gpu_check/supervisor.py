"""Starts workers and watches them: what hangs or is killed costs its row, not the rest.

It imports no PyTorch, so nothing that breaks there breaks it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.gpu_check.report import FILE, FORMAT, MARK, Report, say
from tools.gpu_check.steps import SIZES
from tools.gpu_check.worker import LOST, unfinished
from tools.own_files import check_new, check_own

WRITTEN = ("gpu_check.log", "tests_*.log", "training_*.json", "stock_*.pt")
"""The files that a check writes and removes beside its report."""
POLL_S = 0.25
STOPPED = -int(signal.SIGALRM)
WORKER = "tools.gpu_check.worker"
ROOT = Path(__file__).resolve().parents[2]


def begin(
    out: Path,
    budget_s: float,
    shape: str,
    size: tuple[int, int, int] | None,
    wanted: list[str],
    start: float | None = None,
    rows: Sequence[str] = (),
) -> Report:
    """An empty report.

    Args:
        out: The folder of the report; an earlier report in it is replaced, and nothing else.
        budget_s: When everything stops.
        shape: A name of ``SIZES``.
        size: Height, width and frames; default the shape's.
        wanted: Names of steps, in the order in which they run.
        start: When the budget began, by ``time.monotonic``; default now.
        rows: Labels of the rows to measure; default all.

    Raises:
        SystemExit: the folder has files that no check wrote and that this one would replace.
    """
    check_own(out / FILE, MARK)
    if not (out / FILE).exists():
        for pattern in WRITTEN:
            for path in out.glob(pattern):
                check_new(path)
    start = time.monotonic() if start is None else start
    out.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {
        "format": FORMAT,
        "commit": _commit(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "command": " ".join([MARK, *sys.argv[1:]]),
        "shape": shape,
        "size": list(size or SIZES[shape]),
        "device": "cpu",
        "wanted": list(dict.fromkeys(wanted)),
        "rows": list(rows),
        "clock": {"start": start, "budget_s": budget_s},
        "elapsed_s": 0.0,
        "steps": {},
    }
    return Report(out / FILE, data)


def has_gpu() -> bool:
    """Asks another process: PyTorch is not imported here."""
    code = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 1)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def supervise(report: Report) -> Report:
    """Runs workers until all steps are done or the budget ends; what the file then says."""
    path = report.path
    report.save()
    with (path.parent / "gpu_check.log").open("ab") as log:
        while unfinished(report) and report.left() > 0:
            before = path.stat().st_mtime_ns
            code = _watch(_start(path, log), path)
            report = Report.read(path)
            if code != 0:
                _record_death(report, code)
            elif path.stat().st_mtime_ns == before:
                break  # a worker that does nothing twice would do nothing for ever
    for name in unfinished(report):
        step = report.steps.setdefault(name, {"rows": {}})
        step |= {"status": "skipped", "reason": "the budget ended"}
    report.idle()
    for file in path.parent.glob("stock_*.pt"):  # what rows were compared with; 100 MB
        file.unlink()
    return report


def _start(path: Path, log: Any) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    # The profiler's lines at every start and stop say nothing to a user.
    environment.setdefault("KINETO_LOG_LEVEL", "99")
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return subprocess.Popen(
        [sys.executable, "-m", WORKER, str(path)],
        env=environment,
        stderr=log,
        start_new_session=True,  # with what it starts, it is stopped as one
    )


def _watch(worker: subprocess.Popen[bytes], path: Path) -> int:
    """Waits for a worker, and stops it when its row or the budget is over; its exit code.

    A negative code is the signal that ended it; ``-SIGALRM`` stands for one that was stopped here.
    """
    try:
        while worker.poll() is None:
            time.sleep(POLL_S)
            report = Report.read(path)
            running = report.data.get("running")
            over = running and time.monotonic() - running["since"] > running["limit_s"]
            if report.left() < 0 or over:
                _stop(worker)
                return STOPPED
    finally:
        _stop(worker)
    return int(worker.returncode)


def _stop(worker: subprocess.Popen[bytes]) -> None:
    """Kills a worker and whatever it started."""
    try:
        os.killpg(worker.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    worker.wait()


def _record_death(report: Report, code: int) -> None:
    """Writes down what was being done when a worker ended; the next one goes on after it."""
    running = report.data.get("running")
    if code == LOST or not unfinished(report):
        report.idle()  # the row that lost the device has said why
        return
    name = running["step"] if running else unfinished(report)[0]
    label = running["row"] if running else None
    step = report.steps.setdefault(name, {"rows": {}})
    if code == STOPPED and report.left() < 0:
        reason = "stopped when the budget ended"
        left_out = {"skipped": reason} if label else {"status": "skipped", "reason": reason}
    else:
        reason = _why(code, report.grace_s)
        left_out = {"error": reason} if label else {"status": "failed", "error": reason}
    # Earlier measurements of a row stay.
    row = step["rows"].setdefault(label, {}) if label else step
    row |= left_out
    report.idle()
    say(f"{name}: {f'{label}: ' if label else ''}{reason}", report)


def _why(code: int, grace_s: float) -> str:
    if code == STOPPED:
        return f"stopped: it took three times as long as expected and {grace_s:g} s"
    if code == -signal.SIGKILL:
        return "the process was killed; the machine may be out of memory"
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}"
    return f"the process ended with exit code {code}; gpu_check.log has what it said"


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
