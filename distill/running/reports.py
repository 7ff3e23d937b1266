"""Reports of failed ranks, for the process that started them or for the user."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from lightx2v_sgmd.outputs import open_log
from lightx2v_sgmd.system.errors import UserError, escaped
from lightx2v_sgmd.untrusted.json_text import read_record

VARIABLE = "LIGHTX2V_SGMD_REPORT"
"""Environment variable with the file for the report of a rank that ``launch`` started."""


@dataclass(frozen=True)
class RankError:
    """The error of a failed rank, a line for each mistake, and its exit code."""

    lines: tuple[str, ...]
    code: int


def write_report(report: RankError) -> None:
    """Writes a report for the process that started this one."""
    text = json.dumps({"lines": report.lines, "code": report.code})
    Path(os.environ[VARIABLE]).write_text(text, encoding="utf-8")


def read_report(path: Path) -> RankError | None:
    """Reads a rank's report; None if it wrote none."""
    if not path.is_file():
        return None
    saved = read_record(path)
    return RankError(tuple(saved["lines"]), saved["code"])


def give_up(run: Path, rank: int, message: str, speak: bool) -> None:
    """Ends this process from a thread, because the main one is in a call that never returns.

    The stack of each thread is written to ``RUN/failed/stacks_rank_00000.txt``.
    """
    try:
        (run / "failed").mkdir(exist_ok=True)
        with open_log(run / "failed" / f"stacks_rank_{rank:05d}.txt") as file:
            faulthandler.dump_traceback(file.fileno())
    except (OSError, UserError):
        pass  # the message matters more
    if VARIABLE in os.environ:
        write_report(RankError((message,), 1))
    elif speak:
        print(f"error: {escaped(message)}", file=sys.stderr, flush=True)
    os._exit(1)
