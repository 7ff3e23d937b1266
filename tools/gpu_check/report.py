"""The report of a check: one JSON file, whole at every moment, and the rows that fill it.

A supervisor and one worker at a time write it, never both at once: the supervisor writes only when
no worker runs. A row that is in the report is not measured again, so a worker that follows one
that died goes on with the next row.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightx2v_sgmd.outputs import write_text

FILE = "gpu_check.json"
FORMAT = 1
MARK = "python -m tools.gpu_check"
"""Text that every report and every page holds."""
GRACE_S = {"cuda": 30.0, "cpu": 300.0}
"""A row is stopped after three times its expected time and this; a CPU may have other work."""
Row = dict[str, Any]


class NotHere(Exception):
    """A row needs something that is not on this machine; the message says what."""


class DeviceLost(Exception):
    """The GPU answers nothing any more in this process; another process may still use it."""


class Report:
    """The results so far.

    Args:
        path: The JSON file.
        data: The content of the file.
    """

    def __init__(self, path: Path, data: dict[str, Any]) -> None:
        self.path, self.data = path, data

    @classmethod
    def read(cls, path: Path) -> Report:
        """Reads a report from its file."""
        return cls(path, json.loads(path.read_text(encoding="utf-8")))

    def save(self) -> None:
        """Replaces the file by a whole new one."""
        self.data["elapsed_s"] = round(time.monotonic() - self.data["clock"]["start"], 1)
        text = json.dumps(_plain(self.data), indent=1) + "\n"
        write_text(self.path, text)

    @property
    def steps(self) -> dict[str, Any]:
        """The steps' results by name."""
        steps: dict[str, Any] = self.data["steps"]
        return steps

    @property
    def grace_s(self) -> float:
        """Seconds that a row may take beside three times its expected time."""
        return GRACE_S[self.data["device"]]

    def left(self) -> float:
        """Seconds until the budget ends."""
        clock = self.data["clock"]
        return float(clock["start"] + clock["budget_s"] - time.monotonic())

    def running(self, step: str, row: str | None, expected_s: float) -> None:
        """Notes what is being done, and when it is taken to hang, for a supervisor that watches."""
        now, limit_s = time.monotonic(), 3 * expected_s + self.grace_s
        self.data["running"] = {"step": step, "row": row, "since": now, "limit_s": limit_s}
        self.save()

    def idle(self) -> None:
        """Notes that nothing is."""
        self.data.pop("running", None)
        self.save()


class Step:
    """One step of the check, as the code that measures sees it.

    Args:
        report: The report that its rows go to.
        name: The step's name.
        expected_s: Seconds that the step should take between rows.
    """

    def __init__(self, report: Report, name: str, expected_s: float = 60.0) -> None:
        self.report, self.name, self.expected_s = report, name, expected_s
        self.data: Row = report.steps.setdefault(name, {})
        self.rows: dict[str, Row] = self.data.setdefault("rows", {})

    @property
    def out(self) -> Path:
        """The folder of the report."""
        return self.report.path.parent

    def row(self, label: str, expected_s: float, measure: Callable[[Row], None]) -> Row:
        """Measures one row, unless it was measured, there is no time for it, or it cannot be.

        Args:
            label: The row's name in the report.
            expected_s: Seconds that it should take; it is stopped after a multiple of that.
            measure: Fills the row.

        Returns:
            The row: with ``took_s`` if it was measured, else with ``error``, ``skipped`` or
            ``unavailable``, which say why not; empty if nobody asked for it.
        """
        if label in self.rows:
            return self.rows[label]
        wanted = self.report.data.get("rows", [])
        if wanted and label not in wanted:
            return {}
        row = self.rows[label] = {}
        left = self.report.left()
        if left < expected_s:
            row["skipped"] = f"{max(left, 0):.0f} s left, {expected_s:.0f} s expected"
            self.report.save()
            return row
        self.report.running(self.name, label, expected_s)
        start = time.monotonic()
        try:
            measure(row)
        except NotHere as reason:
            row["unavailable"] = str(reason)
        except Exception as error:  # whatever it is, it costs this row only
            row["error"] = one_line(error)
            traceback.print_exc(file=sys.stderr)
        row["took_s"] = round(time.monotonic() - start, 2)
        free_memory()
        self.report.running(self.name, None, self.expected_s)
        say(f"{self.name}: {label}: {brief(row)}", self.report)
        if "error" in row and not device_answers():
            raise DeviceLost
        return row


def one_line(error: BaseException) -> str:
    """An error in a line of at most 300 characters."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:300]


def brief(row: Row) -> str:
    """A row in a line of the log."""
    for key in ("error", "skipped", "unavailable"):
        if key in row:
            return f"{key}: {row[key]}"
    shown = {}
    for name, value in row.items():
        if isinstance(value, float):
            shown[name] = f"{value:.4g}"
        elif isinstance(value, str | int):
            shown[name] = str(value)
    return ", ".join(f"{name} {value}" for name, value in shown.items())[:400]


def say(line: str, report: Report) -> None:
    """A line of progress with the seconds since the start."""
    elapsed = time.monotonic() - report.data["clock"]["start"]
    print(f"[{elapsed:6.1f} s] {line}", flush=True)


def free_memory() -> None:
    """Gives back what the last row held, so that the next one's peak is its own."""
    torch = sys.modules.get("torch")
    if "torch._dynamo" in sys.modules and torch is not None:
        torch._dynamo.reset()  # compiled code may hold weights
    gc.collect()
    if torch is not None and torch.cuda.is_available():
        try:
            torch.cuda.empty_cache()
        except RuntimeError:
            pass  # a device that is lost shows in the next row


def device_answers() -> bool:
    """True if the GPU still computes in this process, if there is one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        return bool((torch.ones(2, device="cuda") + 1).sum().item() == 4)
    except RuntimeError:
        return False


def _plain(value: Any) -> Any:
    """JSON has no infinities: they become words."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)
